import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.model.encoders import encoder_checks as checks
from tests.unit.model.encoders.dense_layers import attention_rounds, linear
from tests.unit.model.encoders.random_graphs import graph_input, graph_inputs
from txpert_dist import config
from txpert_dist.model.encoders.gat_hybrid import GatHybridEncoder, GraphAttention
from txpert_dist.model.graph_input import GraphInput

OPTIONS = config.GatHybrid(layers=2, node_features=4, hidden=8, heads=2)
CONCAT = OPTIONS.model_copy(update={"combine_graphs": "concat"})


def oracle(built: nn.Module, options: config.GatHybrid, graph: GraphInput) -> Tensor:
    """Every graph over all pairs of its nodes, then every gene, head and graph by the formulas."""
    state = dict(built.named_parameters())
    views = []
    for number, one in enumerate(graph.graphs):
        prefix = f"views.{number}."
        pairs = checks.dense(
            [one], graph.num_nodes, self_loops=options.self_loops, reverse_edges=options.reverse_edges
        )
        x_PN = state[f"{prefix}features.table_PN"]
        if options.positional == "random_walk":
            encoding_PN = torch.from_numpy(graph.random_walk_PN).double()
            x_PN = x_PN + linear(state, f"{prefix}features.position.", encoding_PN)
        x_PN = attention_rounds(state, f"{prefix}stack.", options, x_PN, pairs)
        x_PN = linear(state, f"{prefix}last.", x_PN)
        views.append(
            functional.leaky_relu(x_PN, 0.01).reshape(graph.num_nodes, options.heads, options.hidden)
        )
    if options.combine_graphs == "attention":
        x_PN = weighed(torch.stack(views), state["attention.query_HN"])
    else:
        x_PN = torch.cat([view_PHN.reshape(graph.num_nodes, -1) for view_PHN in views], 1)
    return linear(state, "last.", functional.relu(linear(state, "first.", x_PN)))


def weighed(view_KPHN: Tensor, query_HN: Tensor) -> Tensor:
    power_KPH = torch.einsum("kphn,hn->kph", functional.leaky_relu(view_KPHN, 0.2), query_HN).exp()
    return torch.einsum("kph,kphn->phn", power_KPH / power_KPH.sum(0), view_KPHN).mean(1)


@settings(max_examples=60)
@given(
    graph=graph_inputs,
    combine_graphs=st.sampled_from(["attention", "concat"]),
    version=st.sampled_from([1, 2]),
    combine_heads=st.sampled_from(["concat", "mean"]),
    self_loops=st.booleans(),
    reverse_edges=st.booleans(),
    edge_weights=st.booleans(),
    skip=st.sampled_from(["concat", "concat_learned", "sum_learned", "none"]),
    norm=st.sampled_from(["layer", "none"]),
    positional=st.sampled_from(["none", "random_walk"]),
)
def test_equals_the_formulas_over_all_pairs(graph, **update):
    options = OPTIONS.model_copy(update=update)
    built = checks.in_double(GatHybridEncoder, options, graph)
    checks.assert_same(built, lambda same: oracle(same, options, graph))


