"""The loops over single entries that numpy would need several passes and temporaries for.

Enters: arrays of sparse rows. Leaves: the target arrays, filled. Invariant: sums go entry after entry in
order, so the same rows give the same sums, bit for bit.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def copy_rows(
    source: NDArray[Any],
    begin: NDArray[np.int64],
    length: NDArray[np.int64],
    target: NDArray[Any],
    where: NDArray[np.int64],
) -> None:
    """Copy ``length[i]`` entries from ``source[begin[i]:]`` to ``target[where[i]:]`` for every row i.

    Both arrays hold the same type. Raises ``IndexError`` when a row lies outside of one of them.
    """
    if len(length) and (
        min(begin.min(), where.min(), length.min()) < 0
        or (begin + length).max() > len(source)
        or (where + length).max() > len(target)
    ):
        raise IndexError(f"rows of {len(source)} entries do not fit into {len(target)}")
    bits = f"u{source.itemsize}"  # one compiled loop a width
    _copy_rows(source.view(bits), begin, length, target.view(bits), where)


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator,unused-ignore]
def _copy_rows(
    source: NDArray[Any],
    begin: NDArray[np.int64],
    length: NDArray[np.int64],
    target: NDArray[Any],
    where: NDArray[np.int64],
) -> None:
    for row in range(len(length)):
        for entry in range(length[row]):
            target[where[row] + entry] = source[begin[row] + entry]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator,unused-ignore]
def row_sums(indptr: NDArray[np.integer], value: NDArray[Any]) -> NDArray[np.float64]:
    """(rows,) sum of each row's values, in double precision."""
    total = np.zeros(len(indptr) - 1, np.float64)
    for row in range(len(total)):
        for entry in range(indptr[row], indptr[row + 1]):
            total[row] += np.float64(value[entry])
    return total


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator,unused-ignore]
def scaled_rows(
    indptr: NDArray[np.integer], value: NDArray[Any], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Every value times the factor of its row, in double precision."""
    scaled = np.empty(len(value), np.float64)
    for row in range(len(factor)):
        for entry in range(indptr[row], indptr[row + 1]):
            scaled[entry] = np.float64(value[entry]) * factor[row]
    return scaled


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator,unused-ignore]
def add_moments(
    indptr: NDArray[np.int64],
    gene: NDArray[np.int32],
    value: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    sum_G: NDArray[np.float64],
    sum_squares_G: NDArray[np.float64],
) -> None:
    """Add values and squares of the ``chosen`` rows to the sums of their genes."""
    for row in range(len(chosen)):
        if chosen[row]:
            for entry in range(indptr[row], indptr[row + 1]):
                sum_G[gene[entry]] += value[entry]
                sum_squares_G[gene[entry]] += value[entry] * value[entry]


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator,unused-ignore]
def add_target_sums(
    indptr: NDArray[np.int64],
    gene: NDArray[np.int32],
    value: NDArray[np.float64],
    perturbation: NDArray[np.int32],
    target_begin: NDArray[np.int64],
    target_gene: NDArray[np.int32],
    sum_T: NDArray[np.float64],
    sum_log_T: NDArray[np.float64],
) -> None:
    """Add each row's values (and their log1p) of the target genes of its perturbation; genes ascend."""
    for row in range(len(perturbation)):
        code = perturbation[row]
        for target in range(target_begin[code], target_begin[code + 1]):
            low, high = indptr[row], indptr[row + 1]
            while low < high:
                middle = (low + high) // 2
                if gene[middle] < target_gene[target]:
                    low = middle + 1
                else:
                    high = middle
            if low < indptr[row + 1] and gene[low] == target_gene[target]:
                sum_T[target] += value[low]
                sum_log_T[target] += np.log1p(value[low])
