"""Evaluation of predictors on one split of a store, beside baselines and reproducibility.

Enters: an open store and predictors over a gene view. Leaves: a ``Report``. Invariants: everything is scored
on the same cells by the same code; baselines see training perturbations only, and no perturbed cell of a
held-out cell line; memory is bounded by ``Effort``, not by the screen, beyond two rows of genes for each
perturbation and cell line (the retrieval references).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist import __version__
from txpert_dist.errors import InputError
from txpert_dist.evaluate import reproducibility
from txpert_dist.evaluate.baselines import NoChange, fit_general
from txpert_dist.evaluate.blocks import Effort, Scored, Work, score_conditions, score_groups
from txpert_dist.evaluate.predictor import Predictor
from txpert_dist.evaluate.report import Counts, Origin, Provenance, Report, Summary
from txpert_dist.evaluate.scores import METRICS, Background, Values, line_tables
from txpert_dist.loader.conditions import (
    Progress,
    cell_lines,
    cells_of_lines,
    perturbation_deltas,
    perturbed_rows,
    quiet,
)
from txpert_dist.metrics.aggregate import mean_ignoring_nan
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore
from txpert_dist.store.splits import TRAIN

GROUP = "perturbation, cell line"
CONDITION = "perturbation, cell line, batch"
EFFORT = Effort()


def evaluate(
    store: CellStore,
    predictors: Sequence[Predictor],
    *,
    split: str,
    genes: NDArray[np.int64],
    seed: int = 0,
    held_out_cell_lines: Sequence[str] = (),
    effort: Effort = EFFORT,
    progress: Progress = quiet,
) -> Report:
    """Score ``predictors``, the two baselines and split-half reproducibility on the cells of ``split``.

    ``genes`` is the view (gene numbers of the store) that the predictors predict; ``seed`` draws halves and
    fast references. With ``held_out_cell_lines`` only their cells are scored and baselines are fitted on the
    other cell lines: in the train split are then perturbations that were seen there, in the others unseen
    ones. Raises ``InputError`` when there are no perturbed cells to score, nothing to fit baselines on or no
    such cell line, and ``StoreError`` for damaged data.
    """
    held_out = cells_of_lines(store, held_out_cell_lines)
    rows = perturbed_rows(store, split, among=held_out if held_out_cell_lines else None)
    if not len(rows):
        where = f" of {', '.join(held_out_cell_lines)}" if held_out_cell_lines else ""
        raise InputError(
            f"{store.path}: no perturbed cell{where} is in the {split} split; evaluate another split"
        )
    everything = perturbation_deltas(store, perturbed_rows(store), genes=genes, progress=progress)
    lines = cell_lines(store)
    training = _training(store, everything, [lines.names.index(name) for name in held_out_cell_lines])
    control_mean_CG = store.control_mean_CG[:, genes]
    tables = line_tables(everything, len(lines.names))
    background = Background(control_mean_CG, lines.cell_line_C, tables, seed)
    baselines = (NoChange(control_mean_CG), fit_general(training, store.perturbations, control_mean_CG))
    work = Work(store, rows, genes, background, effort, progress)
    groups = score_groups(work, [*predictors, *baselines])
    conditions = score_conditions(work)
    return _report(work, groups, conditions, _provenance(work, split, held_out_cell_lines), training)


def _training(
    store: CellStore, everything: PerturbationDeltas, held_out: Sequence[int]
) -> PerturbationDeltas:
    """What baselines may see: training perturbations in cell lines that are not held out."""
    kept_P = store.split[everything.perturbation_P] == TRAIN
    return _only(everything, kept_P & ~np.isin(everything.cell_line_P, held_out))


def _only(deltas: PerturbationDeltas, kept_P: NDArray[np.bool_]) -> PerturbationDeltas:
    return PerturbationDeltas(
        deltas.perturbation_P[kept_P],
        deltas.cell_line_P[kept_P],
        deltas.num_cells_P[kept_P],
        deltas.delta_PG[kept_P],
    )


def _report(
    work: Work, groups: Scored, conditions: Scored, provenance: Provenance, training: PerturbationDeltas
) -> Report:
    summaries = [_summary(name, GROUP, values) for name, values in groups.values.items()]
    per_batch = conditions.values[reproducibility.PER_BATCH]
    return Report(
        provenance=provenance,
        counts=_counts(work, groups, conditions, training),
        predictors=tuple(row for row in summaries if row.name != reproducibility.POOLED),
        reproducibility=(
            *(row for row in summaries if row.name == reproducibility.POOLED),
            _summary(reproducibility.PER_BATCH, CONDITION, per_batch),
        ),
        table=_table(work, groups, conditions),
    )


def _summary(name: str, unit: str, values: Values) -> Summary:
    return Summary(name, unit, {metric: mean_ignoring_nan(values[metric]) for metric in METRICS})


def _counts(work: Work, groups: Scored, conditions: Scored, training: PerturbationDeltas) -> Counts:
    fallback_B = work.store.controls.fallback[work.store.context[work.rows]]
    scored = np.unique(groups.perturbation)
    return Counts(
        perturbations=len(scored),
        groups=len(groups.perturbation),
        cells=len(work.rows),
        conditions=len(conditions.perturbation),
        conditions_without_halves=int((conditions.num_cells < 2).sum()),
        cells_with_fallback_controls=int(fallback_B.sum()),
        reference_perturbations=sum(len(table.perturbation_P) for table in work.background.tables),
        training_cells=int(training.num_cells_P.sum()),
        perturbations_with_training_cells=int(np.isin(scored, training.perturbation_P).sum()),
    )


def _table(work: Work, groups: Scored, conditions: Scored) -> pd.DataFrame:
    """Long form: one row for each group and row of the report; conditions averaged within their group."""
    names, lines = np.array(work.store.perturbations), np.array(cell_lines(work.store).names)
    line_of_condition = work.background.cell_line_C[conditions.place]
    keys = pd.DataFrame({"code": groups.perturbation, "line": groups.place})
    found = pd.DataFrame(
        {"code": conditions.perturbation, "line": line_of_condition}
        | conditions.values[reproducibility.PER_BATCH]
    )
    means = found.groupby(["code", "line"], as_index=False).mean()
    batches = found.groupby(["code", "line"], as_index=False).size()
    per_batch = keys.merge(means, on=["code", "line"], how="left", validate="one_to_one")
    num_batches = keys.merge(batches, on=["code", "line"], how="left", validate="one_to_one")["size"]
    values = dict(groups.values)
    values[reproducibility.PER_BATCH] = {metric: per_batch[metric].to_numpy() for metric in METRICS}
    labels = pd.DataFrame(
        {
            "perturbation": names[groups.perturbation],
            "cell_line": lines[groups.place],
            "num_cells": groups.num_cells,
            "num_batches": num_batches,
        }
    )
    pieces = [labels.assign(predictor=name, **metrics) for name, metrics in values.items()]
    return pd.concat(pieces, ignore_index=True)


def _provenance(work: Work, split: str, held_out_cell_lines: Sequence[str]) -> Provenance:
    return Provenance(
        **Origin()._asdict(),
        store=str(work.store.path),
        store_hash=work.store.manifest_hash,
        split=split,
        split_hash=work.store.split_hash,
        held_out_cell_lines=tuple(held_out_cell_lines),
        num_genes=len(work.genes),
        seed=work.background.seed,
        repeats=work.effort.repeats,
        version=__version__,
    )
