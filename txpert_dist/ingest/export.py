"""A cell store as one h5ad file, for every tool that does not read Zarr.

Enters: a store's path. Leaves: an h5ad with the same X, obs, var, obsm and uns, and with columns in obs that
say how each cell was read. Invariants: values and order are the store's; a block of cells and a column of obs
are in memory at a time, whatever the store's size; the file appears complete or not at all.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.publish import partial_folder
from txpert_dist.ingest.statistics import Progress
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.splits import CONTROL, SPLITS
from txpert_dist.store.tables import Element, elements

Compression = Literal["none", "gzip"]

PERTURBATION, CELL_LINE, BATCH, SPLIT = (
    "txpert_perturbation",
    "txpert_cell_line",
    "txpert_batch",
    "txpert_split",
)
"""obs columns that the file has besides the store's: canonical names, and the split (or ``control``)."""

_BLOCK_ENTRIES = 4_000_000
_BLOCK_CELLS = 1 << 16
_BLOCK_VALUES = 1 << 22
"""Values of an embedding that are held at once."""
_ENTRIES_PER_CHUNK = 1 << 17
_TEXT = h5py.string_dtype("utf-8")


class Exported(NamedTuple):
    """What was written."""

    path: Path
    num_cells: int
    num_genes: int
    num_entries: int
    size: int
    """Bytes of the file."""
    replaced: tuple[str, ...]
    """obs columns of the store that ours took the place of."""


def export(
    store: Path, out: Path, *, compression: Compression, overwrite: bool, progress: Progress
) -> Exported:
    """Write the store at ``store`` to the h5ad file ``out``.

    ``progress`` is called with (what, done, total) in cells. Raises ``InputError`` for an ``out`` that cannot
    be written or, without ``overwrite``, is there, and ``StoreError`` for a damaged store.
    """
    cells = open_store(store)
    _check(out, overwrite=overwrite)
    try:
        with partial_folder(out) as folder:
            file = folder / "screen.h5ad"
            replaced = _write(cells, file, compression, progress)
            size = file.stat().st_size
            if overwrite:
                os.replace(file, out)
            else:
                os.link(file, out)  # unlike a rename, this fails when something appeared there
    except FileExistsError:
        raise InputError(f"{out}: appeared while it was written; give --overwrite") from None
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free space, or choose another path"
        ) from error
    num_entries = int(cells.matrix.indptr[-1])
    return Exported(out, cells.num_cells, len(cells.genes), num_entries, size, replaced)


def _check(out: Path, *, overwrite: bool) -> None:
    if out.suffix != ".h5ad":
        raise InputError(f"{out}: exports are h5ad files; give a path that ends in .h5ad")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the path of a file")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; choose another path, or give --overwrite")


def _write(cells: CellStore, path: Path, compression: Compression, progress: Progress) -> tuple[str, ...]:
    with h5py.File(path, "w") as file:
        _encode(file, "anndata", "0.1.0")
        _write_matrix(cells, file, compression, progress)
        replaced = _write_obs(cells, file)
        for name in ("var", "uns"):
            for element in elements(cells.path, name):
                _write_element(file, element)
        _encode(file.create_group("obsm"), "dict", "0.1.0")
        for name, width in cells.embeddings.items():
            _write_embedding(cells, name, width, file["obsm"], progress)
        for name in ("layers", "varm", "obsp", "varp"):
            _encode(file.create_group(name), "dict", "0.1.0")
    return replaced


def _write_matrix(cells: CellStore, file: Any, compression: Compression, progress: Progress) -> None:
    group = _encode(file.create_group("X"), "csr_matrix", "0.1.0")
    group.attrs["shape"] = np.array([cells.num_cells, len(cells.genes)], np.int64)
    indptr = cells.matrix.indptr
    _encode(group.create_dataset("indptr", data=indptr, track_times=False), "array", "0.2.0")
    types = {"data": cells.matrix.value.form.dtype, "indices": np.dtype(np.int32)}
    arrays = {name: _empty(group, name, int(indptr[-1]), dtype, compression) for name, dtype in types.items()}
    for start, stop in _blocks(indptr):
        block = cells.read(start, stop)
        own = slice(indptr[start], indptr[stop])
        arrays["data"][own], arrays["indices"][own] = block.value, block.gene
        progress("export cells", stop, cells.num_cells)


