"""Rows worked off in fixed blocks, by as many threads as torch uses.

Enters: work that takes a block of rows, writes what is those rows' own and holds no interpreter lock. Leaves:
all of it done. Invariant: how the rows are cut depends on the rows alone, so sums kept for each block are the
same for any number of threads.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK_EDGES = 8192
"""Edges of a block: about a millisecond of work, many times what it takes to start it."""
_MOST_BLOCKS = 64
_ROW_EDGES = 4
"""A row's own work, in edges."""


def row_bounds(indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B + 1,) first row of every block, and the number of rows: blocks of about equally many edges."""
    work = indptr - indptr[0] + _ROW_EDGES * np.arange(len(indptr))
    blocks = min(max(int(work[-1]) // _BLOCK_EDGES, 1), _MOST_BLOCKS)
    bounds = np.searchsorted(work, np.linspace(0, work[-1], blocks + 1))
    return np.unique(np.append(bounds, [0, len(indptr) - 1]))


def over_blocks(bounds: NDArray[np.int64], work: Callable[[int, tuple[int, int]], object]) -> None:
    """``work(number, (first row, row after the last))`` for every block."""
    blocks = iter(enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)))
    helpers = min(torch.get_num_threads(), len(bounds) - 1) - 1
    if helpers < 1:
        _work_off(blocks, work)
        return
    # the process's number: a forked child has none of its parent's threads
    pool = _pool(os.getpid(), torch.get_num_threads() - 1)
    running = [pool.submit(_work_off, blocks, work) for _ in range(helpers)]
    _work_off(blocks, work)
    for one in running:
        one.result()


def _work_off(
    blocks: Iterator[tuple[int, tuple[int, int]]], work: Callable[[int, tuple[int, int]], object]
) -> None:
    for number, span in blocks:  # advanced by one thread at a time: the iterator is the interpreter's own
        work(number, span)


@cache
def _pool(process: int, helpers: int) -> ThreadPoolExecutor:
    del process
    return ThreadPoolExecutor(helpers, thread_name_prefix="attention")
