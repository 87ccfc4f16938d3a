"""Graph convolution over the union of the knowledge graphs: the comparison without attention.

Enters: the knowledge graphs. Leaves: z_PD = dropout(LeakyReLU(Linear(x_L))), slope 0.01, where a learned x_0
went through layers of x' = D^-1/2 A D^-1/2 x W + b (Kipf & Welling 2017, equation 2; D holds the nodes'
in-degrees, as in PyG's ``gcn_norm``). Invariant: an edge's weight comes from the graph, worked out once.
"""

from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist import config
from txpert_dist.model.attention.aggregate import weighted_sum
from txpert_dist.model.attention.edges import EdgeList, Edges, EdgeTable, union_edges
from txpert_dist.model.attention.layers import Gather
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.stack import Stack, StackEncoder
from txpert_dist.model.graph_input import GraphInput


class GcnEncoder(StackEncoder):
    """Learned node features refined by graph convolutions."""

    def __init__(self, options: config.Gcn, graph: GraphInput, *, latent: int) -> None:
        edges = union_edges(
            graph.graphs, graph.num_nodes, self_loops=options.self_loops, reverse_edges=options.reverse_edges
        )
        weight_E = convolution_weights(edges, graph.num_nodes, edge_weights=options.edge_weights)
        propagation = Propagation(edges.edges_2E, weight_E, graph.num_nodes)
        sites, width = count(), options.node_features
        features = NodeFeatures(graph, width, options.positional)
        stack = Stack(
            options,
            lambda inputs: ConvolutionLayer(propagation, inputs, options.hidden),
            width=width,
            sites=sites,
        )
        super().__init__(features, stack, latent=latent, site=next(sites))


class ConvolutionLayer(nn.Module):
    """One graph convolution with PyG's initial weights: Glorot's, and no bias at first."""

    def __init__(self, propagation: "Propagation", inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.propagation = propagation
        self.project = nn.Linear(inputs, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.project.weight)

    @property
    def table(self) -> EdgeTable:
        """All its edges."""
        return self.propagation.edges.table

    def forward(
        self,
        x_SN: Tensor,
        key: DropoutKey | None = None,
        edges: EdgeTable | None = None,
        gather: Gather | None = None,
    ) -> Tensor:
        """(T, width) from (S, inputs); ``edges`` are some of the layer's own. Nothing is dropped here."""
        # both maps are linear: the edges carry whichever vector is narrower
        first = self.project.in_features >= self.width
        sent_SN = self.project(x_SN) if first else x_SN
        out_TN = self.propagation(sent_SN if gather is None else gather(sent_SN), edges)
        out_TN = out_TN if first else self.project(out_TN)
        return out_TN + self.bias  # type: ignore[no-any-return]


class Propagation(nn.Module):
    """For every node the sum of its sources' vectors, with weights that do not change."""

    weight_E1: Tensor

    def __init__(self, edges_2E: NDArray[np.int64], weight_E: NDArray[np.float64], num_nodes: int) -> None:
        """``edges_2E`` are sorted by target."""
        super().__init__()
        self.edges = Edges(edges_2E, num_nodes)
        weight_E1 = torch.from_numpy(weight_E[:, None]).to(torch.get_default_dtype())
        self.register_buffer("weight_E1", weight_E1, persistent=False)

    def forward(self, x_SN: Tensor, edges: EdgeTable | None = None) -> Tensor:
        """(T, N) from (S, N); ``edges`` are some of its own. Zero for a node without edges."""
        edges = self.edges.table if edges is None else edges
        weight_E1 = self.weight_E1 if edges.edge is None else self.weight_E1.index_select(0, edges.edge)
        return weighted_sum(weight_E1, x_SN.unsqueeze(1), edges).squeeze(1)


def convolution_weights(edges: EdgeList, num_nodes: int, *, edge_weights: bool) -> NDArray[np.float64]:
    """(E,) w_ij / sqrt(d_i d_j), d being the sum of the weights w that enter a node; 0 where a d is 0.

    ``edge_weights`` takes as w the sizes of the graphs' weights, added up, in place of 1. A node that nothing
    else enters keeps its own vector as it is, if it has a self loop.
    """
    source, target = edges.edges_2E
    weight_E = np.ones(len(source))
    if edge_weights:
        weight_E = np.abs(edges.weight_EK.astype(np.float64)).sum(1)
        # a lone self loop counts 1 whatever its weight, but for 0: there is no mean of no edges
        weight_E[(source == target) & (weight_E == 0)] = 1
    degree_P = np.bincount(target, weight_E, minlength=num_nodes)
    factor_P = np.zeros(num_nodes)
    np.divide(1, np.sqrt(degree_P), out=factor_P, where=degree_P > 0)
    normal_E: NDArray[np.float64] = weight_E * factor_P[source] * factor_P[target]
    return normal_E