def _blocks(indptr: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    start, num_cells = 0, len(indptr) - 1
    while start < num_cells:
        stop = int(np.searchsorted(indptr, indptr[start] + _BLOCK_ENTRIES, side="right")) - 1
        stop = min(max(stop, start + 1), num_cells, start + _BLOCK_CELLS)
        yield start, stop
        start = stop


def _empty(group: Any, name: str, length: int, dtype: np.dtype[Any], compression: Compression) -> Any:
    chunks = (max(1, min(_ENTRIES_PER_CHUNK, length)),)
    packed = {} if compression == "none" else {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    array = group.create_dataset(name, (length,), dtype, chunks=chunks, track_times=False, **packed)
    return _encode(array, "array", "0.2.0")


def _write_obs(cells: CellStore, file: Any) -> tuple[str, ...]:
    """obs column by column, and ours; returns which of the store's columns ours replace."""
    ours = _our_columns(cells)
    replaced = []
    for element in elements(cells.path, "obs"):
        column = element.name.partition("/")[2]
        if column in ours:
            replaced.append(column)
        else:
            _write_element(file, element)
    for column, value in ours.items():
        write_elem(file["obs"], column, value)
    kept = [name for name in file["obs"].attrs["column-order"].tolist() if name not in ours]
    file["obs"].attrs.create("column-order", np.array([*kept, *ours], object), dtype=_TEXT)
    return tuple(replaced)


def _our_columns(cells: CellStore) -> dict[str, pd.Categorical]:
    split = np.where(cells.perturbation == 0, len(SPLITS), cells.split[cells.perturbation])
    lines = pd.Categorical([context.cell_line for context in cells.contexts])
    batches = pd.Categorical([context.batch for context in cells.contexts])
    return {
        PERTURBATION: pd.Categorical.from_codes(cells.perturbation, pd.Index(cells.perturbations)),
        CELL_LINE: pd.Categorical.from_codes(lines.codes[cells.context], lines.categories),
        BATCH: pd.Categorical.from_codes(batches.codes[cells.context], batches.categories),
        SPLIT: pd.Categorical.from_codes(split, pd.Index([*SPLITS, CONTROL])),
    }


def _write_element(file: Any, element: Element) -> None:
    if element.value is not None:
        parent, _, name = element.name.rpartition("/")
        write_elem(file[parent] if parent else file, name, element.value)
        return
    group = file.create_group(element.name)
    for key, value in element.attributes.items():
        if isinstance(value, list):  # the order of a table's columns, of which there may be none
            group.attrs.create(key, np.array(value, object), dtype=_TEXT)
        else:
            group.attrs[key] = value


def _write_embedding(cells: CellStore, name: str, width: int, group: Any, progress: Progress) -> None:
    rows = max(1, _BLOCK_VALUES // width)
    shape, chunks = (cells.num_cells, width), (min(rows, cells.num_cells), width)
    array = _encode(
        group.create_dataset(name, shape, np.float32, chunks=chunks, track_times=False), "array", "0.2.0"
    )
    for start in range(0, cells.num_cells, rows):
        stop = min(start + rows, cells.num_cells)
        array[start:stop] = cells.take_embedding(name, np.arange(start, stop, dtype=np.int64))
        progress(f"export {name}", stop, cells.num_cells)


def _encode(node: Any, kind: str, version: str) -> Any:
    node.attrs["encoding-type"] = kind
    node.attrs["encoding-version"] = version
    return node
