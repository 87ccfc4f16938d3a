"""Genes ranked by how surely a perturbation changes them (differentially expressed genes).

Enters: per-gene sums over the cells of perturbations and of controls. Leaves: gene positions. Invariant: the
ranking is that of ``scanpy.tl.rank_genes_groups(method="t-test", rankby_abs=True)`` of a perturbation's cells
against the control cells of its cell line, as GEARS and the public TxPert take their top 20 and top 100
genes; genes of equal score stand in gene order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class GeneMoments(NamedTuple):
    """Number, sums and sums of squares of the cells of each row, by gene."""

    num_cells_P: NDArray[np.int64]
    sum_PG: NDArray[np.float64]
    sum_squares_PG: NDArray[np.float64]

    def mean(self) -> NDArray[np.float64]:
        """(P, G) mean expression."""
        return np.asarray(self.sum_PG / np.maximum(self.num_cells_P, 1)[:, None], np.float64)

    def variance(self) -> NDArray[np.float64]:
        """(P, G) unbiased variance; NaN for a row of fewer than two cells."""
        number_P1 = self.num_cells_P[:, None].astype(np.float64)
        spread_PG = self.sum_squares_PG - number_P1 * self.mean() ** 2
        return np.asarray(np.maximum(spread_PG, 0.0) / np.where(number_P1 > 1, number_P1 - 1, np.nan))


def welch_scores(
    cells: GeneMoments, controls: GeneMoments, control_row_P: NDArray[np.integer]
) -> NDArray[np.float64]:
    """(P, G) Welch's t of each row's cells against row ``control_row_P`` of ``controls``.

    0 for a gene that varies in neither; NaN for a row where one side has fewer than two cells.
    """
    squared_error_PG = cells.variance() / np.maximum(cells.num_cells_P, 1)[:, None]
    control_PG = controls.variance() / np.maximum(controls.num_cells_P, 1)[:, None]
    squared_error_PG += control_PG[control_row_P]
    difference_PG = cells.mean() - controls.mean()[control_row_P]
    with np.errstate(divide="ignore", invalid="ignore"):
        score_PG = difference_PG / np.sqrt(squared_error_PG)
    return np.where((squared_error_PG == 0) & (difference_PG == 0), 0.0, score_PG)


def top_genes(score_PG: NDArray[np.floating], number: int) -> NDArray[np.int32]:
    """(P, K) positions of the ``number`` genes of the largest absolute score, largest first.

    -1 throughout for a row whose scores are undefined. K is less where there are fewer genes.
    """
    undefined_P = np.isnan(score_PG).any(1)
    key_PG = -np.abs(np.where(undefined_P[:, None], 0.0, score_PG))
    number = min(number, key_PG.shape[1])
    if number == key_PG.shape[1]:
        top_PK = np.argsort(key_PG, axis=1, kind="stable")
    else:
        some_PK = np.sort(np.argpartition(key_PG, number - 1, axis=1)[:, :number], axis=1)
        key_PK = np.take_along_axis(key_PG, some_PK, 1)
        top_PK = np.take_along_axis(some_PK, np.argsort(key_PK, axis=1, kind="stable"), 1)
        # where genes tie for the last place, which of them is chosen is up to the partition
        tied_P = (key_PG <= key_PK.max(1, keepdims=True)).sum(1) > number
        top_PK[tied_P] = np.argsort(key_PG[tied_P], axis=1, kind="stable")[:, :number]
    return np.where(undefined_P[:, None], -1, top_PK).astype(np.int32)
