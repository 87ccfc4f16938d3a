"""One copy of a run's controls for all workers of a node.

Enters: a folder that the workers share, and what the table is made of. Leaves: a ``ControlTable`` whose
arrays are files mapped into memory, so that the system holds their pages once a node. Invariants: a table's
folder is named by its content, complete or absent, and checked by CRC-32C whenever it is mapped; one worker
builds it while the others wait, and a damaged one is built again from the store.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from txpert_dist.config import ControlMatching
from txpert_dist.errors import InputError
from txpert_dist.loader.pairing import ControlTable, control_table
from txpert_dist.minibatch import SparseRows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.shards import crc32c

PREFIX = "controls-"
_FORMAT = 1
_RECORD = "table.json"


def shared_control_table(
    store: CellStore,
    matching: ControlMatching,
    genes: NDArray[np.int64],
    embedding: str | None = None,
    *,
    folder: Path,
) -> ControlTable:
    """``control_table``, once a node: control cells to draw from lie in ``folder`` (a means' table is small).

    Raises what ``control_table`` raises, and ``InputError`` when ``folder`` cannot be written.
    """
    if matching in ("mean", "matched_mean"):
        return control_table(store, matching, genes, embedding)
    recipe = [_FORMAT, store.manifest_hash, matching, embedding, hashlib.sha256(genes.tobytes()).hexdigest()]
    home = folder / f"{PREFIX}{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{PREFIX}lock"):
            table = _mapped(home)
            if table is None:
                _write(home, control_table(store, matching, genes, embedding))
                table = _mapped(home)
    except OSError as error:
        raise InputError(
            f"{home}: cannot be written ({error.strerror or error}); free space, or check its permissions"
        ) from None
    if table is None:
        raise InputError(
            f"{home}: is not read back as it was written; check the disk, or choose another output"
        )
    return table


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in this context; where files cannot be locked, each builds a table of its own."""
    with path.open("a") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _arrays(table: ControlTable) -> dict[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic]] = {
        "group_of_context": table.group_of_context,
        "indptr": table.indptr,
        "members": table.members,
    }
    if table.dense_RN is not None:
        arrays["dense"] = table.dense_RN
    if table.cells is not None:
        arrays |= {f"cells.{field}": array for field, array in table.cells._asdict().items()}
    return arrays


def _write(home: Path, table: ControlTable) -> None:
    for abandoned in home.parent.glob(f".{PREFIX}*.partial"):
        shutil.rmtree(abandoned, ignore_errors=True)
    partial = home.with_name(f".{home.name}.{os.getpid()}.partial")
    partial.mkdir()
    checksum = {}
    for name, array in _arrays(table).items():
        np.save(partial / f"{name}.npy", array, allow_pickle=False)
        checksum[name] = _checksum(np.ascontiguousarray(array))
    record = {"input_scale": table.input_scale, "checksum": checksum}
    (partial / _RECORD).write_text(json.dumps(record), encoding="utf-8")
    if home.exists():  # damaged; whoever has it mapped keeps its pages
        shutil.rmtree(home)
    with contextlib.suppress(FileExistsError):
        partial.rename(home)


def _mapped(home: Path) -> ControlTable | None:
    """The table in ``home``, or None where it is not complete and as it was written."""
    try:
        record = json.loads((home / _RECORD).read_text(encoding="utf-8"))
        found = {}
        for name, expected in record["checksum"].items():
            # "c": pages are shared until somebody writes to them, which nobody does
            found[name] = np.load(home / f"{name}.npy", mmap_mode="c", allow_pickle=False).view(np.ndarray)
            if _checksum(found[name]) != expected:
                return None
        fields = [f"cells.{field}" for field in SparseRows._fields]
        cells = SparseRows(*(found[field] for field in fields)) if fields[0] in found else None
        return ControlTable(
            record["input_scale"],
            found["group_of_context"],
            found.get("dense"),
            cells,
            found["indptr"],
            found["members"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError, EOFError):
        return None


def _checksum(array: NDArray[np.generic]) -> list[object]:
    return [array.dtype.str, list(array.shape), crc32c(array.reshape(-1).view(np.uint8))]
