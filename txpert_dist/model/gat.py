"""The perturbation encoder: graph attention from a learned embedding of every node.

Enters: the edge table. Leaves: z_PD, one latent vector a node. x_0 is learned;
x_{l+1} = dropout(LeakyReLU([GATv2_l(x_l) || x_l])); z = dropout(LeakyReLU(Linear(x_L))), slope 0.01
(TxPert, methods, "Perturbation model"; widths as published). Invariants: a node without edges sees only
itself; dropout is equal on every worker; the graph is no part of the state a checkpoint carries.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.edges import EdgeTable
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.dropout import DropoutKey, graph_dropout


class GraphAttentionEncoder(nn.Module):
    """Learned node features refined by ``gat.layers`` layers of GATv2."""

    indptr: Tensor
    source: Tensor
    target: Tensor

    def __init__(self, gat: config.Gat, edges: EdgeTable, *, latent: int) -> None:
        super().__init__()
        self.dropout = gat.dropout
        self.concatenate = gat.skip == "concat"
        self.features_PN = nn.Parameter(torch.randn(len(edges.host_indptr) - 1, gat.node_features))
        self.layers = nn.ModuleList()
        width = gat.node_features
        for _ in range(gat.layers):
            self.layers.append(AttentionLayer(width, gat.hidden, gat.heads))
            width = gat.heads * gat.hidden + (width if self.concatenate else 0)
        self.last = nn.Linear(width, latent)
        self.host_indptr: NDArray[np.int64] = edges.host_indptr
        self.register_buffer("indptr", edges.indptr, persistent=False)
        self.register_buffer("source", edges.source, persistent=False)
        self.register_buffer("target", edges.target, persistent=False)

    def forward(self, key: DropoutKey | None = None) -> Tensor:
        """z_PD of every node; ``key`` switches dropout on."""
        edges = EdgeTable(self.indptr, self.source, self.target, self.host_indptr)
        x_PN: Tensor = self.features_PN
        for number, layer in enumerate(self.layers):
            attended_PN = layer(x_PN, edges)
            wide_PN = torch.cat([attended_PN, x_PN], 1) if self.concatenate else attended_PN
            x_PN = graph_dropout(functional.leaky_relu(wide_PN, 0.01), self.dropout, number, key)
        z_PD = functional.leaky_relu(self.last(x_PN), 0.01)
        return graph_dropout(z_PD, self.dropout, len(self.layers), key)


class AttentionLayer(nn.Module):
    """One GATv2 layer, heads concatenated, with PyG's biases and initial weights."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        """``hidden`` is the width of one head."""
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 2 * heads * hidden)
        """Source and target projection in one product: the first half of the rows is the source's."""
        self.attention_HN = nn.Parameter(torch.empty(heads, hidden))
        self.bias = nn.Parameter(torch.zeros(heads * hidden))
        for half in self.project.weight.detach().chunk(2):
            nn.init.xavier_uniform_(half)
        nn.init.zeros_(self.project.bias)
        nn.init.xavier_uniform_(self.attention_HN)

    def forward(self, x_PN: Tensor, edges: EdgeTable) -> Tensor:
        """(P, heads * hidden) from (P, width)."""
        source_PN, target_PN = self.project(x_PN).chunk(2, dim=1)
        out_PHN = gatv2_attention(
            source_PN.unflatten(1, self.attention_HN.shape),
            target_PN.unflatten(1, self.attention_HN.shape),
            self.attention_HN,
            edges,
        )
        return out_PHN.flatten(1) + self.bias
