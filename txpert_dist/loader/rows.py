"""Sparse rows and minibatches: read in any order, and cut.

Enters: a store and row numbers, or minibatches. Leaves: the same cells, otherwise arranged. Invariant: a
cell's entries and library size stay together and in order.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.loader.memory import ReusedMemory
from txpert_dist.minibatch import Minibatch, SparseRows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import gene_view
from txpert_dist.store.kernels import FetchedRows
from txpert_dist.store.reads import Room, arranged, fetch, gene_dtype, room_for


class Window(NamedTuple):
    """Cells that were read together, not in order yet."""

    rows: NDArray[np.int64]
    """Row numbers of the store, in the order asked for; repeats allowed."""
    which: NDArray[np.int64]
    """Where each of ``rows`` is in ``fetched``."""
    fetched: FetchedRows
    room: Room
    """The memory that ``fetched`` is in."""


def read_window(
    store: CellStore,
    rows: NDArray[np.int64],
    genes: NDArray[np.int64],
    *,
    room: Room | None = None,
    helpers: Sequence[Executor] = (),
) -> Window:
    """The cells ``rows`` over ``genes`` (numbers, ascending); every cell is read once.

    ``room`` is memory to be used again where it is large enough. Raises ``StoreError`` for damaged data.
    """
    distinct, which = np.unique(rows, return_inverse=True)
    room = room_for(store.matrix, distinct, gene_dtype(len(genes)), room)
    num_genes = len(store.genes)
    view = None if len(genes) == num_genes else gene_view(genes, num_genes)
    fetched = fetch(store.matrix, distinct, room, view=view, helpers=helpers)
    return Window(rows, which, fetched, room)


def rows_of_window(store: CellStore, window: Window, part: slice, memory: ReusedMemory) -> SparseRows:
    """The cells ``window.rows[part]``, in that order, in memory of their own."""
    entries = arranged(window.fetched, window.which[part], memory.lend)
    return SparseRows(*entries, store.library_size[window.rows[part]])


def read_rows(store: CellStore, rows: NDArray[np.int64], genes: NDArray[np.int64]) -> SparseRows:
    """The cells ``rows``, in that order, over ``genes`` (numbers, ascending).

    Memory: twice the result, all genes' entries at most. Raises ``StoreError`` for damaged data.
    """
    return rows_of_window(store, read_window(store, rows, genes), slice(None), ReusedMemory())


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
