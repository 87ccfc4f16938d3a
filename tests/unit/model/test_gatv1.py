import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GATConv

from tests.unit.model.attention_oracles import (
    assert_same,
    by_formula,
    by_pyg,
    dense_gatv1,
    random_edge_list,
    random_layer,
)
from txpert_dist import config
from txpert_dist.model.attention.edges import Edges
from txpert_dist.model.attention.gatv1 import gatv1_attention
from txpert_dist.model.attention.layers import EdgeFeatures, Gatv1Layer

graphs = {
    "num_nodes": st.integers(1, 12),
    "num_edges": st.integers(0, 40),
    "seed": st.integers(0, 10**6),
    "self_loops": st.booleans(),
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


@settings(max_examples=60)
@given(**graphs, heads=st.integers(1, 3), average=st.booleans(), weights=st.booleans())
def test_layer_equals_pygs_and_the_formula(num_nodes, num_edges, seed, self_loops, heads, average, weights):
    edges = random_edge_list(num_nodes, num_edges, seed, self_loops=self_loops)
    layer = random_layer(1, edges, num_nodes, heads=heads, average=average, weights=weights, seed=seed)
    x_PN = numbers(num_nodes, 5, seed=seed)
    inputs = [x_PN, *layer.parameters()]
    assert_same(layer(x_PN), by_pyg(layer, x_PN), inputs)
    assert_same(layer(x_PN), by_formula(layer, x_PN), inputs)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@settings(max_examples=30)
@given(**graphs)
def test_multipliers_enter_as_in_the_formula(backend, num_nodes, num_edges, seed, self_loops):
    edge_list = random_edge_list(num_nodes, num_edges, seed, self_loops=self_loops)
    edges = Edges(edge_list.edges_2E, num_nodes).table
    keep_EH = torch.rand(len(edges.source), 2, dtype=torch.float64).round() * 1.7
    tensors = [numbers(num_nodes, 2, 3, seed=1), numbers(2, 3, seed=2), numbers(2, 3, seed=3)]
    score_KH = numbers(2, 2, seed=4)
    features = torch.from_numpy(edge_list.weight_EK).double(), score_KH
    one_PHN = gatv1_attention(*tensors, edges, features=features, keep_EH=keep_EH, backend=backend)
    other_PHN = dense_gatv1(*tensors, edges, features=features, keep_EH=keep_EH)
    assert_same(one_PHN, other_PHN, [*tensors, score_KH])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near(dtype, tolerance):
    edge_list = random_edge_list(40, 300, 0)
    edges = Edges(edge_list.edges_2E, 40).table
    x_PHN, source_HN, target_HN = numbers(40, 2, 16), numbers(2, 16, seed=1), numbers(2, 16, seed=2)
    exact_PHN = dense_gatv1(x_PHN, source_HN, target_HN, edges)
    out_PHN = gatv1_attention(x_PHN.to(dtype), source_HN.to(dtype), target_HN.to(dtype), edges)
    assert out_PHN.dtype == dtype
    assert (out_PHN.double() - exact_PHN).abs().max() < tolerance * exact_PHN.abs().max()


def test_autocast_lowers_the_projection_and_nothing_of_the_attention():
    edges = random_edge_list(40, 300, 0)
    layer, x_PN = random_layer(1, edges, 40, width=8, weights=True).float(), torch.randn(40, 8)
    exact_PN = layer(x_PN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low_PN = layer(x_PN)
        low_PN.sum().backward()
    assert (low_PN.float() - exact_PN).abs().max() < 3e-2 * exact_PN.abs().max()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_initial_weights_are_pygs():
    torch.manual_seed(0)
    edges = random_edge_list(4, 9, 0, num_graphs=40)
    options = config.Gat(version=1, edge_weights=True)
    ours = Gatv1Layer(options, EdgeFeatures(edges, 4, weights=True), 128, sites=iter([]))
    oracle = GATConv(128, 128, heads=2, edge_dim=40)
    assert ours.project_edges is not None
    for weight, reference in (
        (ours.project.weight, oracle.lin.weight),
        (ours.source_HN, oracle.att_src),
        (ours.target_HN, oracle.att_dst),
        (ours.edge_HN, oracle.att_edge),
        (ours.project_edges.weight, oracle.lin_edge.weight),
    ):
        torch.testing.assert_close(weight.std(), reference.std(), rtol=0.15, atol=0)
        torch.testing.assert_close(weight.abs().max(), reference.abs().max(), rtol=0.05, atol=0)
    assert not ours.bias.any()
    count = sum(parameter.numel() for parameter in oracle.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
