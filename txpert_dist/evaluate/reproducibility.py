"""How well an experiment agrees with itself: split-half and resampled reproducibility.

Enters: moments of conditions and of random first halves of their cells, or of two resampled screens. Leaves:
every metric, with the first as the prediction and the second as the truth, averaged over repeats. Invariant:
halves are drawn within every (perturbation, cell line, batch); a unit whose halves cannot both be filled is
NaN.

``split_half_per_batch`` is the methods' definition: the metric of each (perturbation, cell line, batch),
Metric(mean of half 1, mean of half 2); retrieval is among the perturbations of the same batch.
``split_half_pooled`` is what a model's score can be compared with: the halves of all batches pooled per
(perturbation, cell line), retrieval against the same table of perturbations as the model's.
``sampling`` is the methods' estimate for a screen of full size: two screens drawn from this one (``sampling``
module), pooled in the same way. ``sampling_own_genes`` has each of the two select its variable genes anew
(``reselection`` module).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.scores import METRICS, Background, Values, gene_metrics, score_deltas
from txpert_dist.metrics.aggregate import mean_over_repeats
from txpert_dist.metrics.delta import groups_of, pseudobulk_delta
from txpert_dist.metrics.error import per_cell_mse, per_cell_squared_error
from txpert_dist.metrics.moments import ConditionMoments, subtract_moments
from txpert_dist.metrics.retrieval import FAST_REFERENCES, retrieval_rank

POOLED = "split_half_pooled"
PER_BATCH = "split_half_per_batch"
SAMPLING = "sampling"
RESELECTED = "sampling_own_genes"


def pooled_halves(
    whole: ConditionMoments, firsts: Sequence[ConditionMoments], background: Background
) -> Values:
    """Every metric per (perturbation, cell line), halves pooled over batches, averaged over the divisions.

    The per-cell error is that of second-half cells predicted as the control mean of their own context plus
    the first half's delta, as a model would.
    """
    control_CG = background.control_mean_CG
    pairs = [(first, subtract_moments(whole, first)) for first in firsts]
    return average([agreement(first, control_CG, second, control_CG, background) for first, second in pairs])


def per_batch_halves(
    whole: ConditionMoments, firsts: Sequence[ConditionMoments], background: Background
) -> Values:
    """Every metric per (perturbation, context), averaged over the divisions.

    ``whole`` must hold all evaluated perturbations of its contexts: they are each other's references. The
    per-cell error is that of second-half cells predicted as the mean of the first half.
    """
    return average([_per_batch(first, subtract_moments(whole, first), background) for first in firsts])


def agreement(
    first: ConditionMoments,
    first_control_CG: NDArray[np.floating],
    second: ConditionMoments,
    second_control_CG: NDArray[np.floating],
    background: Background,
) -> Values:
    """Every metric per (perturbation, cell line), the first cells' delta predicting the second's.

    Both list the same conditions; each is centred on its own control means.
    """
    lines_C = background.cell_line_C
    predicted = pseudobulk_delta(first, first_control_CG, lines_C)
    observed = pseudobulk_delta(second, second_control_CG, lines_C)
    group_R = groups_of(first.perturbation_R, first.context_R, lines_C).group_R
    predicted_RG = second_control_CG[first.context_R] + predicted.delta_PG[group_R]
    error_P = per_cell_mse(second, predicted_RG, group_R, len(predicted.delta_PG))
    return score_deltas(predicted.delta_PG, observed, background) | {"per_cell_mse": error_P}


def average(repeats: Sequence[Values]) -> Values:
    """Every metric's mean over the repeats in which it is defined."""
    return {name: mean_over_repeats([values[name] for values in repeats]) for name in METRICS}


def spearman_brown(correlation: float) -> float:
    """What a correlation of two halves says of two whole experiments: 2r / (1 + r) (Spearman, Brown 1910)."""
    return 2 * correlation / (1 + correlation) if correlation > -1 else float("nan")


def _per_batch(first: ConditionMoments, second: ConditionMoments, background: Background) -> Values:
    control_RG = background.control_mean_CG[first.context_R]
    mean_RG = _mean(first)
    predicted_RG, observed_RG = mean_RG - control_RG, _mean(second) - control_RG
    num_values_R = np.where(second.num_cells_R > 0, second.num_cells_R, np.nan) * control_RG.shape[1]
    line_R = background.cell_line_C[first.context_R]
    return {
        **gene_metrics(predicted_RG, observed_RG, first.perturbation_R, line_R, background),
        "retrieval": _within_contexts(predicted_RG, observed_RG, first.context_R, None, background.seed),
        "retrieval_fast": _within_contexts(
            predicted_RG, observed_RG, first.context_R, FAST_REFERENCES, background.seed
        ),
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
