"""How well an experiment agrees with itself: split-half reproducibility, in two variants.

Enters: moments of conditions and of random first halves of their cells. Leaves: every metric, with the first
half as the prediction and the second as the truth, averaged over repeated divisions. Invariant: halves are
drawn within every (perturbation, cell line, batch); a unit whose halves cannot both be filled is NaN.

``split_half_per_batch`` is the methods' definition: the metric of each (perturbation, cell line, batch),
Metric(mean of half 1, mean of half 2); retrieval is among the perturbations of the same batch.
``split_half_pooled`` is what a model's score can be compared with: the halves of all batches pooled per
(perturbation, cell line), retrieval against the same table of perturbations as the model's.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.scores import METRICS, Background, Values, score_deltas
from txpert_dist.metrics.aggregate import mean_over_repeats
from txpert_dist.metrics.delta import groups_of, pseudobulk_delta
from txpert_dist.metrics.error import per_cell_mse, per_cell_squared_error, pseudobulk_mse
from txpert_dist.metrics.moments import ConditionMoments, subtract_moments
from txpert_dist.metrics.pearson import pearson_delta
from txpert_dist.metrics.retrieval import FAST_REFERENCES, retrieval_rank

POOLED = "split_half_pooled"
PER_BATCH = "split_half_per_batch"


def pooled_halves(
    whole: ConditionMoments, firsts: Sequence[ConditionMoments], background: Background
) -> Values:
    """Every metric per (perturbation, cell line), halves pooled over batches, averaged over the divisions.

    The per-cell error is that of second-half cells predicted as the control mean of their own context plus
    the first half's delta, as a model would.
    """
    return _average([_pooled(first, subtract_moments(whole, first), background) for first in firsts])


def per_batch_halves(
    whole: ConditionMoments, firsts: Sequence[ConditionMoments], background: Background
) -> Values:
    """Every metric per (perturbation, context), averaged over the divisions.

    ``whole`` must hold all evaluated perturbations of its contexts: they are each other's references. The
    per-cell error is that of second-half cells predicted as the mean of the first half.
    """
    return _average([_per_batch(first, subtract_moments(whole, first), background) for first in firsts])


def _pooled(first: ConditionMoments, second: ConditionMoments, background: Background) -> Values:
    control_CG, lines_C = background.control_mean_CG, background.cell_line_C
    predicted = pseudobulk_delta(first, control_CG, lines_C)
    observed = pseudobulk_delta(second, control_CG, lines_C)
    group_R = groups_of(first.perturbation_R, first.context_R, lines_C).group_R
    predicted_RG = control_CG[first.context_R] + predicted.delta_PG[group_R]
    error_P = per_cell_mse(second, predicted_RG, group_R, len(predicted.delta_PG))
    return score_deltas(predicted.delta_PG, observed, background) | {"per_cell_mse": error_P}


def _per_batch(first: ConditionMoments, second: ConditionMoments, background: Background) -> Values:
    control_RG = background.control_mean_CG[first.context_R]
    mean_RG = _mean(first)
    predicted_RG, observed_RG = mean_RG - control_RG, _mean(second) - control_RG
    num_values_R = np.where(second.num_cells_R > 0, second.num_cells_R, np.nan) * control_RG.shape[1]
    return {
        "pearson_delta": pearson_delta(predicted_RG, observed_RG),
        "retrieval": _within_contexts(predicted_RG, observed_RG, first.context_R, None, background.seed),
        "retrieval_fast": _within_contexts(
            predicted_RG, observed_RG, first.context_R, FAST_REFERENCES, background.seed
        ),
        "pseudobulk_mse": pseudobulk_mse(predicted_RG, observed_RG),
        "per_cell_mse": per_cell_squared_error(second, mean_RG) / num_values_R,
    }


def _within_contexts(
    predicted_RG: NDArray[np.float64],
    observed_RG: NDArray[np.float64],
    context_R: NDArray[np.int32],
    references: int | None,
    seed: int,
) -> NDArray[np.float64]:
    """Retrieval among the conditions of each context that have both halves; NaN for the others."""
    result_R = np.full(len(context_R), np.nan)
    both_R = np.isfinite(predicted_RG).all(1) & np.isfinite(observed_RG).all(1)
    for context in np.unique(context_R[both_R]):
        here = np.flatnonzero(both_R & (context_R == context))
        result_R[here] = retrieval_rank(
            predicted_RG[here], observed_RG[here], references=references, seed=seed
        )
    return result_R


def _mean(moments: ConditionMoments) -> NDArray[np.float64]:
    number_R = np.where(moments.num_cells_R > 0, moments.num_cells_R, np.nan)
    return np.asarray(moments.sum_RG / number_R[:, None], np.float64)


def _average(repeats: Sequence[Values]) -> Values:
    return {name: mean_over_repeats([values[name] for values in repeats]) for name in METRICS}
