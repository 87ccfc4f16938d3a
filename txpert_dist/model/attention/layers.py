"""Layers of graph attention: GAT and GATv2 with PyTorch Geometric's parameters and initial weights.

Enters: x_SN and the edges, the layer's own or some of them, by option with their weights as features. Leaves:
(T, width), the heads side by side or their mean, plus a bias; over all its edges T and S are P. Where workers
divide the nodes, x_TN enters and ``gather`` makes of the T sources' projections those of all S. Invariants:
the graph is no part of the state that a checkpoint carries; dropout of attention weights is equal on every
worker.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.edges import EdgeList, Edges, EdgeTable
from txpert_dist.model.attention.gatv1 import gatv1_attention
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.attention.graph_dropout import graph_dropout
from txpert_dist.model.dropout import DropoutKey

Gather = Callable[[Tensor], Tensor]


class EdgeFeatures(nn.Module):
    """Edges and, by option, their weights as features: one for all the layers of a stack."""

    weight_EK: Tensor

    def __init__(self, edges: EdgeList, num_nodes: int, *, weights: bool) -> None:
        super().__init__()
        self.edges = Edges(edges.edges_2E, num_nodes)
        weight_EK = edges.weight_EK if weights else edges.weight_EK[:, :0]
        self.register_buffer("weight_EK", torch.from_numpy(np.ascontiguousarray(weight_EK)), persistent=False)

    @property
    def width(self) -> int:
        """Number of features of an edge, 0 without."""
        return self.weight_EK.shape[1]


class AttentionLayer(nn.Module):
    """What the layers of graph attention have in common: how their heads join, and their dropout."""

    def __init__(self, options: config.Attention, features: EdgeFeatures, *, sites: Iterator[int]) -> None:
        super().__init__()
        self.features = features
        self.shape_HN = (options.heads, options.hidden)
        self.average = options.combine_heads == "mean"
        self.dropout = options.attention_dropout
        self.site = next(sites) if self.dropout else 0
        self.width = options.hidden * (1 if self.average else options.heads)
        """Of the output."""
        self.bias = nn.Parameter(torch.zeros(self.width))

    @property
    def table(self) -> EdgeTable:
        """All its edges."""
        return self.features.edges.table

    def edge_projection(self) -> nn.Linear | None:
        """A new linear map of the edges' features to all heads; None without features."""
        if not self.features.width:
            return None
        linear = nn.Linear(self.features.width, math.prod(self.shape_HN), bias=False)
        nn.init.xavier_uniform_(linear.weight)
        return linear

    def multipliers(self, edges: EdgeTable, key: DropoutKey | None) -> Tensor | None:
        """Multipliers of the attention weights; None when nothing is dropped."""
        if key is None or not self.dropout:
            return None
        ones_EH = self.bias.new_ones(len(edges.source), self.shape_HN[0])
        return graph_dropout(ones_EH, self.dropout, self.site, key, edges.edge)

    def weights(self, edges: EdgeTable) -> Tensor:
        """(E, K) features of the edges."""
        weight_EK = self.features.weight_EK
        return weight_EK if edges.edge is None else weight_EK.index_select(0, edges.edge)

    def join_heads(self, out_THN: Tensor) -> Tensor:
        """(T, width) from every head's output."""
        out_TN = out_THN.mean(1) if self.average else out_THN.flatten(1)
        return out_TN + self.bias


class Gatv2Layer(AttentionLayer):
    """One GATv2 layer with PyTorch Geometric's biases and initial weights."""

    def __init__(
        self, options: config.Attention, features: EdgeFeatures, width: int, *, sites: Iterator[int]
    ) -> None:
        """``width`` is the input's."""
        super().__init__(options, features, sites=sites)
        self.project = nn.Linear(width, 2 * math.prod(self.shape_HN))
        """Source and target projection in one product: the first half of the rows is the source's."""
        self.attention_HN = nn.Parameter(torch.empty(self.shape_HN))
        for half in self.project.weight.detach().chunk(2):
            nn.init.xavier_uniform_(half)
        nn.init.zeros_(self.project.bias)
        nn.init.xavier_uniform_(self.attention_HN)
        self.project_edges = self.edge_projection()

    def forward(
        self,
        x_SN: Tensor,
        key: DropoutKey | None = None,
        edges: EdgeTable | None = None,
        gather: Gather | None = None,
    ) -> Tensor:
        """(T, width of the output) from (S, width); ``edges`` are some of the layer's own."""
        edges = self.table if edges is None else edges
        source_SN, target_TN = self._projections(x_SN, edges, gather)
        features = None
        if self.project_edges is not None:
            features = self.weights(edges), _by_head(self.project_edges.weight.T, self.shape_HN)
        out_THN = gatv2_attention(
            _by_head(source_SN, self.shape_HN),
            _by_head(target_TN, self.shape_HN),
            self.attention_HN,
            edges,
            features=features,
            keep_EH=self.multipliers(edges, key),
        )
        return self.join_heads(out_THN)

    def _projections(self, x_SN: Tensor, edges: EdgeTable, gather: Gather | None) -> tuple[Tensor, Tensor]:
        """Of the sources and of the targets."""
        if gather is not None or edges.rows is None:
            source_SN, target_TN = self.project(x_SN).chunk(2, dim=1)
            return source_SN if gather is None else gather(source_SN), target_TN
        halves = zip(self.project.weight.chunk(2), self.project.bias.chunk(2), strict=True)
        (source_RN, source_R), (target_RN, target_R) = halves
        x_TN = x_SN.index_select(0, edges.rows)
        return (
            functional.linear(x_SN, source_RN, source_R),
            functional.linear(x_TN, target_RN, target_R),
        )


class Gatv1Layer(AttentionLayer):
    """One GAT layer with PyTorch Geometric's parameters and initial weights."""

    def __init__(
        self, options: config.Attention, features: EdgeFeatures, width: int, *, sites: Iterator[int]
    ) -> None:
        """``width`` is the input's."""
        super().__init__(options, features, sites=sites)
        self.project = nn.Linear(width, math.prod(self.shape_HN), bias=False)
        self.source_HN = nn.Parameter(torch.empty(self.shape_HN))
        self.target_HN = nn.Parameter(torch.empty(self.shape_HN))
        for weight in (self.project.weight, self.source_HN, self.target_HN):
            nn.init.xavier_uniform_(weight)
        self.project_edges = self.edge_projection()
        if self.project_edges is not None:
            self.edge_HN = nn.Parameter(torch.empty(self.shape_HN))
            nn.init.xavier_uniform_(self.edge_HN)

    def forward(
        self,
        x_SN: Tensor,
        key: DropoutKey | None = None,
        edges: EdgeTable | None = None,
        gather: Gather | None = None,
    ) -> Tensor:
        """(T, width of the output) from (S, width); ``edges`` are some of the layer's own."""
        edges = self.table if edges is None else edges
        features = None
        if self.project_edges is not None:
            # the score is linear in the features: a_e . W_e f = (W_e^T a_e) . f
            projection_KHN = _by_head(self.project_edges.weight.T, self.shape_HN)
            features = self.weights(edges), (projection_KHN * self.edge_HN).sum(-1)
        x_SN = self.project(x_SN)
        out_THN = gatv1_attention(
            _by_head(x_SN if gather is None else gather(x_SN), self.shape_HN),
            self.source_HN,
            self.target_HN,
            edges,
            features=features,
            keep_EH=self.multipliers(edges, key),
        )
        return self.join_heads(out_THN)


def _by_head(x_RN: Tensor, shape_HN: tuple[int, int]) -> Tensor:
    return x_RN.reshape(len(x_RN), *shape_HN)
