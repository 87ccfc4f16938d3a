"""One graph attention encoder for each knowledge graph, and one that weighs them for every gene.

Enters: the knowledge graphs. Leaves: z_PD. Every graph k has its own node features, attention layers and map
to x_k, of ``heads`` vectors a node. They join by attention over the graphs, for node n and head h

    e_k = q_h . LeakyReLU_0.2(x_k[n, h]),   w = softmax of e,   x[n] = mean over h of sum_k w_k x_k[n, h]

or side by side; then Linear, ReLU, Linear (TxPert, supplement, "GAT-Hybrid"). Invariant: the graphs meet only
there, and their order matters only to the side-by-side kind.
"""

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.attention.graph_dropout import graph_activation
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.reach import Cut, Reach, Workers
from txpert_dist.model.encoders.stack import Stack, attention_stack
from txpert_dist.model.graph_input import GraphInput


class GatHybridEncoder(nn.Module):
    """Graph attention on every knowledge graph, joined by attention over the graphs or side by side."""

    def __init__(self, options: config.GatHybrid, graph: GraphInput, *, latent: int) -> None:
        super().__init__()
        sites = count()
        self.views = nn.ModuleList(GraphView(options, graph, one, sites) for one in graph.graphs)
        self.attention: GraphAttention | None = None
        width = len(graph.graphs) * options.heads * options.hidden
        if options.combine_graphs == "attention":
            self.attention = GraphAttention(options.heads, options.hidden)
            width = options.hidden
        self.first = nn.Linear(width, options.hidden)
        self.last = nn.Linear(options.hidden, latent)

    def forward(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every node, or of those that ``reaches`` are of; ``key`` switches dropout on."""
        each: Sequence[Reach | None] = reaches or [None] * len(self.views)
        views = [view(key, reach) for view, reach in zip(self.views, each, strict=True)]
        if self.attention is not None:
            x_PN = self.attention(views)
        else:
            x_PN = torch.cat([view_PHN.flatten(1) for view_PHN in views], 1)
        z_PD: Tensor = self.last(functional.relu(self.first(x_PN)))
        return z_PD

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """How many of each graph's last layers are worth cutting for such nodes as ``rows``."""
        return tuple(stack.depth(rows) for stack in self._stacks())

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """What ``forward`` works on for the nodes ``rows``, which ascend; one for each graph."""
        return tuple(stack.reach(rows, n) for stack, n in zip(self._stacks(), depths, strict=True))

    def shares(self, workers: Workers) -> tuple[Cut | None, ...]:
        """One worker's part of the layers that work on all the nodes."""
        return tuple(stack.share(workers) for stack in self._stacks())

    def _stacks(self) -> list[Stack]:
        return [view.stack for view in self.views if isinstance(view, GraphView)]


class GraphView(nn.Module):
    """The nodes as one knowledge graph shows them."""

    def __init__(
        self, options: config.GatHybrid, graph: GraphInput, one: KnowledgeGraph, sites: Iterator[int]
    ) -> None:
        super().__init__()
        edges = union_edges(
            [one], graph.num_nodes, self_loops=options.self_loops, reverse_edges=options.reverse_edges
        )
        self.features = NodeFeatures(graph, options.node_features, options.positional)
        self.stack = attention_stack(
            options, edges, graph.num_nodes, width=options.node_features, sites=sites
        )
        self.last = nn.Linear(self.stack.width, options.heads * options.hidden)
        self.shape_HN = (options.heads, options.hidden)
        self.dropout = options.dropout
        self.site = next(sites)

    def forward(self, key: DropoutKey | None = None, reach: Reach | None = None) -> Tensor:
        """(P, H, hidden), or (R, H, hidden) of what ``reach`` is of; ``key`` switches dropout on."""
        x_PN = self.last(self.stack(self.features(key), key, reach))
        rows = None if reach is None else reach.rows
        x_PN = graph_activation(x_PN, 0.01, (self.dropout, self.site), key, rows)
        return x_PN.reshape(-1, *self.shape_HN)


class GraphAttention(nn.Module):
    """Attention over the knowledge graphs, one query a head."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.query_HN = nn.Parameter(torch.empty(heads, width))
        nn.init.xavier_uniform_(self.query_HN)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """(P, N) from the (P, H, N) views of the K graphs."""
        scores = [(functional.leaky_relu(x_PHN, 0.2) * self.query_HN).sum(-1) for x_PHN in views]
        weight_PHK = torch.softmax(torch.stack(scores, -1), -1)
        weighted = [w_PH.unsqueeze(-1) * x for w_PH, x in zip(weight_PHK.unbind(-1), views, strict=True)]
        return torch.stack(weighted).sum(0).mean(1)
