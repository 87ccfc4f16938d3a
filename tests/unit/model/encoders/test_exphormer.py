import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graph_store.graph import Expander, KnowledgeGraph
from tests.unit.model.encoders.exphormer_definition import dense_exphormer
from tests.unit.model.encoders.random_graphs import cycles, graph_input, graph_inputs
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.edge_patterns import edge_patterns
from txpert_dist.model.encoders.exphormer import ExphormerEncoder
from txpert_dist.model.encoders.pattern_features import EdgeNorm
from txpert_dist.model.graph_input import GraphInput

KEY = DropoutKey(3, 5, 0)
OPTIONS = {
    "layers": st.integers(1, 2),
    "hidden": st.sampled_from([4, 6]),
    "heads": st.integers(1, 2),
    "self_loops": st.booleans(),
    "reverse_edges": st.booleans(),
    "expander_cycles": st.integers(0, 2),
    "virtual_nodes": st.integers(0, 2),
    "local": st.booleans(),
    "edge_map": st.sampled_from(["linear", "mlp"]),
    "gate_values": st.booleans(),
    "edge_weights": st.booleans(),
    "norm": st.sampled_from(["batch", "layer", "none"]),
    "positional": st.sampled_from(["none", "random_walk"]),
}
options_of_both = st.builds(config.Exphormer, **OPTIONS) | st.builds(
    config.ExphormerMg, **OPTIONS, provenance=st.sampled_from(["multihot", "type"])
)
SMALL = {"layers": 2, "hidden": 6, "expander_cycles": 2}


def encoder(
    options: config.Exphormer | config.ExphormerMg, graph: GraphInput, *, scale: float = 1.0
) -> ExphormerEncoder:
    """In double precision; no parameter where it starts, and attention's scores larger by ``scale``."""
    torch.manual_seed(0)
    model = ExphormerEncoder(options, graph, latent=5).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.2 * torch.randn_like(parameter)
            if "edge_map" in name or "edge_features" in name:
                parameter *= scale
    return model


def assert_same(ours_PD: Tensor, dense_PD: Tensor, model: ExphormerEncoder) -> None:
    """Equal values, and equal gradients of one random projection in every parameter, the fixed ones too."""
    torch.testing.assert_close(ours_PD, dense_PD, rtol=1e-9, atol=1e-9)
    d_PD = torch.randn(ours_PD.shape, dtype=ours_PD.dtype, generator=torch.Generator().manual_seed(9))
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(ours_PD, parameters, d_PD)
    dense = torch.autograd.grad(dense_PD, parameters, d_PD)
    for name, one, other in zip(names, ours, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=120)
@given(options=options_of_both, graph=graph_inputs, training=st.booleans(), scale=st.sampled_from([1.0, 6.0]))
def test_equals_the_definition_over_all_pairs(options, graph, training, scale):
    model = encoder(options, graph, scale=scale).train(training).requires_grad_()
    assert_same(model(), dense_exphormer(model, options, graph), model)


@settings(max_examples=30)
@given(options=options_of_both, graph=graph_inputs)
def test_drops_where_the_definition_does(options, graph):
    options = options.model_copy(update={"dropout": 0.3})
    model = encoder(options, graph).requires_grad_()
    assert_same(model(KEY), dense_exphormer(model, options, graph, KEY), model)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        config.Exphormer(**SMALL),
        config.ExphormerMg(**SMALL, edge_map="mlp", gate_values=True, virtual_nodes=1),
        config.ExphormerMg(**SMALL, provenance="type", edge_weights=True, norm="layer"),
    ],
)
def test_single_precision_stays_near(options, clipped):
    graph = graph_input(30, 120, 2, 0)
    model = encoder(options, graph, scale=6.0 if clipped else 1.0)
    exact_PD = model()
    near_PD = model.float()()
    assert near_PD.dtype == torch.float32
    assert (near_PD - exact_PD).abs().max() < 1e-5 * exact_PD.abs().max()


@pytest.mark.parametrize(
    ("options", "num_graphs", "count"),
    [
        (config.Exphormer(), 1, 2_064_712),
        (config.Exphormer(), 3, 2_064_712),
        (config.ExphormerMg(), 2, 2_064_968),
    ],
)
def test_has_as_many_parameters_as_the_published_encoder(options, num_graphs, count):
    graph = graph_input(9854, 10, num_graphs, 0, num_cycles=3)
    model = ExphormerEncoder(options, graph, latent=64)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_free_parameter_learns_and_fixed_biases_do_not():
    options = config.ExphormerMg(
        **SMALL,
        edge_map="mlp",
        gate_values=True,
        edge_weights=True,
        virtual_nodes=1,
        positional="random_walk",
    )
    model = encoder(options, graph_input(9, 25, 2, 0))
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {
        f"layers.{layer}.{bias}" for layer in range(2) for bias in ("contract.bias", "edge_map.bias.bias")
    }
    model().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert name in fixed or parameter.grad.abs().max() > 1e-6, name
    layer_norm = encoder(options.model_copy(update={"norm": "layer"}), graph_input(9, 25, 2, 0))
    assert layer_norm.layers[0].contract.bias.requires_grad


