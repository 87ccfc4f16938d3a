"""Energy distances of a block of perturbations: predicted profiles against observed cells.

Enters: a store, the rows of whole perturbations, their predictions. Leaves: a distance per group. Invariant:
at most a given number of cells of each group is looked at, drawn by seed, group and cells alone.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.halves import first_halves
from txpert_dist.evaluate.scores import Background, Block
from txpert_dist.metrics.energy import energy_distance
from txpert_dist.metrics.moments import conditions_of
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import dense, gene_view, log1p_normalise, select_genes

HALVES = "halves"
"""Name of the distance between random halves of the cells."""


def energy_distances(
    store: CellStore,
    rows: NDArray[np.int64],
    genes: NDArray[np.int64],
    block: Block,
    background: Background,
    predicted: Mapping[str, NDArray[np.floating]],
    *,
    most: int,
) -> dict[str, NDArray[np.float64]]:
    """By name, (P,) distance of each group's cells from its predictions; and that of halves of the cells.

    ``predicted`` is expression (R, G) of the block's conditions. Cells and predictions are taken minus the
    control mean of their own context.
    """
    groups, moments = block.groups, block.moments
    row_B = conditions_of(store.perturbation[rows], store.context[rows]).row_B
    group_B = groups.group_R[row_B]
    control_RG = background.control_mean_CG[moments.context_R].astype(np.float64)
    change = {name: value_RG - control_RG for name, value_RG in predicted.items()}
    result = {name: np.full(len(groups.perturbation_P), np.nan) for name in (*predicted, HALVES)}
    for group in range(len(groups.perturbation_P)):
        here = np.flatnonzero(group_B == group)
        key = (background.seed, int(groups.perturbation_P[group]), int(groups.cell_line_P[group]))
        if len(here) > most:
            here = np.sort(np.random.default_rng(key).choice(here, most, replace=False))
        cell_BG = _dense(store, rows[here], genes) - control_RG[row_B[here]]
        conditions, cells_of = np.unique(row_B[here], return_counts=True)
        for name, change_RG in change.items():
            points_RG = change_RG[conditions]
            if np.isfinite(points_RG).all():
                result[name][group] = energy_distance(points_RG, cell_BG, weight_A=cells_of.astype(float))
        condition_B = np.unique(row_B[here], return_inverse=True)[1]
        first_B = first_halves(rows[here], condition_B, seed=background.seed, repeats=1)[0]
        result[HALVES][group] = energy_distance(cell_BG[first_B], cell_BG[~first_B])
    return result


def _dense(store: CellStore, rows: NDArray[np.int64], genes: NDArray[np.int64]) -> NDArray[np.float64]:
    cells = select_genes(store.take(rows), gene_view(genes, len(store.genes)))
    return dense(log1p_normalise(cells, input_scale=store.input_scale), len(genes)).astype(np.float64)
