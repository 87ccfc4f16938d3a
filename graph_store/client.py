"""The way the trainer and people reach graphs: a location and an id in, a verified snapshot out.

Enters: a folder that ``txpert graph build`` wrote to, or the address of a running ``txpert graph serve``, and
an id. Leaves: a ``Snapshot``, or the local folder that holds it. Invariants: an id given by a user is checked
to be an id before it becomes part of a path; both kinds of location lead to the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from graph_store import remote, snapshot
from graph_store.config import load
from graph_store.embeddings import store
from graph_store.embeddings.embedding import Embedding
from graph_store.explain import read_yaml
from graph_store.graph import GraphError, KnowledgeGraph, Snapshot, Supra
from graph_store.protocol import Built, Listed, ListedEmbedding, listed, listed_embedding
from graph_store.record import FILE_NAME, ID, Record, read_record, snapshot_ids
from graph_store.supra import supra_adjacency


class Access(NamedTuple):
    """How to reach a service; a local folder needs none of it."""

    token: str | None = None
    tls_roots: bytes | None = None
    """PEM of the authorities that may have signed the service's certificate; the system's when None."""
    cache: Path | None = None
    """Folder for fetched snapshots, shared by the processes of a node; needed for a remote location."""
    patience_s: float = 60.0
    """How long to go on trying while the service is away."""

    def __repr__(self) -> str:
        """Without the token, which must not get into logs."""
        return f"Access(cache={self.cache}, patience_s={self.patience_s})"


LOCAL = Access()
"""Of a folder, or of a service without token and cache."""


def is_remote(location: str) -> bool:
    """Whether ``location`` is the address of a service: ``grpc://HOST:PORT`` or ``grpc+tls://HOST:PORT``."""
    return location.startswith(remote.SCHEMES)


def snapshot_folder(location: str, snapshot_id: str | None = None, access: Access = LOCAL) -> Path:
    """The local folder of the snapshot; a remote one is fetched into ``access.cache`` and verified first.

    The id may be left out when there is exactly one. Raises ``GraphError`` listing the ids otherwise, and
    when a service cannot be reached or its copy is damaged.
    """
    if not is_remote(location):
        return _folder(location, snapshot_id)
    _check_id(snapshot_id)
    if access.cache is None:
        raise GraphError(f"{location}: is a service; name a folder to keep the snapshots fetched from it")
    return remote.fetch(_service(location, access), snapshot_id, access.cache)


def open_snapshot(location: str, snapshot_id: str | None = None, access: Access = LOCAL) -> Snapshot:
    """The snapshot ``snapshot_id`` at ``location``, all hashes verified.

    The id may be left out when there is exactly one. Raises ``GraphError`` listing the ids otherwise, and
    naming the file when one is damaged.
    """
    return snapshot.read(snapshot_folder(location, snapshot_id, access))


def describe(location: str, snapshot_id: str | None = None, access: Access = LOCAL) -> Record:
    """What the snapshot was built from and how; its arrays are not read."""
    if not is_remote(location):
        return read_record(_folder(location, snapshot_id))
    _check_id(snapshot_id)
    return remote.describe(_service(location, access), snapshot_id)


def list_snapshots(location: str, access: Access = LOCAL) -> tuple[Listed, ...]:
    """The snapshots at ``location``, by id; a damaged record in a folder is an error."""
    if is_remote(location):
        return remote.list_snapshots(_service(location, access))
    folder = Path(location)
    if not folder.is_dir():
        raise GraphError(f"{location}: no such folder; give the one that `txpert graph build` wrote to")
    return tuple(
        listed(read_record(folder / name), (folder / name / FILE_NAME).stat().st_mtime)
        for name in snapshot_ids(folder)
    )


def build_remotely(
    location: str,
    recipe: Path,
    progress: Callable[[str, int, int], None],
    access: Access = LOCAL,
) -> Built:
    """Let the service at ``location`` build the recipe in a file; its paths are the service's, not ours.

    Raises ``GraphError`` for a recipe that is none, before the service is asked, and for what it refuses.
    """
    load(recipe)
    tree, _ = read_yaml(recipe)
    return remote.build(_service(location, access), tree, progress)


def put_embedding(location: str, embedding: Embedding, access: Access = LOCAL) -> str:
    """Keep the embedding under its version, once and for all; the SHA-256 of its content.

    Raises ``GraphError`` when the version is there with another content.
    """
    if is_remote(location):
        return remote.put_embedding(_service(location, access), embedding)
    return store.put_embedding(Path(location), embedding)


def get_embedding(location: str, version: str, access: Access = LOCAL) -> Embedding:
    """A version's vectors; their hash is checked where they lie."""
    if is_remote(location):
        return remote.get_embedding(_service(location, access), version)
    return store.get_embedding(Path(location), version)


def list_embeddings(location: str, access: Access = LOCAL) -> tuple[ListedEmbedding, ...]:
    """The versions of embeddings at ``location``, by name."""
    if is_remote(location):
        return remote.list_embeddings(_service(location, access))
    return tuple(listed_embedding(info) for info in store.list_embeddings(Path(location)))


def _service(location: str, access: Access) -> remote.Service:
    return remote.Service(location, access.token, access.tls_roots, access.patience_s)


def _check_id(snapshot_id: str | None) -> None:
    if snapshot_id is not None and not ID.fullmatch(snapshot_id):
        raise GraphError(f"{snapshot_id!r} is no snapshot id; an id has 32 digits 0-9 a-f")


def _folder(location: str, snapshot_id: str | None) -> Path:
    folder = Path(location)
    _check_id(snapshot_id)
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


def supra(graphs: Sequence[KnowledgeGraph], num_nodes: int) -> Supra:
    """Some graphs over ``num_nodes`` nodes as layers of one, by the rule that snapshots follow."""
    return supra_adjacency(graphs, num_nodes)
