from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from graph_store.graph import KnowledgeGraph
from tests.unit.model.attention_oracles import (
    assert_same,
    by_formula,
    by_pyg,
    draw_parameters,
    plain_stack,
)
from tests.unit.model.encoders.random_graphs import graph_input, graph_inputs
from txpert_dist import config
from txpert_dist.model.attention.graph_dropout import graph_dropout
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.build import build_encoder
from txpert_dist.model.encoders.gat import GatEncoder
from txpert_dist.model.graph_input import GraphInput

SMALL = config.Gat(layers=3, node_features=4, hidden=4, heads=2)

gats = st.builds(
    config.Gat,
    layers=st.integers(1, 3),
    node_features=st.just(4),
    hidden=st.just(4),
    heads=st.integers(1, 3),
    version=st.sampled_from([1, 2]),
    combine_heads=st.sampled_from(["concat", "mean"]),
    skip=st.sampled_from(get_args(config.Skip)),
    norm=st.sampled_from(get_args(config.NormKind)),
    positional=st.sampled_from(get_args(config.Positional)),
    self_loops=st.booleans(),
    reverse_edges=st.booleans(),
    edge_weights=st.booleans(),
)
"""Every combination of options but dropout."""


def encoder(graph: GraphInput, options: config.Gat = SMALL, seed: int = 0) -> GatEncoder:
    """In double precision, evaluating, every parameter drawn anew."""
    ours = GatEncoder(options, graph, latent=6).double().eval()
    draw_parameters(ours, seed)
    return ours


def plainly(ours: GatEncoder, run_layer: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """z_PD by the formula, with the layers given."""
    x_PN = plain_stack(ours.stack, ours.features(), lambda number, layer, x_PN: run_layer(layer, x_PN), [])
    return functional.leaky_relu(x_PN @ ours.last.weight.T + ours.last.bias, 0.01)


def learning(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@settings(max_examples=80)
@given(graph=graph_inputs, options=gats)
def test_equals_the_formula_and_pyg_with_every_option(graph, options):
    ours = encoder(graph, options)
    assert_same(ours(), plainly(ours, by_formula), learning(ours))
    assert_same(ours(), plainly(ours, by_pyg), learning(ours))


@pytest.mark.parametrize("version", [1, 2])
def test_single_precision_stays_near(version):
    options = config.Gat(version=version, node_features=16, hidden=16, edge_weights=True, reverse_edges=True)
    torch.manual_seed(0)
    ours = GatEncoder(options, graph_input(60, 400, 2, 0), latent=16)
    low_PD = ours()
    exact_PD = plainly(ours.double(), by_formula)
    assert low_PD.dtype == torch.float32
    assert (low_PD.double() - exact_PD).abs().max() < 1e-5 * exact_PD.abs().max()


def test_published_size():
    ours = GatEncoder(config.Gat(), GraphInput(9854, ()), latent=64)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 2_387_776
    assert ours.last.in_features == 1152


def test_is_what_the_configuration_builds():
    torch.manual_seed(0)
    ours = GatEncoder(SMALL, graph_input(9, 30, 2, 0), latent=6)
    torch.manual_seed(0)
    built = build_encoder(SMALL, graph_input(9, 30, 2, 0), latent=6)
    assert isinstance(built, GatEncoder)
    assert torch.equal(built(), ours())


def chain(num_nodes: int, length: int) -> GraphInput:
    edges_2E = np.stack([np.arange(length - 1), np.arange(1, length)]).astype(np.int32)
    return GraphInput(num_nodes, (KnowledgeGraph("g", edges_2E, np.ones(length - 1, np.float32)),))


def moved(before_PD: Tensor, after_PD: Tensor) -> set[int]:
    return set((before_PD - after_PD).abs().amax(1).gt(1e-9).nonzero().flatten().tolist())


def moved_by_node(ours: GatEncoder, node: int) -> set[int]:
    with torch.no_grad():
        before_PD = ours()
        ours.features.table_PN[node] += 1
        after_PD = ours()
        ours.features.table_PN[node] -= 1
    return moved(before_PD, after_PD)


def test_a_node_reaches_as_far_as_there_are_layers_and_only_downstream():
    assert moved_by_node(encoder(chain(10, 8)), 1) == {1, 2, 3, 4}
    assert moved_by_node(encoder(chain(10, 8)), 9) == {9}
    both_ways = SMALL.model_copy(update={"reverse_edges": True})
    assert moved_by_node(encoder(chain(10, 8), both_ways), 4) == {1, 2, 3, 4, 5, 6, 7}


def without_edge(graph: GraphInput, number: int, edge: int) -> GraphInput:
    graphs = list(graph.graphs)
    name, edges_2E, weight_E = graphs[number]
    graphs[number] = KnowledgeGraph(name, np.delete(edges_2E, edge, 1), np.delete(weight_E, edge))
    return graph._replace(graphs=tuple(graphs))


def downstream(graph: GraphInput, node: int, steps: int) -> set[int]:
    """Nodes at most ``steps`` edges after ``node``."""
    reached = {node}
    for _ in range(steps):
        for one in graph.graphs:
            pairs = one.edges_2E.T.tolist()
            reached = reached | {target for source, target in pairs if source in reached}
    return reached


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), version=st.sampled_from([1, 2]), number=st.integers(0, 1), data=st.data())
def test_an_edge_changes_its_target_and_nothing_but_what_is_downstream(seed, version, number, data):
    graph = graph_input(10, 12, 2, seed)
    options = SMALL.model_copy(update={"version": version})
    pairs = [set(map(tuple, one.edges_2E.T.tolist())) for one in graph.graphs]
    alone = sorted(pair for pair in pairs[number] - pairs[1 - number] if pair[0] != pair[1])
    if not alone:
        return
    source, target = data.draw(st.sampled_from(alone))
    edges_2E = graph.graphs[number].edges_2E
    edge = int(np.flatnonzero((edges_2E[0] == source) & (edges_2E[1] == target))[0])
    fewer = without_edge(graph, number, edge)
    found = moved(encoder(graph, options)(), encoder(fewer, options)())
    assert found <= downstream(graph, target, options.layers - 1)
    assert target in found


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_weight_of_any_graph_changes_what_is_downstream(version, number):
    graph = graph_input(10, 30, 3, 0)
    options = SMALL.model_copy(update={"version": version, "edge_weights": True, "layers": 1})
    graphs = list(graph.graphs)
    name, edges_2E, weight_E = graphs[number]
    target = int(np.bincount(edges_2E[1]).argmax())
    # not the graph's largest weight, which scales all the others
    candidates = np.flatnonzero((edges_2E[1] == target) & (edges_2E[0] != target))
    edge = candidates[np.abs(weight_E[candidates]).argmin()]
    changed_E = weight_E.copy()
    changed_E[edge] *= -0.5
    graphs[number] = KnowledgeGraph(name, edges_2E, changed_E)
    other = graph._replace(graphs=tuple(graphs))
    assert moved(encoder(graph, options)(), encoder(other, options)()) == {target}
    unweighted = options.model_copy(update={"edge_weights": False})
    assert torch.equal(encoder(graph, unweighted)(), encoder(other, unweighted)())


