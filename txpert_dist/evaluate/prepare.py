"""What an evaluation needs before it scores anything.

Enters: a store, the rows to score, a gene view, the deltas of all perturbations over it. Leaves: a ``Work``.
Invariant: what is made here depends on the whole screen, never on the block or process that scores.
"""

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.blocks import Effort, Work
from txpert_dist.evaluate.sampling import can_be_sampled, pooled_counts, sampled_controls
from txpert_dist.evaluate.scores import background_of
from txpert_dist.evaluate.survey import differential_genes
from txpert_dist.loader.conditions import Progress, cell_lines
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore


def prepare(
    store: CellStore,
    rows: NDArray[np.int64],
    *,
    genes: NDArray[np.int64],
    everything: PerturbationDeltas,
    seed: int,
    effort: Effort,
    progress: Progress,
    drawn: NDArray[np.int64] | None = None,
) -> Work:
    """The means, tables and resampled controls that ``rows`` are scored against over the view ``genes``.

    ``drawn`` are the genes that resampled cells are drawn over, the scored ones among them, when they are
    more than these.
    """
    line_C = cell_lines(store).cell_line_C
    at_once = max(1, effort.memory_bytes // (8 * 6 * len(genes)))
    differential = differential_genes(store, rows, genes=genes, max_groups=at_once, progress=progress)
    background = background_of(store, everything, line_C, genes=genes, differential=differential, seed=seed)
    controls: tuple[NDArray[np.float64], ...] = ()
    if effort.samplings and can_be_sampled(store):
        scored_C = np.isin(line_C, line_C[store.context[rows]])
        own = np.flatnonzero((store.perturbation == 0) & scored_C[store.context])
        pooled = pooled_counts(store, own, genes=genes if drawn is None else drawn, progress=progress)
        controls = tuple(
            sampled_controls(store, pooled, seed=seed, screen=screen, genes=genes, drawn=drawn)
            for screen in range(2 * effort.samplings)
        )
    return Work(store, rows, genes, background, effort, progress, controls, drawn)
