import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.utils import softmax

from tests.unit.model.attention_oracles import assert_same, dense, random_edge_list
from txpert_dist.model.attention.aggregate import (
    edge_ends,
    edge_softmax,
    edge_sum,
    segment_softmax_,
    sum_rows,
    weighted_sum,
)
from txpert_dist.model.attention.edges import Edges, EdgeTable

shapes = {
    "num_nodes": st.integers(1, 12),
    "num_edges": st.integers(0, 40),
    "heads": st.integers(1, 3),
    "seed": st.integers(0, 10**6),
}


def table(num_nodes: int, num_edges: int, seed: int) -> EdgeTable:
    edges = random_edge_list(num_nodes, num_edges, seed, self_loops=False)
    return Edges(edges.edges_2E, num_nodes).table


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@settings(max_examples=40)
@given(**shapes)
def test_weighted_sum_is_a_product_with_the_adjacency_matrix(backend, num_nodes, num_edges, heads, seed):
    edges = table(num_nodes, num_edges, seed)
    weight_EH, x_PHN = numbers(len(edges.source), heads, seed=1), numbers(num_nodes, heads, 5, seed=2)
    expected_PHN = torch.einsum("ijh,jhn->ihn", dense(edges, weight_EH), x_PHN)
    assert_same(weighted_sum(weight_EH, x_PHN, edges, backend=backend), expected_PHN, [weight_EH, x_PHN])


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@settings(max_examples=40)
@given(**shapes)
def test_edge_softmax_equals_pygs(backend, num_nodes, num_edges, heads, seed):
    edges = table(num_nodes, num_edges, seed)
    score_EH = numbers(len(edges.source), heads)
    expected_EH = softmax(score_EH, edges.target, num_nodes=num_nodes)
    assert_same(edge_softmax(score_EH, edges, backend=backend), expected_EH, [score_EH])


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@settings(max_examples=40)
@given(**shapes)
def test_sums_over_ends_and_edges_have_their_definitions(backend, num_nodes, num_edges, heads, seed):
    edges = table(num_nodes, num_edges, seed)
    source_PH, target_PH = numbers(num_nodes, heads, seed=1), numbers(num_nodes, heads, seed=2)
    ends_EH = edge_ends(source_PH, target_PH, edges, backend=backend)
    assert_same(ends_EH, source_PH[edges.source] + target_PH[edges.target], [source_PH, target_PH])
    value_EH = numbers(len(edges.source), heads, seed=3)
    expected_PH = dense(edges, value_EH).sum(1)
    assert_same(edge_sum(value_EH, edges, backend=backend), expected_PH, [value_EH])


def test_edge_softmax_leaves_its_input_alone_and_takes_any_scores():
    edges = table(6, 30, 0)
    score_EH = (numbers(len(edges.source), 2) * 1e3).detach().requires_grad_()
    before_EH = score_EH.detach().clone()
    weight_EH = edge_softmax(score_EH, edges)
    assert torch.equal(score_EH, before_EH)
    assert torch.isfinite(weight_EH).all()
    (gradient_EH,) = torch.autograd.grad(weight_EH.square().sum(), score_EH)
    assert torch.isfinite(gradient_EH).all()


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_gradients_agree_with_finite_differences(backend):
    edges = table(5, 14, 0)
    scores, x_PHN = numbers(len(edges.source), 2, seed=1), numbers(5, 2, 3, seed=2)
    assert torch.autograd.gradcheck(
        lambda *both: weighted_sum(*both, edges, backend=backend), (scores, x_PHN)
    )
    assert torch.autograd.gradcheck(lambda score_EH: edge_softmax(score_EH, edges, backend=backend), scores)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_many_blocks(backend):
    # 4096 numbers an edge: 64 edges a block, and node 0 has more sources than that
    edges = table(90, 500, 1)
    assert edges.host_indptr[1] > 64
    weight_EH, x_PHN = numbers(len(edges.source), 1, seed=1), numbers(90, 1, 4096, seed=2)
    expected_PHN = torch.einsum("ijh,jhn->ihn", dense(edges, weight_EH), x_PHN)
    assert_same(weighted_sum(weight_EH, x_PHN, edges, backend=backend), expected_PHN, [weight_EH, x_PHN])


def test_only_the_gradients_asked_for():
    edges = table(7, 20, 0)
    weight_EH, x_PHN = numbers(len(edges.source), 2, seed=1), numbers(7, 2, 3, seed=2)
    both = torch.autograd.grad(weighted_sum(weight_EH, x_PHN, edges).sum(), [weight_EH, x_PHN])
    (alone_EH,) = torch.autograd.grad(weighted_sum(weight_EH, x_PHN.detach(), edges).sum(), weight_EH)
    (alone_PHN,) = torch.autograd.grad(weighted_sum(weight_EH.detach(), x_PHN, edges).sum(), x_PHN)
    assert torch.equal(alone_EH, both[0])
    assert torch.equal(alone_PHN, both[1])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_lower_precision_stays_near(dtype, tolerance, autocast):
    edges = table(40, 600, 0)
    score_EH, x_PHN = numbers(len(edges.source), 2, seed=1), numbers(40, 2, 16, seed=2)
    score_EH = score_EH.detach().to(dtype).requires_grad_()
    x_PHN = x_PHN.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        weight_EH = edge_softmax(score_EH, edges)
        out_PHN = weighted_sum(weight_EH, x_PHN, edges)
        gradients = torch.autograd.grad(out_PHN, [score_EH, x_PHN], torch.ones_like(out_PHN))
    assert (weight_EH.dtype, out_PHN.dtype) == (torch.float32, dtype)
    exact_PHN = weighted_sum(edge_softmax(score_EH.double(), edges), x_PHN.double(), edges)
    exact = torch.autograd.grad(exact_PHN, [score_EH, x_PHN], torch.ones_like(exact_PHN))
    for ours, theirs in zip([out_PHN, *gradients], [exact_PHN, *exact], strict=True):
        assert (ours.double() - theirs.double()).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_repeats_bit_for_bit(backend):
    edges = table(300, 3000, 0)
    score_EH = numbers(len(edges.source), 2, seed=1).detach().float().requires_grad_()
    x_PHN = numbers(300, 2, 64, seed=2).detach().float().requires_grad_()
    runs = []
    for _ in range(3):
        weight_EH = edge_softmax(score_EH, edges, backend=backend)
        out_PHN = weighted_sum(weight_EH, x_PHN, edges, backend=backend)
        runs.append([out_PHN, *torch.autograd.grad(out_PHN.square().sum(), [score_EH, x_PHN])])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


def test_sum_rows_and_segment_softmax_take_intervals_without_rows():
    indptr = torch.tensor([0, 0, 2, 2, 3])
    weight_EH = torch.tensor([[1.0], [2.0], [3.0]])
    x_PHN = torch.tensor([[[1.0, 10.0]], [[5.0, 50.0]]])
    sums_RHN = sum_rows(weight_EH, x_PHN, torch.tensor([1, 0, 1]), indptr)
    np.testing.assert_array_equal(sums_RHN[:, 0], [[0, 0], [7, 70], [0, 0], [15, 150]])
    softmax_EH = segment_softmax_(weight_EH, indptr, torch.tensor([1, 1, 3]))
    torch.testing.assert_close(softmax_EH[:, 0], torch.tensor([0.26894142, 0.73105858, 1.0]))