@pytest.mark.parametrize("options", [OPTIONS, CONCAT], ids=["attention", "concat"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_edge_of_every_graph_matters(number, options):
    graph = graph_input(10, 12, 3, 0)
    built = checks.in_double(GatHybridEncoder, options, graph)
    for source, target in (checks.own_edge(graph, number), checks.new_edge(graph)):
        changed = checks.with_graph(built, options, checks.toggled(graph, number, source, target))
        assert target in checks.moved(built(), changed())


def test_an_edge_counts_in_every_graph_that_has_it():
    graph = graph_input(10, 12, 2, 0)
    built = checks.in_double(GatHybridEncoder, OPTIONS, graph)
    source, target = checks.own_edge(graph, 0)
    twice = checks.with_graph(built, OPTIONS, checks.toggled(graph, 1, source, target))
    assert target in checks.moved(built(), twice())


@pytest.mark.parametrize("options", [OPTIONS, CONCAT], ids=["attention", "concat"])
def test_a_gene_reaches_as_far_as_a_graph_of_its_own_and_the_layers_allow(options):
    built = checks.in_double(GatHybridEncoder, options, checks.chain(8))
    assert checks.moved_by_gene(built, 3) == {3, 4, 5}
    # with every second edge in another graph, no graph has two edges in a row
    built = checks.in_double(GatHybridEncoder, options, checks.chain(8, 2))
    assert checks.moved_by_gene(built, 3) == {3, 4}


@pytest.mark.parametrize("options", [OPTIONS, CONCAT], ids=["attention", "concat"])
def test_graphs_in_another_order_with_their_parameters_change_nothing(options):
    options = options.model_copy(update={"edge_weights": True})
    graph, order = graph_input(10, 20, 3, 0), [2, 0, 1]
    built = checks.in_double(GatHybridEncoder, options, graph)
    other = checks.in_double(GatHybridEncoder, options, checks.reordered(graph, order), seed=1)
    state = built.state_dict()
    for new, old in enumerate(order):
        moved = {
            name: value for name, value in built.state_dict().items() if name.startswith(f"views.{old}.")
        }
        state |= {name.replace(f"views.{old}.", f"views.{new}.", 1): value for name, value in moved.items()}
    if options.combine_graphs == "concat":
        parts = state["first.weight"].chunk(3, 1)
        state["first.weight"] = torch.cat([parts[old] for old in order], 1)
    other.load_state_dict(state)
    torch.testing.assert_close(other(), built(), rtol=1e-9, atol=1e-9)


def test_attention_weighs_the_graphs_gene_by_gene():
    attention = GraphAttention(heads=1, width=2).double()
    with torch.no_grad():  # looks at the first number: the graph where it is larger wins the gene
        attention.query_HN.copy_(torch.tensor([[1000.0, 0.0]]))
    one_PHN = torch.tensor([[[1.0, 5.0]], [[0.0, 7.0]]], dtype=torch.float64)
    other_PHN = torch.tensor([[[0.0, 3.0]], [[1.0, 9.0]]], dtype=torch.float64)
    expected_PN = torch.tensor([[1.0, 5.0], [1.0, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(attention([one_PHN, other_PHN]), expected_PN)


def test_every_graph_has_its_own_features_and_layers():
    graph = graph_input(10, 20, 3, 0)
    built = checks.in_double(GatHybridEncoder, OPTIONS, graph)
    tables = [view.features.table_PN for view in built.views]
    assert len({id(table_PN) for table_PN in tables}) == 3
    assert not torch.equal(tables[0], tables[1])


@pytest.mark.parametrize("options", [OPTIONS, CONCAT], ids=["attention", "concat"])
def test_renaming_genes_renames_embeddings(options):
    options = options.model_copy(update={"positional": "random_walk"})
    graph = graph_input(10, 30, 2, 0)
    built = checks.in_double(GatHybridEncoder, options, graph)
    checks.assert_renaming_genes_renames_embeddings(built, options, graph)


def test_dropout_follows_the_key_and_differs_between_the_graphs():
    graph = graph_input(100, 30, 1, 0)
    graph = graph._replace(graphs=(graph.graphs[0], graph.graphs[0]._replace(name="kg1")))
    options = OPTIONS.model_copy(update={"dropout": 0.3, "attention_dropout": 0.1})
    built = checks.in_double(GatHybridEncoder, options, graph)
    checks.assert_dropout_follows_the_key(built)
    checks.assert_dropouts_differ(built, 2 * (2 * OPTIONS.layers + 1))
    first, second = built.views
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(None), second(None))
    key = checks.DropoutKey(0, 1, 0)
    assert not torch.equal(first(key), second(key))
    assert abs(checks.share_dropped(first(key)) - 0.3) < 0.06


def test_the_graph_is_not_in_the_checkpointed_state():
    checks.assert_graph_is_no_state(checks.in_double(GatHybridEncoder, OPTIONS, graph_input(9, 30, 2, 0)))


def test_a_snapshot_of_one_gene():
    alone = checks.in_double(GatHybridEncoder, OPTIONS, graph_input(1, 0, 2, 0))
    assert alone().shape == (1, checks.LATENT)
    assert torch.isfinite(alone()).all()
