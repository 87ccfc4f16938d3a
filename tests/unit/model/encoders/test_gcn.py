from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import GCNConv

from graph_store.graph import KnowledgeGraph
from tests.unit.model.encoders import encoder_checks as checks
from tests.unit.model.encoders.dense_layers import State, linear, rounds
from tests.unit.model.encoders.random_graphs import graph_input, graph_inputs
from txpert_dist import config
from txpert_dist.model.encoders.gcn import GcnEncoder
from txpert_dist.model.graph_input import GraphInput

OPTIONS = config.Gcn(layers=2, node_features=4, hidden=8)
"""The first layer is projected after, the second before its edges are summed (with skip=concat)."""


def adjacency(options: config.Gcn, graph: GraphInput) -> Tensor:
    """Over all pairs, row the target, before normalisation."""
    there_PP, weight_PPK = checks.dense(
        graph.graphs, graph.num_nodes, self_loops=options.self_loops, reverse_edges=options.reverse_edges
    )
    if not options.edge_weights:
        return there_PP.double()
    weight_PP = weight_PPK.abs().sum(-1)
    lone_P = there_PP.diagonal() & (weight_PP.diagonal() == 0)
    return weight_PP + torch.diag(lone_P.double())


def oracle(built: nn.Module, options: config.Gcn, graph: GraphInput) -> Tensor:
    """D^-1/2 A D^-1/2 x W + b with matrices over all pairs."""
    weight_PP = adjacency(options, graph)
    factor_P = weight_PP.sum(1).pow(-0.5)
    factor_P[weight_PP.sum(1) == 0] = 0
    normal_PP = torch.diag(factor_P) @ weight_PP @ torch.diag(factor_P)

    return whole(built, options, lambda own, x_PN: normal_PP @ (x_PN @ own["project.weight"].T) + own["bias"])


def pyg_oracle(built: nn.Module, options: config.Gcn, graph: GraphInput) -> Tensor:
    weight_PP = adjacency(options, graph)
    target, source = weight_PP.nonzero(as_tuple=True)

    def layer(own: State, x_PN: Tensor) -> Tensor:
        convolution = GCNConv(x_PN.shape[1], options.hidden, add_self_loops=False)
        edges_2E = torch.stack([source, target])
        named = {"lin.weight": own["project.weight"], "bias": own["bias"]}
        return torch.func.functional_call(convolution, named, (x_PN, edges_2E, weight_PP[target, source]))

    return whole(built, options, layer)


def whole(built: nn.Module, options: config.Gcn, layer: Callable[[State, Tensor], Tensor]) -> Tensor:
    state = dict(built.named_parameters())
    x_PN = state["features.table_PN"]
    if options.positional == "laplacian":
        x_PN = x_PN + linear(state, "features.position.", built.features.encoding_PN)
    return functional.leaky_relu(linear(state, "last.", rounds(state, "stack.", options, x_PN, layer)), 0.01)


@settings(max_examples=60)
@given(
    graph=graph_inputs,
    self_loops=st.booleans(),
    reverse_edges=st.booleans(),
    edge_weights=st.booleans(),
    skip=st.sampled_from(["concat", "sum", "concat_learned", "sum_learned", "none"]),
    norm=st.sampled_from(["layer", "none"]),
    positional=st.sampled_from(["none", "laplacian"]),
)
def test_equals_products_over_all_pairs_and_pyg(graph, **update):
    options = OPTIONS.model_copy(update=update)
    built = checks.in_double(GcnEncoder, options, graph)
    checks.assert_same(built, lambda same: oracle(same, options, graph))
    checks.assert_same(built, lambda same: pyg_oracle(same, options, graph))


@pytest.mark.parametrize("edge_weights", [False, True])
def test_with_self_loops_it_is_pygs_default_layer(edge_weights):
    graph = graph_input(9, 25, 1, 0)
    one = graph.graphs[0]
    kept = one.edges_2E[0] != one.edges_2E[1]
    positive = KnowledgeGraph("kg0", one.edges_2E[:, kept], np.ones(kept.sum(), np.float32))
    graph = graph._replace(graphs=(positive,))
    options = config.Gcn(layers=1, node_features=4, hidden=8, skip="none", edge_weights=edge_weights)
    built = checks.in_double(GcnEncoder, options, graph)
    layer = GCNConv(4, 8).double()
    with torch.no_grad():
        layer.lin.weight.copy_(built.stack.layers[0].project.weight)
        layer.bias.copy_(built.stack.layers[0].bias)
    edges_2E = torch.from_numpy(positive.edges_2E.astype(np.int64))
    x_PN = functional.leaky_relu(layer(built.features(), edges_2E), 0.01)
    torch.testing.assert_close(built(), functional.leaky_relu(built.last(x_PN), 0.01), rtol=1e-9, atol=1e-9)


