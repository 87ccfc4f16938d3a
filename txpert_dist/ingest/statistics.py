"""The first pass over the expression: checks every value and gathers what the store needs to know.

Enters: blocks of cells. Leaves: ``Statistics``. Invariant: sums are kept in double precision and do not
depend on the size of the blocks beyond rounding; memory holds a few numbers per cell, gene and context.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig, Key
from txpert_dist.ingest.genes import GeneJoin
from txpert_dist.ingest.matrix import Block, stream
from txpert_dist.ingest.screen import Screen
from txpert_dist.ingest.source import Source, find_column
from txpert_dist.ingest.values import check_library, check_values, library_column
from txpert_dist.ingest.variable_genes import Moments
from txpert_dist.store.controls import Context
from txpert_dist.store.expression import TARGET_SUM, InputScale
from txpert_dist.store.splits import TRAIN

Progress = Callable[[str, int, int], None]


class CellBlock(NamedTuple):
    """Consecutive cells of the store."""

    first: int
    """Number of the first one in the store."""
    source: Source
    rows: NDArray[np.int64]
    """(B,) their rows in the source."""
    measured: Any
    """scipy CSR over all genes of the source."""
    stored: Any
    """scipy CSR over the genes of the store."""


class Statistics(NamedTuple):
    """What the first pass found."""

    library_size: NDArray[np.float64]
    """(num_cells,)."""
    num_entries: int
    largest: float
    moments: Moments
    """Over the cells on which variable genes are chosen."""
    control_mean_CG: NDArray[np.float32]
    """Mean log1p expression of each context's controls, the cell line's where it has none."""


class StoreInput(NamedTuple):
    """The cells of a store before they are written: what both passes read."""

    sources: tuple[Source, ...]
    screen: Screen
    genes: GeneJoin
    scratch: Path

    def blocks(self, what: str, progress: Progress) -> Iterator[CellBlock]:
        """Every cell of the store once, in order, reporting progress under the name ``what``."""
        first = 0
        for number, source in enumerate(self.sources):
            rows, genes = self.screen.rows[number], self.genes.number_of[number]
            for block in stream(source, self.scratch / str(number)):
                kept = rows[np.searchsorted(rows, block.start) : np.searchsorted(rows, _stop(block))]
                if not len(kept):
                    continue
                measured = block.matrix
                if len(kept) < measured.shape[0]:
                    measured = measured[kept - block.start]
                stored = select_columns(measured, genes, len(self.genes.names))
                yield CellBlock(first, source, kept, measured, stored)
                first += len(kept)
                progress(what, first, self.screen.num_cells)


def select_columns(matrix: Any, number: NDArray[np.int32], num_genes: int) -> Any:
    """The CSR ``matrix`` with column j renumbered ``number[j]``, and left out where that is -1."""
    if len(number) == num_genes and np.array_equal(number, np.arange(num_genes)):
        return matrix
    gene = number[matrix.indices]
    kept = gene >= 0
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
    parts = (matrix.data[kept], gene[kept], before[matrix.indptr])
    selected = type(matrix)(parts, shape=(matrix.shape[0], num_genes))
    selected.sort_indices()
    return selected


def gather(cells: StoreInput, config: IngestConfig, progress: Progress) -> Statistics:
    """Check every value and sum up; raises ``InputError`` naming file, cell and gene."""
    screen, num_genes = cells.screen, len(cells.genes.names)
    chosen = _cells_to_select_on(screen, config)
    library = np.zeros(screen.num_cells, np.float64)
    moments, control_sum_CG = _Sums(num_genes), np.zeros((len(screen.contexts.names), num_genes))
    num_entries, largest = 0, 0.0
    for block in cells.blocks("check and measure", progress):
        own = slice(block.first, block.first + len(block.rows))
        check_values(block.source, block.rows, block.measured, config.input_scale)
        library[own] = _library_size(block, config)
        num_entries += block.stored.nnz
        largest = max(largest, float(block.stored.data.max(initial=0)))
        normalised = _normalised(block.stored, library[own], config.input_scale)
        moments.add(normalised, chosen[own])
        _add_controls(control_sum_CG, normalised, screen.contexts.code[own], screen.is_control[own])
    control_mean_CG = _control_mean(control_sum_CG, screen)
    return Statistics(library, num_entries, largest, moments.result(), control_mean_CG)


class _Sums:
    """Running per-gene sums over chosen cells."""

    def __init__(self, num_genes: int) -> None:
        self._num_cells = 0
        self._sum_G = np.zeros(num_genes)
        self._sum_squares_G = np.zeros(num_genes)

    def add(self, normalised: Any, chosen: NDArray[np.bool_]) -> None:
        entry = np.repeat(chosen, np.diff(normalised.indptr))
        gene, value = normalised.indices[entry], normalised.data[entry]
        self._num_cells += int(chosen.sum())
        self._sum_G += np.bincount(gene, value, len(self._sum_G))
        self._sum_squares_G += np.bincount(gene, value * value, len(self._sum_G))

    def result(self) -> Moments:
        return Moments(self._num_cells, self._sum_G, self._sum_squares_G)


def _stop(block: Block) -> int:
    return block.start + int(block.matrix.shape[0])


def _cells_to_select_on(screen: Screen, config: IngestConfig) -> NDArray[np.bool_]:
    contexts = screen.contexts.names
    unknown = set(config.held_out_cell_lines) - {context.cell_line for context in contexts}
    if unknown:
        lines = ", ".join(sorted({context.cell_line for context in contexts}))
        raise InputError(f"no cell line {min(unknown)!r} to hold out; the screen has {lines}")
    if config.select_on == "all":
        return np.ones(screen.num_cells, bool)
    held_out_C = np.array([context.cell_line in config.held_out_cell_lines for context in contexts])
    held_out: NDArray[np.bool_] = held_out_C[screen.contexts.code] & ~screen.is_control
    return np.equal(screen.split[screen.perturbations.code], TRAIN) & ~held_out


def _library_size(block: CellBlock, config: IngestConfig) -> NDArray[np.float64]:
    measured = block.measured
    entries = measured.data if config.input_scale == "counts" else np.expm1(measured.data.astype(np.float64))
    cell = np.repeat(np.arange(len(block.rows)), np.diff(measured.indptr))
    total = np.bincount(cell, entries, len(block.rows)).astype(np.float64)
    column = find_column(block.source, "obs", Key(config.library_size_key, True))
    given = library_column(block.source, column, block.rows) if column else None
    check_library(block.source, block.rows, total, given if config.input_scale == "counts" else None)
    return total if given is None else given


def _normalised(stored: Any, library: NDArray[np.float64], scale: InputScale) -> Any:
    """4000 * count / library size of every entry (or expm1 of log1p values), in double precision."""
    if scale == "log1p":
        value = np.expm1(stored.data.astype(np.float64))
    else:
        # In the store's own precision of library sizes, so that means and cells agree.
        size = library.astype(np.float32).astype(np.float64)
        value = stored.data * np.repeat(TARGET_SUM / size, np.diff(stored.indptr))
    return type(stored)((value, stored.indices, stored.indptr), shape=stored.shape)


def _add_controls(
    control_sum_CG: NDArray[np.float64],
    normalised: Any,
    context: NDArray[np.int32],
    control: NDArray[np.bool_],
) -> None:
    controls = normalised[np.flatnonzero(control)]
    num_genes = control_sum_CG.shape[1]
    present, local = np.unique(context[control], return_inverse=True)
    cell = np.repeat(local, np.diff(controls.indptr))
    where = cell * num_genes + controls.indices
    sums = np.bincount(where, np.log1p(controls.data), len(present) * num_genes)
    control_sum_CG[present] += sums.reshape(len(present), num_genes)


def _control_mean(control_sum_CG: NDArray[np.float64], screen: Screen) -> NDArray[np.float32]:
    contexts: Sequence[Context] = screen.contexts.names
    count_C = np.bincount(screen.contexts.code[screen.is_control], minlength=len(contexts)).astype(np.float64)
    lines = np.array([context.cell_line for context in contexts])
    sum_CG, used_C = control_sum_CG.copy(), count_C.copy()
    for code in np.flatnonzero(screen.controls.fallback):
        of_line = lines == lines[code]
        sum_CG[code], used_C[code] = control_sum_CG[of_line].sum(0), count_C[of_line].sum()
    return (sum_CG / used_C[:, None]).astype(np.float32)
