"""Scoring a split of a store block by block.

Enters: a store, rows, predictors. Leaves: values per (perturbation, cell line) and per (perturbation, cell
line, batch). Invariants: what is held at once is bounded by ``Effort``, except that one perturbation (one
context) is never cut; a unit's values do not depend on what else is scored with it, so that workers can score
perturbations apart and join.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate import reproducibility
from txpert_dist.evaluate.clouds import HALVES, energy_distances
from txpert_dist.evaluate.halves import first_halves
from txpert_dist.evaluate.predictor import Predictor
from txpert_dist.evaluate.sampling import draw, pooled_counts
from txpert_dist.evaluate.scores import (
    METRICS,
    Background,
    Block,
    Values,
    observed_block,
    predicted_delta,
    score_prediction,
)
from txpert_dist.loader.conditions import Progress, row_blocks, split_moments
from txpert_dist.metrics.moments import ConditionMoments, conditions_of
from txpert_dist.store.cells import CellStore


class Effort(NamedTuple):
    """How much work and memory an evaluation may take."""

    repeats: int = 5
    """Random divisions into halves that reproducibility is averaged over."""
    memory_bytes: int = 1 << 30
    """For the sums of conditions that are held at once."""
    samplings: int = 1
    """Pairs of resampled screens that sampling reproducibility is averaged over; 0 leaves it out."""
    reselect: bool = False
    """Also let resampled screens select their own genes; draws all cells, training cells too."""
    energy_cells: int = 0
    """Most cells of a (perturbation, cell line) that the energy distance looks at; 0 leaves it out."""
    workers: int = 1
    """Processes that score, sharing the memory; more than one are Ray's, on this machine."""


