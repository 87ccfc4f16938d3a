import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GATv2Conv

from tests.unit.model.attention_oracles import (
    assert_same,
    by_formula,
    by_pyg,
    dense_gatv2,
    random_edge_list,
    random_layer,
)
from txpert_dist import config
from txpert_dist.model.attention.edges import Edges, EdgeTable
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.attention.layers import EdgeFeatures, Gatv2Layer

graphs = {
    "num_nodes": st.integers(1, 12),
    "num_edges": st.integers(0, 40),
    "seed": st.integers(0, 10**6),
    "self_loops": st.booleans(),
}


def random_table(num_nodes: int, num_edges: int, seed: int) -> EdgeTable:
    return Edges(random_edge_list(num_nodes, num_edges, seed).edges_2E, num_nodes).table


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def inputs(num_nodes: int, heads: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return (
        numbers(num_nodes, heads, width, seed=seed),
        numbers(num_nodes, heads, width, seed=seed + 1),
        numbers(heads, width, seed=seed + 2),
    )


@settings(max_examples=60)
@given(**graphs, heads=st.integers(1, 3), average=st.booleans(), weights=st.booleans())
def test_layer_equals_pygs_and_the_formula(num_nodes, num_edges, seed, self_loops, heads, average, weights):
    edges = random_edge_list(num_nodes, num_edges, seed, self_loops=self_loops)
    layer = random_layer(2, edges, num_nodes, heads=heads, average=average, weights=weights, seed=seed)
    x_PN = numbers(num_nodes, 5, seed=seed)
    leaves = [x_PN, *layer.parameters()]
    assert_same(layer(x_PN), by_pyg(layer, x_PN), leaves)
    assert_same(layer(x_PN), by_formula(layer, x_PN), leaves)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@settings(max_examples=40)
@given(**graphs, with_features=st.booleans(), with_multipliers=st.booleans())
def test_equals_the_definition_over_all_pairs(
    backend, num_nodes, num_edges, seed, self_loops, with_features, with_multipliers
):
    edge_list = random_edge_list(num_nodes, num_edges, seed, self_loops=self_loops)
    edges = Edges(edge_list.edges_2E, num_nodes).table
    tensors = inputs(num_nodes, 2, 3, seed)
    leaves = list(tensors)
    features, keep_EH = None, None
    if with_features:
        leaves.append(numbers(2, 2, 3, seed=seed + 3))
        features = torch.from_numpy(edge_list.weight_EK).double(), leaves[-1]
    if with_multipliers:
        torch.manual_seed(seed)
        keep_EH = torch.rand(len(edges.source), 2, dtype=torch.float64).round() * 1.7
    ours = gatv2_attention(*tensors, edges, features=features, keep_EH=keep_EH, backend=backend)
    expected = dense_gatv2(*tensors, edges, features=features, keep_EH=keep_EH)
    assert_same(ours, expected, leaves)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("options", [False, True])
def test_many_blocks_and_a_hub_larger_than_a_block(backend, options):
    # 2 x 4096 numbers an edge: 32 edges a block, and node 0 has 33 sources or more
    edge_list = random_edge_list(60, 200, 1)
    edges = Edges(edge_list.edges_2E, 60).table
    assert edges.host_indptr[1] > 32
    tensors, projection_KHN = inputs(60, 2, 4096), numbers(2, 2, 4096, seed=5)
    tensors[2].data *= 0.02
    features, keep_EH = None, None
    if options:
        features = torch.from_numpy(edge_list.weight_EK).double(), projection_KHN
        keep_EH = torch.rand(len(edges.source), 2, dtype=torch.float64)
    ours = gatv2_attention(*tensors, edges, features=features, keep_EH=keep_EH, backend=backend)
    expected = dense_gatv2(*tensors, edges, features=features, keep_EH=keep_EH)
    assert_same(ours, expected, [*tensors, projection_KHN] if options else list(tensors))


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_gradients_agree_with_finite_differences(backend):
    edge_list = random_edge_list(5, 12, 0)
    edges = Edges(edge_list.edges_2E, 5).table
    feature_EK = torch.from_numpy(edge_list.weight_EK).double()
    keep_EH = torch.rand(len(edges.source), 2, dtype=torch.float64)
    tensors, projection_KHN = inputs(5, 2, 3), numbers(2, 2, 3, seed=5)
    assert torch.autograd.gradcheck(
        lambda *tensors: gatv2_attention(*tensors, edges, backend=backend), tensors
    )
    assert torch.autograd.gradcheck(
        lambda x_PHN, y_PHN, a_HN, p_KHN: gatv2_attention(
            x_PHN, y_PHN, a_HN, edges, features=(feature_EK, p_KHN), keep_EH=keep_EH, backend=backend
        ),
        (*tensors, projection_KHN),
    )


def test_views_of_one_projection_are_taken_as_they_are():
    edges = random_table(7, 20, 0)
    both_PHN = torch.randn(7, 4, 3, dtype=torch.float64)
    source_PHN, target_PHN = both_PHN.chunk(2, 1)
    attention_HN = torch.randn(2, 3, dtype=torch.float64)
    expected_PHN = dense_gatv2(source_PHN, target_PHN, attention_HN, edges)
    torch.testing.assert_close(gatv2_attention(source_PHN, target_PHN, attention_HN, edges), expected_PHN)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_large_scores_do_not_overflow(backend):
    edges = random_table(7, 20, 0)
    source_PHN, target_PHN, attention_HN = (tensor.detach() * 100 for tensor in inputs(7, 2, 3))
    out_PHN = gatv2_attention(
        source_PHN.float(), target_PHN.float(), attention_HN.float(), edges, backend=backend
    )
    expected_PHN = dense_gatv2(source_PHN, target_PHN, attention_HN, edges)
    torch.testing.assert_close(out_PHN.double(), expected_PHN, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near(dtype, tolerance):
    edges = random_table(40, 300, 0)
    tensors = inputs(40, 2, 16)
    exact_PHN = dense_gatv2(*tensors, edges)
    out_PHN = gatv2_attention(*(tensor.to(dtype) for tensor in tensors), edges)
    assert out_PHN.dtype == dtype
    assert (out_PHN.double() - exact_PHN).abs().max() < tolerance * exact_PHN.abs().max()


def test_autocast_lowers_the_projection_and_nothing_of_the_attention():
    edges = random_edge_list(40, 300, 0)
    layer, x_PN = random_layer(2, edges, 40, width=8, weights=True).float(), torch.randn(40, 8)
    exact_PN = layer(x_PN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low_PN = layer(x_PN)
        low_PN.sum().backward()
    assert (low_PN.float() - exact_PN).abs().max() < 3e-2 * exact_PN.abs().max()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_the_kernel_is_the_same_under_autocast():
    edge_list = random_edge_list(30, 200, 0)
    edges = Edges(edge_list.edges_2E, 30).table
    tensors = [tensor.detach().float().requires_grad_() for tensor in inputs(30, 2, 8)]
    projection_KHN = numbers(2, 2, 8, seed=3).detach().float().requires_grad_()
    features = torch.from_numpy(edge_list.weight_EK), projection_KHN
    runs = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out_PHN = gatv2_attention(*tensors, edges, features=features)
            runs.append([out_PHN, *torch.autograd.grad(out_PHN.sum(), [*tensors, projection_KHN])])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_repeats_bit_for_bit(backend):
    edges = random_table(300, 3000, 0)
    tensors = tuple(tensor.detach().float().requires_grad_() for tensor in inputs(300, 2, 128))
    runs = []
    for _ in range(3):
        out_PHN = gatv2_attention(*tensors, edges, backend=backend)
        runs.append([out_PHN, *torch.autograd.grad(out_PHN.square().sum(), tensors)])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


def test_initial_weights_are_pygs():
    torch.manual_seed(0)
    edges = random_edge_list(4, 9, 0, num_graphs=40)
    ours = Gatv2Layer(
        config.Gat(edge_weights=True), EdgeFeatures(edges, 4, weights=True), 128, sites=iter([])
    )
    oracle = GATv2Conv(128, 128, heads=2, edge_dim=40)
    assert ours.project_edges is not None
    for weight, reference in (
        *((half, oracle.lin_l.weight) for half in ours.project.weight.chunk(2)),
        (ours.attention_HN, oracle.att),
        (ours.project_edges.weight, oracle.lin_edge.weight),
    ):
        torch.testing.assert_close(weight.std(), reference.std(), rtol=0.15, atol=0)
        torch.testing.assert_close(weight.abs().max(), reference.abs().max(), rtol=0.05, atol=0)
    assert not ours.project.bias.any()
    assert not ours.bias.any()
    count = sum(parameter.numel() for parameter in oracle.parameters())
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
