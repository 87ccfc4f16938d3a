"""One round of message passing with an input table for each direction.

Enters: the knowledge graphs. Leaves: Z = MLP(A H_in + A^T H_out), A[i, j] = 1 where any graph has the edge
j -> i, H_in and H_out learned (TxPert, supplement, "Hybrid-BMP"; the MLP: Linear, LeakyReLU(0.01), dropout,
Linear). Invariant: the graphs' weights play no part, nor in how many of them an edge is.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.dropout import DropoutKey, graph_dropout
from txpert_dist.model.encoders.gcn import Propagation
from txpert_dist.model.graph_input import GraphInput

_HIDDEN_SITE = 0


class HybridBmpEncoder(nn.Module):
    """What a gene's regulators and its targets stand for, added up and mapped to the latent width."""

    def __init__(self, options: config.HybridBmp, graph: GraphInput, *, latent: int) -> None:
        super().__init__()
        edges_2E = union_edges(
            graph.graphs, graph.num_nodes, self_loops=options.self_loops, reverse_edges=False
        ).edges_2E
        turned_2E = edges_2E[::-1]
        turned_2E = turned_2E[:, np.lexsort(turned_2E)]
        self.dropout = options.dropout
        self.incoming_PN = nn.Parameter(torch.randn(graph.num_nodes, options.node_features))
        """H_in: what a node gives to those it regulates."""
        self.outgoing_PN = nn.Parameter(torch.randn(graph.num_nodes, options.node_features))
        """H_out: what a node gives to those that regulate it."""
        self.from_sources = _neighbours(edges_2E, graph.num_nodes, average=options.average)
        self.from_targets = _neighbours(turned_2E, graph.num_nodes, average=options.average)
        self.first = nn.Linear(options.node_features, options.hidden)
        self.last = nn.Linear(options.hidden, latent)

    def forward(self, key: DropoutKey | None = None) -> Tensor:
        """z_PD of every node; ``key`` switches dropout on."""
        x_PN = self.from_sources(self.incoming_PN) + self.from_targets(self.outgoing_PN)
        hidden_PN = functional.leaky_relu(self.first(x_PN), 0.01)
        z_PD: Tensor = self.last(graph_dropout(hidden_PN, self.dropout, _HIDDEN_SITE, key))
        return z_PD


def _neighbours(edges_2E: NDArray[np.int64], num_nodes: int, *, average: bool) -> Propagation:
    """The sum or the mean over each node's sources."""
    target = edges_2E[1]
    degree_E = np.bincount(target, minlength=num_nodes)[target]
    return Propagation(edges_2E, 1 / degree_E if average else np.ones(len(target)), num_nodes)
