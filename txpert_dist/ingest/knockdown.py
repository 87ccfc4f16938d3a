"""Did the perturbations lower their targets?

Enters: names of perturbations and genes, and sums over cells. Leaves: one row for every target that was
measured. Invariant: cells are compared with the controls of their own batch (of the cell line, where the
batch has none), every cell counting once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.ingest.labels import JOIN
from txpert_dist.ingest.screen import Screen
from txpert_dist.store.splits import CONTROL
from txpert_dist.store.write import KnockdownRow

USUAL_KNOCKDOWN = 0.3
"""Perturbations that lower their target by less are usually called weak (Replogle et al. 2022)."""


class Targets(NamedTuple):
    """The measured genes that each perturbation targets, as compressed rows."""

    begin: NDArray[np.int64]
    """(perturbations + 1,) where each perturbation's targets begin."""
    gene: NDArray[np.int32]
    """(T,) gene numbers."""

    @property
    def perturbation(self) -> NDArray[np.int64]:
        """(T,) perturbation code of each target."""
        return np.repeat(np.arange(len(self.begin) - 1), np.diff(self.begin))


class TargetSums(NamedTuple):
    """Of normalised counts (and of their log1p) of target genes."""

    sum_T: NDArray[np.float64]
    """Over the cells of each target's perturbation."""
    sum_log_T: NDArray[np.float64]
    control_mean_CT: NDArray[np.float64]
    """Of each context's controls, the cell line's where it has none; of each target's gene."""
    control_mean_log_CT: NDArray[np.float64]


def find_targets(perturbations: tuple[str, ...], genes: tuple[str, ...]) -> Targets:
    """The targets of ``perturbations`` (canonical names) among ``genes``."""
    number = {name: position for position, name in enumerate(genes)}
    found = [
        [number[name] for name in perturbation.split(JOIN) if name in number and perturbation != CONTROL]
        for perturbation in perturbations
    ]
    begin = np.concatenate([[0], np.cumsum([len(part) for part in found])]).astype(np.int64)
    return Targets(begin, np.array([gene for part in found for gene in part], np.int32))


def knockdown_rows(
    targets: Targets, sums: TargetSums, screen: Screen, genes: tuple[str, ...]
) -> tuple[KnockdownRow, ...]:
    """How much each perturbation left of the expression of its measured targets."""
    perturbation, context = screen.perturbations.code.astype(np.int64), screen.contexts.code
    num_contexts = len(screen.contexts.names)
    pairs, times = np.unique(perturbation * num_contexts + context, return_counts=True)
    begin = np.searchsorted(pairs, np.arange(len(targets.begin)) * num_contexts)
    rows = []
    for target, (code, gene) in enumerate(zip(targets.perturbation, targets.gene, strict=True)):
        where = slice(begin[code], begin[code + 1])
        weight_C, contexts = times[where], pairs[where] - code * num_contexts
        num_cells = int(weight_C.sum())
        expected = weight_C @ sums.control_mean_CT[contexts, target]
        expected_log = weight_C @ sums.control_mean_log_CT[contexts, target]
        rows.append(
            KnockdownRow(
                perturbation=screen.perturbations.names[code],
                gene=genes[gene],
                num_cells=num_cells,
                log_ratio=float((sums.sum_log_T[target] - expected_log) / num_cells),
                share_left=float(sums.sum_T[target] / expected) if expected > 0 else float("nan"),
            )
        )
    return tuple(rows)


def unlowered(rows: Sequence[KnockdownRow], required: float = USUAL_KNOCKDOWN) -> list[KnockdownRow]:
    """The targets that keep more than ``1 - required`` of their expression.

    One that the controls do not express cannot be lowered: it is never among them.
    """
    return [row for row in rows if row.share_left > 1 - required]
