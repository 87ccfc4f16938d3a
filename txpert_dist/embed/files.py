"""Embeddings that were computed elsewhere: from a file into the store, cell by cell.

Enters: a store and a file that names cells. Leaves: the store with the embedding, and an ``Added``.
Invariants: cells are matched by name, never by position; every cell of the store gets exactly one row, or
nothing is changed; memory is bounded, for the rows are put in order in a file.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.embed.commit import commit, require_place
from txpert_dist.embed.tables import NamedRows, Table, open_table
from txpert_dist.errors import InputError
from txpert_dist.ingest.claim import claimed
from txpert_dist.ingest.embeddings import finite_rows
from txpert_dist.ingest.statistics import Progress
from txpert_dist.store import manifest
from txpert_dist.store.cells import cell_names

_BLOCK_VALUES = 2_000_000


class Added(NamedTuple):
    """What became of a file."""

    name: str
    width: int
    num_cells: int
    extra_cells: int
    """Rows of the file whose cell the store does not have: left out."""
    manifest_before: str
    manifest_after: str


def add_file(
    path: Path, file: Path, *, name: str, key: str | None, overwrite: bool, progress: Progress
) -> Added:
    """Add the embedding in ``file`` to the store ``path`` under ``name``; see ``tables`` for the formats.

    ``key`` is the obsm key of an h5ad file, ``name`` when left out. ``progress`` is called with (what, done,
    total) in cells. Raises ``InputError`` for a file that cannot be used or does not give every cell of the
    store one row of finite numbers, and ``StoreError`` for a damaged store.
    """
    if key is None and file.suffix.lower() == ".h5ad":
        key = name
    with claimed(path) as claim:
        require_place(claim.store, name, overwrite=overwrite)
        table = open_table(file, key, claim.scratch / "cells")
        cells = _unique_names(path)
        value_RN = _on_disk(claim.scratch / "rows", (len(cells), table.width))
        extra = _match(table, cells, value_RN, file, progress)
        origin = {"made": "elsewhere", "file": file.name, "sha256": manifest.file_sha256(file)}
        origin |= {"key": key} if key else {}
        after = commit(claim, name, table.width, _blocks(value_RN, name, progress), origin=origin)
    return Added(name, table.width, len(cells), extra, claim.store.manifest_hash, after)


def _unique_names(path: Path) -> pd.Index:
    cells = pd.Index(cell_names(path))
    again = cells.duplicated()
    if again.any():
        name = str(cells[again][0])
        raise InputError(
            f"{path}: {again.sum():,} cells have another cell's name, for instance {name!r}, so a file "
            "cannot say which is which; make the names unique (anndata: obs_names_make_unique) and ingest "
            "again, or keep the embedding in the h5ad and ingest with --embedding"
        )
    return cells


def _on_disk(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """An array in a new file; ``OSError`` when there is no space for it."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1])
    return np.memmap(path, np.float32, "r+", shape=shape)


def _match(table: Table, cells: pd.Index, out_RN: NDArray[np.float32], file: Path, progress: Progress) -> int:
    """Put every row of ``table`` at its cell's place; returns the number of rows whose cell is unknown."""
    seen = np.zeros(len(cells), bool)
    extra = 0
    example: str | None = None
    for block in table.blocks:
        if example is None and len(block.names):
            example = str(block.names[0])
        row = cells.get_indexer(pd.Index(block.names))
        known = np.flatnonzero(row >= 0)
        extra += len(row) - len(known)
        _refuse_repeated(block, row, known, seen, file)
        out_RN[row[known]] = finite_rows(str(file), block.names[known], block.value_RN[known])
        seen[row[known]] = True
        progress("match cells", int(seen.sum()), len(cells))
    if not seen.all():
        raise InputError(_missing(table, cells, seen, file, example))
    return extra


def _refuse_repeated(
    block: NamedRows, row: NDArray[Any], known: NDArray[Any], seen: NDArray[np.bool_], file: Path
) -> None:
    again = seen[row[known]] | pd.Index(row[known]).duplicated()
    if again.any():
        name = str(block.names[known[np.argmax(again)]])
        raise InputError(f"{file}: cell {name!r} is there twice; keep one row of each cell")


def _missing(table: Table, cells: pd.Index, seen: NDArray[np.bool_], file: Path, example: str | None) -> str:
    missing = f"{(~seen).sum():,} of the store's {len(cells):,} cells are not in it, the first is "
    missing += repr(str(cells[int(np.argmin(seen))]))
    if table.header is not None and table.header in cells:
        return f"{file}: its first line is a cell's; put a line of column names before it"
    if not seen.any():
        return (
            f"{file}: {missing}, while the file begins with {example!r}; name the cells as in the store "
            "(anndata.read_zarr(...).obs_names)"
        )
    return f"{file}: {missing}; give every cell of the store a row"


def _blocks(value_RN: NDArray[np.float32], name: str, progress: Progress) -> Iterator[NDArray[np.float32]]:
    step = max(1, _BLOCK_VALUES // value_RN.shape[1])
    for start in range(0, len(value_RN), step):
        yield value_RN[start : start + step]
        progress(f"write {name}", min(start + step, len(value_RN)), len(value_RN))
