"""Resampled screens that select their variable genes anew, as the methods have it.

Enters: an evaluation under way. Leaves: the agreement of two such screens, or why there is none. Invariants:
the genes are selected on the very cells that were drawn, by the rule (flavour, cells) that the store's own
selection was made by, which is found out by making it again; two screens are compared over the genes that
both select; a cell's draw is the same whether it is drawn to select or to score.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.blocks import Work, score_resampled
from txpert_dist.evaluate.leakage import SAME, Rule, selection_rules
from txpert_dist.evaluate.prepare import prepare
from txpert_dist.evaluate.report import Exclusion
from txpert_dist.evaluate.sampling import can_be_sampled, sampled_selection
from txpert_dist.evaluate.scores import METRICS, Values
from txpert_dist.ingest.variable_genes import select_variable_genes
from txpert_dist.loader.conditions import perturbation_deltas, perturbed_rows
from txpert_dist.metrics.aggregate import mean_over_repeats

_WHAT = "resampled screens with their own genes"


class Reselected(NamedTuple):
    """What came of it."""

    values: Values | None
    """Every metric per (perturbation, cell line), in order."""
    exclusion: Exclusion | None


def reselected(work: Work, held_out_cell_lines: Sequence[str] = ()) -> Reselected:
    """The agreement of resampled screens, each processed as the store was, selection of genes included."""
    store = work.store
    why = _hindrance(work)
    if why:
        return Reselected(None, Exclusion(_WHAT, None, why))
    rules = selection_rules(store, held_out_cell_lines, progress=work.progress)
    rule = max(rules, key=lambda rule: rule.share)  # the fewest cells of those that do as well
    if rule.share < SAME:
        why = f"the genes were selected by an unknown rule ({rule.share:.1%} are those of the nearest one)"
        return Reselected(None, Exclusion(_WHAT, None, why))
    repeats = []
    for first in range(0, 2 * work.effort.samplings, 2):
        genes = np.intersect1d(_selected(work, rule, first), _selected(work, rule, first + 1))
        if not len(genes):
            return Reselected(None, Exclusion(_WHAT, None, "two resampled screens select no common gene"))
        repeats.append(_scored(work, genes, first))
    values = {name: mean_over_repeats([found[name] for found in repeats]) for name in METRICS}
    return Reselected(values, None)


def _hindrance(work: Work) -> str:
    if not work.effort.samplings or not can_be_sampled(work.store):
        return "there are no resampled screens"
    if len(work.store.selected) == len(work.store.genes):
        return "the store has no selection of genes: all are there"
    if not np.array_equal(np.sort(work.genes), work.store.selected):
        return "the scored genes are not those that ingest selected"
    return ""


def _selected(work: Work, rule: Rule, screen: int) -> NDArray[np.int64]:
    sums = sampled_selection(
        work.store,
        rule.rows,
        seed=work.background.seed,
        screen=screen,
        max_conditions=_max_conditions(work),
    )
    return select_variable_genes(getattr(sums, rule.flavour), len(work.store.selected), rule.flavour)


def _scored(work: Work, genes: NDArray[np.int64], first: int) -> Values:
    store, every = work.store, np.arange(len(work.store.genes), dtype=np.int64)
    everything = perturbation_deltas(store, perturbed_rows(store), genes=genes, progress=work.progress)
    own = prepare(
        store,
        work.rows,
        genes=genes,
        everything=everything,
        seed=work.background.seed,
        effort=work.effort,
        progress=work.progress,
        drawn=every,
    )
    return score_resampled(own, first, max_conditions=_max_conditions(work))


def _max_conditions(work: Work) -> int:
    return max(1, work.effort.memory_bytes // (8 * 6 * len(work.store.genes)))
