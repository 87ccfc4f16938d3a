"""Observed statistics of a cell store, streamed: moments of conditions, deltas of perturbations.

Enters: an open store, row numbers and a gene view. Leaves: ``ConditionMoments`` and ``PerturbationDeltas`` of
the log1p-normalised cells. Invariants: cells are read a block at a time and dropped; what stays is one row of
genes for each condition (or perturbation) of the call; ``row_blocks`` cuts a screen so that this is bounded.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.metrics.delta import PerturbationDeltas, centre_sums, groups_of
from txpert_dist.metrics.moments import (
    ConditionMoments,
    Conditions,
    add_cells,
    conditions_of,
    empty_moments,
)
from txpert_dist.minibatch import SparseRows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import gene_view, log1p_normalise, select_genes
from txpert_dist.store.splits import SPLITS

Progress = Callable[[str, int, int], None]

CELLS_PER_READ = 4096

_CONTROL = 0


class CellLines(NamedTuple):
    """The cell lines of a store."""

    names: tuple[str, ...]
    """Names by cell line code, sorted."""
    cell_line_C: NDArray[np.int64]
    """(C,) cell line code of each context."""


def quiet(_what: str, _done: int, _total: int) -> None:
    """Report no progress."""


def cell_lines(store: CellStore) -> CellLines:
    """Cell line codes, in the order of the names."""
    names = tuple(sorted({context.cell_line for context in store.contexts}))
    code = {name: number for number, name in enumerate(names)}
    return CellLines(names, np.array([code[context.cell_line] for context in store.contexts], np.int64))


def cells_of_lines(store: CellStore, names: Sequence[str]) -> NDArray[np.bool_]:
    """(num_cells,) whether each cell is of one of the cell lines ``names``.

    Raises ``InputError`` for a cell line that the store does not have, naming near ones.
    """
    lines = cell_lines(store)
    for name in names:
        if name not in lines.names:
            near = difflib.get_close_matches(name, lines.names, 3, 0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(lines.names)}"
            raise InputError(f"{store.path}: no cell line {name!r}; {hint}")
    chosen_C = np.isin(lines.cell_line_C, [lines.names.index(name) for name in names])
    cells: NDArray[np.bool_] = chosen_C[store.context]
    return cells


def perturbed_rows(
    store: CellStore, split: str | None = None, *, among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Ascending rows of the perturbed cells whose perturbation is in ``split`` (any split when None).

    ``among`` leaves only the cells where it is True, e.g. ``cells_of_lines``. Raises ``ValueError`` for a
    name that is not a split.
    """
    kept = store.perturbation != _CONTROL
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
    if split is not None:
        kept &= store.split[store.perturbation] == SPLITS.index(split)
    if among is not None:
        kept &= among
    return np.flatnonzero(kept).astype(np.int64)


def condition_moments(
    store: CellStore, rows: NDArray[np.int64], *, genes: NDArray[np.int64], progress: Progress = quiet
) -> ConditionMoments:
    """Moments of every (perturbation, context) among the cells ``rows``, over the view ``genes``.

    Memory: 8 bytes for each condition and gene. Raises ``StoreError`` for damaged data.
    """
    whole, _ = split_moments(store, rows, np.zeros((0, len(rows)), bool), genes=genes, progress=progress)
    return whole


def split_moments(
    store: CellStore,
    rows: NDArray[np.int64],
    part_SB: NDArray[np.bool_],
    *,
    genes: NDArray[np.int64],
    progress: Progress = quiet,
) -> tuple[ConditionMoments, tuple[ConditionMoments, ...]]:
    """Moments of all cells ``rows`` and, from the same reading, of each of S parts of them.

    ``part_SB`` says which cells are in each part. The parts list the same conditions as the whole, with zeros
    where they have no cell. Memory: 8 (1 + S) bytes for each condition and gene.
    """
    conditions = conditions_of(store.perturbation[rows], store.context[rows])
    whole = empty_moments(conditions, len(genes))
    parts = tuple(empty_moments(conditions, len(genes)) for _ in part_SB)
    for block, cells in normalised_blocks(store, rows, genes=genes, progress=progress):
        row_B = conditions.row_B[block]
        add_cells(whole, cells, row_B)
        for part, in_part_B in zip(parts, part_SB[:, block], strict=True):
            add_cells(part, cells, np.where(in_part_B, row_B, -1))
    return whole, parts


