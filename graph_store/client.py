"""The way the trainer reaches graphs: a location and an id in, a verified snapshot out.

Enters: the folder that ``txpert graph build`` wrote to, and an id. Leaves: a ``Snapshot``. Invariant: an id
given by a user is checked to be an id before it becomes part of a path.
"""

from pathlib import Path

from graph_store import snapshot
from graph_store.graph import GraphError, Snapshot
from graph_store.record import FILE_NAME, ID, Record, read_record, snapshot_ids


def open_snapshot(location: str, snapshot_id: str | None = None) -> Snapshot:
    """The snapshot ``snapshot_id`` in the folder ``location``, all hashes verified.

    The id may be left out when there is exactly one. Raises ``GraphError`` listing the ids otherwise, and
    naming the file when one is damaged.
    """
    return snapshot.read(_folder(location, snapshot_id))


def describe(location: str, snapshot_id: str | None = None) -> Record:
    """What the snapshot was built from and how; its arrays are not read."""
    return read_record(_folder(location, snapshot_id))


def _folder(location: str, snapshot_id: str | None) -> Path:
    folder = Path(location)
    if snapshot_id is not None and not ID.fullmatch(snapshot_id):
        raise GraphError(f"{snapshot_id!r} is no snapshot id; an id has 32 digits 0-9 a-f")
    if not folder.is_dir():
        raise GraphError(f"{location}: no such folder; give the one that `txpert graph build` wrote to")
    if (folder / FILE_NAME).exists():
        raise GraphError(
            f"{location}: is itself a snapshot; give the folder above it, and the id {folder.name}"
        )
    present = snapshot_ids(folder)
    if not present:
        raise GraphError(f"{location}: holds no snapshot; build one with `txpert graph build`")
    if snapshot_id is None and len(present) > 1:
        raise GraphError(f"{location}: holds several snapshots; give one of {', '.join(present)}")
    chosen = snapshot_id or present[0]
    if chosen not in present:
        raise GraphError(f"{location}: has no snapshot {chosen}; it has {', '.join(present)}")
    return folder / chosen
