"""The metrics of a report, by name and definition, and how each is computed for a block of perturbations.

Enters: moments of observed conditions, predicted expression of the same conditions. Leaves: one value per
(perturbation, cell line) and metric. Invariants: models, baselines, split halves and resampled screens go
through this one code; a value depends on its own (perturbation, cell line) and the background only, so that
blocks and workers make no difference.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.survey import TOP_GENES, Differential
from txpert_dist.metrics.delta import Groups, PerturbationDeltas, groups_of, mean_by_group, pseudobulk_delta
from txpert_dist.metrics.direction import direction_accuracy
from txpert_dist.metrics.error import per_cell_mse, pseudobulk_mse, r2_delta
from txpert_dist.metrics.moments import ConditionMoments
from txpert_dist.metrics.pearson import BLOCK, UnitRows, pearson_delta, unit_rows
from txpert_dist.metrics.ranks import spearman_delta
from txpert_dist.metrics.retrieval import FAST_REFERENCES, rank_among
from txpert_dist.metrics.subset import neutralise, take_genes
from txpert_dist.store.cells import CellStore

_FEW_GENES = 20


class Metric(NamedTuple):
    """What a metric's name stands for."""

    definition: str
    higher_is_better: bool


_CHANGED = (
    "genes of the largest absolute t of Welch's t-test of the perturbation's cells against all controls of "
    "the cell line, as scanpy ranks them"
)

METRICS = {
    "pearson_delta": Metric(
        "batch-matched: Pearson correlation over genes of predicted and observed delta; delta = mean over "
        "cells of expression minus the control mean of each cell's own batch and cell line",
        True,
    ),
    "pearson_delta_other_genes": Metric("Pearson delta over all genes but the perturbed ones", True),
    "pearson_delta_de20": Metric(f"Pearson delta over the {_FEW_GENES} {_CHANGED}", True),
    "pearson_delta_de100": Metric(f"Pearson delta over {TOP_GENES} such genes", True),
    "pearson_delta_shifted": Metric(
        "Pearson correlation after subtracting, from both, the mean observed delta over all perturbations of "
        "the cell line, of every split: what all perturbations share earns nothing (as Systema)",
        True,
    ),
    "spearman_delta": Metric("Spearman correlation over genes of predicted and observed delta", True),
    "retrieval": Metric(
        "share of the other perturbations of the cell line, of every split, whose observed delta correlates "
        "with the prediction no more than the own one does (ties count); 0.5 is chance",
        True,
    ),
    "retrieval_fast": Metric(
        f"retrieval among {FAST_REFERENCES} seeded perturbations of the cell line and the query itself", True
    ),
    "retrieval_across_lines": Metric(
        "retrieval of the same perturbation among the observed deltas of another cell line, averaged over "
        "the other cell lines that have it",
        True,
    ),
    "direction_accuracy": Metric(
        f"share of the {TOP_GENES} most surely changed genes that are predicted to change the way they do; "
        "0.5 is chance",
        True,
    ),
    "r2_delta": Metric(
        "share of the observed delta's variance over genes that the predicted delta explains; below 0 for a "
        "prediction worse than one number for all genes",
        True,
    ),
    "pseudobulk_mse": Metric(
        "mean over genes of the squared difference of predicted and observed delta", False
    ),
    "pseudobulk_rmse": Metric("square root of the pseudobulk MSE of each perturbation", False),
    "per_cell_mse": Metric(
        "mean over cells and genes of the squared difference of expression (as the training loss); holds the "
        "cells' own noise, which no prediction of a mean removes",
        False,
    ),
    "energy_distance": Metric(
        "energy distance of the predicted profiles and (a seeded draw of) the observed cells, each minus the "
        "control mean of its batch; only where it was asked for",
        False,
    ),
}
"""Metric name -> definition, in the order of the report."""

HEADLINE = ("pearson_delta", "pearson_delta_shifted", "pearson_delta_de20", "retrieval", "pseudobulk_rmse")
"""What a reader should see first."""

CORRELATIONS = tuple(name for name in METRICS if name.startswith(("pearson", "spearman")))
"""Metrics that the Spearman-Brown formula applies to."""

Values = dict[str, NDArray[np.float64]]
"""Metric name -> one value per unit, NaN where undefined."""


class Background(NamedTuple):
    """What predictions of any block are compared with; see ``background_of``."""

    control_mean_CG: NDArray[np.floating]
    cell_line_C: NDArray[np.int64]
    tables: tuple["LineTable", ...]
    """By cell line code."""
    seed: int
    """Draws the references of the fast retrieval."""
    own_gene_QM: NDArray[np.int32]
    """(perturbations, M) positions in the view of each perturbation's genes, -1 padded."""
    differential: Differential


