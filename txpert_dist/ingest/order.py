"""Where every cell goes: the rows of the store in terms of the sources' cells.

Enters: split and control flag of every kept cell, a seed. Leaves: ``source_row``. Invariants: it is a
permutation; by split, each of train, validation, test and controls is one contiguous range, and within it any
consecutive rows are a uniform random sample; it depends on the groups, the seed and the number of cells only.
"""

import numpy as np
from numpy.typing import NDArray

from txpert_dist.store.splits import SPLITS
from txpert_dist.store.write import RowOrder


def source_rows(
    split: NDArray[np.uint8], is_control: NDArray[np.bool_], *, order: RowOrder, seed: int
) -> NDArray[np.int64]:
    """(cells,) for each row of the store, the position of its cell among the kept cells.

    ``split`` is the split code of each kept cell's perturbation. Cells of a group are ordered by the random
    number of their position: raw words of Philox, which numpy keeps from release to release.
    """
    if order == "source":
        return np.arange(len(split), dtype=np.int64)
    group = np.where(is_control, len(SPLITS), split)
    words = np.random.Philox(key=seed).random_raw(len(split))
    return np.lexsort((words, group)).astype(np.int64)


def inverse(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each position of the permutation ``rows`` stands in it."""
    place = np.empty_like(rows)
    place[rows] = np.arange(len(rows), dtype=np.int64)
    return place
