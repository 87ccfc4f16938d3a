"""One round of message passing with an input table for each direction.

Enters: the knowledge graphs. Leaves: Z = MLP(A H_in + A^T H_out), A[i, j] = 1 where any graph has the edge
j -> i, H_in and H_out learned (TxPert, supplement, "Hybrid-BMP"; the MLP: Linear, LeakyReLU(0.01), dropout,
Linear). Invariant: the graphs' weights play no part, nor in how many of them an edge is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.attention.graph_dropout import graph_activation
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.gcn import Propagation
from txpert_dist.model.encoders.reach import Cut, Reach, Tables, Workers, depth_of, reach_of
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

    def forward(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every node, or of those that ``reaches`` are of; ``key`` switches dropout on."""
        down, up = reaches or (None, None)
        x_PN = _passed(self.from_sources, self.incoming_PN, down)
        x_PN = x_PN + _passed(self.from_targets, self.outgoing_PN, up)
        rows, dropout = None if down is None else down.rows, (self.dropout, _HIDDEN_SITE)
        z_PD: Tensor = self.last(graph_activation(self.first(x_PN), 0.01, dropout, key, rows))
        return z_PD

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """Of each direction 1 where it is worth leaving out edges for such nodes as ``rows``, else 0."""
        return tuple(depth_of(tables, rows, layers=1) for tables in self._directions())

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """What ``forward`` works on for the nodes ``rows``, which ascend; one for each direction."""
        pairs = zip(self._directions(), depths, strict=True)
        return tuple(reach_of(tables, rows, depth=depth) for tables, depth in pairs)

    def shares(self, workers: Workers) -> tuple[Cut | None, ...]:
        """Nobody's: each direction is one sum, which workers do not divide."""
        return None, None

    def _directions(self) -> list[Tables]:
        return [Tables(one.edges.table) for one in (self.from_sources, self.from_targets)]


def _passed(along: Propagation, x_PN: Tensor, reach: Reach | None) -> Tensor:
    """What reaches every node, or those that ``reach`` is of."""
    if reach is None:
        return along(x_PN)  # type: ignore[no-any-return]
    if not reach.cuts:
        return along(x_PN).index_select(0, reach.rows)  # type: ignore[no-any-return]
    (cut,) = reach.cuts
    return along(x_PN.index_select(0, reach.first), cut.tables.edges)  # type: ignore[no-any-return]


def _neighbours(edges_2E: NDArray[np.int64], num_nodes: int, *, average: bool) -> Propagation:
    """The sum or the mean over each node's sources."""
    target = edges_2E[1]
    degree_E = np.bincount(target, minlength=num_nodes)[target]
    return Propagation(edges_2E, 1 / degree_E if average else np.ones(len(target)), num_nodes)
