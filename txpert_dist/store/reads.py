"""Which chunks of a store hold some cells, and reading them.

Enters: where each cell's entries begin, the two arrays of entries, ascending rows. Leaves: ``FetchedRows``.
Invariants: no chunk is decoded that holds nothing wanted; a cell's genes and values come from the same
entries; what is returned does not depend on how the work was shared out.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from txpert_dist.errors import StoreError
from txpert_dist.store.kernels import BAD_GENE, FetchedRows, Kept, Wanted, gather, keep_entries
from txpert_dist.store.shards import ShardedArray

_NARROW = 1 << 16
"""Genes that a two-byte gene number can tell apart."""

_EVERY_GENE = np.zeros(0, np.int32)


class Matrix(NamedTuple):
    """The expression matrix of a store."""

    indptr: NDArray[np.int64]
    """(num_cells + 1,) where each cell's entries begin."""
    gene: ShardedArray
    value: ShardedArray
    num_genes: int


class Room(NamedTuple):
    """Memory for entries, to be used again and again."""

    gene: NDArray[Any]
    value: NDArray[Any]


def chunks_of(start: NDArray[np.int64], stop: NDArray[np.int64], chunk: int) -> NDArray[np.int64]:
    """Ascending numbers of the chunks of ``chunk`` entries that hold the entries ``start`` to ``stop``.

    Ranges ascend and do not overlap; empty ones need no chunk.
    """
    filled = stop > start
    first, last = start[filled] // chunk, (stop[filled] - 1) // chunk
    if len(first):
        # the chunk that two neighbours share is counted with the earlier one
        first[1:] = np.maximum(first[1:], last[:-1] + 1)
    count = last - first + 1
    shift = np.repeat(first - (np.cumsum(count) - count), count)
    return shift + np.arange(count.sum())


def gene_dtype(num_genes: int) -> np.dtype[Any]:
    """The smallest type that gene numbers below ``num_genes`` travel in: uint16 or int32."""
    return np.dtype(np.uint16 if num_genes <= _NARROW else np.int32)


def room_for(matrix: Matrix, rows: NDArray[np.int64], dtype: DTypeLike, old: Room | None = None) -> Room:
    """Memory that the entries of ``rows`` fit into, genes as ``dtype``: ``old`` where it is large enough."""
    needed = int((matrix.indptr[rows + 1] - matrix.indptr[rows]).sum())
    if old is not None and len(old.gene) >= needed and old.gene.dtype == np.dtype(dtype):
        return old
    return Room(np.empty(needed, dtype), np.empty(needed, matrix.value.form.dtype))


def fetch(
    matrix: Matrix,
    rows: NDArray[np.int64],
    room: Room,
    *,
    view: NDArray[np.int32] | None = None,
    helpers: Sequence[Executor] = (),
) -> FetchedRows:
    """The entries of the ascending, distinct ``rows``, in the memory of ``room`` (see ``room_for``).

    ``view`` numbers the genes anew and leaves out those of -1 (see ``expression.gene_view``). Each of
    ``helpers`` does as large a part of the work as this thread. Raises ``StoreError`` for damaged data.
    """
    start, stop = matrix.indptr[rows], matrix.indptr[rows + 1]
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(stop - start)])
    begin, length = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)

    def part(first: int, last: int) -> None:
        chosen = slice(first, last)
        place = FetchedRows(begin[chosen], length[chosen], room.gene, room.value)
        _fetch(matrix, start[chosen], stop[chosen], place, int(before[first]), view)

    shares = np.linspace(0, before[-1], len(helpers) + 2)[1:-1]
    edges = [0, *np.searchsorted(before, shares).clip(0, len(rows)).tolist(), len(rows)]
    others = [
        helper.submit(part, *edge)
        for helper, edge in zip(helpers, itertools.pairwise(edges[1:]), strict=True)
    ]
    try:
        part(edges[0], edges[1])
    finally:
        failures = [other.exception() for other in others]  # waits: they write into the same memory
    for failure in failures:
        if failure is not None:
            raise failure
    return FetchedRows(begin, length, room.gene, room.value)


def arranged(
    fetched: FetchedRows,
    which: NDArray[np.int64],
    empty: Callable[[tuple[int, ...], DTypeLike], NDArray[Any]] = np.empty,
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """``indptr``, gene and value of the cells ``which`` (positions in ``fetched``), in that order.

    ``empty`` gives the memory that genes and values are put into.
    """
    indptr = np.zeros(len(which) + 1, np.int64)
    np.cumsum(fetched.length[which], out=indptr[1:])
    gene = empty((int(indptr[-1]),), fetched.gene.dtype)
    value = empty((int(indptr[-1]),), fetched.value.dtype)
    gather(fetched.begin[which], fetched.gene, fetched.value, indptr, gene, value)
    return indptr, gene, value


def _fetch(
    matrix: Matrix,
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    place: FetchedRows,
    filled: int,
    view: NDArray[np.int32] | None,
) -> None:
    """Decode the chunks of some rows one after the other and keep what is wanted of each."""
    size = matrix.gene.form.chunk
    chunks = chunks_of(start, stop, size)
    matrix.gene.announce(chunks)
    matrix.value.announce(chunks)
    gene_K, value_K = matrix.gene.empty(size), matrix.value.empty(size)
    wanted, kept = Wanted(start, stop), Kept(_EVERY_GENE if view is None else view, matrix.num_genes)
    progress = (0, filled)
    for chunk in chunks.tolist():
        matrix.gene.decode(chunk, gene_K)
        matrix.value.decode(chunk, value_K)
        progress = keep_entries(gene_K, value_K, chunk * size, wanted, kept, place, progress)
        if progress[0] == BAD_GENE:
            raise StoreError(
                f"{matrix.gene.name}: the gene number of entry {progress[1]} is none of 0 to "
                f"{matrix.num_genes - 1}; ingest the screen again"
            )