class LineTable(NamedTuple):
    """Observed deltas of all perturbations of one cell line, whatever their split."""

    perturbation_P: NDArray[np.int32]
    """Ascending perturbation codes."""
    table: UnitRows
    mean_G: NDArray[np.float64]
    """(G,) mean over the perturbations, each weighing the same; NaN without any."""


class Block(NamedTuple):
    """Observations of a block of perturbations."""

    moments: ConditionMoments
    groups: Groups
    observed: PerturbationDeltas


def background_of(
    store: CellStore,
    everything: PerturbationDeltas,
    cell_line_C: NDArray[np.int64],
    *,
    genes: NDArray[np.int64],
    differential: Differential,
    seed: int,
) -> Background:
    """The background of a store over the view ``genes``; ``everything`` are the deltas of all its cells."""
    return Background(
        store.control_mean_CG[:, genes],
        cell_line_C,
        line_tables(everything, int(cell_line_C.max()) + 1),
        seed,
        own_genes(store, genes),
        differential,
    )


def own_genes(store: CellStore, genes: NDArray[np.int64]) -> NDArray[np.int32]:
    """(perturbations, M) positions in ``genes`` of the genes of each perturbation, -1 where not measured."""
    position = {store.genes[number]: i for i, number in enumerate(genes.tolist())}
    parts = [[position.get(gene, -1) for gene in name.split("+")] for name in store.perturbations]
    own_QM = np.full((len(parts), max(map(len, parts))), -1, np.int32)
    for code, some in enumerate(parts):
        own_QM[code, : len(some)] = some
    return own_QM


def line_tables(everything: PerturbationDeltas, num_lines: int) -> tuple[LineTable, ...]:
    """Reference tables by cell line code, from the deltas of all perturbations."""
    tables = []
    for line in range(num_lines):
        here_P = everything.cell_line_P == line
        delta_PG = everything.delta_PG[here_P]
        mean_G = delta_PG.mean(0) if len(delta_PG) else np.full(delta_PG.shape[1], np.nan)
        tables.append(LineTable(everything.perturbation_P[here_P], unit_rows(delta_PG), mean_G))
    return tuple(tables)


def observed_block(moments: ConditionMoments, background: Background) -> Block:
    """Groups and observed deltas of moments that hold all cells of their perturbations."""
    lines_C = background.cell_line_C
    groups = groups_of(moments.perturbation_R, moments.context_R, lines_C)
    return Block(moments, groups, pseudobulk_delta(moments, background.control_mean_CG, lines_C))


def predicted_delta(
    predicted_RG: NDArray[np.floating], block: Block, background: Background
) -> NDArray[np.float64]:
    """(P, G) mean over a group's cells of prediction minus the control mean of the cell's own context.

    Raises ``ValueError`` when the prediction has another shape than the observations.
    """
    moments = block.moments
    if predicted_RG.shape != moments.sum_RG.shape:
        raise ValueError(f"predicted {predicted_RG.shape} for conditions of shape {moments.sum_RG.shape}")
    # in float64: the difference of float32 numbers would lose digits of small deltas
    change_RG = predicted_RG.astype(np.float64) - background.control_mean_CG[moments.context_R]
    return mean_by_group(change_RG, moments.num_cells_R, block.groups)


def score_prediction(predicted_RG: NDArray[np.floating], block: Block, background: Background) -> Values:
    """Every metric of predicted expression ``predicted_RG`` of the block's conditions, per group.

    The energy distance, which needs cells, is left undefined. Raises ``ValueError`` when the prediction has
    another shape than the observations.
    """
    predicted_PG = predicted_delta(predicted_RG, block, background)
    groups = block.groups
    return score_deltas(predicted_PG, block.observed, background) | {
        "per_cell_mse": per_cell_mse(block.moments, predicted_RG, groups.group_R, len(groups.perturbation_P))
    }


def score_deltas(
    predicted_PG: NDArray[np.float64], observed: PerturbationDeltas, background: Background
) -> Values:
    """The metrics that need deltas only, per group; the others are undefined."""
    return {
        **gene_metrics(
            predicted_PG, observed.delta_PG, observed.perturbation_P, observed.cell_line_P, background
        ),
        "retrieval": _retrieval(predicted_PG, observed, background, None),
        "retrieval_fast": _retrieval(predicted_PG, observed, background, FAST_REFERENCES),
        "retrieval_across_lines": _across_lines(predicted_PG, observed, background),
    }


