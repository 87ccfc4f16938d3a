"""Exphormer over all pairs of nodes, from its formulas: the oracle of the encoder's tests."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.model.attention.graph_dropout import graph_dropout
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.exphormer import ExphormerEncoder, TransformerLayer
from txpert_dist.model.graph_input import GraphInput

Weights = dict[tuple[int, int], float]
"""(source, target) -> weight."""


class Edge(NamedTuple):
    target: int
    source: int
    types: tuple[int, ...]
    weights: tuple[float, ...]
    known: bool
    """Whether a knowledge graph proposes it."""


def larger(one: float, other: float) -> float:
    return min(one, other) if abs(one) == abs(other) else max(one, other, key=abs)


def scaled(graph: KnowledgeGraph) -> Weights:
    """The graph's weights, its largest being 1 in size."""
    most = max(np.abs(graph.weight_E).max(initial=0), np.float32(1e-30))
    edges = graph.edges_2E.T.tolist()
    return {(s, t): float(w / most) for (s, t), w in zip(edges, graph.weight_E, strict=True)}


def known_types(options: config.Transformer, graph: GraphInput) -> list[tuple[Weights, int]]:
    """The types that are knowledge graphs, with the graph's number."""
    graphs = [scaled(one) for one in graph.graphs]
    if isinstance(options, config.Exphormer):
        union: Weights = {}
        for one in graphs:
            for edge, weight in one.items():
                union[edge] = larger(union.get(edge, 0.0), weight)
        graphs = [union]
    types = []
    for number, one in enumerate(graphs):
        own = {(s, t): w for (s, t), w in one.items() if s != t or not options.self_loops}
        types.append((own, number))
        if options.reverse_edges:
            types.append(({(t, s): w for (s, t), w in own.items()}, number))
    return types


def other_types(options: config.Transformer, graph: GraphInput) -> list[Weights]:
    types: list[Weights] = []
    genes, nodes = range(graph.num_nodes), range(graph.num_nodes + options.virtual_nodes)
    if options.self_loops:
        types.append({(node, node): 0.0 for node in nodes})
    if options.expander_cycles:
        chosen = graph.expander.edges_2E[:, graph.expander.cycle_E < options.expander_cycles]
        types.append(dict.fromkeys(map(tuple, chosen.T.tolist()), 0.0))
    for virtual in nodes[graph.num_nodes :]:
        types.append({(gene, virtual): 0.0 for gene in genes})
        types.append({(virtual, gene): 0.0 for gene in genes})
    return types


def edges_of(options: config.Transformer, graph: GraphInput) -> list[Edge]:
    """All edges in order."""
    known = known_types(options, graph)
    types = [one for one, _ in known] + other_types(options, graph)
    parallel = isinstance(options, config.ExphormerMg) and options.provenance == "type"
    found: dict[tuple[int, int, int], list[tuple[int, float]]] = {}
    for number, one in enumerate(types):
        for (source, target), weight in one.items():
            found.setdefault((target, source, number if parallel else 0), []).append((number, weight))
    edges = []
    for (target, source, _), proposers in sorted(found.items()):
        weights = [0.0] * (1 + max((column for _, column in known), default=-1))
        for number, weight in proposers:
            if number < len(known):
                weights[known[number][1]] = larger(weights[known[number][1]], weight)
        numbers = {number for number, _ in proposers}
        hot = tuple(int(number in numbers) for number in range(len(types)))
        used = tuple(weights) if options.edge_weights else ()
        edges.append(Edge(target, source, hot, used, min(numbers) < len(known)))
    return edges


