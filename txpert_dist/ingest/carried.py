"""What a store knows of its cells, for cells that are to follow them: sums over controls and target genes.

Enters: a store and the labels of the cells to follow. Leaves: ``Carried`` sums, and the knock-down table of
all cells. Invariants: sums are told from what ingest noted, in single precision, as far as that goes. What it
did not note are means of the controls' counts: expression is read of the controls beside perturbations whose
knock-down changes, and of such perturbations whose target these do not express.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.ingest.expression import find_knockdown
from txpert_dist.ingest.genes import GeneJoin
from txpert_dist.ingest.knockdown import Targets, find_targets
from txpert_dist.ingest.screen import Screen, code_among, with_stored
from txpert_dist.ingest.statistics import Carried, Statistics, control_means, normalised
from txpert_dist.ingest.stored import Stored
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import gene_view, select_genes
from txpert_dist.store.write import KnockdownRow

_BLOCK_ENTRIES = 4_000_000
"""Entries that are held at once."""


def carry(before: Stored, screen: Screen) -> Carried:
    """Sums over the cells of the store ``before``, in the codes of ``screen``, whose cells follow them."""
    cells, names = before.cells, screen.perturbations.names
    targets, place = find_targets(names, cells.genes), code_among(screen.contexts.names, cells.contexts)
    changed = _changed(before, screen)
    measured = (np.diff(targets.begin) > 0) & np.array([name in changed for name in names])
    needed_C = _needed_contexts(before, screen, measured)[place]
    num_controls_C = np.bincount(cells.context[cells.perturbation == 0], minlength=len(cells.contexts))
    count_CK = _control_counts(cells, needed_C, targets)
    count_CK[~needed_C & (num_controls_C > 0)] = np.nan
    mean_CK = control_means(count_CK, num_controls_C, cells.controls.fallback, cells.contexts)
    # A context that borrows has the mean of its cell line, and no controls.
    log_CG = cells.control_mean_CG * num_controls_C[:, None].astype(np.float64)
    count_C, sum_log_CG, sum_CK = (
        np.zeros((len(screen.contexts.names), *known.shape[1:]), known.dtype)
        for known in (num_controls_C, log_CG, count_CK)
    )
    count_C[place], sum_log_CG[place], sum_CK[place] = num_controls_C, log_CG, count_CK
    return Carried(
        value_type=cells.matrix.value.form.dtype,
        num_controls_C=count_C,
        control_log_CG=sum_log_CG,
        control_CK=sum_CK,
        targets_2T=_target_sums(before, screen, targets, mean_CK),
    )


def knockdown_of_all(before: Stored, screen: Screen, statistics: Statistics) -> tuple[KnockdownRow, ...]:
    """The table of all cells: the store's rows where the cells that follow change nothing."""
    rows = find_knockdown(statistics, with_stored(screen, before), GeneJoin(before.cells.genes, ()))
    changed = _changed(before, screen)
    known = (row for row in before.knockdown if row.perturbation not in changed)
    both = [*known, *(row for row in rows if row.perturbation in changed)]
    return tuple(sorted(both, key=lambda row: row.perturbation))


def _changed(before: Stored, screen: Screen) -> frozenset[str]:
    """The perturbations whose knock-down the cells of ``screen`` change.

    They are among them, or have cells in a batch that borrows controls of a cell line that gets more of them.
    """
    cells, contexts = before.cells, screen.contexts.names
    grown = {contexts[code].cell_line for code in np.unique(screen.contexts.code[screen.is_control])}
    borrows_C = cells.controls.fallback & np.array([c.cell_line in grown for c in cells.contexts])
    moved = np.unique(cells.perturbation[borrows_C[cells.context]])
    there = (screen.perturbations.names[code] for code in np.unique(screen.perturbations.code))
    return frozenset([*there, *(cells.perturbations[code] for code in moved)])