def perturbation_deltas(
    store: CellStore, rows: NDArray[np.int64], *, genes: NDArray[np.int64], progress: Progress = quiet
) -> PerturbationDeltas:
    """Mean delta of every (perturbation, cell line) among the cells ``rows``, in one reading.

    Memory: 8 bytes for each perturbation, cell line and gene, however many batches there are.
    """
    lines = cell_lines(store).cell_line_C
    context_B = store.context[rows]
    groups = groups_of(store.perturbation[rows], context_B, lines)
    num_groups, num_contexts = len(groups.perturbation_P), len(store.contexts)
    sums = empty_moments(Conditions(groups.perturbation_P, groups.cell_line_P, groups.group_R), len(genes))
    for block, cells in normalised_blocks(store, rows, genes=genes, progress=progress):
        add_cells(sums, cells, groups.group_R[block])
    flat = np.bincount(groups.group_R * num_contexts + context_B, minlength=num_groups * num_contexts)
    num_cells_PC = flat.reshape(num_groups, num_contexts)
    delta_PG = centre_sums(sums.sum_RG, num_cells_PC, store.control_mean_CG[:, genes])
    return PerturbationDeltas(groups.perturbation_P, groups.cell_line_P, sums.num_cells_R, delta_PG)


def row_blocks(
    store: CellStore,
    rows: NDArray[np.int64],
    *,
    by: Literal["perturbation", "context"],
    max_conditions: int,
) -> list[NDArray[np.int64]]:
    """Cut ``rows`` into ascending blocks that hold all cells of their perturbations (or contexts).

    A block has at most ``max_conditions`` distinct (perturbation, context), unless one perturbation (context)
    alone has more.
    """
    conditions = conditions_of(store.perturbation[rows], store.context[rows])
    key_R = conditions.perturbation_R if by == "perturbation" else conditions.context_R
    key_B = (store.perturbation if by == "perturbation" else store.context)[rows]
    keys, sizes = np.unique(key_R, return_counts=True)
    block_of_key = _fill(sizes.tolist(), max_conditions)
    block_B = block_of_key[np.searchsorted(keys, key_B)]
    order = np.lexsort((rows, block_B))
    borders = np.flatnonzero(np.diff(block_B[order])) + 1
    return [rows[part] for part in np.split(order, borders) if len(part)]


def normalised_blocks(
    store: CellStore, rows: NDArray[np.int64], *, genes: NDArray[np.int64], progress: Progress = quiet
) -> Iterator[tuple[slice, SparseRows]]:
    """The cells ``rows`` in order, log1p-normalised over the view ``genes``, a block of them at a time.

    Each block comes with its place among ``rows``. Raises ``StoreError`` for damaged data.
    """
    view = gene_view(genes, len(store.genes))
    for start in range(0, len(rows), CELLS_PER_READ):
        block = slice(start, min(start + CELLS_PER_READ, len(rows)))
        cells = select_genes(store.take(rows[block]), view)
        yield block, log1p_normalise(cells, input_scale=store.input_scale)
        progress("reading cells", block.stop, len(rows))


def _fill(sizes: list[int], most: int) -> NDArray[np.int64]:
    """Block number of each item, filling blocks in order up to a total size of ``most``."""
    block, used, result = 0, 0, []
    for size in sizes:
        if used and used + size > most:
            block, used = block + 1, 0
        used += size
        result.append(block)
    return np.array(result, np.int64)
