"""Reads an expression matrix by blocks of cells, whatever its layout in the file.

Enters: a ``Source``. Leaves: sparse row blocks in file order, canonical (genes ascending, no repeats, no
stored zeros). Invariants: memory is bounded by the block size for every layout; a matrix stored by gene (CSC)
or as text is first re-bucketed by cell into temporary files; where blocks begin depends on the file and the
block size only, so that any process reads the same block by its rows.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.containers import opened, rows_read_together
from txpert_dist.ingest.source import Source
from txpert_dist.ingest.tenx import ENTRY, num_entries, read_entries
from txpert_dist.store.cells import open_matrix
from txpert_dist.store.reads import arranged, fetch, room_for

BLOCK_ENTRIES = 4_000_000
"""Matrix entries held at once: about 32 MB as read, ten times that while they are worked on."""
_COMPLETE = "complete"
_BY_GENE = ("csc", "mtx")
"""Encodings that are re-bucketed by cell before they are read."""


class Block(NamedTuple):
    """Consecutive cells of one file."""

    start: int
    """Row of the first one in the file."""
    matrix: Any
    """scipy CSR over all the file's genes, canonical, with the file's own number type."""


def stream(source: Source, scratch: Path, block_entries: int = BLOCK_ENTRIES) -> Iterator[Block]:
    """Every cell of ``source`` once, in order, in blocks of about ``block_entries`` entries.

    ``scratch`` is a folder of this source's own for temporary files; it is filled on first use for CSC.
    Raises ``InputError`` when the file turns out to be damaged.
    """
    regroup(source, scratch, block_entries)
    for start, stop in block_ranges(source, block_entries):
        yield read_block(source, start, stop, scratch)


def block_ranges(source: Source, block_entries: int = BLOCK_ENTRIES) -> list[tuple[int, int]]:
    """First and last (exclusive) row of every block."""
    with _opened(source) as element:
        if source.encoding == "store":
            return list(_row_ranges(element.indptr, block_entries))
        if source.encoding == "csr":
            return list(_row_ranges(_indptr(source, element, source.shape[0]), block_entries))
        if source.encoding in _BY_GENE:
            rows = _cells_per_bucket(source, element, block_entries)
        else:
            rows = max(1, block_entries // source.shape[1])
            together = rows_read_together(element)
            if together:  # so that none is decompressed twice
                rows = max(rows // together, 1) * together
        return [(start, min(start + rows, source.shape[0])) for start in range(0, source.shape[0], rows)]


def regroup(source: Source, scratch: Path, block_entries: int = BLOCK_ENTRIES) -> None:
    """Make ready what ``read_block`` needs: files of entries by cell, where the matrix is not by cell."""
    if source.encoding in _BY_GENE and not (scratch / _COMPLETE).exists():
        # A killed process may have left some entries there.
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        with _opened(source) as group:
            _bucket_by_cell(source, group, scratch, block_entries)
        (scratch / _COMPLETE).touch()


def read_block(source: Source, start: int, stop: int, scratch: Path) -> Block:
    """The cells of one of the ``block_ranges``; ``scratch`` as for ``stream``, after ``regroup``."""
    readers: dict[str, Callable[..., Any]] = {"csr": _csr_block, "dense": _dense_block, "store": _store_block}
    readers |= dict.fromkeys(_BY_GENE, _bucket)
    with _opened(source) as element:
        return Block(start, readers[source.encoding](source, element, start, stop, scratch))


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    if source.encoding == "store":
        yield open_matrix(source.path)
    elif source.encoding == "mtx":
        yield None
    else:
        with opened(source.path, source.place) as file:
            yield file[source.place]


def _csr_block(source: Source, group: Any, start: int, stop: int, _scratch: Path) -> Any:
    indptr = group["indptr"][start : stop + 1].astype(np.int64)
    entries = slice(int(indptr[0]), int(indptr[-1]))
    gene = group["indices"][entries]
    _check_range(source, gene, source.shape[1], "gene" if len(source.var) else "column")
    return _canonical(_native(group["data"][entries]), gene, indptr, source.shape[1])


def _store_block(source: Source, matrix: Any, start: int, stop: int, _scratch: Path) -> Any:
    rows = np.arange(start, stop, dtype=np.int64)
    fetched = fetch(matrix, rows, room_for(matrix, rows, np.int32))
    indptr, gene, value = arranged(fetched, rows - start)
    return scipy.sparse.csr_matrix((value, gene, indptr), shape=(stop - start, source.shape[1]))


def _dense_block(_source: Source, dataset: Any, start: int, stop: int, _scratch: Path) -> Any:
    return scipy.sparse.csr_matrix(_native(dataset[start:stop]))


def _bucket(source: Source, group: Any, start: int, stop: int, scratch: Path) -> Any:
    path, entry = scratch / f"{start}.bucket", _entry_type(source, group)
    entries = np.fromfile(path, entry) if path.exists() else np.zeros(0, entry)
    cells = scipy.sparse.coo_matrix(
        (entries["value"], (entries["cell"] - start, entries["gene"])),
        shape=(stop - start, source.shape[1]),
    )
    matrix = cells.tocsr()
    return _canonical(_native(matrix.data), matrix.indices, matrix.indptr, source.shape[1])


def _native(value: NDArray[Any]) -> NDArray[Any]:
    """In this machine's byte order, and in single precision where it was half."""
    dtype = np.dtype(np.float32) if value.dtype == np.float16 else value.dtype.newbyteorder("=")
    return value.astype(dtype, copy=False)


