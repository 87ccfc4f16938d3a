"""Evaluation of predictors on one split of a store, beside baselines and reproducibility.

Enters: an open store and predictors over a gene view. Leaves: a ``Report``. Invariants: everything is scored
on the same cells by the same code; baselines see training perturbations only; memory is bounded by
``Effort``, not by the screen, beyond two rows of genes for each perturbation and cell line (the retrieval
references).
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
from txpert_dist.loader.conditions import Progress, cell_lines, perturbation_deltas, perturbed_rows, quiet
from txpert_dist.metrics.aggregate import mean_ignoring_nan
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore
from txpert_dist.store.splits import TRAIN

GROUP = "perturbation, cell line"
CONDITION = "perturbation, cell line, batch"
ORIGIN = Origin()


EFFORT = Effort()


def evaluate(
    store: CellStore,
    predictors: Sequence[Predictor],
    *,
    split: str,
    genes: NDArray[np.int64],
    seed: int = 0,
    origin: Origin = ORIGIN,
    effort: Effort = EFFORT,
    progress: Progress = quiet,
) -> Report:
    """Score ``predictors``, the two baselines and split-half reproducibility on the cells of ``split``.

    ``genes`` is the view (gene numbers of the store) that the predictors predict; ``seed`` draws halves and
    fast references. Raises ``InputError`` when the split has no perturbed cells or there is nothing to fit
    baselines on, and ``StoreError`` for damaged data.
    """
    rows = perturbed_rows(store, split)
    if not len(rows):
        raise InputError(f"{store.path}: no perturbed cell is in the {split} split; evaluate another split")
    everything = perturbation_deltas(store, perturbed_rows(store), genes=genes, progress=progress)
    training = _only(everything, store.split[everything.perturbation_P] == TRAIN)
    control_mean_CG = store.control_mean_CG[:, genes]
    lines = cell_lines(store)
    tables = line_tables(everything, len(lines.names))
    background = Background(control_mean_CG, lines.cell_line_C, tables, seed)
    baselines = (NoChange(control_mean_CG), fit_general(training, store.perturbations, control_mean_CG))
    work = Work(store, rows, genes, background, effort, progress)
    groups = score_groups(work, [*predictors, *baselines])
    conditions = score_conditions(work)
    return _report(work, groups, conditions, _provenance(work, split, origin), training)


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
    return Counts(
        perturbations=len(np.unique(groups.perturbation)),
        groups=len(groups.perturbation),
        cells=len(work.rows),
        conditions=len(conditions.perturbation),
        conditions_without_halves=int((conditions.num_cells < 2).sum()),
        cells_with_fallback_controls=int(fallback_B.sum()),
        reference_perturbations=sum(len(table.perturbation_P) for table in work.background.tables),
        training_cells=int(training.num_cells_P.sum()),
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


def _provenance(work: Work, split: str, origin: Origin) -> Provenance:
    return Provenance(
        **origin._asdict(),
        store=str(work.store.path),
        store_hash=work.store.manifest_hash,
        split=split,
        split_hash=work.store.split_hash,
        num_genes=len(work.genes),
        seed=work.background.seed,
        repeats=work.effort.repeats,
        version=__version__,
    )
