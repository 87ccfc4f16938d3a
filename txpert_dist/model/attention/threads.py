"""Rows worked off in fixed blocks, by as many threads as torch uses.

Enters: work that takes blocks of rows, writes what is those rows' own and holds no interpreter lock. Leaves:
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
    bounds: NDArray[np.int64] = np.searchsorted(work, work[-1] * np.arange(blocks + 1) // blocks)
    return bounds


def over_blocks(bounds: NDArray[np.int64], work: Callable[[int, tuple[int, int]], object]) -> None:
    """``work(first block, (first row, row after the last))`` for some blocks at a time, until all are done.

    A call costs some per cent of a block, so a thread takes many of them while many are left.
    """
    threads = min(torch.get_num_threads(), len(bounds) - 1)
    if threads < 2:
        work(0, (int(bounds[0]), int(bounds[-1])))
        return
    parts = iter(_parts(len(bounds) - 1, threads))
    # the process's number: a forked child has none of its parent's threads
    pool = _pool(os.getpid(), torch.get_num_threads() - 1)
    running = [pool.submit(_work_off, parts, bounds, work) for _ in range(threads - 1)]
    _work_off(parts, bounds, work)
    for one in running:
        one.result()


def _parts(blocks: int, threads: int) -> list[tuple[int, int]]:
    """First block and the block after the last: half of an even share of what is left, at least one."""
    parts, first = [], 0
    while first < blocks:
        last = first + max((blocks - first) // (2 * threads), 1)
        parts.append((first, last))
        first = last
    return parts


def _work_off(
    parts: Iterator[tuple[int, int]],
    bounds: NDArray[np.int64],
    work: Callable[[int, tuple[int, int]], object],
) -> None:
    for first, last in parts:  # advanced by one thread at a time: the iterator is the interpreter's own
        work(first, (int(bounds[first]), int(bounds[last])))


@cache
def _pool(process: int, helpers: int) -> ThreadPoolExecutor:
    del process
    return ThreadPoolExecutor(helpers, thread_name_prefix="attention")