class Work(NamedTuple):
    """One evaluation under way: which cells, against what, with which means."""

    store: CellStore
    rows: NDArray[np.int64]
    genes: NDArray[np.int64]
    background: Background
    effort: Effort
    progress: Progress
    sampled_controls: tuple[NDArray[np.float64], ...] = ()
    """(C, G) control means of each resampled screen, two for each sampling."""
    drawn: NDArray[np.int64] | None = None
    """Ascending genes that resampled cells are drawn over; None: the scored ones."""

    def moments(
        self, rows: NDArray[np.int64], what: str, done: int
    ) -> tuple[ConditionMoments, tuple[ConditionMoments, ...]]:
        """Moments of a block of rows and of its first halves."""
        condition_B = conditions_of(self.store.perturbation[rows], self.store.context[rows]).row_B
        halves_SB = first_halves(rows, condition_B, seed=self.background.seed, repeats=self.effort.repeats)

        def show(_what: str, in_block: int, _total: int) -> None:
            self.progress(what, done + in_block, len(self.rows))

        return split_moments(self.store, rows, halves_SB, genes=self.genes, progress=show)

    def max_conditions(self) -> int:
        """Conditions whose sums, first halves, second half and predictions fit the memory."""
        return max(1, self.effort.memory_bytes // (8 * len(self.genes) * (self.effort.repeats + 12)))


class Scored(NamedTuple):
    """Units of a kind, and every row's values of them."""

    perturbation: NDArray[np.int32]
    place: NDArray[np.int32]
    """Cell line code of a group, context code of a condition."""
    num_cells: NDArray[np.int64]
    values: dict[str, Values]
    """By row of the report."""
    observed_size: NDArray[np.float64]
    """Euclidean length of each observed delta."""
    predicted_size: dict[str, NDArray[np.float64]]
    """That of each predicted delta, by predictor; of groups only."""


def score_groups(work: Work, predictors: Sequence[Predictor]) -> Scored:
    """Predictors, pooled halves and resampled screens, block of perturbations by block of perturbations."""
    names = [predictor.name for predictor in predictors] + [reproducibility.POOLED, reproducibility.SAMPLING]
    if len(set(names)) != len(names):
        raise ValueError(f"predictors share a name: {names}")
    parts, done = [], 0
    for rows in row_blocks(work.store, work.rows, by="perturbation", max_conditions=work.max_conditions()):
        whole, firsts = work.moments(rows, "scoring predictions", done)
        done += len(rows)
        block = observed_block(whole, work.background)
        predicted = {p.name: p.predict(whole.perturbation_R, whole.context_R) for p in predictors}
        values = {
            name: score_prediction(predicted_RG, block, work.background)
            for name, predicted_RG in predicted.items()
        }
        values[reproducibility.POOLED] = reproducibility.pooled_halves(whole, firsts, work.background)
        if work.sampled_controls:
            values[reproducibility.SAMPLING] = _sampled(work, rows)
        if work.effort.energy_cells:
            _add_energy(work, rows, block, predicted, values)
        sizes = {
            name: np.linalg.norm(predicted_delta(predicted_RG, block, work.background), axis=1)
            for name, predicted_RG in predicted.items()
        }
        seen = block.observed
        parts.append(
            Scored(
                *(seen.perturbation_P, seen.cell_line_P, seen.num_cells_P, values),
                *(np.linalg.norm(seen.delta_PG, axis=1), sizes),
            )
        )
    return join_scored(parts)


def score_conditions(work: Work) -> Scored:
    """Halves per batch, block of contexts by block of contexts."""
    parts, done = [], 0
    for rows in row_blocks(work.store, work.rows, by="context", max_conditions=work.max_conditions()):
        whole, firsts = work.moments(rows, "scoring reproducibility per batch", done)
        done += len(rows)
        values = {reproducibility.PER_BATCH: reproducibility.per_batch_halves(whole, firsts, work.background)}
        mean_RG = whole.sum_RG / whole.num_cells_R[:, None] - work.background.control_mean_CG[whole.context_R]
        size_R = np.linalg.norm(mean_RG, axis=1)
        parts.append(Scored(whole.perturbation_R, whole.context_R, whole.num_cells_R, values, size_R, {}))
    return join_scored(parts)


def join_scored(parts: Sequence[Scored]) -> Scored:
    """Units scored apart, blocks of this process or the shares of several, in order of their codes."""
    perturbation = np.concatenate([part.perturbation for part in parts])
    place = np.concatenate([part.place for part in parts])
    order = np.lexsort((place, perturbation))

    return Scored(
        perturbation[order],
        place[order],
        np.concatenate([part.num_cells for part in parts])[order],
        {
            name: {
                metric: np.concatenate([part.values[name][metric] for part in parts])[order]
                for metric in METRICS
            }
            for name in parts[0].values
        },
        np.concatenate([part.observed_size for part in parts])[order],
        {
            name: np.concatenate([part.predicted_size[name] for part in parts])[order]
            for name in parts[0].predicted_size
        },
    )


def score_resampled(work: Work, first: int, *, max_conditions: int) -> Values:
    """Agreement of the resampled screens ``first`` and the next, in the order of ``score_groups``."""
    parts = []
    for rows in row_blocks(work.store, work.rows, by="perturbation", max_conditions=max_conditions):
        parts.append(_agreement(work, rows, first))
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}


def _sampled(work: Work, rows: NDArray[np.int64]) -> Values:
    screens = range(0, len(work.sampled_controls), 2)
    return reproducibility.average([_agreement(work, rows, screen) for screen in screens])


def _agreement(work: Work, rows: NDArray[np.int64], screen: int) -> Values:
    genes = work.genes if work.drawn is None else work.drawn
    pooled = pooled_counts(work.store, rows, genes=genes)
    kept = None if work.drawn is None else np.searchsorted(work.drawn, work.genes)
    seed, controls = work.background.seed, work.sampled_controls
    first, second = (draw(pooled, seed=seed, screen=screen + side, kept=kept) for side in (0, 1))
    return reproducibility.agreement(first, controls[screen], second, controls[screen + 1], work.background)


def _add_energy(
    work: Work,
    rows: NDArray[np.int64],
    block: Block,
    predicted: dict[str, NDArray[np.floating]],
    values: dict[str, Values],
) -> None:
    found = energy_distances(
        work.store,
        rows,
        work.genes,
        block,
        work.background,
        predicted,
        most=work.effort.energy_cells,
    )
    values[reproducibility.POOLED]["energy_distance"] = found.pop(HALVES)
    for name, distance_P in found.items():
        values[name]["energy_distance"] = distance_P