def _needed_contexts(before: Stored, screen: Screen, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(contexts,) those whose controls stand beside a cell of one of the ``wanted`` perturbations."""
    everything = with_stored(screen, before)
    used_C = np.zeros(len(screen.contexts.names), bool)
    used_C[everything.contexts.code[wanted[everything.perturbations.code]]] = True
    lines = np.array([context.cell_line for context in screen.contexts.names])
    needed_C: NDArray[np.bool_] = used_C | np.isin(lines, lines[used_C & screen.controls.fallback])
    return needed_C


def _control_counts(cells: CellStore, needed_C: NDArray[np.bool_], targets: Targets) -> NDArray[np.float64]:
    """(C, K) sums of the normalised counts of each distinct target gene over each context's own controls."""
    rows = np.flatnonzero((cells.perturbation == 0) & needed_C[cells.context])
    return _sums(cells, rows, cells.context[rows], len(needed_C), np.unique(targets.gene))


def _target_sums(
    before: Stored, screen: Screen, targets: Targets, mean_CK: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, T) the store's table of knock-downs turned back into sums, where these change."""
    cells, sums_2T, names = before.cells, np.zeros((2, len(targets.gene))), screen.perturbations.names
    changed = _changed(before, screen)
    rows = [row for row in before.knockdown if row.perturbation in changed]
    if not rows:
        return sums_2T
    perturbation_R = code_among(cells.perturbations, [row.perturbation for row in rows])
    gene_R = code_among(cells.genes, [row.gene for row in rows])
    column_R = np.searchsorted(np.unique(targets.gene), gene_R)
    times_RC = _cells_by_context(cells)[perturbation_R]
    sum_R = np.array([row.share_left for row in rows]) * _expected(times_RC, mean_CK[:, column_R])
    lost = np.flatnonzero(np.isnan(sum_R))
    sum_R[lost] = _own_sums(cells, perturbation_R[lost], gene_R[lost])
    total_R = np.array([row.log_ratio * row.num_cells for row in rows])
    sum_log_R = total_R + _expected(times_RC, cells.control_mean_CG[:, gene_R].astype(np.float64))
    named = zip(targets.perturbation, targets.gene, strict=True)
    place = {(names[code], cells.genes[gene]): number for number, (code, gene) in enumerate(named)}
    sums_2T[:, [place[row.perturbation, row.gene] for row in rows]] = sum_R, sum_log_R
    return sums_2T


def _cells_by_context(cells: CellStore) -> scipy.sparse.csr_matrix:
    """(perturbations, contexts) how many cells there are."""
    shape = (len(cells.perturbations), len(cells.contexts))
    ones = np.ones(cells.num_cells)
    return scipy.sparse.coo_matrix((ones, (cells.perturbation, cells.context)), shape=shape).tocsr()


def _expected(times_RC: scipy.sparse.csr_matrix, mean_CR: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) sum over the cells of each row of what the controls of its context have."""
    rows = np.repeat(np.arange(times_RC.shape[0]), np.diff(times_RC.indptr))
    beside = times_RC.data * mean_CR[times_RC.indices, rows]
    total_R: NDArray[np.float64] = np.bincount(rows, beside, times_RC.shape[0]).astype(np.float64)
    return total_R


def _own_sums(
    cells: CellStore, perturbation_R: NDArray[np.int32], gene_R: NDArray[np.int32]
) -> NDArray[np.float64]:
    """(R,) sums of normalised counts over the cells of each perturbation, of its gene."""
    codes, genes = np.unique(perturbation_R), np.unique(gene_R)
    rows = np.flatnonzero(np.isin(cells.perturbation, codes))
    group = np.searchsorted(codes, cells.perturbation[rows])
    sum_PK = _sums(cells, rows, group, len(codes), genes)
    return sum_PK[np.searchsorted(codes, perturbation_R), np.searchsorted(genes, gene_R)]


def _sums(
    cells: CellStore,
    rows: NDArray[np.int64],
    group: NDArray[np.integer],
    num_groups: int,
    genes: NDArray[np.integer],
) -> NDArray[np.float64]:
    """(groups, genes) sums of normalised counts over the ascending ``rows`` of each group."""
    view, sum_NK = gene_view(genes.astype(np.int64), len(cells.genes)), np.zeros((num_groups, len(genes)))
    for part in _blocks(cells, rows):
        block = select_genes(cells.take(rows[part]), view)
        num_cells = block.num_cells
        matrix = scipy.sparse.csr_matrix(
            (block.value, block.gene, block.indptr), shape=(num_cells, len(genes))
        )
        scaled = normalised(matrix, block.library_size, cells.input_scale)
        ones = np.ones(num_cells)
        member = scipy.sparse.csr_matrix(
            (ones, (group[part], np.arange(num_cells))), shape=(num_groups, num_cells)
        )
        sum_NK += (member @ scaled).toarray()
    return sum_NK


def _blocks(cells: CellStore, rows: NDArray[np.int64]) -> Iterator[slice]:
    """Parts of ``rows`` that hold few enough entries."""
    ends = np.cumsum(np.diff(cells.matrix.indptr)[rows])
    start = 0
    while start < len(rows):
        limit = (ends[start - 1] if start else 0) + _BLOCK_ENTRIES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield slice(start, stop)
        start = stop
