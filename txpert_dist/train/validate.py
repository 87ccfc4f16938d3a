"""Validation: Pearson delta of unseen perturbations, computed by all ranks together.

Enters: the model and the inputs. Leaves: metrics, equal on every rank. Invariants: a rank reads and predicts
whole perturbations, so only scores travel, and the number of ranks changes rounding only; cells are
read once a run; z is computed once a validation; whatever controls a condition (perturbation, context) is
predicted from, its delta is against the mean control of its own batch; an undefined correlation is counted,
never taken for 0.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txpert_dist.loader.conditions import cell_lines, perturbation_deltas
from txpert_dist.metrics.delta import Groups, groups_of
from txpert_dist.metrics.moments import Conditions, conditions_of
from txpert_dist.metrics.pearson import pearson_delta
from txpert_dist.model.txpert import TxPert
from txpert_dist.train.checkpoint import SCORE
from txpert_dist.train.collective import rank, sum_numbers, world_size
from txpert_dist.train.conditions import ContextControls, node_embeddings, predicted_conditions
from txpert_dist.train.inputs import Inputs

UNDEFINED = "validation/undefined"
"""Number of validation (perturbation, cell line) whose Pearson delta is undefined."""

Progress = Callable[[str, int, int], None]


class Observed(NamedTuple):
    """This rank's validation perturbations and what their cells show."""

    conditions: Conditions
    num_cells_R: NDArray[np.int64]
    groups: Groups
    """The (perturbation, cell line) of each condition."""
    delta_PG: NDArray[np.float64]
    """(P, G) observed mean delta of each (perturbation, cell line)."""


def observe(inputs: Inputs, *, progress: Progress) -> Observed:
    """Observed deltas of this rank's share of the validation perturbations."""
    store, rows = inputs.store, inputs.validation
    codes = np.unique(store.perturbation[rows])[rank() :: world_size()]
    rows = rows[np.isin(store.perturbation[rows], codes)]
    conditions = conditions_of(store.perturbation[rows], store.context[rows])
    groups = groups_of(conditions.perturbation_R, conditions.context_R, cell_lines(store).cell_line_C)
    deltas = perturbation_deltas(store, rows, genes=inputs.genes, progress=progress)
    num_cells_R = np.bincount(conditions.row_B, minlength=len(conditions.context_R))
    return Observed(conditions, num_cells_R, groups, deltas.delta_PG)


def validate(
    model: TxPert, inputs: Inputs, observed: Observed, controls: ContextControls, *, device: torch.device
) -> dict[str, float]:
    """Mean validation Pearson delta (NaN when none is defined) and how many were undefined."""
    score_P = np.zeros(0)
    if len(observed.num_cells_R):
        predicted_PG = _predicted_delta(model, inputs, observed, controls)
        score_P = pearson_delta(predicted_PG, observed.delta_PG)
    defined_P = score_P[~np.isnan(score_P)]
    total, defined, number = sum_numbers(
        [float(defined_P.sum()), float(len(defined_P)), float(len(score_P))], device=device
    )
    return {SCORE: total / defined if defined else math.nan, UNDEFINED: number - defined}


def _predicted_delta(
    model: TxPert, inputs: Inputs, observed: Observed, controls: ContextControls
) -> NDArray[np.float64]:
    """(P, G) mean over a group's cells of prediction minus the mean control of the cell's own batch."""
    z_PD = node_embeddings(model)
    conditions, group_R = observed.conditions, torch.from_numpy(observed.groups.group_R).to(z_PD.device)
    weight_R = torch.from_numpy(observed.num_cells_R).to(z_PD.device, torch.float64)
    sum_PG = torch.zeros(observed.delta_PG.shape, dtype=torch.float64, device=z_PD.device)
    nodes_RM = inputs.nodes_RM[conditions.perturbation_R]
    for some, predicted_BG in predicted_conditions(model, z_PD, nodes_RM, conditions.context_R, controls):
        change_BG = predicted_BG.double() - _mean_control(inputs, conditions.context_R[some], z_PD)
        sum_PG.index_add_(0, group_R[some], change_BG * weight_R[some, None])
    weight_P = torch.zeros(len(sum_PG), dtype=torch.float64, device=z_PD.device)
    weight_P.index_add_(0, group_R, weight_R)
    mean_PG: NDArray[np.float64] = (sum_PG / weight_P[:, None]).cpu().numpy()
    return mean_PG


def _mean_control(inputs: Inputs, context_R: NDArray[np.int32], like: Tensor) -> Tensor:
    """(R, G) mean control of each context in double precision, on the device of ``like``."""
    control_RG = inputs.store.control_mean_CG[context_R][:, inputs.genes].astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(control_RG)).to(like.device)
