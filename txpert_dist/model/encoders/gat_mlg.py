"""Graph attention over the multilayer graph, joined with what the edges' weights say of each node.

Enters: the knowledge graphs, one layer each. Leaves: z_PD. Every gene has a copy in every layer; all start
from the same vector. Attention runs within the layers along their graphs and between them along the couplings
of a gene's copies, so the copies h of the reference graph, which are returned, carry every graph. They join
the structural embedding s by a gate (TxPert, supplement, "GAT-MLG"):

    s_i = f_node(sum over the edges ij of f_edge(w_ij)),   g = sigmoid(Linear([s || h])),
    z = LayerNorm(g * Linear(s) + (1 - g) * Linear(h))

The method gives every graph its structural module, but gates it with that graph's copies: those of the others
never reach the reference's copies, so only the reference's is built. Invariant: every graph has influence,
the ones after the first by the couplings alone.
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
from txpert_dist.model.attention.aggregate import edge_sum
from txpert_dist.model.attention.edges import Edges, supra_edges, union_edges
from txpert_dist.model.attention.graph_dropout import graph_dropout
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.reach import Cut, Reach, Tables, Workers, depth_of, reach_of
from txpert_dist.model.encoders.stack import attention_stack
from txpert_dist.model.graph_input import GraphInput, multilayer


class GatMlgEncoder(nn.Module):
    """Graph attention over all copies of the genes, and the gate that ends it."""

    def __init__(self, options: config.GatMlg, graph: GraphInput, *, latent: int) -> None:
        """Raises ``ValueError`` when ``options.reference`` is not among the graphs."""
        super().__init__()
        sites = count()
        names = [one.name for one in graph.graphs]
        self.num_nodes, self.num_graphs = graph.num_nodes, len(names)
        self.reference = 0 if options.reference is None else names.index(options.reference)
        self.features = NodeFeatures(graph, options.node_features, options.positional)
        edges = supra_edges(
            multilayer(graph), self_loops=options.self_loops, reverse_edges=options.reverse_edges
        )
        self.stack = attention_stack(
            options, edges, self.num_graphs * self.num_nodes, width=options.node_features, sites=sites
        )
        self.structure = Structure(options, graph.graphs[self.reference], graph.num_nodes, sites)
        self.gate = Gate(options.structure, self.stack.width, latent)

    def forward(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every node, or of those that ``reaches`` are of; ``key`` switches dropout on."""
        of_copies, of_genes = reaches or (None, None)
        h_PN = self.stack(self.features(key).repeat(self.num_graphs, 1), key, of_copies)
        if of_copies is None:
            h_PN = h_PN.narrow(0, self.reference * self.num_nodes, self.num_nodes)
        z_PD: Tensor = self.gate(self.structure(key, of_genes), h_PN)
        return z_PD

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """How many layers are worth cutting for such nodes as ``rows``: attention's, and the structure's."""
        return self.stack.depth(rows + self.reference * self.num_nodes), self.structure.depth(rows)

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """What ``forward`` works on for the nodes ``rows``, which ascend: of all copies, and of the genes."""
        copies = rows + self.reference * self.num_nodes
        return self.stack.reach(copies, depths[0]), self.structure.reach(rows, depths[1])

    def shares(self, workers: Workers) -> tuple[Cut | None, ...]:
        """One worker's part of the attention; the structure is one sum, which nobody divides."""
        return self.stack.share(workers), None


class Structure(nn.Module):
    """What the weights of the edges that enter each node say of it.

    f_edge: Linear(1 -> N), dropout, ReLU, Linear(N -> N); f_node: Linear, ReLU, Linear, all N wide. Weights
    are the graph's, its largest being 1 in size; self loops do not count.
    """

    weight_E1: Tensor
    degree_P1: Tensor

    def __init__(
        self, options: config.GatMlg, one: KnowledgeGraph, num_nodes: int, sites: Iterator[int]
    ) -> None:
        super().__init__()
        union = union_edges([one], num_nodes, self_loops=False, reverse_edges=options.reverse_edges)
        kept = union.edges_2E[0] != union.edges_2E[1]
        self.edges = Edges(union.edges_2E[:, kept], num_nodes)
        degree_P1 = torch.from_numpy(np.diff(self.edges.host_indptr)[:, None])
        self.register_buffer("weight_E1", torch.from_numpy(union.weight_EK[kept]), persistent=False)
        self.register_buffer("degree_P1", degree_P1, persistent=False)
        width = options.structure
        self.edge_first, self.edge_last = nn.Linear(1, width), nn.Linear(width, width)
        self.node_first, self.node_last = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = options.dropout
        self.site = next(sites)

    def forward(self, key: DropoutKey | None = None, reach: Reach | None = None) -> Tensor:
        """s_PN of every node, or of those that ``reach`` is of; ``key`` switches dropout on."""
        edges, weight_E1, degree_P1 = self.edges.table, self.weight_E1, self.degree_P1
        for cut in () if reach is None else reach.cuts:
            assert cut.tables.edges is not None
            edges = cut.tables.edges
            weight_E1, degree_P1 = weight_E1[edges.edge], degree_P1[cut.nodes]
        hidden_EN = graph_dropout(self.edge_first(weight_E1), self.dropout, self.site, key, edges.edge)
        # f_edge ends with a linear map, so the sum over the edges may come before it
        hidden_PN = edge_sum(functional.relu(hidden_EN), edges)
        summed_PN = functional.linear(hidden_PN, self.edge_last.weight)
        summed_PN = summed_PN + degree_P1 * self.edge_last.bias
        s_PN: Tensor = self.node_last(functional.relu(self.node_first(summed_PN)))
        return s_PN if reach is None or reach.cuts else s_PN.index_select(0, reach.rows)

    def depth(self, rows: NDArray[np.int64]) -> int:
        """1 where it is worth leaving out the edges that do not enter such nodes as ``rows``, else 0."""
        return depth_of(Tables(self.edges.table), rows, layers=1)

    def reach(self, rows: NDArray[np.int64], depth: int) -> Reach:
        """What ``forward`` works on for the nodes ``rows``, which ascend."""
        return reach_of(Tables(self.edges.table), rows, depth=depth)


class Gate(nn.Module):
    """Mixes each node's structural embedding s and attention output h, number by number."""

    def __init__(self, structure: int, width: int, latent: int) -> None:
        super().__init__()
        self.gate = nn.Linear(structure + width, latent)
        self.structure = nn.Linear(structure, latent)
        self.node = nn.Linear(width, latent)
        self.norm = nn.LayerNorm(latent)

    def forward(self, s_PN: Tensor, h_PN: Tensor) -> Tensor:
        """z_PD from s (P, structure) and h (P, width)."""
        g_PD = torch.sigmoid(self.gate(torch.cat([s_PN, h_PN], 1)))
        z_PD: Tensor = self.norm(g_PD * self.structure(s_PN) + (1 - g_PD) * self.node(h_PN))
        return z_PD
