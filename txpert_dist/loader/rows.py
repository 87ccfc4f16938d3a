"""Sparse rows and minibatches: read in any order, and cut.

Enters: a store and row numbers, or minibatches. Leaves: the same cells, otherwise arranged. Invariant: a
cell's entries and library size stay together and in order.
"""

import numpy as np
from numpy.typing import NDArray

from txpert_dist.minibatch import Minibatch, SparseRows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import select_genes

CELLS_PER_READ = 1024
"""Cells that are held with all their genes at once, before the view is taken."""


def read_rows(
    store: CellStore,
    rows: NDArray[np.int64],
    view: NDArray[np.int32],
    *,
    cells_per_read: int = CELLS_PER_READ,
) -> SparseRows:
    """The distinct cells ``rows``, in that order, over the genes of ``view``; each is read once.

    Reading goes upwards through the store, whatever the order asked for. Memory: twice the result.
    Raises ``StoreError`` for damaged data.
    """
    ascending = np.argsort(rows)
    destinations = np.split(ascending, np.arange(cells_per_read, len(rows), cells_per_read))
    parts = [select_genes(store.take(rows[destination]), view) for destination in destinations]
    length = np.empty(len(rows), np.int64)
    for destination, part in zip(destinations, parts, strict=True):
        length[destination] = np.diff(part.indptr)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
    gene = np.empty(indptr[-1], np.int32)
    value = np.empty(indptr[-1], parts[0].value.dtype)
    for destination, part in zip(destinations, parts, strict=True):
        where = np.repeat(indptr[destination] - part.indptr[:-1], np.diff(part.indptr))
        where += np.arange(part.indptr[-1])
        gene[where], value[where] = part.gene, part.value
    return SparseRows(indptr, gene, value, store.library_size[rows])


def cut(minibatch: Minibatch, start: int, stop: int) -> Minibatch:
    """Cells ``start`` to ``stop`` (exclusive); entries are views of the same memory."""
    cells = minibatch.cells
    indptr = cells.indptr[start : stop + 1]
    entries = slice(indptr[0], indptr[-1])
    return Minibatch(
        SparseRows(
            indptr - indptr[0], cells.gene[entries], cells.value[entries], cells.library_size[start:stop]
        ),
        minibatch.control[start:stop],
        minibatch.perturbations_BM[start:stop],
    )
