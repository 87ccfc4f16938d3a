"""Graph attention over the union of the knowledge graphs.

Enters: a graph input. Leaves: z_PD, one latent vector a node. x_0 are the node features, x_L what a stack of
attention layers makes of them, z = dropout(LeakyReLU_0.01(Linear(x_L))) (TxPert, methods, "Perturbation
model"; widths as published). Invariants: a node without edges sees only itself; dropout is equal on every
worker; the graph is no part of the state a checkpoint carries.
"""

from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.attention.graph_dropout import graph_dropout
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.reach import Reach
from txpert_dist.model.encoders.stack import attention_stack
from txpert_dist.model.graph_input import GraphInput


class GatEncoder(nn.Module):
    """Learned node features refined by ``options.layers`` layers of GAT or GATv2."""

    def __init__(self, options: config.Gat, graph: GraphInput, *, latent: int) -> None:
        """Raises ``ValueError`` for an edge whose end is not a node."""
        super().__init__()
        sites = count()
        edges = union_edges(
            graph.graphs, graph.num_nodes, self_loops=options.self_loops, reverse_edges=options.reverse_edges
        )
        width = options.node_features
        self.features = NodeFeatures(graph, width, options.positional)
        self.stack = attention_stack(options, edges, graph.num_nodes, width=width, sites=sites)
        self.last = nn.Linear(self.stack.width, latent)
        self.dropout = options.dropout
        self.site = next(sites)

    def forward(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every node, or of those that ``reaches`` are of; ``key`` switches dropout on."""
        (reach,) = reaches or (None,)
        x_PN = self.stack(self.features(key), key, reach)
        z_PD = functional.leaky_relu(self.last(x_PN), 0.01)
        return graph_dropout(z_PD, self.dropout, self.site, key, None if reach is None else reach.rows)

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """How many of the last layers are worth cutting for such nodes as ``rows``."""
        return (self.stack.depth(rows),)

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """What ``forward`` works on for the nodes ``rows``, which ascend."""
        return (self.stack.reach(rows, *depths),)