def dense_exphormer(
    model: ExphormerEncoder, options: config.Transformer, graph: GraphInput, key: DropoutKey | None = None
) -> Tensor:
    """z_PD from the model's parameters; the model's mode says which statistics batch norms use."""
    edges = edges_of(options, graph)
    p = dict(model.named_parameters())
    h_PN = p["features.table_PN"]
    if options.positional != "none":
        position_PN = torch.from_numpy(graph.random_walk_PN).to(h_PN)
        h_PN = h_PN + position_PN @ p["features.position.weight"].T + p["features.position.bias"]
    if options.virtual_nodes:
        h_PN = torch.cat([h_PN, p["virtual_PN"]])
    first_NN = p["edge_features.types.weight"]
    e_EN = h_PN.new_tensor([edge.types for edge in edges]).reshape(len(edges), first_NN.shape[1]) @ first_NN.T
    if "edge_features.weights.weight" in p:
        second_NK = p["edge_features.weights.weight"]
        weight_EK = h_PN.new_tensor([edge.weights for edge in edges]).reshape(len(edges), second_NK.shape[1])
        known_E1 = h_PN.new_tensor([edge.known for edge in edges])[:, None]
        e_EN = e_EN + torch.relu(weight_EK @ second_NK.T + p["edge_features.weights.bias"]) * known_E1
    for layer in model.layers:
        h_PN, e_EN = dense_layer(layer, options, graph, edges, h_PN, e_EN, key)
    z_PD = functional.leaky_relu(h_PN[: graph.num_nodes] @ p["last.weight"].T + p["last.bias"], 0.01)
    return graph_dropout(z_PD, options.dropout, model.site, key)


def dense_layer(
    layer: TransformerLayer,
    options: config.Transformer,
    graph: GraphInput,
    edges: list[Edge],
    h_PN: Tensor,
    e_EN: Tensor,
    key: DropoutKey | None,
) -> tuple[Tensor, Tensor]:
    p = dict(layer.named_parameters())
    if options.edge_map == "linear":
        mapped_EN, next_EN = e_EN @ p["edge_map.map.weight"].T, e_EN
    else:
        hidden_EN = torch.relu(e_EN @ p["edge_map.map.0.weight"].T + p["edge_map.map.0.bias"])
        mapped_EN = hidden_EN @ p["edge_map.map.2.weight"].T + p["edge_map.map.2.bias"]
        has_norm = layer.edge_map.norm is not None
        next_EN = normalise("batch", layer.edge_map.norm, mapped_EN) if has_norm else mapped_EN
    attended_PN = dense_attention(p, options, edges, h_PN, e_EN, mapped_EN)
    x_PN = h_PN + graph_dropout(attended_PN, options.dropout, layer.sites[0], key)
    x_PN = normalise(options.norm, layer.first_norm, x_PN)
    if options.local:
        x_PN = x_PN + dense_gatv2(layer, options, graph, h_PN, key)
    inner_PN = torch.relu(x_PN @ p["expand.weight"].T + p["expand.bias"])
    inner_PN = graph_dropout(inner_PN, options.dropout, layer.sites[1], key)
    change_PN = inner_PN @ p["contract.weight"].T + p["contract.bias"]
    x_PN = x_PN + graph_dropout(change_PN, options.dropout, layer.sites[2], key)
    return normalise(options.norm, layer.second_norm, x_PN), next_EN


