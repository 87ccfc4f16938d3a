"""Statistics of cells that only an evaluation asks for, streamed from the store.

Enters: a store, row numbers, a gene view. Leaves: the genes that each perturbation changes most surely, mean
expression of batches, sums for the selection of genes. Invariants: a block of cells at a time, each cell read
once a call; what stays is a row of genes for each perturbation, batch or set of cells.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.ingest.variable_genes import Moments
from txpert_dist.loader.conditions import Progress, cell_lines, normalised_blocks, quiet, row_blocks
from txpert_dist.metrics.delta import groups_of
from txpert_dist.metrics.differential import GeneMoments, top_genes, welch_scores
from txpert_dist.metrics.moments import ConditionMoments, Conditions, add_cells, empty_moments
from txpert_dist.store.cells import CellStore

TOP_GENES = 100
"""Most genes that any metric over the most changed genes looks at."""


class Differential(NamedTuple):
    """The most surely changed genes of (perturbation, cell line) groups."""

    key_P: NDArray[np.int64]
    """(P,) ascending; see ``_key``."""
    gene_PK: NDArray[np.int32]
    """(P, K) positions in the view, the most surely changed one first; -1 throughout where unknown."""

    def of(self, perturbation_P: NDArray[np.integer], cell_line_P: NDArray[np.integer]) -> NDArray[np.int32]:
        """(P, K) the genes of these groups; -1 throughout for a group that is not among them."""
        key_P = _key(perturbation_P, cell_line_P)
        row_P = np.minimum(np.searchsorted(self.key_P, key_P), len(self.key_P) - 1)
        return np.where((self.key_P[row_P] == key_P)[:, None], self.gene_PK[row_P], np.int32(-1))


class Selection(NamedTuple):
    """Sums over all genes of some cells, as ingest selects variable genes."""

    seurat: Moments
    cell_ranger: Moments


def differential_genes(
    store: CellStore,
    rows: NDArray[np.int64],
    *,
    genes: NDArray[np.int64],
    max_groups: int,
    progress: Progress = quiet,
) -> Differential:
    """The genes of every (perturbation, cell line) among the perturbed cells ``rows``, at most 100 each.

    By Welch's t-test of its cells against all control cells of its cell line (``metrics.differential``).
    """
    lines = cell_lines(store).cell_line_C
    line_B = lines[store.context]
    control = np.flatnonzero((store.perturbation == 0) & np.isin(line_B, line_B[rows]))
    control_L = _gene_moments(store, control, line_B[control], int(lines.max()) + 1, genes, quiet)
    keys, tops, done = [], [], 0
    for block in row_blocks(store, rows, by="perturbation", max_conditions=max_groups):
        groups = groups_of(store.perturbation[block], store.context[block], lines)

        def show(_what: str, in_block: int, _total: int, before: int = done) -> None:
            progress("ranking genes", before + in_block, len(rows))

        cells = _gene_moments(store, block, groups.group_R, len(groups.perturbation_P), genes, show)
        score_PG = welch_scores(cells, control_L, groups.cell_line_P)
        keys.append(_key(groups.perturbation_P, groups.cell_line_P))
        tops.append(top_genes(score_PG, TOP_GENES))
        done += len(block)
    key_P = np.concatenate(keys)
    order = np.argsort(key_P)
    return Differential(key_P[order], np.concatenate(tops)[order])


def context_means(
    store: CellStore, rows: NDArray[np.int64], *, genes: NDArray[np.int64], progress: Progress = quiet
) -> NDArray[np.float64]:
    """(C, G) mean expression of the cells ``rows`` of each context; NaN for a context without any."""
    sums = _nothing(len(store.contexts), len(genes))
    for block, cells in normalised_blocks(store, rows, genes=genes, progress=progress):
        add_cells(sums, cells, store.context[rows[block]].astype(np.int64))
    number_C1 = np.where(sums.num_cells_R > 0, sums.num_cells_R, np.nan)[:, None]
    return np.asarray(sums.sum_RG / number_C1, np.float64)


def selection_sums(
    store: CellStore, set_of_cell: NDArray[np.int64], num_sets: int, *, progress: Progress = quiet
) -> tuple[Selection, ...]:
    """Sums over all genes of each of ``num_sets`` sets of cells; ``set_of_cell`` has each cell's."""
    every = np.arange(len(store.genes), dtype=np.int64)
    log, log_squares, linear, linear_squares = (_nothing(num_sets, len(every)) for _ in range(4))
    for block, cells in normalised_blocks(store, np.arange(store.num_cells), genes=every, progress=progress):
        value, set_B = cells.value.astype(np.float64), set_of_cell[block]
        back = np.expm1(value)
        wanted = ((log, value), (log_squares, value**2), (linear, back), (linear_squares, back**2))
        for sums, values in wanted:
            add_cells(sums, cells._replace(value=values), set_B)
    return tuple(
        Selection(
            Moments(int(log.num_cells_R[s]), linear.sum_RG[s], linear_squares.sum_RG[s]),
            Moments(int(log.num_cells_R[s]), log.sum_RG[s], log_squares.sum_RG[s]),
        )
        for s in range(num_sets)
    )


def _key(perturbation_P: NDArray[np.integer], cell_line_P: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.asarray((perturbation_P.astype(np.int64) << 32) + cell_line_P, np.int64)


def _gene_moments(
    store: CellStore,
    rows: NDArray[np.int64],
    group_B: NDArray[np.int64],
    num_groups: int,
    genes: NDArray[np.int64],
    progress: Progress,
) -> GeneMoments:
    sums, squares = _nothing(num_groups, len(genes)), _nothing(num_groups, len(genes))
    for block, cells in normalised_blocks(store, rows, genes=genes, progress=progress):
        add_cells(sums, cells, group_B[block])
        add_cells(squares, cells._replace(value=cells.value.astype(np.float64) ** 2), group_B[block])
    return GeneMoments(sums.num_cells_R, sums.sum_RG, squares.sum_RG)


def _nothing(num_rows: int, num_genes: int) -> ConditionMoments:
    row = np.arange(num_rows, dtype=np.int32)
    return empty_moments(Conditions(row, row, row.astype(np.int64)), num_genes)
