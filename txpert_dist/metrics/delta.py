"""From conditions to perturbations: deltas averaged over the cells of each (perturbation, cell line).

Enters: moments or predictions of conditions, control means of contexts. Leaves: ``PerturbationDeltas``.
Invariant: every cell is centred on the control mean of its own context and weighs the same (methods,
"Expression value representations and delta"), so a batch weighs as many cells as it has.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.metrics.moments import ConditionMoments

_BLOCK = 1024


class Groups(NamedTuple):
    """The (perturbation, cell line) groups of some conditions."""

    perturbation_P: NDArray[np.int32]
    cell_line_P: NDArray[np.int32]
    group_R: NDArray[np.int64]
    """(R,) each condition's group: a position in the two above."""


class PerturbationDeltas(NamedTuple):
    """Mean delta of each (perturbation, cell line), sorted and distinct."""

    perturbation_P: NDArray[np.int32]
    """(P,) perturbation code."""
    cell_line_P: NDArray[np.int32]
    """(P,) cell line code."""
    num_cells_P: NDArray[np.int64]
    delta_PG: NDArray[np.float64]
    """(P, G) mean over cells of expression minus the own context's control mean; NaN without cells."""


def groups_of(
    perturbation_R: NDArray[np.integer], context_R: NDArray[np.integer], cell_line_C: NDArray[np.integer]
) -> Groups:
    """Distinct (perturbation, cell line) of conditions, sorted; ``cell_line_C`` has each context's line."""
    width = int(cell_line_C.max(initial=0)) + 1
    key_P, group_R = np.unique(
        perturbation_R.astype(np.int64) * width + cell_line_C[context_R], return_inverse=True
    )
    return Groups(
        (key_P // width).astype(np.int32), (key_P % width).astype(np.int32), group_R.astype(np.int64)
    )


def pseudobulk_delta(
    moments: ConditionMoments, control_mean_CG: NDArray[np.floating], cell_line_C: NDArray[np.integer]
) -> PerturbationDeltas:
    """Mean delta of every (perturbation, cell line) of ``moments``, cells centred on their own context."""
    groups = groups_of(moments.perturbation_R, moments.context_R, cell_line_C)
    centred_RG = moments.sum_RG - moments.num_cells_R[:, None] * control_mean_CG[moments.context_R]
    num_cells_P = cells_by_group(moments.num_cells_R, groups)
    return PerturbationDeltas(
        groups.perturbation_P,
        groups.cell_line_P,
        num_cells_P,
        _divide(_sum_by(groups, centred_RG), num_cells_P),
    )


def cells_by_group(num_cells_R: NDArray[np.integer], groups: Groups) -> NDArray[np.int64]:
    """(P,) number of cells of each group."""
    result_P = np.zeros(len(groups.perturbation_P), np.int64)
    np.add.at(result_P, groups.group_R, num_cells_R)
    return result_P


def mean_by_group(
    values_RG: NDArray[np.floating], num_cells_R: NDArray[np.integer], groups: Groups
) -> NDArray[np.float64]:
    """(P, G) average of the conditions' rows over the cells of each group; NaN for a group without cells."""
    weight_R1 = num_cells_R[:, None].astype(np.float64)
    return _divide(_sum_by(groups, values_RG * weight_R1), cells_by_group(num_cells_R, groups))


def centre_sums(
    sum_PG: NDArray[np.float64], num_cells_PC: NDArray[np.integer], control_mean_CG: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(P, G) mean delta from sums over all contexts together and the number of cells in each context.

    The control means are linear in the cells, so the sums by context are not needed. NaN without cells.
    """
    control_CG = control_mean_CG.astype(np.float64)
    result_PG = np.empty_like(sum_PG)
    for start in range(0, len(sum_PG), _BLOCK):
        block = slice(start, start + _BLOCK)
        centred_PG = sum_PG[block] - num_cells_PC[block].astype(np.float64) @ control_CG
        result_PG[block] = _divide(centred_PG, num_cells_PC[block].sum(1))
    return result_PG


def _sum_by(groups: Groups, values_RG: NDArray[np.floating]) -> NDArray[np.float64]:
    if not len(values_RG):
        return np.zeros((0, values_RG.shape[1]))
    order = np.argsort(groups.group_R, kind="stable")
    first = np.searchsorted(groups.group_R[order], np.arange(len(groups.perturbation_P)))
    return np.asarray(np.add.reduceat(values_RG[order], first, axis=0), np.float64)


def _divide(sum_PG: NDArray[np.float64], number_P: NDArray[np.number]) -> NDArray[np.float64]:
    number_P1 = np.where(number_P > 0, number_P, np.nan)[:, None]
    return np.asarray(sum_PG / number_P1, np.float64)
