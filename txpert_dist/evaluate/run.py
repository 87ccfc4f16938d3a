"""Evaluation of predictors on one split of a store, beside baselines and reproducibility.

Enters: an open store and predictors over a gene view. Leaves: a ``Report``. Invariants: everything is scored
on the same cells by the same code; baselines see training perturbations only, and no perturbed cell of a
held-out cell line, which is checked every time; memory is bounded by ``Effort``, not by the screen, beyond
three rows of genes for each perturbation and cell line (the retrieval references and the known changes).
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from graph_store.graph import Snapshot
from txpert_dist import __version__
from txpert_dist.errors import InputError
from txpert_dist.evaluate.blocks import Effort, Scored, Work
from txpert_dist.evaluate.fitting import fit_baselines, training_of
from txpert_dist.evaluate.leakage import (
    Check,
    SelectedOn,
    check_baseline_training,
    check_gene_selection,
    check_training_rows,
)
from txpert_dist.evaluate.predictor import Predictor
from txpert_dist.evaluate.prepare import prepare
from txpert_dist.evaluate.report import (
    EXAMPLE_COLUMNS,
    Counts,
    Exclusion,
    Kind,
    Origin,
    Provenance,
    Report,
)
from txpert_dist.evaluate.reproducibility import RESELECTED
from txpert_dist.evaluate.reselection import reselected
from txpert_dist.evaluate.scores import observed_block, predicted_delta
from txpert_dist.evaluate.summaries import CONDITION, GROUP, comparisons, corrected, long_table, summaries
from txpert_dist.evaluate.tasks import task_groups
from txpert_dist.evaluate.workers import score_on_workers
from txpert_dist.loader.conditions import (
    Progress,
    cell_lines,
    cells_of_lines,
    condition_moments,
    perturbation_deltas,
    perturbed_rows,
    quiet,
)
from txpert_dist.metrics.bootstrap import Bootstrap
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore

EFFORT = Effort()
_EXAMPLES = 3
"""Most perturbations of each place (best, median, worst) that are shown gene by gene."""


def evaluate(  # noqa: PLR0913  each a choice of the caller, by name
    store: CellStore,
    predictors: Sequence[Predictor],
    *,
    split: str,
    genes: NDArray[np.int64],
    seed: int = 0,
    held_out_cell_lines: Sequence[str] = (),
    snapshot: Snapshot | None = None,
    genes_selected_on: SelectedOn = "train",
    exclusions: Sequence[Exclusion] = (),
    effort: Effort = EFFORT,
    progress: Progress = quiet,
) -> Report:
    """Score ``predictors``, the baselines and the screen's reproducibility on the cells of ``split``.

    ``genes`` is the view (gene numbers of the store) that the predictors predict; ``seed`` draws halves,
    resampled screens, fast references and bootstrap intervals. With ``held_out_cell_lines`` only their cells
    are scored and baselines are fitted on the other cell lines: in the train split are then perturbations
    that were seen there, in the others unseen ones. ``snapshot`` are the graphs that graph baselines use,
    ``genes_selected_on`` allows genes that were selected on held-out cells, ``exclusions`` are stated in the
    report beside its own. Raises ``InputError`` when there are no perturbed cells to score, nothing to fit
    baselines on, no such cell line, or for a leak, and ``StoreError`` for damaged data.
    """
    held_out = cells_of_lines(store, held_out_cell_lines)
    rows = perturbed_rows(store, split, among=held_out if held_out_cell_lines else None)
    if not len(rows):
        where = f" of {', '.join(held_out_cell_lines)}" if held_out_cell_lines else ""
        raise InputError(
            f"{store.path}: no perturbed cell{where} is in the {split} split; evaluate another split"
        )
    lines = cell_lines(store)
    everything = perturbation_deltas(store, perturbed_rows(store), genes=genes, progress=progress)
    training_rows = perturbed_rows(store, "train", among=~held_out)
    training = training_of(store, everything, genes=genes, held_out_cell_lines=held_out_cell_lines)
    checks = (
        check_training_rows(store, training_rows, held_out_cell_lines),
        check_baseline_training(store, training.deltas, lines.names, held_out_cell_lines),
        check_gene_selection(
            store, genes, held_out_cell_lines, selected_on=genes_selected_on, progress=progress
        ),
    )
    baselines, left_out = fit_baselines(training, store, genes, rows, snapshot)
    work = prepare(
        store, rows, genes=genes, everything=everything, seed=seed, effort=effort, progress=progress
    )
    return _report(
        work,
        [*predictors, *baselines],
        {**{p.name: "model" for p in predictors}, **{b.name: "baseline" for b in baselines}},
        training=training.deltas,
        provenance=_provenance(work, split, held_out_cell_lines),
        checks=checks,
        exclusions=(*exclusions, *left_out),
    )


def _report(
    work: Work,
    predictors: Sequence[Predictor],
    kinds: dict[str, Kind],
    *,
    training: PerturbationDeltas,
    provenance: Provenance,
    checks: tuple[Check, ...],
    exclusions: tuple[Exclusion, ...],
) -> Report:
    groups, conditions = score_on_workers(work, predictors)
    if work.effort.reselect:
        own = reselected(work, provenance.held_out_cell_lines)
        if own.values is not None:
            groups = groups._replace(values={**groups.values, RESELECTED: own.values})
        exclusions = (*exclusions, *([] if own.exclusion is None else [own.exclusion]))
    bootstrap = Bootstrap(seed=work.background.seed)
    rows = summaries(groups, kinds, GROUP, bootstrap)
    per_batch = summaries(conditions, kinds, CONDITION, bootstrap)
    of_groups = [row for row in rows if row.kind == "reproducibility"]
    counts = _counts(work, groups, conditions, training)
    models = [name for name, kind in kinds.items() if kind == "model"]
    return Report(
        provenance=provenance,
        counts=counts,
        predictors=tuple(row for row in rows if row.kind != "reproducibility"),
        reproducibility=(of_groups[0], *per_batch, *of_groups[1:]),
        table=long_table(
            groups,
            conditions,
            work.background.cell_line_C[conditions.place],
            kinds,
            perturbations=work.store.perturbations,
            lines=cell_lines(work.store).names,
            tasks=task_groups(
                work.store,
                groups.perturbation,
                groups.place,
                held_out_cell_lines=provenance.held_out_cell_lines,
            ),
        ),
        comparisons=comparisons(groups, models, bootstrap),
        spearman_brown=corrected([*rows, *per_batch]),
        bootstrap=bootstrap,
        checks=checks,
        exclusions=(*exclusions, *_exclusions(work, groups, counts)),
        examples=_examples(work, groups, next(iter(predictors))) if models else _no_examples(),
    )


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


def _exclusions(work: Work, groups: Scored, counts: Counts) -> Iterator[Exclusion]:
    """What was not, or not quite, evaluated; only what occurred."""
    background = work.background
    unranked = int((background.differential.of(groups.perturbation, groups.place) < 0).any(1).sum())
    own_QM = background.own_gene_QM[np.unique(groups.perturbation)]
    unmeasured = int((own_QM < 0).all(1).sum())
    found = (
        (
            "(perturbation, cell line, batch) of one cell",
            counts.conditions_without_halves,
            "no halves, so no split-half reproducibility per batch",
        ),
        (
            "(perturbation, cell line) of one cell",
            unranked,
            "no variance, so no most surely changed genes",
        ),
        (
            "cells of batches without controls",
            counts.cells_with_fallback_controls,
            "all controls of the cell line stand in",
        ),
        (
            "perturbations whose own genes are not among the scored ones",
            unmeasured,
            "pearson_delta_other_genes is the same as pearson_delta",
        ),
    )
    yield from (Exclusion(what, number, why) for what, number, why in found if number)
    if work.effort.samplings and not work.sampled_controls:
        yield Exclusion("sampling reproducibility", None, "the store does not hold whole counts")
    if not work.effort.samplings:
        yield Exclusion("sampling reproducibility", None, "not asked for")
    if not work.effort.energy_cells:
        yield Exclusion("energy distance", None, "not asked for")
    if len(background.tables) < 2:
        yield Exclusion("retrieval across cell lines", None, "the screen is of one cell line")


def _examples(work: Work, groups: Scored, first: Predictor) -> pd.DataFrame:
    """Predicted and observed deltas of the best, median and worst perturbations of the first model."""
    score_P = groups.values[first.name]["pearson_delta"]
    ranked = np.flatnonzero(~np.isnan(score_P))[np.argsort(-score_P[~np.isnan(score_P)], kind="stable")]
    if not len(ranked):
        return _no_examples()
    number = max(1, min(_EXAMPLES, len(ranked) // 3))
    middle = (len(ranked) - number) // 2
    places = {
        "best": ranked[:number],
        "median": ranked[middle : middle + number],
        "worst": ranked[-number:][::-1],
    }
    wanted = np.unique(np.concatenate(list(places.values())))
    store, background = work.store, work.background
    rows = work.rows[np.isin(store.perturbation[work.rows], groups.perturbation[wanted])]
    moments = condition_moments(store, rows, genes=work.genes)
    block = observed_block(moments, background)
    predicted_PG = predicted_delta(
        first.predict(moments.perturbation_R, moments.context_R), block, background
    )
    seen = block.observed
    row_of = {key: i for i, key in enumerate(zip(seen.perturbation_P, seen.cell_line_P, strict=True))}
    names, lines = store.perturbations, cell_lines(store).names
    genes = [store.genes[number] for number in work.genes]
    pieces = []
    for place, some in places.items():
        for group in some:
            code, line = groups.perturbation[group], groups.place[group]
            row = row_of[code, line]
            values = (names[code], lines[line], place, score_P[group], genes)
            pieces.append(
                dict(zip(EXAMPLE_COLUMNS, (*values, seen.delta_PG[row], predicted_PG[row]), strict=True))
            )
    return pd.concat([pd.DataFrame(piece) for piece in pieces], ignore_index=True)


def _no_examples() -> pd.DataFrame:
    return pd.DataFrame(columns=list(EXAMPLE_COLUMNS))


def _provenance(work: Work, split: str, held_out_cell_lines: Sequence[str]) -> Provenance:
    return Provenance(
        **Origin()._asdict(),
        store=str(work.store.path),
        store_hash=work.store.manifest_hash,
        split=split,
        split_hash=work.store.split_hash,
        held_out_cell_lines=tuple(held_out_cell_lines),
        num_genes=len(work.genes),
        genes_hash=_hash_of_names([work.store.genes[number] for number in work.genes]),
        seed=work.background.seed,
        repeats=work.effort.repeats,
        version=__version__,
    )


def _hash_of_names(names: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
