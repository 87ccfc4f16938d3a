"""Streams an expression matrix by blocks of cells, whatever its layout in the file.

Enters: a ``Source``. Leaves: sparse row blocks in file order, canonical (genes ascending, no repeats, no
stored zeros). Invariant: memory is bounded by the block size for every layout; a matrix stored by gene (CSC)
is first re-bucketed by cell into temporary files.
"""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.source import Source

BLOCK_ENTRIES = 2_000_000
"""Matrix entries held at once: about 32 MB as read, a few times that while they are worked on."""


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
    readers = {"csr": _csr_blocks, "dense": _dense_blocks, "csc": _csc_blocks}
    try:
        with h5py.File(source.path, "r") as file:
            yield from readers[source.encoding](source, file[source.place], scratch, block_entries)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"{source.path}: {source.place} cannot be read ({error}); fetch the file again"
        ) from error


def _csr_blocks(source: Source, group: Any, scratch: Path, block_entries: int) -> Iterator[Block]:
    indptr = _indptr(source, group, source.shape[0])
    for start, stop in _row_ranges(indptr, block_entries):
        entries = slice(int(indptr[start]), int(indptr[stop]))
        gene = group["indices"][entries]
        _check_range(source, gene, source.shape[1], "gene" if len(source.var) else "column")
        yield Block(
            start, _canonical(group["data"][entries], gene, indptr[start : stop + 1], source.shape[1])
        )


def _dense_blocks(source: Source, dataset: Any, scratch: Path, block_entries: int) -> Iterator[Block]:
    rows = max(1, block_entries // source.shape[1])
    if dataset.chunks:  # whole chunks, so that none is decompressed twice
        rows = max(rows // dataset.chunks[0], 1) * dataset.chunks[0]
    for start in range(0, source.shape[0], rows):
        x_BG = dataset[start : start + rows]
        yield Block(start, scipy.sparse.csr_matrix(x_BG))


def _csc_blocks(source: Source, group: Any, scratch: Path, block_entries: int) -> Iterator[Block]:
    buckets = _bucket_by_cell(source, group, scratch, block_entries)
    entry = _entry_type(group)
    for number, start in enumerate(range(0, source.shape[0], buckets)):
        rows = min(buckets, source.shape[0] - start)
        path = scratch / f"{number}.bucket"
        entries = np.fromfile(path, entry) if path.exists() else np.zeros(0, entry)
        cells = scipy.sparse.coo_matrix(
            (entries["value"], (entries["cell"] - start, entries["gene"])), shape=(rows, source.shape[1])
        )
        matrix = cells.tocsr()
        yield Block(start, _canonical(matrix.data, matrix.indices, matrix.indptr, source.shape[1]))


def _bucket_by_cell(source: Source, group: Any, scratch: Path, block_entries: int) -> int:
    """Spread the entries over files of consecutive cells; returns how many cells a file covers."""
    indptr = _indptr(source, group, source.shape[1])
    num_buckets = max(1, -(-int(indptr[-1]) // block_entries))
    cells = -(-source.shape[0] // num_buckets)
    if (scratch / "complete").exists():
        return cells
    scratch.mkdir(parents=True, exist_ok=True)
    for start in range(0, int(indptr[-1]), block_entries):
        stop = min(start + block_entries, int(indptr[-1]))
        entries = np.empty(stop - start, _entry_type(group))
        entries["cell"] = group["indices"][start:stop]
        _check_range(source, entries["cell"], source.shape[0], "cell")
        entries["gene"] = np.searchsorted(indptr, np.arange(start, stop), side="right") - 1
        entries["value"] = group["data"][start:stop]
        _append_to_buckets(entries, cells, scratch)
    (scratch / "complete").touch()
    return cells


def _append_to_buckets(entries: NDArray[Any], cells: int, scratch: Path) -> None:
    bucket = entries["cell"] // cells
    order = np.argsort(bucket, kind="stable")
    numbers, starts = np.unique(bucket[order], return_index=True)
    for number, part in zip(numbers.tolist(), np.split(entries[order], starts[1:]), strict=True):
        with (scratch / f"{number}.bucket").open("ab") as file:
            part.tofile(file)


def _entry_type(group: Any) -> np.dtype[Any]:
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
    entries = (len(group["data"]), len(group["indices"]))
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