def _cells_per_bucket(source: Source, group: Any, block_entries: int) -> int:
    entries = num_entries(source.path) if source.encoding == "mtx" else int(group["data"].shape[0])
    num_buckets = max(1, -(-entries // block_entries))
    return -(-source.shape[0] // num_buckets)


def _bucket_by_cell(source: Source, group: Any, scratch: Path, block_entries: int) -> None:
    """Spread the entries over files of consecutive cells."""
    by_gene = read_entries(source) if source.encoding == "mtx" else _csc_entries(source, group, block_entries)
    cells = _cells_per_bucket(source, group, block_entries)
    for entries in by_gene:
        _append_to_buckets(entries, cells, scratch)


def _csc_entries(source: Source, group: Any, block_entries: int) -> Iterator[NDArray[Any]]:
    indptr = _indptr(source, group, source.shape[1])
    for start in range(0, int(indptr[-1]), block_entries):
        stop = min(start + block_entries, int(indptr[-1]))
        entries = np.empty(stop - start, _entry_type(source, group))
        entries["cell"] = group["indices"][start:stop]
        _check_range(source, entries["cell"], source.shape[0], "cell")
        entries["gene"] = np.searchsorted(indptr, np.arange(start, stop), side="right") - 1
        entries["value"] = group["data"][start:stop]
        yield entries


def _append_to_buckets(entries: NDArray[Any], cells: int, scratch: Path) -> None:
    bucket = entries["cell"] // cells
    order = np.argsort(bucket, kind="stable")
    numbers, starts = np.unique(bucket[order], return_index=True)
    for number, part in zip(numbers.tolist(), np.split(entries[order], starts[1:]), strict=True):
        with (scratch / f"{number * cells}.bucket").open("ab") as file:
            part.tofile(file)


def _entry_type(source: Source, group: Any) -> np.dtype[Any]:
    if source.encoding == "mtx":
        return ENTRY
    return np.dtype([("cell", np.int64), ("gene", np.int32), ("value", group["data"].dtype)])


def _canonical(value: NDArray[Any], gene: NDArray[Any], indptr: NDArray[Any], num_genes: int) -> Any:
    shape = (len(indptr) - 1, num_genes)
    matrix = scipy.sparse.csr_matrix(
        (value, gene.astype(np.int32, copy=False), indptr - indptr[0]), shape=shape
    )
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _indptr(source: Source, group: Any, rows: int) -> NDArray[np.int64]:
    indptr: NDArray[np.int64] = group["indptr"][:].astype(np.int64)
    entries = (int(group["data"].shape[0]), int(group["indices"].shape[0]))
    if (
        len(indptr) != rows + 1
        or indptr[0] != 0
        or (np.diff(indptr) < 0).any()
        or {*entries} != {int(indptr[-1])}
    ):
        raise InputError(
            f"{source.path}: {source.place} is damaged, its row pointers do not fit its {entries[0]} values "
            f"and {entries[1]} positions; write the file again"
        )
    return indptr


def _row_ranges(indptr: NDArray[np.int64], block_entries: int) -> Iterator[tuple[int, int]]:
    start, rows = 0, len(indptr) - 1
    while start < rows:
        stop = int(np.searchsorted(indptr, indptr[start] + block_entries, side="right")) - 1
        # At least one cell a block, and not too many at once where cells are empty.
        stop = min(max(stop, start + 1), rows, start + block_entries)
        yield start, stop
        start = stop


def _check_range(source: Source, position: NDArray[Any], limit: int, what: str) -> None:
    if len(position) and (position.min() < 0 or position.max() >= limit):
        wrong = int(position.max() if position.max() >= limit else position.min())
        raise InputError(
            f"{source.path}: {source.place} is damaged, it has an entry for {what} number {wrong} of "
            f"{limit}; write the file again"
        )
