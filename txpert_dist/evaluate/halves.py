"""Random halves of the cells of every condition, for split-half reproducibility.

Enters: row numbers and the condition of each. Leaves: which cells are in the first half. Invariants: halves
of a condition differ by at most one cell; they depend on the seed, the rows and which rows are together,
never on the order or the blocks in which cells are read.
"""

import numpy as np
from numpy.typing import NDArray

_COIN_SALT = 0x5851F42D4C957F2D


def first_halves(
    rows: NDArray[np.int64], condition_B: NDArray[np.int64], *, seed: int, repeats: int
) -> NDArray[np.bool_]:
    """(repeats, B) True where a cell is in the first half of its condition; one division a repeat.

    ``rows`` are the store's distinct row numbers. Of an odd number of cells the last one goes to either half
    with equal chance, so that conditions of a single cell do not all fall on one side.
    """
    return np.stack([_first_half(rows, condition_B, seed, repeat) for repeat in range(repeats)])


def _first_half(
    rows: NDArray[np.int64], condition_B: NDArray[np.int64], seed: int, repeat: int
) -> NDArray[np.bool_]:
    stream = int(np.random.SeedSequence([seed, repeat]).generate_state(1, np.uint64)[0])
    order = np.lexsort((_mix(rows, stream), condition_B))
    size_R = np.bincount(condition_B)
    start_R = np.cumsum(size_R) - size_R
    lowest_R = np.full(len(size_R), np.iinfo(np.int64).max)
    np.minimum.at(lowest_R, condition_B, rows)
    coin_R = (_mix(lowest_R, stream ^ _COIN_SALT) >> np.uint64(63)).astype(np.int64)
    take_R = size_R // 2 + size_R % 2 * coin_R
    first_B = np.zeros(len(rows), bool)
    sorted_condition_B = condition_B[order]
    first_B[order] = np.arange(len(rows)) - start_R[sorted_condition_B] < take_R[sorted_condition_B]
    return first_B


def _mix(values: NDArray[np.int64], stream: int) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser (Steele, Lea, Flood 2014): a bijection, so distinct rows never collide."""
    state = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)), np.uint64)