class Pairs(NamedTuple):
    """Predicted and observed deltas, row beside row, and what the metrics over some genes need."""

    predicted_PG: NDArray[np.float64]
    observed_PG: NDArray[np.float64]
    shared_PG: NDArray[np.float64]
    """Mean observed delta of each row's cell line."""
    own_PM: NDArray[np.int32]
    """Positions of the perturbed genes, -1 padded."""
    top_PK: NDArray[np.int32]
    """Positions of the most surely changed genes; -1 throughout where unknown."""


def gene_metrics(
    predicted_PG: NDArray[np.float64],
    observed_PG: NDArray[np.float64],
    perturbation_P: NDArray[np.integer],
    cell_line_P: NDArray[np.integer],
    background: Background,
) -> Values:
    """The metrics that compare one predicted with one observed delta; all others are there, undefined."""
    values = {name: np.full(len(predicted_PG), np.nan) for name in METRICS}
    top_PK = background.differential.of(perturbation_P, cell_line_P)
    own_PM = background.own_gene_QM[perturbation_P]
    for start in range(0, len(predicted_PG), BLOCK):
        some = slice(start, start + BLOCK)
        shared_PG = np.stack([background.tables[line].mean_G for line in cell_line_P[some]])
        pairs = Pairs(predicted_PG[some], observed_PG[some], shared_PG, own_PM[some], top_PK[some])
        for name, value_P in {**pearson_metrics(pairs), **_other_metrics(pairs)}.items():
            values[name][some] = value_P
    return values


def pearson_metrics(pairs: Pairs) -> Values:
    """Pearson delta over all genes, over some, and beyond what all perturbations share."""
    predicted_PG, observed_PG = pairs.predicted_PG, pairs.observed_PG
    most = take_genes(predicted_PG, pairs.top_PK), take_genes(observed_PG, pairs.top_PK)
    return {
        "pearson_delta": pearson_delta(predicted_PG, observed_PG),
        "pearson_delta_other_genes": pearson_delta(
            neutralise(predicted_PG, pairs.own_PM), neutralise(observed_PG, pairs.own_PM)
        ),
        "pearson_delta_de20": pearson_delta(*(part_PK[:, :_FEW_GENES] for part_PK in most)),
        "pearson_delta_de100": pearson_delta(*most),
        "pearson_delta_shifted": pearson_delta(predicted_PG - pairs.shared_PG, observed_PG - pairs.shared_PG),
    }


def _other_metrics(pairs: Pairs) -> Values:
    predicted_PG, observed_PG = pairs.predicted_PG, pairs.observed_PG
    mse_P = pseudobulk_mse(predicted_PG, observed_PG)
    return {
        "spearman_delta": spearman_delta(predicted_PG, observed_PG),
        "direction_accuracy": direction_accuracy(
            take_genes(predicted_PG, pairs.top_PK), take_genes(observed_PG, pairs.top_PK)
        ),
        "r2_delta": r2_delta(predicted_PG, observed_PG),
        "pseudobulk_mse": mse_P,
        "pseudobulk_rmse": np.sqrt(mse_P),
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
        reference = background.tables[line]
        own_row_R = np.searchsorted(reference.perturbation_P, observed.perturbation_P[here]).astype(np.int64)
        result_P[here] = rank_among(
            predicted_PG[here],
            observed.delta_PG[here],
            reference.table,
            own_row_R,
            references=references,
            seed=background.seed,
        )
    return result_P


def _across_lines(
    predicted_PG: NDArray[np.float64], observed: PerturbationDeltas, background: Background
) -> NDArray[np.float64]:
    """Mean over the other cell lines that have a perturbation of its rank among that line's table."""
    total_P, number_P = np.zeros(len(predicted_PG)), np.zeros(len(predicted_PG))
    for line, reference in enumerate(background.tables):
        there_P = np.isin(observed.perturbation_P, reference.perturbation_P)
        here = np.flatnonzero(there_P & (observed.cell_line_P != line))
        row_R = np.searchsorted(reference.perturbation_P, observed.perturbation_P[here]).astype(np.int64)
        rank_R = rank_among(predicted_PG[here], reference.table.unit_PG[row_R], reference.table, row_R)
        defined_R = ~np.isnan(rank_R)
        total_P[here[defined_R]] += rank_R[defined_R]
        number_P[here[defined_R]] += 1
    return np.asarray(total_P / np.where(number_P > 0, number_P, np.nan), np.float64)
