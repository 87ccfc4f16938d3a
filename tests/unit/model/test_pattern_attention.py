import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from txpert_dist.model.attention.backend import Backend
from txpert_dist.model.attention.pattern import EdgeTerms, pattern_attention
from txpert_dist.model.attention.pattern_edges import PatternEdges, PatternTable


def random_edges(
    num_nodes: int, num_edges: int, num_patterns: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Edges of several patterns: each once a pattern, parallel ones among them, a third into node 0."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, [[num_nodes], [num_nodes], [num_patterns]], (3, num_edges))
    rows[1, : num_edges // 3] = 0
    rows = np.unique(rows, axis=1)
    return rows[:2], rows[2]


def table(edges_2E: np.ndarray, pattern_E: np.ndarray, num_nodes: int) -> PatternTable:
    return PatternEdges(edges_2E, pattern_E, num_nodes).table


def dense(tensors: list[Tensor], edges_2E: np.ndarray, pattern_E: np.ndarray) -> Tensor:
    """The definition over all pairs of nodes, for every pattern."""
    query_PHN, key_PHN, value_PHN, feature_RHN, bias_RH, *gate = tensors
    gate_RHN = gate[0] if gate else torch.ones_like(feature_RHN)
    num_nodes = len(query_PHN)
    there_RPP = torch.zeros(len(bias_RH), num_nodes, num_nodes, dtype=query_PHN.dtype)
    there_RPP[pattern_E, edges_2E[1], edges_2E[0]] = 1
    score_RPPH = torch.einsum("ihn,jhn,rhn->rijh", query_PHN, key_PHN, feature_RHN) + bias_RH[:, None, None]
    weight_RPPH = torch.exp(torch.clamp(score_RPPH, -5, 5)) * there_RPP[..., None]
    sum_PHN = torch.einsum("rijh,jhn,rhn->ihn", weight_RPPH, value_PHN, gate_RHN)
    return sum_PHN / (weight_RPPH.sum((0, 2)) + 1e-6)[..., None]


def ours(tensors: list[Tensor], edges: PatternTable, backend: Backend = "auto") -> Tensor:
    query_PHN, key_PHN, value_PHN, feature_RHN, bias_RH, *gate = tensors
    terms = EdgeTerms(feature_RHN, bias_RH, gate[0] if gate else None)
    return pattern_attention(query_PHN, key_PHN, value_PHN, terms, edges, backend=backend)


def inputs(
    num_nodes: int,
    num_patterns: int,
    shape_HN: tuple[int, int],
    *,
    gated: bool,
    scale: float = 1.0,
    seed: int = 0,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_nodes, *shape_HN)] * 3 + [(num_patterns, *shape_HN), (num_patterns, shape_HN[0])]
    shapes += [(num_patterns, *shape_HN)] if gated else []
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    tensors[3] *= scale
    return [tensor.requires_grad_() for tensor in tensors]


def assert_same(one: Tensor, other: Tensor, tensors: list[Tensor]) -> None:
    """Equal values, and equal gradients of one random projection."""
    d_PHN = torch.randn(one.shape, dtype=one.dtype, generator=torch.Generator().manual_seed(9))
    gradients = zip(
        torch.autograd.grad(one, tensors, d_PHN), torch.autograd.grad(other, tensors, d_PHN), strict=True
    )
    for mine, theirs in ((one, other), *gradients):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@settings(max_examples=80)
@given(
    num_nodes=st.integers(1, 10),
    num_edges=st.integers(0, 40),
    num_patterns=st.integers(1, 6),
    heads=st.integers(1, 3),
    gated=st.booleans(),
    scale=st.sampled_from([0.3, 5.0]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_definition_over_all_pairs(
    backend, num_nodes, num_edges, num_patterns, heads, gated, scale, seed
):
    edges = random_edges(num_nodes, num_edges, num_patterns, seed)
    tensors = inputs(num_nodes, num_patterns, (heads, 3), gated=gated, scale=scale, seed=seed)
    assert_same(ours(tensors, table(*edges, num_nodes), backend), dense(tensors, *edges), tensors)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("gated", [False, True])
def test_gradients_agree_with_finite_differences(backend, gated):
    edges = table(*random_edges(5, 20, 3, 0), 5)
    tensors = inputs(5, 3, (2, 3), gated=gated, scale=0.5)
    assert torch.autograd.gradcheck(lambda *given: ours(list(given), edges, backend), tensors)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("gated", [False, True])
def test_many_blocks_and_groups_larger_than_a_block(backend, gated):
    # 16,384 numbers a node: blocks of 16 edges or groups, and node 0 has more sources of either pattern
    edges = random_edges(30, 250, 2, 1)
    for pattern in range(2):
        assert np.count_nonzero((edges[0][1] == 0) & (edges[1] == pattern)) > 16
    tensors = inputs(30, 2, (1, 16_384), gated=gated, scale=0.02)
    assert_same(ours(tensors, table(*edges, 30), backend), dense(tensors, *edges), tensors)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize(("bias", "weight"), [(100.0, np.exp(5.0)), (-100.0, np.exp(-5.0))])
def test_scores_are_clipped_and_pass_no_gradient_there(backend, bias, weight):
    # node 1's two sources: one clipped, one with score 0
    edges = table(np.array([[0, 1], [1, 1]]), np.array([0, 1]), 2)
    tensors = [tensor.detach() for tensor in inputs(2, 2, (1, 3), gated=False)]
    tensors[3], tensors[4] = torch.zeros_like(tensors[3]), torch.tensor([[bias], [0.0]], dtype=torch.float64)
    for tensor in tensors:
        tensor.requires_grad_()
    out_PHN = ours(tensors, edges, backend)
    mean_HN = (weight * tensors[2][0] + tensors[2][1]) / (weight + 1 + 1e-6)
    torch.testing.assert_close(out_PHN[1], mean_HN, rtol=1e-12, atol=1e-12)
    dfeature_RHN, dbias_RH = torch.autograd.grad(out_PHN.sum(), tensors[3:])
    assert not dfeature_RHN[0].any()
    assert not dbias_RH[0].any()
    assert dfeature_RHN[1].all()
    assert dbias_RH[1].all()


def test_a_node_without_edges_gets_zero_and_takes_no_part():
    edges = table(np.array([[0], [1]]), np.array([0]), 3)
    tensors = inputs(3, 1, (2, 3), gated=False)
    out_PHN = ours(tensors, edges)
    assert not out_PHN[0].any()
    assert not out_PHN[2].any()
    assert out_PHN[1].all()
    for gradient_PHN in torch.autograd.grad(out_PHN.sum(), tensors[:3]):
        assert not gradient_PHN[2].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_lower_precision_stays_near(dtype, tolerance, scale):
    edges = random_edges(40, 300, 4, 0)
    tensors = inputs(40, 4, (2, 16), gated=True, scale=scale / 4)
    exact_PHN = dense(tensors, *edges)
    out_PHN = ours([tensor.to(dtype) for tensor in tensors], table(*edges, 40))
    assert out_PHN.dtype == dtype
    assert (out_PHN.double() - exact_PHN).abs().max() < tolerance * exact_PHN.abs().max()


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_keeps_nothing_as_large_as_all_edges_vectors(backend):
    edges = table(*random_edges(40, 1000, 4, 0), 40)
    tensors = inputs(40, 4, (2, 16), gated=True)
    kept = []

    def remember(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        ours(tensors, edges, backend)
    assert kept
    assert max(kept) <= max(len(edges.order) * 2, 40 * 2 * 16)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_repeats_bit_for_bit(backend):
    edges = table(*random_edges(300, 5000, 5, 0), 300)
    tensors = [tensor.detach().float().requires_grad_() for tensor in inputs(300, 5, (2, 64), gated=True)]
    runs = []
    for _ in range(3):
        out_PHN = ours(tensors, edges, backend)
        runs.append([out_PHN, *torch.autograd.grad(out_PHN.square().sum(), tensors)])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


def test_the_order_of_the_edges_does_not_matter():
    edges_2E, pattern_E = random_edges(20, 100, 3, 0)
    order = np.random.default_rng(1).permutation(len(pattern_E))
    tensors = inputs(20, 3, (2, 4), gated=True)
    one_PHN = ours(tensors, table(edges_2E, pattern_E, 20))
    assert torch.equal(one_PHN, ours(tensors, table(edges_2E[:, order], pattern_E[order], 20)))


def test_edges_follow_the_module_and_stay_out_of_its_state():
    edges = PatternEdges(*random_edges(6, 15, 2, 0), 6)
    assert not edges.state_dict()
    assert {tensor.device.type for tensor in edges.to("meta").buffers()} == {"meta"}