def dense_attention(
    p: dict[str, Tensor],
    options: config.Transformer,
    edges: list[Edge],
    h_PN: Tensor,
    e_EN: Tensor,
    mapped_EN: Tensor,
) -> Tensor:
    """Over all pairs (target, source), as often as there are parallel edges (R)."""
    num_nodes, heads, width = len(h_PN), options.heads, options.hidden // options.heads
    times: dict[tuple[int, int], int] = {}
    place = []
    for edge in edges:
        pair = (edge.target, edge.source)
        times[pair] = times.get(pair, -1) + 1
        place.append((times[pair], *pair))
    layers = 1 + max(times.values(), default=0)
    index = tuple(torch.tensor(place, dtype=torch.long).reshape(-1, 3).T)

    def spread(x_EN: Tensor) -> Tensor:
        shape = (layers, num_nodes, num_nodes, x_EN.shape[1])
        return x_EN.new_zeros(shape).index_put(index, x_EN)

    query_PHN, key_PHN, value_PHN = (
        (h_PN @ weight.T).reshape(num_nodes, heads, width) for weight in p["project.weight"].chunk(3)
    )
    feature_RPPHN = spread(mapped_EN).reshape(layers, num_nodes, num_nodes, heads, width)
    bias_RPPH = spread(e_EN @ p["edge_map.bias.weight"].T + p["edge_map.bias.bias"])
    score_RPPH = torch.einsum("ihn,jhn,rijhn->rijh", query_PHN, key_PHN, feature_RPPHN) / width**0.5
    there_RPP1 = spread(e_EN.new_ones(len(edges), 1))
    weight_RPPH = torch.exp(torch.clamp(score_RPPH + bias_RPPH, -5, 5)) * there_RPP1
    if options.gate_values:
        gate_RPPHN = spread(e_EN @ p["edge_map.gate.weight"].T).reshape(feature_RPPHN.shape)
        sum_PHN = torch.einsum("rijh,jhn,rijhn->ihn", weight_RPPH, value_PHN, gate_RPPHN)
    else:
        sum_PHN = torch.einsum("rijh,jhn->ihn", weight_RPPH, value_PHN)
    return (sum_PHN / (weight_RPPH.sum((0, 2)) + 1e-6)[:, :, None]).reshape(num_nodes, -1)


def dense_gatv2(
    layer: TransformerLayer,
    options: config.Transformer,
    graph: GraphInput,
    h_PN: Tensor,
    key: DropoutKey | None,
) -> Tensor:
    """Over the knowledge graphs' own edges; the model's edge list serves to place its dropout only."""
    p = {name.removeprefix("local."): x for name, x in layer.named_parameters()}
    edges = layer.local.features.edges
    num_nodes, heads, width = len(h_PN), options.heads, options.hidden
    both_PN = h_PN @ p["project.weight"].T + p["project.bias"]
    source_PHN, target_PHN = (half.reshape(num_nodes, heads, width) for half in both_PN.chunk(2, 1))
    pairs_PPHN = functional.leaky_relu(target_PHN[:, None] + source_PHN[None], 0.2)
    score_PPH = (pairs_PPHN * p["attention_HN"]).sum(-1)
    absent_PP = torch.ones(num_nodes, num_nodes, dtype=torch.bool)
    for one in graph.graphs:
        for source, target in one.edges_2E.T.tolist():
            absent_PP[target, source] = False
    if options.self_loops:
        absent_PP.fill_diagonal_(False)
    weight_PPH = torch.softmax(score_PPH.masked_fill(absent_PP[:, :, None], -torch.inf), 1).nan_to_num(0.0)
    keep_PPH = torch.ones_like(weight_PPH)
    if key is not None:
        ones_EH = weight_PPH.new_ones(len(edges.source), heads)
        keep_PPH[edges.target, edges.source] = graph_dropout(ones_EH, options.dropout, layer.local.site, key)
    return torch.einsum("ijh,jhn->ihn", weight_PPH * keep_PPH, source_PHN).mean(1) + p["bias"]


def normalise(kind: str, norm: torch.nn.Module, x_RN: Tensor) -> Tensor:
    if kind == "none":
        return x_RN
    if kind == "layer":
        mean_R1, variance_R1 = x_RN.mean(1, keepdim=True), x_RN.var(1, correction=0, keepdim=True)
        return (x_RN - mean_R1) / (variance_R1 + 1e-5).sqrt() * norm.weight + norm.bias
    if norm.training:
        mean_N, variance_N = x_RN.mean(0), x_RN.var(0, correction=0)
    else:
        mean_N, variance_N = norm.running_mean, norm.running_variance
    return (x_RN - mean_N) / (variance_N + 1e-5).sqrt() * norm.weight + norm.bias
