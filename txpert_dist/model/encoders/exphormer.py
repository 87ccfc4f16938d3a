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

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.attention.graph_dropout import graph_activation, graph_dropout
from txpert_dist.model.attention.layers import EdgeFeatures, Gather, Gatv2Layer
from txpert_dist.model.attention.pattern import pattern_attention
from txpert_dist.model.attention.pattern_edges import PatternEdges
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.edge_patterns import EdgePatterns, edge_patterns
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.pattern_features import EdgeMap, PatternFeatures
from txpert_dist.model.encoders.reach import (
    Cut,
    Reach,
    Tables,
    Workers,
    depth_of,
    normalised,
    own_rows,
    reach_of,
    rows_of_all,
    share_of,
    targets_of,
)
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
        self.batch_norm = options.norm == "batch"
        self.site = next(sites)

    def forward(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every gene, or of those that ``reaches`` are of; ``key`` switches dropout on."""
        h_PN: Tensor = self.features(key)
        if self.num_nodes > self.num_genes:
            h_PN = torch.cat([h_PN, self.virtual_PN])
        genes = torch.arange(self.num_genes, device=h_PN.device)
        (reach,) = reaches or (Reach(genes, genes, ()),)
        reach = reach if self._local else reach.uncut()
        whole = len(self.layers) - len(reach.cuts)
        e_RN = self.edge_features()
        if whole:
            h_PN = own_rows(h_PN, reach.share)
            for layer in self.layers[:whole]:
                h_PN, e_RN = layer(h_PN, e_RN, self.edges, key, reach.share)
            h_PN = rows_of_all(h_PN, reach.share)
        h_PN = h_PN.index_select(0, reach.first)
        for layer, cut in zip(self.layers[whole:], reach.cuts, strict=True):
            h_PN, e_RN = layer(h_PN, e_RN, self.edges, key, cut)
        return graph_activation(self.last(h_PN), 0.01, (self.dropout, self.site), key, reach.rows)

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """How many of the last layers are worth cutting for such genes as ``rows``, training or not."""
        return (depth_of(self._tables, rows, layers=len(self.layers)) if self._local else 0,)

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """What ``forward`` works on for the genes ``rows``, which ascend."""
        (depth,) = depths
        return (reach_of(self._tables, rows, depth=depth),)

    def shares(self, workers: Workers) -> tuple[Cut | None, ...]:
        """One worker's part of the layers that work on all the nodes."""
        return (share_of(self._tables, workers),)

    @property
    def _tables(self) -> Tables:
        local = self.layers[0].local
        return Tables(local.table if isinstance(local, Gatv2Layer) else None, self.edges.table)

    @property
    def _local(self) -> bool:
        """Whether a node's output depends on no others than those whose messages reach it."""
        return not (self.training and self.batch_norm)


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
        self,
        h_SN: Tensor,
        e_RN: Tensor,
        edges: PatternEdges,
        key: DropoutKey | None = None,
        cut: Cut | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The next layer's node features, of the targets of ``cut``, and edge features.

        ``key`` switches dropout on.
        """
        terms, e_RN = self.edge_map(e_RN)
        table = edges.table if cut is None or cut.tables.patterns is None else cut.tables.patterns
        h_TN = targets_of(h_SN, cut)
        local, gather = (None, None) if cut is None else (cut.tables.edges, cut.gather)
        query_THN, key_SHN, value_SHN = self._projections(h_SN, h_TN, gather)
        attended_TN = pattern_attention(query_THN, key_SHN, value_SHN, terms, table).flatten(1)
        x_TN = normalised(self.first_norm, h_TN + self._thinned(attended_TN, 0, key, cut), cut)
        if self.local is not None:
            x_TN = x_TN + self.local(h_SN, key, local, gather)
        dropout, nodes = (self.dropout, self.sites[1]), None if cut is None else cut.nodes
        wide_TN = graph_activation(self.expand(x_TN), 0.0, dropout, key, nodes)
        change_TN = self._thinned(self.contract(wide_TN), 2, key, cut)
        return normalised(self.second_norm, x_TN + change_TN, cut), e_RN

    def _projections(
        self, h_SN: Tensor, h_TN: Tensor, gather: Gather | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the targets, keys and values of the sources, by head."""
        width = h_SN.shape[1]
        if gather is not None:
            query_TN, both_TN = self.project(h_TN).split([width, 2 * width], dim=1)
            parts = query_TN, *gather(both_TN).chunk(2, dim=1)
        elif h_SN is h_TN:
            parts = self.project(h_SN).chunk(3, dim=1)
        else:
            weight_RN = self.project.weight
            both_SN = functional.linear(h_SN, weight_RN[width:])
            parts = functional.linear(h_TN, weight_RN[:width]), *both_SN.chunk(2, dim=1)
        query_THN, key_SHN, value_SHN = (
            part.reshape(len(part), self.heads, width // self.heads) for part in parts
        )
        return query_THN, key_SHN, value_SHN

    def _thinned(self, x_TN: Tensor, number: int, key: DropoutKey | None, cut: Cut | None) -> Tensor:
        nodes = None if cut is None else cut.nodes
        return graph_dropout(x_TN, self.dropout, self.sites[number], key, nodes)


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
