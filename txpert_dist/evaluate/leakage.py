"""Does anything that should be unknown reach what is fitted or chosen?

Enters: rows or genes that were used, and what is held out. Leaves: nothing, or ``Check`` for the report.
Invariant: a leak is an ``InputError`` naming the perturbation, cell line or genes; nothing passes silently.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.evaluate.survey import Selection, selection_sums
from txpert_dist.ingest.variable_genes import select_variable_genes
from txpert_dist.loader.conditions import Progress, cells_of_lines, quiet
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore
from txpert_dist.store.splits import SPLITS, TRAIN

SelectedOn = Literal["train", "all"]
SAME = 0.99
"""Share of the genes that two selections have in common when they are one (sums in another order may differ
in the last place, and so at the border)."""
_TRAINING, _HELD_OUT_LINE, _HELD_OUT = range(3)


class Rule(NamedTuple):
    """A way to select genes, and how far it is the store's."""

    flavour: Literal["seurat", "cell_ranger"]
    rows: NDArray[np.int64]
    """The cells that take part."""
    share: float
    """Of the store's genes, how many it selects."""


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    outcome: Literal["passed", "unknown", "allowed"]
    detail: str


def check_training_rows(
    store: CellStore, rows: NDArray[np.int64], held_out_cell_lines: Sequence[str] = ()
) -> Check:
    """Rows that a model or baseline learns from hold no perturbed cell that is held out.

    Raises ``InputError`` naming the perturbation or the cell line that leaks.
    """
    perturbation_B = store.perturbation[rows]
    foreign_B = (perturbation_B != 0) & (store.split[perturbation_B] != TRAIN)
    if foreign_B.any():
        code = int(perturbation_B[foreign_B][0])
        raise InputError(
            f"{store.path}: {foreign_B.sum():,} cells of held-out perturbations are among the training cells "
            f"({store.perturbations[code]} of the {SPLITS[store.split[code]]} split first); train again on "
            "cells of the train split only"
        )
    line_B = cells_of_lines(store, held_out_cell_lines)[rows] & (perturbation_B != 0)
    if line_B.any():
        line = store.contexts[int(store.context[rows][line_B][0])].cell_line
        raise InputError(
            f"{store.path}: {line_B.sum():,} perturbed cells of held-out cell line {line} are among the "
            "training cells; train again without them (data.held_out_cell_lines)"
        )
    return Check("training cells", "passed", f"none of {len(rows):,} is held out")


def check_baseline_training(
    store: CellStore, training: PerturbationDeltas, names: Sequence[str], held_out_cell_lines: Sequence[str]
) -> Check:
    """What baselines are fitted on is of training perturbations and cell lines; ``names`` by line code."""
    foreign_P = store.split[training.perturbation_P] != TRAIN
    lines = {names[code] for code in np.unique(training.cell_line_P)} & set(held_out_cell_lines)
    if foreign_P.any() or lines:
        what = (
            f"held-out perturbation {store.perturbations[training.perturbation_P[foreign_P][0]]}"
            if foreign_P.any()
            else f"perturbed cells of held-out cell line {min(lines)}"
        )
        raise InputError(f"{store.path}: {what} reached the baselines; fit them on training cells only")
    return Check(
        "baselines", "passed", f"fitted on {training.num_cells_P.sum():,} cells, none of them held out"
    )


def check_gene_selection(
    store: CellStore,
    genes: NDArray[np.int64],
    held_out_cell_lines: Sequence[str] = (),
    *,
    selected_on: SelectedOn = "train",
    progress: Progress = quiet,
) -> Check:
    """The store's variable genes were selected without looking at held-out cells.

    Stores do not say which cells their genes were selected on, so the selection is made again, on training
    cells and on more. Raises ``InputError`` when it is the one that held-out cells take part in, unless
    ``selected_on`` says that this was asked for. Cannot be known for a selection made otherwise.
    """
    name = "gene selection"
    if len(store.selected) == len(store.genes):
        return Check(name, "passed", "no genes were selected: all are there")
    if not np.array_equal(np.sort(genes), store.selected):
        return Check(name, "unknown", "the genes are not those that ingest selected in this store")
    if selected_on == "all":
        return Check(name, "allowed", "genes selected on held-out cells were allowed (genes-selected-on all)")
    clean, *leaking = (rule.share for rule in selection_rules(store, held_out_cell_lines, progress=progress))
    if clean >= SAME:
        return Check(name, "passed", f"{clean:.1%} of the genes are those that training cells select")
    if max(leaking) >= SAME:
        which = "perturbed cells of held-out cell lines" if leaking[0] >= SAME else "held-out perturbations"
        raise InputError(
            f"{store.path}: its genes were selected on {which} too ({max(leaking):.1%} of the genes say so, "
            f"{clean:.1%} say training cells only); ingest with --select-on train"
            f"{' --held-out-cell-line' if leaking[0] >= SAME else ''}, or allow it with "
            "--genes-selected-on all"
        )
    return Check(
        name, "unknown", f"made otherwise: training cells select {clean:.1%} of the genes, not nearly all"
    )


def selection_rules(
    store: CellStore, held_out_cell_lines: Sequence[str] = (), *, progress: Progress = quiet
) -> tuple[Rule, ...]:
    """The best rule of training cells alone, with held-out cell lines, with held-out perturbations too."""
    perturbed = store.perturbation != 0
    held_out = perturbed & (store.split[store.perturbation] != TRAIN)
    of_line = perturbed & cells_of_lines(store, held_out_cell_lines)
    set_of_cell = np.where(held_out, _HELD_OUT, np.where(of_line, _HELD_OUT_LINE, _TRAINING)).astype(np.int64)
    sums = selection_sums(store, set_of_cell, 3, progress=progress)
    return tuple(_rule(store, sums[:last], np.flatnonzero(set_of_cell < last)) for last in (1, 2, 3))


def _rule(store: CellStore, parts: Sequence[Selection], rows: NDArray[np.int64]) -> Rule:
    """The flavour that selects most of the store's genes on these cells together."""
    rules = []
    flavours: tuple[Literal["seurat", "cell_ranger"], ...] = ("seurat", "cell_ranger")
    for flavour in flavours:
        moments = [getattr(part, flavour) for part in parts]
        whole = type(moments[0])(
            sum(part.num_cells for part in moments),
            sum(part.sum_G for part in moments),
            sum(part.sum_squares_G for part in moments),
        )
        try:
            found = select_variable_genes(whole, len(store.selected), flavour)
        except InputError:  # too many genes of one mean for this flavour
            continue
        share = len(np.intersect1d(found, store.selected)) / max(len(found), len(store.selected))
        rules.append(Rule(flavour, rows, share))
    return max(rules, key=lambda rule: rule.share)
