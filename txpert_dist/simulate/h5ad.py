"""An AnnData file written block by block.

Enters: labels and counts of consecutive cells. Leaves: an h5ad that ``anndata.read_h5ad`` opens: CSR counts
in X, labels in obs, gene symbols in var. Invariants: memory does not grow with the number of cells; the same
blocks give the same bytes (no time stamps).
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

ENTRIES_PER_CHUNK = 1 << 17
CELLS_PER_CHUNK = 1 << 14
Compression = Literal["none", "gzip"]
TEXT = h5py.string_dtype("utf-8")
CACHE_BYTES = 16 << 20
"""A chunk that is being filled stays decompressed in memory until it is full."""


class Column(NamedTuple):
    """A categorical column of obs."""

    name: str
    categories: Sequence[str]


class H5adWriter:
    """Appends blocks of cells; use as a context manager."""

    def __init__(
        self, path: Path, genes: Sequence[str], columns: Sequence[Column], *, compression: Compression
    ) -> None:
        self._file = h5py.File(path, "w", rdcc_nbytes=CACHE_BYTES)
        self._num_genes, self._cells, self._entries = len(genes), 0, 0
        _encode(self._file, "anndata", "0.1.0")
        self._x = self._group("X", "csr_matrix", "0.1.0")
        # The arrays stay open: closing one empties its chunk cache, and half a chunk is compressed again.
        self._data = _growing(self._x, "data", np.float32, ENTRIES_PER_CHUNK, compression)
        self._indices = _growing(self._x, "indices", np.int32, ENTRIES_PER_CHUNK, compression)
        self._indptr = _growing(self._x, "indptr", np.int64, CELLS_PER_CHUNK)
        _append(self._indptr, np.zeros(1, np.int64))
        _texts(self._frame("var", ()), "_index", genes)
        obs = self._frame("obs", [column.name for column in columns])
        self._names = _growing(obs, "_index", TEXT, CELLS_PER_CHUNK)
        self._codes = [self._categorical(obs, column) for column in columns]
        for name in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            self._group(name, "dict", "0.1.0")

    def __enter__(self) -> "H5adWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._x.attrs["shape"] = np.array([self._cells, self._num_genes], np.int64)
        self._file.close()

    def append(self, counts_BG: NDArray[np.uint16], codes: Sequence[NDArray[np.int64]]) -> int:
        """Add cells with one code array a column; returns how many non-zero counts they have."""
        flat = counts_BG.ravel()
        place = np.flatnonzero(flat != 0)
        first = np.arange(len(counts_BG)) * self._num_genes
        end = np.append(np.searchsorted(place, first[1:]), len(place))
        gene = place - np.repeat(first, np.diff(end, prepend=0))
        _append(self._data, flat[place].astype(np.float32))
        _append(self._indices, gene.astype(np.int32))
        _append(self._indptr, self._entries + end)
        cells = range(self._cells, self._cells + len(counts_BG))
        _append(self._names, np.array([f"cell_{cell:09d}" for cell in cells], object))
        for dataset, code in zip(self._codes, codes, strict=True):
            _append(dataset, code.astype(np.int32))
        self._cells += len(counts_BG)
        self._entries += len(place)
        return len(place)

    def _group(self, name: str, kind: str, version: str) -> h5py.Group:
        return _encode(self._file.create_group(name), kind, version)

    def _frame(self, name: str, columns: Sequence[str]) -> h5py.Group:
        group = self._group(name, "dataframe", "0.2.0")
        group.attrs["_index"] = "_index"
        group.attrs.create("column-order", np.array(list(columns), object), dtype=TEXT)
        return group

    def _categorical(self, obs: h5py.Group, column: Column) -> h5py.Dataset:
        group = _encode(obs.create_group(column.name), "categorical", "0.2.0")
        group.attrs["ordered"] = False
        _texts(group, "categories", column.categories)
        return _growing(group, "codes", np.int32, CELLS_PER_CHUNK)


def _growing(
    group: h5py.Group, name: str, dtype: object, chunk: int, compression: Compression = "none"
) -> h5py.Dataset:
    packed = {} if compression == "none" else {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    dataset = group.create_dataset(
        name, (0,), dtype, maxshape=(None,), chunks=(chunk,), track_times=False, **packed
    )
    return _encode(dataset, "string-array" if dtype is TEXT else "array", "0.2.0")


def _texts(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    data = np.array(values, object)
    _encode(group.create_dataset(name, data=data, dtype=TEXT, track_times=False), "string-array", "0.2.0")


def _append(dataset: h5py.Dataset, values: NDArray[np.generic]) -> None:
    old = dataset.shape[0]
    dataset.resize((old + len(values),))
    dataset[old:] = values


def _encode(node: h5py.HLObject, kind: str, version: str) -> h5py.HLObject:
    node.attrs["encoding-type"] = kind
    node.attrs["encoding-version"] = version
    return node