def permuted(graph: GraphInput, order: np.ndarray) -> GraphInput:
    """Node p gets number ``order[p]``."""
    graphs = []
    for name, edges_2E, weight_E in graph.graphs:
        moved_2E = order[edges_2E].astype(np.int32)
        sort = np.lexsort(moved_2E)
        graphs.append(KnowledgeGraph(name, moved_2E[:, sort], weight_E[sort]))
    back = np.argsort(order)
    return graph._replace(
        graphs=tuple(graphs), random_walk_PN=graph.random_walk_PN[back], laplacian_PN=graph.laplacian_PN[back]
    )


@settings(max_examples=40)
@given(graph=graph_inputs, options=gats, seed=st.integers(0, 10**6))
def test_renaming_the_nodes_renames_the_embeddings(graph, options, seed):
    order = np.random.default_rng(seed).permutation(graph.num_nodes)
    one, other = encoder(graph, options), encoder(permuted(graph, order), options)
    with torch.no_grad():
        other.features.table_PN[order] = one.features.table_PN
    torch.testing.assert_close(other()[order], one(), rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), options=gats, order=st.permutations(range(3)))
def test_renaming_the_graphs_with_their_parameters_changes_nothing(seed, options, order):
    graph = graph_input(8, 20, 3, seed)
    one = encoder(graph, options)
    other = encoder(graph._replace(graphs=tuple(graph.graphs[number] for number in order)), options)
    with torch.no_grad():
        for mine, theirs in zip(one.stack.layers, other.stack.layers, strict=True):
            if mine.project_edges is not None:
                theirs.project_edges.weight.copy_(mine.project_edges.weight[:, list(order)])
    torch.testing.assert_close(other(), one(), rtol=1e-9, atol=1e-9)


def test_dropout_follows_the_key_to_the_last_site():
    graph, key = graph_input(9, 25, 1, 0), DropoutKey(0, 1, 0)
    ours = encoder(graph, SMALL.model_copy(update={"dropout": 0.3}))
    assert torch.equal(ours(key), ours(key._replace(first_row=32)))
    assert not torch.allclose(ours(key), ours(key._replace(step=2)))
    ones_PN = torch.ones(9, ours.stack.width, dtype=torch.float64)
    masks = [graph_dropout(ones_PN[:, :width], 0.3, site, key) for site, width in enumerate((12, 20, 28))]
    x_PN = plain_stack(
        ours.stack, ours.features(), lambda number, layer, x_PN: by_formula(layer, x_PN), masks
    )
    z_PD = functional.leaky_relu(ours.last(x_PN), 0.01)
    expected_PD = z_PD * graph_dropout(torch.ones_like(z_PD), 0.3, 3, key)
    assert_same(ours(key), expected_PD, learning(ours))


@pytest.mark.parametrize("version", [1, 2])
def test_batch_norm_trains_with_the_nodes_and_evaluates_with_running_statistics(version):
    options = SMALL.model_copy(update={"norm": "batch", "version": version, "skip": "sum_learned"})
    ours = encoder(graph_input(30, 80, 2, 0), options).train()
    trained_PD = ours()
    assert_same(trained_PD, plainly(ours, by_pyg), learning(ours))
    assert not torch.allclose(ours.eval()(), trained_PD)
    ours.train()
    for _ in range(300):
        ours()
    for norm in ours.stack.norms:
        norm.running_variance *= 29 / 30  # the running one is the unbiased estimate from 30 nodes
    torch.testing.assert_close(ours.eval()(), trained_PD, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("version", [1, 2])
def test_autocast_stays_near(version):
    torch.manual_seed(0)
    options = config.Gat(version=version, node_features=16, hidden=16, edge_weights=True, norm="batch")
    ours = GatEncoder(options, graph_input(60, 400, 2, 0), latent=16)
    exact_PD = ours()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low_PD = ours()
        low_PD.square().sum().backward()
    assert (low_PD.float() - exact_PD).abs().max() < 5e-2 * exact_PD.abs().max()
    for parameter in learning(ours):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_the_graph_is_not_in_the_checkpointed_state():
    ours = encoder(graph_input(9, 25, 2, 0), SMALL.model_copy(update={"edge_weights": True}))
    assert set(ours.state_dict()) == {name for name, _ in ours.named_parameters()}
