"""The metrics of a report, by name and definition, and how each is computed for a block of perturbations.

Enters: moments of observed conditions, predicted expression of the same conditions. Leaves: one value per
(perturbation, cell line) and metric. Invariant: models, baselines and split halves go through this one code.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.metrics.delta import Groups, PerturbationDeltas, groups_of, mean_by_group, pseudobulk_delta
from txpert_dist.metrics.error import per_cell_mse, pseudobulk_mse
from txpert_dist.metrics.moments import ConditionMoments
from txpert_dist.metrics.pearson import UnitRows, pearson_delta, unit_rows
from txpert_dist.metrics.retrieval import FAST_REFERENCES, rank_among


class Metric(NamedTuple):
    """What a metric's name stands for."""

    definition: str
    higher_is_better: bool


METRICS = {
    "pearson_delta": Metric(
        "batch-matched: Pearson correlation over genes of predicted and observed delta; delta = mean over "
        "cells of expression minus the control mean of each cell's own batch and cell line",
        True,
    ),
    "retrieval": Metric(
        "share of the other perturbations of the cell line, of every split, whose observed delta correlates "
        "with the prediction no more than the own one does (ties count); 0.5 is chance",
        True,
    ),
    "retrieval_fast": Metric(
        f"retrieval among {FAST_REFERENCES} seeded perturbations of the cell line and the query itself", True
    ),
    "pseudobulk_mse": Metric(
        "mean over genes of the squared difference of predicted and observed delta", False
    ),
    "per_cell_mse": Metric(
        "mean over cells and genes of the squared difference of expression (as the training loss); holds the "
        "cells' own noise, which no prediction of a mean removes",
        False,
    ),
}
"""Metric name -> definition, in the order of the report."""

Values = dict[str, NDArray[np.float64]]
"""Metric name -> one value per unit, NaN where undefined."""


class Background(NamedTuple):
    """What predictions of any block are compared with."""

    control_mean_CG: NDArray[np.floating]
    cell_line_C: NDArray[np.int64]
    tables: tuple["LineTable", ...]
    """By cell line code."""
    seed: int
    """Draws the references of the fast retrieval."""


class LineTable(NamedTuple):
    """Observed deltas of all perturbations of one cell line, whatever their split."""

    perturbation_P: NDArray[np.int32]
    """Ascending perturbation codes."""
    table: UnitRows


class Block(NamedTuple):
    """Observations of a block of perturbations."""

    moments: ConditionMoments
    groups: Groups
    observed: PerturbationDeltas


def line_tables(everything: PerturbationDeltas, num_lines: int) -> tuple[LineTable, ...]:
    """Reference tables by cell line code, from the deltas of all perturbations."""
    tables = []
    for line in range(num_lines):
        here_P = everything.cell_line_P == line
        tables.append(LineTable(everything.perturbation_P[here_P], unit_rows(everything.delta_PG[here_P])))
    return tuple(tables)


def observed_block(moments: ConditionMoments, background: Background) -> Block:
    """Groups and observed deltas of moments that hold all cells of their perturbations."""
    lines_C = background.cell_line_C
    groups = groups_of(moments.perturbation_R, moments.context_R, lines_C)
    return Block(moments, groups, pseudobulk_delta(moments, background.control_mean_CG, lines_C))


def score_prediction(predicted_RG: NDArray[np.floating], block: Block, background: Background) -> Values:
    """Every metric of predicted expression ``predicted_RG`` of the block's conditions, per group.

    Raises ``ValueError`` when the prediction has another shape than the observations.
    """
    moments, groups = block.moments, block.groups
    if predicted_RG.shape != moments.sum_RG.shape:
        raise ValueError(f"predicted {predicted_RG.shape} for conditions of shape {moments.sum_RG.shape}")
    # in float64: the difference of float32 numbers would lose digits of small deltas
    change_RG = predicted_RG.astype(np.float64) - background.control_mean_CG[moments.context_R]
    predicted_PG = mean_by_group(change_RG, moments.num_cells_R, groups)
    return score_deltas(predicted_PG, block.observed, background) | {
        "per_cell_mse": per_cell_mse(moments, predicted_RG, groups.group_R, len(groups.perturbation_P))
    }


def score_deltas(
    predicted_PG: NDArray[np.float64], observed: PerturbationDeltas, background: Background
) -> Values:
    """The metrics that need deltas only, per group."""
    return {
        "pearson_delta": pearson_delta(predicted_PG, observed.delta_PG),
        "retrieval": _retrieval(predicted_PG, observed, background, None),
        "retrieval_fast": _retrieval(predicted_PG, observed, background, FAST_REFERENCES),
        "pseudobulk_mse": pseudobulk_mse(predicted_PG, observed.delta_PG),
    }


def _retrieval(
    predicted_PG: NDArray[np.float64],
    observed: PerturbationDeltas,
    background: Background,
    references: int | None,
) -> NDArray[np.float64]:
    """Rank among the reference table of each group's own cell line."""
    result_P = np.full(len(predicted_PG), np.nan)
    for line in np.unique(observed.cell_line_P):
        here = np.flatnonzero(observed.cell_line_P == line)
        perturbations, table = background.tables[line]
        own_row_R = np.searchsorted(perturbations, observed.perturbation_P[here]).astype(np.int64)
        result_P[here] = rank_among(
            predicted_PG[here],
            observed.delta_PG[here],
            table,
            own_row_R,
            references=references,
            seed=background.seed,
        )
    return result_P
