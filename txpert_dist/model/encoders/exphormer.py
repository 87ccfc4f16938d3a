"""Exphormer and Exphormer-MG: attention along the knowledge graphs, their reverses and expander edges.

Enters: the options and a graph input. Leaves: z_PD = dropout(LeakyReLU(Linear(h_L))) of the genes, slope
0.01, where learned h_0 went through layers of

    h' = norm(h + dropout(attention(h))) + GATv2(h)
    h_{l+1} = norm(h' + dropout(L2(dropout(ReLU(L1 h')))))

(Shirzad et al. 2023; TxPert, supplementary note 3). The attention is ``pattern_attention``; the GATv2 branch
is over the knowledge graphs' own edges. Exphormer sees their union, Exphormer-MG which of them propose an
edge. Invariants: the edges are no part of the state that a checkpoint carries; dropout is equal on every
worker; a bias that batch norm cancels does not learn.
"""

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.attention.layers import EdgeFeatures, Gatv2Layer
from txpert_dist.model.attention.pattern import pattern_attention
from txpert_dist.model.attention.pattern_edges import PatternEdges
from txpert_dist.model.dropout import DropoutKey, graph_dropout
from txpert_dist.model.encoders.edge_patterns import EdgePatterns, edge_patterns
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.pattern_features import EdgeMap, PatternFeatures
from txpert_dist.model.graph_input import GraphInput
from txpert_dist.model.norm import norm_layer


class ExphormerEncoder(nn.Module):
    """Learned node features refined by a sparse graph transformer."""

    def __init__(
        self, options: config.Exphormer | config.ExphormerMg, graph: GraphInput, *, latent: int
    ) -> None:
        """Raises ``ValueError`` naming a graph whose edge ends outside the nodes."""
        super().__init__()
        sites = count()
        patterns = edge_patterns(options, graph)
        self.num_genes, self.num_nodes = graph.num_nodes, patterns.num_nodes
        self.dropout = options.dropout
        self.features = NodeFeatures(graph, options.hidden, options.positional)
        if options.virtual_nodes:
            self.virtual_PN = nn.Parameter(torch.randn(options.virtual_nodes, options.hidden))
        self.edges = PatternEdges(patterns.edges_2E, patterns.pattern_E, patterns.num_nodes)
        self.edge_features = PatternFeatures(patterns, options.hidden)
        local = _local_edges(options, graph) if options.local else None
        self.layers = nn.ModuleList(
            TransformerLayer(options, patterns, local, last=number == options.layers - 1, sites=sites)
            for number in range(options.layers)
        )
        self.last = nn.Linear(options.hidden, latent)
        self.site = next(sites)

    def forward(self, key: DropoutKey | None = None) -> Tensor:
        """z_PD of every gene; ``key`` switches dropout on."""
        h_PN: Tensor = self.features(key)
        if self.num_nodes > self.num_genes:
            h_PN = torch.cat([h_PN, self.virtual_PN])
        e_RN = self.edge_features()
        for layer in self.layers:
            h_PN, e_RN = layer(h_PN, e_RN, self.edges, key)
        z_PD = functional.leaky_relu(self.last(h_PN[: self.num_genes]), 0.01)
        return graph_dropout(z_PD, self.dropout, self.site, key)


class TransformerLayer(nn.Module):
    """Attention along the edges, the local branch by option, and a perceptron on every node."""

    def __init__(
        self,
        options: config.Transformer,
        patterns: EdgePatterns,
        local: EdgeFeatures | None,
        *,
        last: bool,
        sites: Iterator[int],
    ) -> None:
        """``local`` are the edges of the local branch, None for none."""
        super().__init__()
        width = options.hidden
        self.heads, self.dropout = options.heads, options.dropout
        self.project = nn.Linear(width, 3 * width, bias=False)
        """Queries, keys and values in one product."""
        self.edge_map = EdgeMap(options, patterns, last=last)
        self.first_norm = norm_layer(options.norm, width)
        self.local = None if local is None else _local_layer(options, local, sites)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)
        self.second_norm = norm_layer(options.norm, width)
        self.sites = [next(sites) for _ in range(3)]
        if options.norm == "batch":
            self.contract.bias.requires_grad_(False)  # see the module's invariants

    def forward(
        self, h_PN: Tensor, e_RN: Tensor, edges: PatternEdges, key: DropoutKey | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next layer's node and edge features; ``key`` switches dropout on."""
        query_PHN, key_PHN, value_PHN = self.project(h_PN).unflatten(1, (3, self.heads, -1)).unbind(1)
        terms, e_RN = self.edge_map(e_RN)
        attended_PN = pattern_attention(query_PHN, key_PHN, value_PHN, terms, edges.table).flatten(1)
        x_PN = self.first_norm(h_PN + graph_dropout(attended_PN, self.dropout, self.sites[0], key))
        if self.local is not None:
            x_PN = x_PN + self.local(h_PN, key)
        wide_PN = graph_dropout(functional.relu(self.expand(x_PN)), self.dropout, self.sites[1], key)
        change_PN = graph_dropout(self.contract(wide_PN), self.dropout, self.sites[2], key)
        return self.second_norm(x_PN + change_PN), e_RN


def _local_edges(options: config.Transformer, graph: GraphInput) -> EdgeFeatures:
    num_nodes = graph.num_nodes + options.virtual_nodes
    edges = union_edges(graph.graphs, num_nodes, self_loops=options.self_loops, reverse_edges=False)
    return EdgeFeatures(edges, num_nodes, weights=False)


def _local_layer(options: config.Transformer, edges: EdgeFeatures, sites: Iterator[int]) -> Gatv2Layer:
    """GATv2 with as many heads, each as wide as the layer, averaged."""
    gat = config.Gat(
        hidden=options.hidden,
        heads=options.heads,
        skip="none",
        combine_heads="mean",
        attention_dropout=options.dropout,
    )
    return Gatv2Layer(gat, edges, options.hidden, sites=sites)
