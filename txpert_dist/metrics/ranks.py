"""Spearman correlation row by row: the Pearson correlation of ranks.

Enters: two arrays of the same shape. Leaves: one float64 number per row. Invariants: ties have their mean
rank; a row that is constant or not finite gives NaN.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from txpert_dist.metrics.pearson import BLOCK, pearson_delta


def spearman_delta(
    predicted_PG: NDArray[np.floating], observed_PG: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(P,) Spearman correlation of each predicted with each observed delta, over the genes.

    Raises ``ValueError`` when the shapes differ.
    """
    if predicted_PG.shape != observed_PG.shape:
        raise ValueError(f"predicted {predicted_PG.shape} and observed {observed_PG.shape} differ in shape")
    result_P = np.full(len(predicted_PG), np.nan)
    for start in range(0, len(result_P), BLOCK):
        block = slice(start, start + BLOCK)
        result_P[block] = pearson_delta(_ranks(predicted_PG[block]), _ranks(observed_PG[block]))
    return result_P


def _ranks(values_PG: NDArray[np.floating]) -> NDArray[np.float64]:
    if not values_PG.size:
        return np.asarray(values_PG, np.float64)
    finite_P1 = np.isfinite(values_PG).all(1, keepdims=True)
    return np.where(finite_P1, rankdata(np.where(finite_P1, values_PG, 0.0), axis=1), np.nan)
