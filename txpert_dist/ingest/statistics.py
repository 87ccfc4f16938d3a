"""The first look at the expression: checks every value and sums up what the store needs to know.

Enters: blocks of cells, and sums over those that they are to follow, if any. Leaves: ``Statistics``.
Invariants: every block is measured by itself and the sums of blocks are added in their order, in double
precision, so that it makes no difference which process measured which block; memory holds one block, and a
few numbers per cell, gene and context.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.cells import CellBlock, Cells
from txpert_dist.ingest.config import HvgFlavour, IngestConfig
from txpert_dist.ingest.kernels import add_moments, add_target_sums, row_sums, scaled_rows
from txpert_dist.ingest.knockdown import Targets, TargetSums
from txpert_dist.ingest.screen import Screen
from txpert_dist.ingest.values import check_holds, check_library, check_values, library_column
from txpert_dist.ingest.variable_genes import Moments
from txpert_dist.store.controls import Context
from txpert_dist.store.expression import TARGET_SUM, InputScale
from txpert_dist.store.splits import TRAIN

Progress = Callable[[str, int, int], None]

SUMS = ("library", "detected", "largest", "moments", "targets", "control_place", "control_sum", "control_log")
"""Names of the arrays that ``measure`` gives."""


class Asked(NamedTuple):
    """What to sum up; arrays of a number a cell are in the order of the kept cells."""

    input_scale: InputScale
    flavour: HvgFlavour
    context: NDArray[np.int32]
    perturbation: NDArray[np.int32]
    chosen: NDArray[np.bool_]
    """Cells that decide which genes vary."""
    targets: Targets
    value_type: np.dtype[Any] | None
    """Of the store that the cells are to follow; None for a new one."""


class Carried(NamedTuple):
    """Sums over the cells of a store that the measured cells are to follow, in the codes of all."""

    value_type: np.dtype[Any]
    """Of the store's values."""
    num_controls_C: NDArray[np.int64]
    """Control cells of each context itself."""
    control_log_CG: NDArray[np.float64]
    """Over these, of log1p expression."""
    control_CK: NDArray[np.float64]
    """Over these, of normalised counts of each distinct target gene, ascending; NaN where not known."""
    targets_2T: NDArray[np.float64]
    """As ``TargetSums`` has them; 0 where not known."""


class Statistics(NamedTuple):
    """What the first look found."""

    library_size: NDArray[np.float64]
    """(kept cells,)."""
    detected_genes: NDArray[np.int32]
    """(kept cells,) genes with a count, of all genes of the file."""
    largest: float
    moments: Moments
    """Over the cells on which variable genes are chosen."""
    control_mean_CG: NDArray[np.float32]
    """Mean log1p expression of each context's controls, the cell line's where it has none."""
    target_sums: TargetSums


def measure(cells: Cells, block: CellBlock, column: str | None, asked: Asked) -> dict[str, NDArray[Any]]:
    """Check every value of ``block`` and sum up; raises ``InputError`` naming file, cell and gene."""
    stored, num_genes = block.stored, len(cells.genes.names)
    own = slice(block.first, block.first + len(block.rows))
    check_values(block.source, block.rows, block.measured, asked.input_scale)
    if asked.value_type is not None:
        check_holds(block.source, block.rows, stored, cells.genes.names, asked.value_type)
    library = _library_size(block, column, asked.input_scale)
    scaled = normalised(stored, library, asked.input_scale)
    perturbation, context = np.array(asked.perturbation[own]), np.array(asked.context[own])
    indptr = stored.indptr.astype(np.int64)
    sum_G, sum_squares_G = np.zeros(num_genes), np.zeros(num_genes)
    varied = _varied(stored, scaled.data, asked.flavour)
    add_moments(indptr, stored.indices, varied, np.array(asked.chosen[own]), sum_G, sum_squares_G)
    targets = asked.targets
    sum_T, sum_log_T = np.zeros(len(targets.gene)), np.zeros(len(targets.gene))
    add_target_sums(
        indptr,
        stored.indices,
        scaled.data,
        perturbation,
        np.array(targets.begin),
        np.array(targets.gene),
        sum_T,
        sum_log_T,
    )
    largest = float(stored.data.max(initial=0))
    return {
        "library": library,
        "detected": np.diff(block.measured.indptr).astype(np.int32),
        "largest": np.array([largest]),
        "moments": np.stack([sum_G, sum_squares_G]),
        "targets": np.stack([sum_T, sum_log_T]),
        **_control_sums(scaled, context, np.equal(perturbation, 0)),
    }