def replaced(graph: GraphInput, number: int, edges_2E: np.ndarray) -> GraphInput:
    """``graph`` with other edges, all of weight 1, in one of its graphs."""
    graphs = list(graph.graphs)
    edges_2E = edges_2E[:, np.lexsort(edges_2E)].astype(np.int32)
    graphs[number] = KnowledgeGraph(graphs[number].name, edges_2E, np.ones(edges_2E.shape[1], np.float32))
    return graph._replace(graphs=tuple(graphs))


def disjoint_graphs(num_graphs: int) -> GraphInput:
    """Over 8 genes, with edge (number, number + 1) in that graph alone and edge (6, 7) in all."""
    graph = graph_input(8, 0, num_graphs, 0, num_cycles=0)
    for number in range(num_graphs):
        graph = replaced(graph, number, np.array([[number, 6], [number + 1, 7]]))
    return graph


def same_weights(options: config.Exphormer | config.ExphormerMg, *graphs: GraphInput) -> list[Tensor]:
    """Z over each of the graphs, with the parameters of the first."""
    first = encoder(options, graphs[0]).eval()
    found = [first()]
    for graph in graphs[1:]:
        other = encoder(options, graph).eval()
        other.load_state_dict(first.state_dict())
        found.append(other())
    return found


NO_EXPANDER = {**SMALL, "expander_cycles": 0}
INFLUENCED = [
    config.Exphormer(**NO_EXPANDER),
    config.Exphormer(**NO_EXPANDER, local=False, reverse_edges=False),
    config.ExphormerMg(**NO_EXPANDER),
    config.ExphormerMg(**NO_EXPANDER, local=False, edge_weights=True),
    config.ExphormerMg(**NO_EXPANDER, local=False, provenance="type"),
]


@pytest.mark.parametrize("options", INFLUENCED)
def test_one_edge_of_any_graph_has_influence(options):
    graph = disjoint_graphs(3)
    less = [replaced(graph, number, np.array([[6], [7]])) for number in range(3)]
    full_PD, *less_PDs = same_weights(options, graph, *less)
    for number, less_PD in enumerate(less_PDs):
        moved = (full_PD - less_PD).abs().amax(1) > 1e-6
        assert moved[number + 1]
        assert not moved[6]


@pytest.mark.parametrize("provenance", ["multihot", "type"])
def test_provenance_tells_in_which_graph_an_edge_is_and_in_how_many(provenance):
    options = config.ExphormerMg(**NO_EXPANDER, provenance=provenance)
    graph = disjoint_graphs(2)
    moved = replaced(replaced(graph, 0, np.array([[6], [7]])), 1, np.array([[0, 1, 6], [1, 2, 7]]))
    once = replaced(graph, 1, np.array([[1], [2]]))
    here_PD, moved_PD, once_PD = same_weights(options, graph, moved, once)
    assert (here_PD - moved_PD).abs().amax(1)[1] > 1e-6
    assert (here_PD - once_PD).abs().amax(1)[7] > 1e-6


