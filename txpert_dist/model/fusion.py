"""How perturbations change the basal state.

Enters: s_BD, the perturbed nodes of each cell, z_PD. Leaves: the state after the perturbations, (B, D).
Additive: s + sum of z_p. Sequential: s' = T(s, z), one perturbation after the other (TxPert, methods,
"TxPert architecture"), with T(s, z) = s + MLP([s || z]). Invariants: a padded place (-1) changes nothing; a
cell without perturbations keeps its state.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config

MAX_ORDERED = 4
"""Most perturbations of a cell whose outcomes are averaged over all orders: 24 orders."""


class AdditiveFusion(nn.Module):
    """s + sum of z_p."""

    def forward(self, state_BD: Tensor, perturbations_BM: Tensor, z_PD: Tensor) -> Tensor:
        """The state after all perturbations of each cell."""
        return state_BD + sum_perturbations(z_PD, perturbations_BM)


class SequentialFusion(nn.Module):
    """T(... T(s, z_1) ..., z_m), in the order of the columns or averaged over all m! orders.

    The last map of T has no bias: in a minibatch whose cells all have one perturbation it would shift every
    state alike, which batch normalisation cancels, and AdamW would scale the rounding noise of its zero
    gradient to full steps. Nothing is lost, as the hidden layer's bias gives constants too.
    """

    def __init__(self, options: config.SequentialFusion, latent: int) -> None:
        super().__init__()
        self.all_orders = options.order == "all"
        self.first = nn.Linear(2 * latent, options.hidden)
        self.last = nn.Linear(options.hidden, latent, bias=False)

    def forward(self, state_BD: Tensor, perturbations_BM: Tensor, z_PD: Tensor) -> Tensor:
        """The state after all perturbations of each cell.

        By name means by column: the columns of ``perturbations_BM`` follow the canonical name, whose genes
        are sorted. Raises ``ValueError`` for more than ``MAX_ORDERED`` columns in all orders.
        """
        orders = self._orders(perturbations_BM.shape[1])
        columns = perturbation_embeddings(z_PD, perturbations_BM).unbind(1)
        there = (perturbations_BM >= 0).unbind(1)
        state_BRD = state_BD.unsqueeze(1).expand(-1, len(orders), -1)
        for place in range(len(columns)):
            chosen = [order[place] for order in orders]
            there_BR = torch.stack([there[column] for column in chosen], 1)
            z_BRD = torch.stack([columns[column] for column in chosen], 1)
            moved_BRD = self.transition(state_BRD, z_BRD)
            state_BRD = torch.where(there_BR.unsqueeze(2), moved_BRD, state_BRD)
        return state_BRD.mean(1)

    def transition(self, state_BRD: Tensor, z_BRD: Tensor) -> Tensor:
        """T(s, z) = s + W LeakyReLU(Linear([s || z])), slope 0.01, on the last dimension."""
        hidden_BRN = functional.leaky_relu(self.first(torch.cat([state_BRD, z_BRD], -1)), 0.01)
        change_BRD: Tensor = self.last(hidden_BRN)
        return state_BRD + change_BRD

    def _orders(self, num_columns: int) -> list[tuple[int, ...]]:
        columns = tuple(range(num_columns))
        if not self.all_orders:
            return [columns]
        if num_columns > MAX_ORDERED:
            raise ValueError(
                f"model.fusion.order=all: a cell has up to {num_columns} perturbations, whose "
                f"{math.factorial(num_columns)} orders are too many (at most {MAX_ORDERED} perturbations); "
                "choose model.fusion.order=by_name"
            )
        # a cell that fills m of M columns meets each of its m! orders in M!/m! permutations of the columns
        return list(itertools.permutations(columns))


class ControlToken(nn.Module):
    """A fusion from states with one learned vector added in cells of at most one perturbation.

    As the public code, whose "GENE+ctrl" has two embeddings. The vector starts as zeros. Where no cell has
    two perturbations it is one shift of all states, which batch normalisation leaves undetermined.
    """

    def __init__(self, fusion: nn.Module, latent: int) -> None:
        super().__init__()
        self.fusion = fusion
        self.token_D = nn.Parameter(torch.zeros(latent))

    def forward(self, state_BD: Tensor, perturbations_BM: Tensor, z_PD: Tensor) -> Tensor:
        """The state after all perturbations of each cell."""
        few_B = (perturbations_BM >= 0).sum(1) <= 1
        shifted_BD = state_BD + few_B.unsqueeze(1) * self.token_D
        fused_BD: Tensor = self.fusion(shifted_BD, perturbations_BM, z_PD)
        return fused_BD


def build_fusion(model: config.Model) -> nn.Module:
    """The fusion of ``model``: a module from (s_BD, perturbations_BM, z_PD) to (B, D)."""
    fusion: nn.Module
    match model.fusion:
        case config.AdditiveFusion():
            fusion = AdditiveFusion()
        case config.SequentialFusion() as options:
            fusion = SequentialFusion(options, model.latent)
    return fusion if model.control_token == "none" else ControlToken(fusion, model.latent)


def sum_perturbations(z_PD: Tensor, perturbations_BM: Tensor) -> Tensor:
    """Sum of the embeddings of each cell's perturbations: (B, D), zero for a cell without any."""
    return perturbation_embeddings(z_PD, perturbations_BM).sum(1)


def perturbation_embeddings(z_PD: Tensor, perturbations_BM: Tensor) -> Tensor:
    """The embedding of each perturbation of each cell: (B, M, D), zero at -1.

    Raises ``IndexError`` for a node number that is not in ``z_PD``.
    """
    num_nodes, latent = z_PD.shape
    # one more row, of zeros, is where -1 points: a gather forward and a sorted, repeatable sum backward
    padded_PD = torch.cat([z_PD, z_PD.new_zeros(1, latent)])
    rows_BM = torch.where(perturbations_BM < 0, num_nodes, perturbations_BM)
    return functional.embedding(rows_BM, padded_PD, padding_idx=num_nodes)
