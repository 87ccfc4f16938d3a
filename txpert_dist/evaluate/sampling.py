"""A screen drawn anew from itself, to see how much two screens of full size would agree.

Enters: a store and rows. Leaves: moments of the same conditions in a resampled screen. Invariants: every cell
keeps its total count, and its counts are drawn from the pooled counts of its (perturbation, cell line,
batch), the maximum-likelihood multinomial (methods, "Sample-Based Extension"); a condition's draw depends on
the seed, the screen's number, the condition and its cells only, never on blocks; expression is computed as
for real cells. The genes are the evaluation's view, so that scores compare with a model's: all other genes
are drawn as one, which changes nothing for the view. Screens that select their own genes (``reselection``)
are drawn over all genes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.survey import Selection
from txpert_dist.ingest.variable_genes import Moments
from txpert_dist.loader.conditions import CELLS_PER_READ, Progress, cell_lines, quiet, row_blocks
from txpert_dist.metrics.moments import ConditionMoments, add_cells, conditions_of, empty_moments
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import TARGET_SUM, gene_view, select_genes

_CELLS_AT_ONCE = 256


class Pooled(NamedTuple):
    """What a resampled screen is drawn from."""

    counts: ConditionMoments
    """Sums of counts over the cells of each condition."""
    row_B: NDArray[np.int64]
    """(B,) each cell's condition."""
    total_B: NDArray[np.int64]
    """(B,) counts of each cell over all genes of the store."""
    library_size_B: NDArray[np.float64]
    """(B,) what each cell is normalised by."""


def can_be_sampled(store: CellStore) -> bool:
    """Whether the store holds whole counts, which alone can be drawn anew."""
    return store.input_scale == "counts" and store.matrix.value.form.dtype.kind in "ui"


def pooled_counts(
    store: CellStore, rows: NDArray[np.int64], *, genes: NDArray[np.int64], progress: Progress = quiet
) -> Pooled:
    """Summed counts of the conditions of the cells ``rows`` over the view ``genes``, in one reading."""
    conditions = conditions_of(store.perturbation[rows], store.context[rows])
    counts, view = empty_moments(conditions, len(genes)), gene_view(genes, len(store.genes))
    total_B = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), CELLS_PER_READ):
        block = slice(start, min(start + CELLS_PER_READ, len(rows)))
        cells = store.take(rows[block])
        cell = np.repeat(np.arange(cells.num_cells), np.diff(cells.indptr))
        total_B[block] = np.bincount(cell, cells.value, minlength=cells.num_cells)
        add_cells(counts, select_genes(cells, view), conditions.row_B[block])
        progress("reading cells", block.stop, len(rows))
    library_size_B = store.library_size[rows].astype(np.float64)
    return Pooled(counts, conditions.row_B, total_B, library_size_B)


def draw(
    pooled: Pooled, *, seed: int, screen: int, kept: NDArray[np.int64] | None = None
) -> ConditionMoments:
    """Moments of log1p expression of the resampled cells; ``screen`` numbers independent screens.

    ``kept`` are the positions of the genes that the moments are of, among those that were pooled; all when
    None.
    """
    num_pooled = pooled.counts.sum_RG.shape[1]
    view = gene_view(np.arange(num_pooled, dtype=np.int64) if kept is None else kept, num_pooled)
    num_genes = num_pooled if kept is None else len(kept)
    moments = empty_moments(conditions_of(pooled.counts.perturbation_R, pooled.counts.context_R), num_genes)
    moments.num_cells_R[:] = np.bincount(pooled.row_B, minlength=len(moments.num_cells_R))
    for r, value, pooled_gene in _drawn(pooled, seed=seed, screen=screen):
        gene = view[pooled_gene]
        value, gene = value[gene >= 0], gene[gene >= 0]
        moments.sum_RG[r] += np.bincount(gene, value, minlength=num_genes)
        moments.sum_squares_R[r] += (value**2).sum()
    return moments