@pytest.mark.parametrize("edge_weights", [False, True])
def test_the_union_does_not_tell_graphs_apart(edge_weights):
    options = config.Exphormer(**SMALL, edge_weights=edge_weights)
    graph = graph_input(9, 25, 2, 0)
    swapped = graph._replace(graphs=graph.graphs[::-1])
    one_PD, other_PD = same_weights(options, graph, swapped)
    torch.testing.assert_close(one_PD, other_PD, rtol=1e-10, atol=1e-10)
    if not edge_weights:
        both_2E = np.unique(np.concatenate([one.edges_2E for one in graph.graphs], 1), axis=1)
        merged = replaced(graph, 0, both_2E)
        merged_PD = same_weights(options, graph, merged._replace(graphs=merged.graphs[:1]))[1]
        torch.testing.assert_close(one_PD, merged_PD, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("provenance", ["multihot", "type"])
def test_relabelling_graphs_with_their_parameters_changes_nothing(provenance):
    options = config.ExphormerMg(**SMALL, edge_weights=True, edge_map="mlp", provenance=provenance)
    graph, order = graph_input(9, 25, 3, 0), [2, 0, 1]
    one = encoder(options, graph).eval()
    other = encoder(options, graph._replace(graphs=tuple(graph.graphs[number] for number in order))).eval()
    state = one.state_dict()
    columns = [2 * number + way for number in order for way in (0, 1)] + [6, 7]
    state["edge_features.types.weight"] = state["edge_features.types.weight"][:, columns]
    state["edge_features.weights.weight"] = state["edge_features.weights.weight"][:, order]
    other.load_state_dict(state)
    torch.testing.assert_close(one(), other(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_permuting_genes_permutes_embeddings(norm):
    options = config.ExphormerMg(**SMALL, norm=norm, virtual_nodes=1, positional="random_walk")
    graph, order = graph_input(10, 30, 2, 0), np.random.default_rng(1).permutation(10)
    permuted = graph._replace(
        graphs=tuple(one._replace(edges_2E=order[one.edges_2E].astype(np.int32)) for one in graph.graphs),
        expander=graph.expander._replace(edges_2E=order[graph.expander.edges_2E].astype(np.int32)),
        random_walk_PN=graph.random_walk_PN[np.argsort(order)],
    )
    one, other = encoder(options, graph), encoder(options, permuted)
    with torch.no_grad():
        other.features.table_PN[order] = one.features.table_PN
    torch.testing.assert_close(other()[order], one(), rtol=1e-9, atol=1e-9)


def moved_by(model: ExphormerEncoder, gene: int) -> set[int]:
    """The genes whose embeddings change with a gene's input features."""
    with torch.no_grad():
        before_PD = model()
        model.features.table_PN[gene] += 1
        after_PD = model()
        model.features.table_PN[gene] -= 1
    return set((before_PD - after_PD).abs().amax(1).gt(1e-12).nonzero().flatten().tolist())


def path(num_genes: int, expander: Expander) -> GraphInput:
    edges_2E = np.stack([np.arange(num_genes - 1), np.arange(1, num_genes)]).astype(np.int32)
    graph = KnowledgeGraph("path", edges_2E, np.ones(num_genes - 1, np.float32))
    return GraphInput(num_genes, (graph,), expander)


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("kind", [config.Exphormer, config.ExphormerMg])
def test_far_genes_influence_each_other_through_expander_edges_alone(kind, norm):
    graph = path(40, cycles(40, 3, np.random.default_rng(0)))
    shape = {"layers": 4, "hidden": 6, "norm": norm}
    near = encoder(kind(**shape, expander_cycles=0), graph)
    assert moved_by(near, 2) == set(range(7))
    assert moved_by(near, 37) == set(range(33, 40))
    far = encoder(kind(**shape, expander_cycles=3), graph)
    assert moved_by(far, 2) == moved_by(far, 37) == set(range(40))
    virtual = encoder(kind(**shape, expander_cycles=0, virtual_nodes=1), graph)
    assert moved_by(virtual, 2) == moved_by(virtual, 37) == set(range(40))


def test_without_reverses_genes_influence_downstream_ones_alone():
    options = config.Exphormer(layers=2, hidden=6, norm="none", expander_cycles=0, reverse_edges=False)
    assert moved_by(encoder(options, graph=path(8, cycles(8, 0, np.random.default_rng(0)))), 3) == {3, 4, 5}


def test_dropout_follows_the_key_and_ignores_the_workers_rows():
    model = encoder(config.Exphormer(**SMALL), graph_input(9, 25, 1, 0)).eval()
    assert torch.equal(model(KEY), model(KEY._replace(first_row=32)))
    assert not torch.allclose(model(KEY), model(KEY._replace(step=6)))
    assert not torch.allclose(model(KEY), model())
    none = encoder(config.Exphormer(**SMALL, dropout=0.0), graph_input(9, 25, 1, 0)).eval()
    assert torch.equal(none(KEY), none())


def test_the_graph_is_no_part_of_the_state():
    options = config.ExphormerMg(**SMALL, edge_map="mlp", edge_weights=True)
    one, other = (encoder(options, graph_input(9, edges, 2, edges)) for edges in (25, 40))
    other.load_state_dict(one.state_dict())
    learned = {name for name, _ in one.named_parameters()}
    assert {name.rpartition(".")[2] for name in one.state_dict().keys() - learned} == {
        *("running_mean", "running_variance")
    }


def test_edge_norm_is_batch_norm_over_all_edges():
    graph = graph_input(9, 25, 2, 0)
    options = config.ExphormerMg(**SMALL, edge_map="mlp")
    model = encoder(options, graph)
    ours = model.layers[0].edge_map.norm
    assert isinstance(ours, EdgeNorm)
    assert model.layers[1].edge_map.norm is None
    oracle = torch.nn.BatchNorm1d(6).double()
    oracle.load_state_dict({"weight": ours.weight, "bias": ours.bias}, strict=False)
    row_E = torch.from_numpy(edge_patterns(options, graph).pattern_E)
    for mode in (True, True, False):
        ours.train(mode)
        oracle.train(mode)
        x_RN = torch.randn(len(ours.count_R1), 6, dtype=torch.float64)
        torch.testing.assert_close(ours(x_RN)[row_E], oracle(x_RN[row_E]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.running_variance, oracle.running_var, rtol=1e-10, atol=1e-10)