class Totals:
    """The sums of all blocks: ``add`` every one in order."""

    def __init__(self, screen: Screen, asked: Asked, num_genes: int, carried: Carried | None) -> None:
        """Begin at what is ``carried`` over, whose arrays are added to, or at zero."""
        self._screen, self._asked = screen, asked
        self._library: list[NDArray[np.float64]] = []
        self._detected: list[NDArray[np.int32]] = []
        self._largest = 0.0
        self._moments_2G = np.zeros((2, num_genes))
        self._targets_2T = np.zeros((2, len(asked.targets.gene)))
        num_contexts, genes = len(screen.contexts.names), np.unique(asked.targets.gene)
        self._num_controls_C = np.bincount(screen.contexts.code[screen.is_control], minlength=num_contexts)
        if carried is None:
            self._control_log_CG = np.zeros((num_contexts, num_genes))
            self._control_CK = np.zeros((num_contexts, len(genes)))
        else:  # large where there are many contexts: not copied
            self._control_log_CG, self._control_CK = carried.control_log_CG, carried.control_CK
            self._num_controls_C += carried.num_controls_C
            self._targets_2T += carried.targets_2T
        self._column = np.full(num_genes, -1)
        self._column[genes] = np.arange(len(genes))

    def add(self, sums: Mapping[str, NDArray[Any]]) -> None:
        """Add what ``measure`` found in one block."""
        self._library.append(np.array(sums["library"]))
        self._detected.append(np.array(sums["detected"]))
        self._largest = max(self._largest, float(sums["largest"][0]))
        self._moments_2G += sums["moments"]
        self._targets_2T += sums["targets"]
        num_genes = self._control_log_CG.shape[1]
        place = np.array(sums["control_place"])
        self._control_log_CG.ravel()[place] += sums["control_log"]
        context, gene = np.divmod(place, num_genes)
        target = self._column[gene] >= 0
        self._control_CK[context[target], self._column[gene[target]]] += sums["control_sum"][target]

    def result(self) -> Statistics:
        """What was found in all blocks."""
        screen, targets, num_cells_C = self._screen, self._asked.targets, self._num_controls_C
        contexts, fallback_C = screen.contexts.names, screen.controls.fallback
        mean_log_CG = control_means(self._control_log_CG, num_cells_C, fallback_C, contexts)
        mean_CK = control_means(self._control_CK, num_cells_C, fallback_C, contexts)
        sums = TargetSums(
            sum_T=self._targets_2T[0],
            sum_log_T=self._targets_2T[1],
            control_mean_CT=mean_CK[:, self._column[targets.gene]],
            control_mean_log_CT=mean_log_CG[:, targets.gene],
        )
        return Statistics(
            library_size=np.concatenate(self._library),
            detected_genes=np.concatenate(self._detected),
            largest=self._largest,
            moments=Moments(int(self._asked.chosen.sum()), *self._moments_2G),
            control_mean_CG=mean_log_CG.astype(np.float32),
            target_sums=sums,
        )


def cells_to_select_on(screen: Screen, config: IngestConfig) -> NDArray[np.bool_]:
    """(kept cells,) which of them decide which genes vary."""
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


def control_means(
    sum_CN: NDArray[np.float64],
    num_cells_C: NDArray[np.int64],
    fallback_C: NDArray[np.bool_],
    contexts: Sequence[Context],
) -> NDArray[np.float64]:
    """Means of each context's controls from sums over its own; the cell line's where ``fallback_C``."""
    lines = np.array([context.cell_line for context in contexts])
    mean_CN, used_C = sum_CN.copy(), num_cells_C.astype(np.float64)
    for code in np.flatnonzero(fallback_C):
        of_line = lines == lines[code]
        mean_CN[code], used_C[code] = sum_CN[of_line].sum(0), num_cells_C[of_line].sum()
    mean_CN /= used_C[:, None]
    return mean_CN


def _library_size(block: CellBlock, column: str | None, scale: InputScale) -> NDArray[np.float64]:
    measured = block.measured
    entries = measured.data if scale == "counts" else np.expm1(measured.data.astype(np.float64))
    total = row_sums(measured.indptr, entries)
    given = library_column(block.source, column, block.rows) if column else None
    check_library(block.source, block.rows, total, given if scale == "counts" else None)
    return total if given is None else given


def normalised(stored: Any, library: NDArray[np.floating], scale: InputScale) -> Any:
    """4000 * count / library size of every entry (or expm1 of log1p values), in double precision."""
    if scale == "log1p":
        value = np.expm1(stored.data.astype(np.float64))
    else:
        # In the store's own precision of library sizes, so that means and cells agree.
        size = library.astype(np.float32).astype(np.float64)
        value = scaled_rows(stored.indptr, stored.data, TARGET_SUM / size)
    return type(stored)((value, stored.indices, stored.indptr), shape=stored.shape)


def _varied(stored: Any, scaled: NDArray[np.float64], flavour: HvgFlavour) -> NDArray[np.float64]:
    """The values whose moments the flavour of variable genes needs."""
    if flavour == "seurat_v3":
        counts: NDArray[np.float64] = stored.data.astype(np.float64)
        return counts
    return np.log1p(scaled) if flavour == "cell_ranger" else scaled


def _control_sums(
    scaled: Any, context: NDArray[np.int32], control: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """Sums over control cells of each context and gene: place (context * genes + gene), sum, sum of log1p."""
    controls = scaled[np.flatnonzero(control)]
    present, local = np.unique(context[control], return_inverse=True)
    ones = np.ones(len(local))
    member = scipy.sparse.csr_matrix((ones, (local, np.arange(len(local)))), shape=(len(present), len(local)))
    logged = type(controls)(
        (np.log1p(controls.data), controls.indices, controls.indptr), shape=controls.shape
    )
    sums, sums_log = (member @ matrix for matrix in (controls, logged))
    sums.sort_indices()
    sums_log.sort_indices()
    row = np.repeat(present.astype(np.int64), np.diff(sums.indptr))
    return {
        "control_place": row * scaled.shape[1] + sums.indices,
        "control_sum": sums.data,
        "control_log": sums_log.data,
    }
