"""Squared errors: of pseudobulks, and of single cells.

Enters: deltas, or moments and predictions of conditions. Leaves: one float64 per row. Invariant: the per-cell
error is the exact mean over cells and genes of the squared difference, computed without the cells.
"""

import numpy as np
from numpy.typing import NDArray

from txpert_dist.metrics.moments import ConditionMoments


def pseudobulk_mse(
    predicted_PG: NDArray[np.floating], observed_PG: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(P,) mean over genes of the squared difference of two mean profiles, or of their deltas."""
    difference_PG = np.asarray(predicted_PG, np.float64) - np.asarray(observed_PG, np.float64)
    return np.asarray((difference_PG**2).mean(1), np.float64)


def r2_delta(predicted_PG: NDArray[np.floating], observed_PG: NDArray[np.floating]) -> NDArray[np.float64]:
    """(P,) share of the observed deltas' variance over genes that the prediction explains.

    1 - sum (observed - predicted)^2 / sum (observed - its mean over genes)^2; below 0 for a prediction worse
    than that mean. NaN where the observation is constant or not finite.
    """
    observed_PG = np.asarray(observed_PG, np.float64)
    defined_P = np.isfinite(observed_PG).all(1) & (np.ptp(observed_PG, axis=1) > 0)
    spread_P = ((observed_PG - observed_PG.mean(1, keepdims=True)) ** 2).sum(1)
    error_P = ((np.asarray(predicted_PG, np.float64) - observed_PG) ** 2).sum(1)
    return np.asarray(1.0 - error_P / np.where(defined_P, spread_P, np.nan), np.float64)


def per_cell_squared_error(
    moments: ConditionMoments, predicted_RG: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(R,) sum over the cells of each condition and over genes of (y - prediction)^2, from the moments.

    sum (y - c)^2 = sum y^2 - 2 c sum y + n c^2; the training loss is this over cells and genes.
    """
    predicted_RG = np.asarray(predicted_RG, np.float64)
    cross_R = np.einsum("rg,rg->r", moments.sum_RG, predicted_RG)
    length_R = np.einsum("rg,rg->r", predicted_RG, predicted_RG)
    # rounding may leave a prediction that meets every cell a last bit below zero
    error_R: NDArray[np.float64] = np.maximum(
        moments.sum_squares_R - 2.0 * cross_R + moments.num_cells_R * length_R, 0.0
    )
    return error_R


def per_cell_mse(
    moments: ConditionMoments,
    predicted_RG: NDArray[np.floating],
    group_R: NDArray[np.integer],
    num_groups: int,
) -> NDArray[np.float64]:
    """(P,) mean over a group's cells and over genes of the squared error; NaN for a group without cells."""
    error_P = np.bincount(group_R, per_cell_squared_error(moments, predicted_RG), minlength=num_groups)
    cells_P = np.bincount(group_R, moments.num_cells_R, minlength=num_groups)
    num_values_P = np.where(cells_P > 0, cells_P, np.nan) * predicted_RG.shape[1]
    return np.asarray(error_P / num_values_P, np.float64)
