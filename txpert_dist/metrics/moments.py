"""Sums over the cells of a condition, from which every observed statistic follows exactly.

Enters: log1p-normalised sparse cells and the condition of each. Leaves: ``ConditionMoments``. Invariants:
conditions are (perturbation code, context code), sorted and distinct; sums are float64;
merging the moments of any division of the cells gives the moments of all of them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.minibatch import SparseRows


class ConditionMoments(NamedTuple):
    """Number, sum and sum of squares of the cells of each condition."""

    perturbation_R: NDArray[np.int32]
    """(R,) perturbation code."""
    context_R: NDArray[np.int32]
    """(R,) context code."""
    num_cells_R: NDArray[np.int64]
    sum_RG: NDArray[np.float64]
    """(R, G) sum of expression over the condition's cells."""
    sum_squares_R: NDArray[np.float64]
    """(R,) sum of squared expression over the condition's cells and all genes of the view."""


class Conditions(NamedTuple):
    """The conditions that occur among some cells."""

    perturbation_R: NDArray[np.int32]
    context_R: NDArray[np.int32]
    row_B: NDArray[np.int64]
    """(B,) each cell's condition: a position in the two above."""


def conditions_of(perturbation_B: NDArray[np.integer], context_B: NDArray[np.integer]) -> Conditions:
    """Distinct (perturbation, context) of the cells, sorted, and the one of each cell."""
    width = int(context_B.max(initial=0)) + 1
    key_R, row_B = np.unique(perturbation_B.astype(np.int64) * width + context_B, return_inverse=True)
    return Conditions(
        (key_R // width).astype(np.int32), (key_R % width).astype(np.int32), row_B.astype(np.int64)
    )


def empty_moments(conditions: Conditions, num_genes: int) -> ConditionMoments:
    """Moments of no cells yet, to ``add_cells`` to."""
    num = len(conditions.perturbation_R)
    return ConditionMoments(
        conditions.perturbation_R,
        conditions.context_R,
        np.zeros(num, np.int64),
        np.zeros((num, num_genes)),
        np.zeros(num),
    )


def add_cells(moments: ConditionMoments, cells: SparseRows, row_B: NDArray[np.int64]) -> None:
    """Add log1p-normalised ``cells`` to the rows ``row_B`` of ``moments``, in place.

    A cell of row -1 is left out. Genes number the columns of ``sum_RG``.
    """
    kept_B = row_B >= 0
    moments.num_cells_R[:] += np.bincount(row_B[kept_B], minlength=len(moments.num_cells_R))
    row = np.repeat(row_B, np.diff(cells.indptr))
    value, gene = cells.value.astype(np.float64), cells.gene
    if not kept_B.all():
        kept = row >= 0
        row, value, gene = row[kept], value[kept], gene[kept]
    # one flat index: NumPy's unbuffered addition is fast for one-dimensional targets only
    np.add.at(moments.sum_RG.reshape(-1), row * moments.sum_RG.shape[1] + gene, value)
    moments.sum_squares_R[:] += np.bincount(row, value * value, minlength=len(moments.sum_squares_R))


def moments_of(
    cells: SparseRows,
    perturbation_B: NDArray[np.integer],
    context_B: NDArray[np.integer],
    *,
    num_genes: int,
) -> ConditionMoments:
    """Moments of log1p-normalised cells with these labels."""
    conditions = conditions_of(perturbation_B, context_B)
    moments = empty_moments(conditions, num_genes)
    add_cells(moments, cells, conditions.row_B)
    return moments


def merge_moments(first: ConditionMoments, second: ConditionMoments) -> ConditionMoments:
    """Moments of the cells of both. Raises ``ValueError`` when they are over different numbers of genes."""
    num_genes = first.sum_RG.shape[1]
    if num_genes != second.sum_RG.shape[1]:
        raise ValueError(f"moments over {num_genes} and {second.sum_RG.shape[1]} genes cannot be merged")
    conditions = conditions_of(
        np.concatenate([first.perturbation_R, second.perturbation_R]),
        np.concatenate([first.context_R, second.context_R]),
    )
    merged = empty_moments(conditions, num_genes)
    rows = np.split(conditions.row_B, [len(first.perturbation_R)])
    for part, row in zip((first, second), rows, strict=True):
        # a condition occurs once in each part, so plain indexed addition is exact
        merged.num_cells_R[row] += part.num_cells_R
        merged.sum_RG[row] += part.sum_RG
        merged.sum_squares_R[row] += part.sum_squares_R
    return merged


def subtract_moments(whole: ConditionMoments, part: ConditionMoments) -> ConditionMoments:
    """Moments of the cells of ``whole`` that are not in ``part``; both list the same conditions.

    Conditions without a cell left stay, with zeros.
    """
    rest_R = whole.num_cells_R - part.num_cells_R
    left_R = rest_R > 0
    return ConditionMoments(
        whole.perturbation_R,
        whole.context_R,
        rest_R,
        np.where(left_R[:, None], whole.sum_RG - part.sum_RG, 0.0),
        np.where(left_R, whole.sum_squares_R - part.sum_squares_R, 0.0),
    )
