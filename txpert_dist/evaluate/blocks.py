"""Scoring a split of a store block by block.

Enters: a store, rows, predictors. Leaves: values per (perturbation, cell line) and per (perturbation, cell
line, batch). Invariant: what is held at once is bounded by ``Effort``, except that one perturbation (one
context) is never cut.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate import reproducibility
from txpert_dist.evaluate.halves import first_halves
from txpert_dist.evaluate.predictor import Predictor
from txpert_dist.evaluate.scores import METRICS, Background, Values, observed_block, score_prediction
from txpert_dist.loader.conditions import Progress, row_blocks, split_moments
from txpert_dist.metrics.moments import ConditionMoments, conditions_of
from txpert_dist.store.cells import CellStore


class Effort(NamedTuple):
    """How much work and memory an evaluation may take."""

    repeats: int = 5
    """Random divisions into halves that reproducibility is averaged over."""
    memory_bytes: int = 1 << 30
    """For the sums of conditions that are held at once."""


class Work(NamedTuple):
    """One evaluation under way: which cells, against what, with which means."""

    store: CellStore
    rows: NDArray[np.int64]
    genes: NDArray[np.int64]
    background: Background
    effort: Effort
    progress: Progress

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
        return max(1, self.effort.memory_bytes // (8 * len(self.genes) * (self.effort.repeats + 6)))


class Scored(NamedTuple):
    """Units of a kind, and every row's values of them."""

    perturbation: NDArray[np.int32]
    place: NDArray[np.int32]
    """Cell line code of a group, context code of a condition."""
    num_cells: NDArray[np.int64]
    values: dict[str, Values]
    """By row of the report."""


def score_groups(work: Work, predictors: Sequence[Predictor]) -> Scored:
    """Predictors and pooled halves, block of perturbations by block of perturbations."""
    names = [predictor.name for predictor in predictors] + [reproducibility.POOLED]
    if len(set(names)) != len(names):
        raise ValueError(f"predictors share a name: {names}")
    parts, done = [], 0
    for rows in row_blocks(work.store, work.rows, by="perturbation", max_conditions=work.max_conditions()):
        whole, firsts = work.moments(rows, "scoring predictions", done)
        done += len(rows)
        block = observed_block(whole, work.background)
        values = {
            predictor.name: score_prediction(
                predictor.predict(whole.perturbation_R, whole.context_R), block, work.background
            )
            for predictor in predictors
        }
        values[reproducibility.POOLED] = reproducibility.pooled_halves(whole, firsts, work.background)
        observed = block.observed
        parts.append(Scored(observed.perturbation_P, observed.cell_line_P, observed.num_cells_P, values))
    return _join(parts)


def score_conditions(work: Work) -> Scored:
    """Halves per batch, block of contexts by block of contexts."""
    parts, done = [], 0
    for rows in row_blocks(work.store, work.rows, by="context", max_conditions=work.max_conditions()):
        whole, firsts = work.moments(rows, "scoring reproducibility per batch", done)
        done += len(rows)
        values = {reproducibility.PER_BATCH: reproducibility.per_batch_halves(whole, firsts, work.background)}
        parts.append(Scored(whole.perturbation_R, whole.context_R, whole.num_cells_R, values))
    return _join(parts)


def _join(parts: Sequence[Scored]) -> Scored:
    names = parts[0].values
    values = {
        name: {metric: np.concatenate([part.values[name][metric] for part in parts]) for metric in METRICS}
        for name in names
    }
    return Scored(
        np.concatenate([part.perturbation for part in parts]),
        np.concatenate([part.place for part in parts]),
        np.concatenate([part.num_cells for part in parts]),
        values,
    )