def sampled_selection(
    store: CellStore, rows: NDArray[np.int64], *, seed: int, screen: int, max_conditions: int
) -> Selection:
    """What genes are selected by, of the cells ``rows`` of a resampled screen, over all genes."""
    every = np.arange(len(store.genes), dtype=np.int64)
    sums_4G = np.zeros((4, len(every)))
    for block in row_blocks(store, rows, by="perturbation", max_conditions=max_conditions):
        for _, value, gene in _drawn(pooled_counts(store, block, genes=every), seed=seed, screen=screen):
            back = np.expm1(value)
            for sums_G, part in zip(sums_4G, (back, back**2, value, value**2), strict=True):
                sums_G += np.bincount(gene, part, minlength=len(every))
    return Selection(Moments(len(rows), *sums_4G[:2]), Moments(len(rows), *sums_4G[2:]))


def _drawn(
    pooled: Pooled, *, seed: int, screen: int
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.int64]]]:
    """Condition, and expression and gene of the entries of some of its resampled cells."""
    order = np.argsort(pooled.row_B, kind="stable")
    borders = np.searchsorted(pooled.row_B[order], np.arange(1, len(pooled.counts.num_cells_R)))
    for r, cells in enumerate(np.split(order, borders)):
        key = [seed, screen, int(pooled.counts.perturbation_R[r]), int(pooled.counts.context_R[r])]
        rng = np.random.default_rng(key)
        in_view_G = pooled.counts.sum_RG[r]
        total = pooled.total_B[cells].sum()
        share_G = np.append(in_view_G, max(total - in_view_G.sum(), 0.0)) / max(total, 1)
        for start in range(0, len(cells), _CELLS_AT_ONCE):
            some = cells[start : start + _CELLS_AT_ONCE]
            yield r, *_expression(rng, share_G, pooled.total_B[some], pooled.library_size_B[some])


def sampled_controls(
    store: CellStore,
    controls: Pooled,
    *,
    seed: int,
    screen: int,
    genes: NDArray[np.int64],
    drawn: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """(C, G) control means of a resampled screen; a context that borrows its controls does so here too.

    ``controls`` are the pooled counts of all control cells, over the ascending genes ``drawn`` if these are
    more than ``genes``. Contexts of other cell lines keep the store's.
    """
    kept = None if drawn is None else np.searchsorted(drawn, genes)
    sampled = draw(controls, seed=seed, screen=screen, kept=kept)
    mean_CG = store.control_mean_CG[:, genes].astype(np.float64)
    mean_CG[sampled.context_R] = sampled.sum_RG / sampled.num_cells_R[:, None]
    line_C = cell_lines(store).cell_line_C
    for context in np.flatnonzero(store.controls.fallback):
        same_R = line_C[sampled.context_R] == line_C[context]
        if same_R.any():
            mean_CG[context] = sampled.sum_RG[same_R].sum(0) / sampled.num_cells_R[same_R].sum()
    return mean_CG


def _expression(
    rng: np.random.Generator,
    share_G: NDArray[np.float64],
    total_B: NDArray[np.int64],
    library_size_B: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Expression of the entries of newly drawn cells, and the gene of each.

    The counts of all cells together are one multinomial draw, and which of them are whose is a shuffle: this
    is a multinomial draw of each cell, independent of the others, at a fraction of the work.
    """
    num_genes = len(share_G) - 1
    together_G = rng.multinomial(int(total_B.sum()), share_G / share_G.sum())
    gene_U = np.repeat(np.arange(num_genes + 1), together_G)
    rng.shuffle(gene_U)
    cell_U = np.repeat(np.arange(len(total_B)), total_B)
    seen_U = gene_U < num_genes
    place, count = np.unique(cell_U[seen_U] * num_genes + gene_U[seen_U], return_counts=True)
    cell, gene = np.divmod(place, max(num_genes, 1))
    return np.log1p(TARGET_SUM * count / library_size_B[cell]), gene
