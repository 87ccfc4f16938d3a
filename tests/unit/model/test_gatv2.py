import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch_geometric.nn import GATv2Conv

from graph_store.graph import KnowledgeGraph
from txpert_dist.model.attention.edges import EdgeTable, edge_table
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.gat import AttentionLayer


def random_edges(num_nodes: int, num_edges: int, seed: int, *, self_loops: bool = True) -> EdgeTable:
    """Random edges, some nodes isolated, some a hub, some self loops among them."""
    random = np.random.default_rng(seed)
    edges_2E = random.integers(0, num_nodes, (2, num_edges)).astype(np.int32)
    edges_2E[1, : num_edges // 3] = 0
    graph = KnowledgeGraph("g", edges_2E, np.ones(num_edges, np.float32))
    return edge_table([graph], num_nodes, self_loops=self_loops, reverse_edges=False)


def dense_gatv2(source_PHN: Tensor, target_PHN: Tensor, attention_HN: Tensor, edges: EdgeTable) -> Tensor:
    """The definition over all pairs of nodes."""
    num_nodes = len(source_PHN)
    pairs_PPHN = target_PHN.unsqueeze(1) + source_PHN.unsqueeze(0)
    score_PPH = (functional.leaky_relu(pairs_PPHN, 0.2) * attention_HN).sum(-1)
    absent_PP = torch.ones(num_nodes, num_nodes, dtype=torch.bool)
    absent_PP[edges.target, edges.source] = False
    score_PPH = score_PPH.masked_fill(absent_PP.unsqueeze(-1), -torch.inf)
    weight_PPH = torch.softmax(score_PPH, 1).nan_to_num(0.0)
    return torch.einsum("ijh,jhn->ihn", weight_PPH, source_PHN)


def inputs(num_nodes: int, heads: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source_PHN, target_PHN, attention_HN = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((num_nodes, heads, width), (num_nodes, heads, width), (heads, width))
    )
    return source_PHN, target_PHN, attention_HN


def assert_same(one: Tensor, other: Tensor, inputs_one: list[Tensor], inputs_other: list[Tensor]) -> None:
    """Equal values, and equal gradients of one random projection."""
    d = torch.randn(one.shape, dtype=one.dtype, generator=torch.Generator().manual_seed(9))
    gradients = zip(
        torch.autograd.grad(one, inputs_one, d), torch.autograd.grad(other, inputs_other, d), strict=True
    )
    for mine, theirs in ((one, other), *gradients):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


graphs = {"num_nodes": st.integers(1, 12), "num_edges": st.integers(0, 40), "seed": st.integers(0, 10**6)}


@settings(max_examples=40, deadline=None)
@given(**graphs, heads=st.integers(1, 3), self_loops=st.booleans())
def test_equals_pyg(num_nodes, num_edges, seed, heads, self_loops):
    edges = random_edges(num_nodes, num_edges, seed, self_loops=self_loops)
    torch.manual_seed(seed)
    layer = AttentionLayer(5, 4, heads).double()
    torch.nn.init.normal_(layer.project.bias)
    torch.nn.init.normal_(layer.bias)
    oracle = GATv2Conv(5, 4, heads=heads, add_self_loops=self_loops).double()
    ours = [layer.project.weight, layer.project.bias, layer.attention_HN, layer.bias]
    theirs = [
        *(oracle.lin_l.weight, oracle.lin_r.weight),
        *(oracle.lin_l.bias, oracle.lin_r.bias),
        *(oracle.att, oracle.bias),
    ]
    halves = [*layer.project.weight.chunk(2), *layer.project.bias.chunk(2)]
    with torch.no_grad():
        for theirs_one, ours_one in zip(theirs, [*halves, layer.attention_HN[None], layer.bias], strict=True):
            theirs_one.copy_(ours_one)
    x_PN = torch.randn(num_nodes, 5, dtype=torch.float64, requires_grad=True)
    mine_PN = layer(x_PN, edges)
    oracle_PN = oracle(x_PN, torch.stack([edges.source, edges.target]))
    torch.testing.assert_close(mine_PN, oracle_PN, rtol=1e-9, atol=1e-9)
    d_PN = torch.randn(mine_PN.shape, dtype=torch.float64)
    dx, dw, db, da, dbias = torch.autograd.grad(mine_PN, [x_PN, *ours], d_PN)
    ox, owl, owr, obl, obr, oa, obias = torch.autograd.grad(oracle_PN, [x_PN, *theirs], d_PN)
    for mine, other in (
        (dx, ox),
        (dw, torch.cat([owl, owr])),
        (db, torch.cat([obl, obr])),
        (da, oa[0]),
        (dbias, obias),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(**graphs, self_loops=st.booleans())
def test_equals_the_definition_over_all_pairs(num_nodes, num_edges, seed, self_loops):
    edges = random_edges(num_nodes, num_edges, seed, self_loops=self_loops)
    tensors = inputs(num_nodes, 2, 3, seed)
    ours, dense = gatv2_attention(*tensors, edges), dense_gatv2(*tensors, edges)
    assert_same(ours, dense, list(tensors), list(tensors))


def test_many_blocks_and_a_hub_larger_than_a_block():
    # 2 x 4096 numbers an edge: 32 edges a block, and node 0 has 33 sources or more
    edges = random_edges(60, 200, 1)
    assert edges.host_indptr[1] > 32
    tensors = inputs(60, 2, 4096)
    tensors[2].data *= 0.02
    assert_same(gatv2_attention(*tensors, edges), dense_gatv2(*tensors, edges), list(tensors), list(tensors))


def test_gradients_agree_with_finite_differences():
    edges = random_edges(5, 12, 0)
    assert torch.autograd.gradcheck(lambda *tensors: gatv2_attention(*tensors, edges), inputs(5, 2, 3))


def test_views_of_one_projection_are_taken_as_they_are():
    edges = random_edges(7, 20, 0)
    both_PHN = torch.randn(7, 4, 3, dtype=torch.float64)
    source_PHN, target_PHN = both_PHN.chunk(2, 1)
    attention_HN = torch.randn(2, 3, dtype=torch.float64)
    expected_PHN = dense_gatv2(source_PHN, target_PHN, attention_HN, edges)
    torch.testing.assert_close(gatv2_attention(source_PHN, target_PHN, attention_HN, edges), expected_PHN)


def test_large_scores_do_not_overflow():
    edges = random_edges(7, 20, 0)
    source_PHN, target_PHN, attention_HN = (tensor.detach() * 100 for tensor in inputs(7, 2, 3))
    out_PHN = gatv2_attention(source_PHN.float(), target_PHN.float(), attention_HN.float(), edges)
    expected_PHN = dense_gatv2(source_PHN, target_PHN, attention_HN, edges)
    torch.testing.assert_close(out_PHN.double(), expected_PHN, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near(dtype, tolerance):
    edges = random_edges(40, 300, 0)
    tensors = inputs(40, 2, 16)
    exact_PHN = dense_gatv2(*tensors, edges)
    out_PHN = gatv2_attention(*(tensor.to(dtype) for tensor in tensors), edges)
    assert out_PHN.dtype == dtype
    assert (out_PHN.double() - exact_PHN).abs().max() < tolerance * exact_PHN.abs().max()


def test_autocast_lowers_the_projection_and_nothing_of_the_attention():
    edges = random_edges(40, 300, 0)
    torch.manual_seed(0)
    layer, x_PN = AttentionLayer(8, 16, 2), torch.randn(40, 8)
    exact_PN = layer(x_PN, edges)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low_PN = layer(x_PN, edges)
        low_PN.sum().backward()
    assert (low_PN.float() - exact_PN).abs().max() < 3e-2 * exact_PN.abs().max()
    assert layer.attention_HN.grad is not None
    assert layer.attention_HN.grad.dtype == torch.float32


def test_repeats_bit_for_bit():
    edges = random_edges(300, 3000, 0)
    source_PHN, target_PHN, attention_HN = (
        tensor.detach().float().requires_grad_() for tensor in inputs(300, 2, 128)
    )
    tensors = (source_PHN, target_PHN, attention_HN)
    runs = []
    for _ in range(3):
        out_PHN = gatv2_attention(*tensors, edges)
        runs.append([out_PHN, *torch.autograd.grad(out_PHN.square().sum(), tensors)])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))
