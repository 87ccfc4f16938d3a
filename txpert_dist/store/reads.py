"""Which contiguous reads fetch some cells of a store.

Enters: where each cell's entries begin, and rows. Leaves: a ``ReadPlan``. Invariants: reads are disjoint and
ascending, and no more than a given number of unwanted entries is read through between two wanted cells.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ReadPlan(NamedTuple):
    """Which contiguous ranges of entries hold the wanted rows, and where each row lands."""

    rows: NDArray[np.int64]
    """Wanted rows, ascending and distinct."""
    ranges_R2: NDArray[np.int64]
    """(reads, 2) first and last (exclusive) entry of each read, ascending, disjoint."""
    begin: NDArray[np.int64]
    """(rows,) where each wanted row begins in the concatenation of all reads."""


def plan_reads(indptr: NDArray[np.int64], rows: NDArray[np.int64], gap: int) -> ReadPlan:
    """Join ascending, distinct ``rows`` into reads, bridging gaps of at most ``gap`` unwanted entries."""
    if not len(rows):
        return ReadPlan(rows, np.zeros((0, 2), np.int64), np.zeros(0, np.int64))
    start, stop = indptr[rows], indptr[rows + 1]
    first = np.concatenate([[True], start[1:] - stop[:-1] > gap])
    head = np.flatnonzero(first)
    ranges_R2 = np.stack([start[head], stop[np.append(head[1:], len(rows)) - 1]], axis=1)
    before = np.cumsum(ranges_R2[:, 1] - ranges_R2[:, 0]) - (ranges_R2[:, 1] - ranges_R2[:, 0])
    read = np.cumsum(first) - 1
    return ReadPlan(rows, ranges_R2, start - ranges_R2[read, 0] + before[read])