def test_layers_start_as_pygs():
    torch.manual_seed(0)
    layer = GcnEncoder(config.Gcn(), graph_input(9, 25, 1, 0), latent=6).stack.layers[0]
    reference = GCNConv(128, 128).lin.weight
    torch.testing.assert_close(layer.project.weight.std(), reference.std(), rtol=0.05, atol=0)
    torch.testing.assert_close(layer.project.weight.abs().max(), reference.abs().max(), rtol=0.02, atol=0)
    assert not layer.bias.any()


@pytest.mark.parametrize("edge_weights", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_edge_of_every_graph_matters(number, edge_weights):
    options = OPTIONS.model_copy(update={"edge_weights": edge_weights})
    graph = graph_input(10, 12, 3, 0)
    built = checks.in_double(GcnEncoder, options, graph)
    for source, target in (checks.own_edge(graph, number), checks.new_edge(graph)):
        changed = checks.with_graph(built, options, checks.toggled(graph, number, source, target))
        assert target in checks.moved(built(), changed())


def test_an_edge_that_several_graphs_have_counts_once_unless_weighted():
    graph = graph_input(10, 12, 2, 0)
    twice = checks.toggled(graph, 1, *checks.own_edge(graph, 0))
    built = checks.in_double(GcnEncoder, OPTIONS, graph)
    assert torch.equal(built(), checks.with_graph(built, OPTIONS, twice)())
    weighted = OPTIONS.model_copy(update={"edge_weights": True})
    built = checks.in_double(GcnEncoder, weighted, graph)
    assert checks.moved(built(), checks.with_graph(built, weighted, twice)())


def test_a_gene_reaches_as_far_as_there_are_layers_and_only_downstream():
    graph = checks.chain(8, 2)
    assert checks.moved_by_gene(checks.in_double(GcnEncoder, OPTIONS, graph), 3) == {3, 4, 5}
    both_ways = OPTIONS.model_copy(update={"reverse_edges": True})
    assert checks.moved_by_gene(checks.in_double(GcnEncoder, both_ways, graph), 3) == {1, 2, 3, 4, 5}
    bare = OPTIONS.model_copy(update={"self_loops": False, "skip": "none"})
    assert checks.moved_by_gene(checks.in_double(GcnEncoder, bare, graph), 3) == {5}


@pytest.mark.parametrize("edge_weights", [False, True])
def test_a_gene_without_edges_keeps_its_own_message(edge_weights):
    options = OPTIONS.model_copy(update={"edge_weights": edge_weights, "skip": "none"})
    graph = graph_input(8, 15, 2, 0, isolated=2)
    built = checks.in_double(GcnEncoder, options, graph)
    assert checks.moved_by_gene(built, 7) == {7}
    alone = checks.in_double(GcnEncoder, options, GraphInput(1, ()))
    alone.load_state_dict(built.state_dict() | {"features.table_PN": built.features.table_PN[7:]})
    torch.testing.assert_close(alone()[0], built()[7], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("positional", ["none", "random_walk"])
def test_renaming_genes_renames_embeddings(positional):
    options = OPTIONS.model_copy(update={"positional": positional, "edge_weights": True})
    graph = graph_input(10, 30, 2, 0)
    built = checks.in_double(GcnEncoder, options, graph)
    checks.assert_renaming_genes_renames_embeddings(built, options, graph)


def test_the_order_of_the_graphs_changes_nothing():
    options = OPTIONS.model_copy(update={"edge_weights": True})
    graph = graph_input(10, 30, 3, 0)
    built = checks.in_double(GcnEncoder, options, graph)
    other = checks.with_graph(built, options, checks.reordered(graph, [2, 0, 1]))
    torch.testing.assert_close(other(), built(), rtol=1e-9, atol=1e-9)


def test_dropout_follows_the_key_and_ends_the_encoder():
    options = OPTIONS.model_copy(update={"dropout": 0.3})
    built = checks.in_double(GcnEncoder, options, graph_input(200, 30, 2, 0))
    checks.assert_dropout_follows_the_key(built)
    checks.assert_dropouts_differ(built, OPTIONS.layers + 1)
    assert abs(checks.share_dropped(built(checks.DropoutKey(0, 1, 0))) - 0.3) < 0.06


def test_the_graph_is_not_in_the_checkpointed_state():
    checks.assert_graph_is_no_state(checks.in_double(GcnEncoder, OPTIONS, graph_input(9, 30, 2, 0)))
