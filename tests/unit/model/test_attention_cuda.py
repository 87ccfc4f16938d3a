"""Triton's kernels: on a GPU where there is one, else in Triton's interpreter; and compiled for both."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.nn import GATConv, GATv2Conv

from tests.unit.model.encoders.random_graphs import graph_input
from tests.unit.model.test_attention_cpu import (
    HEADS,
    KINDS,
    PATTERNS,
    Problem,
    edge_by_edge,
    hub_graph,
    numbers,
    relative_errors,
)
from txpert_dist import config
from txpert_dist.model.attention.aggregate import edge_ends, edge_softmax, edge_sum
from txpert_dist.model.attention.backend import Backend
from txpert_dist.model.attention.edges import Edges, EdgeTable
from txpert_dist.model.attention.gatv1 import gatv1_attention
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.attention.pattern import EdgeTerms, pattern_attention
from txpert_dist.model.attention.pattern_edges import PatternEdges, PatternTable
from txpert_dist.model.attention.virtual_rows import pieces_of, virtual_rows, with_slots
from txpert_dist.model.encoders.build import build_encoder

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
computes = pytest.mark.skipif(
    not (HAS_GPU or triton.knobs.runtime.interpret),
    reason="no GPU, and TRITON_INTERPRET=1 was not set before Triton was imported",
)
on_a_gpu = pytest.mark.skipif(not HAS_GPU, reason="no GPU")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:RuntimeWarning")
    for message in ("divide by zero", "invalid value", "All-NaN slice", "overflow")
]


def on_device(part: Any) -> Any:
    """Tensors of a table, or a tensor, on the device that is tested."""
    if isinstance(part, Tensor):
        return part.detach().to(DEVICE).requires_grad_(part.requires_grad)
    if isinstance(part, tuple) and hasattr(part, "_fields"):
        return type(part)(*map(on_device, part))
    return part


def placed(problem: Problem) -> Problem:
    """The problem's tensors where they are to be computed with."""
    for name, value in vars(problem).items():
        moved = list(map(on_device, value)) if isinstance(value, list) else on_device(value)
        setattr(problem, name, moved)
    return problem


def cut(table: EdgeTable | PatternTable, most: int) -> EdgeTable | PatternTable:
    """The table with virtual rows of ``most`` edges, or pieces of a pattern."""
    if isinstance(table, EdgeTable):
        rows = virtual_rows(table.host_indptr, most), virtual_rows(table.source_indptr.numpy(), most)
        return table._replace(target_rows=rows[0], source_rows=rows[1])
    target_pieces, source_pieces = (
        pieces_of(groups.node_indptr.numpy(), groups.host_indptr, groups.pattern.numpy(), most)
        for groups in (table.by_target, table.by_source)
    )
    target_pieces, totals = with_slots(target_pieces, len(table.slot_indptr) - 1, most)
    return table._replace(target_pieces=target_pieces, source_pieces=source_pieces, pattern_rows=totals)


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Of one random projection."""
    d = numbers(*out.shape, seed=11, dtype=out.dtype).detach().to(out.device)
    return list(torch.autograd.grad(out, leaves, d))


def assert_agrees(problem: Problem, *restriction: NDArray[np.int64] | None) -> None:
    """Value and gradients are those of the reference."""
    both = [problem.run(backend, *restriction) for backend in ("triton", "reference")]
    leaves = problem.leaves
    for one, other in zip(*([out, *gradients(out, leaves)] for out in both), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@st.composite
def hub_multigraphs(draw: st.DrawFn) -> tuple[int, NDArray[np.int64]]:
    """Few nodes, one of them with more edges than a virtual row; parallel edges, nodes without edges."""
    num_nodes = draw(st.integers(1, 5))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=12))
    hub, degree = draw(node), draw(st.sampled_from([0, 1, 33, 70]))
    edges += [(number % num_nodes, hub) for number in range(degree)]
    edges += [(hub, number % num_nodes) for number in range(draw(st.sampled_from([0, 40])))]
    edges_2E = np.array(edges, np.int64).reshape(-1, 2).T
    return num_nodes, edges_2E[:, np.lexsort(edges_2E)]


def star(degree: int) -> NDArray[np.int64]:
    """Edges into node 0 and, of four nodes, one out of it and one loop."""
    source = np.sort(np.arange(degree) % 3)
    return np.stack([[*source, 0, 2], [*[0] * degree, 1, 2]])


# no shrinking: in the interpreter an example takes about a second
@computes
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=4, deadline=None, phases=[Phase.reuse, Phase.generate])
@given(graph=hub_multigraphs(), data=st.data())
def test_triton_and_reference_agree_on_any_degrees_and_for_some_targets(kind, graph, data):
    num_nodes, edges_2E = graph
    rows = data.draw(st.none() | st.sets(st.integers(0, num_nodes - 1)))
    kept = None if rows is None else np.array(sorted(rows), np.int64)
    assert_agrees(placed(Problem(kind, num_nodes, edges_2E)), kept)


@computes
@pytest.mark.parametrize(
    ("kind", "width"), [*((kind, 12) for kind in KINDS), ("gatv2 with everything", 1), ("pattern", 1)]
)
def test_rows_of_many_parts_agree(kind, width):
    problem = Problem(kind, 4, star(17), width=width)
    problem.table = cut(problem.table, 1)  # more parts than a merge takes at a time
    assert_agrees(placed(problem))


@computes
@pytest.mark.parametrize("kind", ["gatv2", "sum", "pattern"])
def test_wide_heads_agree(kind):
    assert_agrees(placed(Problem(kind, 3, hub_graph(4, 20), width=515)))


@computes
def test_sums_and_softmax_over_edges_agree():
    edges = on_device(cut(Edges(star(70), 4).table, 1))
    score_EH, value_EN = on_device(numbers(72, 3)), on_device(numbers(72, 130))
    source_SH, target_TH = on_device(numbers(4, 3, seed=1)), on_device(numbers(4, 3, seed=2))

    def run(backend: Backend) -> list[Tensor]:
        leaves = [score_EH, value_EN, source_SH, target_TH]
        out = [
            edge_softmax(score_EH, edges, backend=backend),
            edge_sum(value_EN, edges, backend=backend),
            edge_ends(source_SH, target_TH, edges, backend=backend),
        ]
        weighted = sum((one * on_device(numbers(*one.shape, seed=3).detach())).sum() for one in out)
        return [*out, *torch.autograd.grad(weighted, leaves)]

    for one, other in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@computes
@pytest.mark.parametrize("kind", ["gatv2 with everything", "sum", "pattern with gates"])
def test_half_precision_is_read_as_it_is_and_computed_with_in_single(kind):
    halves, singles = (Problem(kind, 4, hub_graph(4, 40), dtype=torch.float32) for _ in range(2))
    for half, single in zip(halves.leaves, singles.leaves, strict=True):
        half.data = half.data.bfloat16()
        single.data = half.data.float()
    halves, singles = placed(halves), placed(singles)
    out_half, out_single = halves.run("triton"), singles.run("triton")
    assert out_half.dtype == torch.bfloat16
    assert torch.equal(out_half, out_single.bfloat16())
    d = numbers(*out_half.shape, seed=11, dtype=torch.bfloat16).detach().to(DEVICE)
    found = torch.autograd.grad(out_half, halves.leaves, d)
    expected = torch.autograd.grad(out_single, singles.leaves, d.float())
    for half, single in zip(found, expected, strict=True):
        assert half.dtype == torch.bfloat16
        assert torch.equal(half, single.bfloat16())


@computes
@pytest.mark.parametrize("kind", ["gatv2", "pattern"])
def test_rows_are_read_where_they_lie(kind):
    edges_2E = hub_graph(4, 40)
    apart = placed(Problem(kind, 4, edges_2E))
    together = placed(Problem(kind, 4, edges_2E))
    nodes = [*apart.by_source, *apart.by_target]
    # side by side, as one product gives them
    parts = torch.cat([x.detach().flatten(1) for x in nodes], 1).chunk(len(nodes), 1)
    views = [part.unflatten(1, nodes[0].shape[1:]).requires_grad_() for part in parts]
    together.by_source, together.by_target = views[: len(apart.by_source)], views[len(apart.by_source) :]
    out_apart, out_together = apart.run("triton"), together.run("triton")
    assert torch.equal(out_apart, out_together)
    # a gradient that is the same number everywhere, in one place of memory
    both = (torch.autograd.grad(p.run("triton").sum(), p.leaves) for p in (apart, together))
    for one, other in zip(*both, strict=True):
        assert torch.equal(one, other)


@computes
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_do_not_fit_the_table_are_an_error(kind):
    problem = Problem(kind, 5, np.array([[0, 1, 3], [1, 2, 4]]))
    problem.by_source[0] = problem.by_source[0][:4]
    with pytest.raises(ValueError, match=r"of shape \(4, 2(, 5)?\) where \(5, 2(, 5)?\) fits"):
        placed(problem).run("triton")


@computes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_reaches_just_those_who_see_it(kind, bad):
    # 0 -> 1 -> 2 and 3 -> 4 alone
    problem = Problem(kind, 5, np.array([[0, 1, 3], [1, 2, 4]]))
    problem.keep_EH.fill_(1)
    for leaf in problem.by_source:
        leaf.data[0] = bad
    problem = placed(problem)
    out_PHN = problem.run("triton")
    assert not torch.isfinite(out_PHN[1]).any()
    assert torch.isfinite(out_PHN[[0, 2, 3, 4]]).all()
    for gradient_PHN in gradients(out_PHN, problem.by_source):
        assert torch.isfinite(gradient_PHN[[2, 3, 4]]).all()


@computes
@pytest.mark.parametrize("version", [1, 2])
def test_single_precision_errs_no_more_than_pygs(version):
    """At most five times PyG's error against double precision, and 1e-6."""
    num_nodes, width = 12, 32
    edges_2E = np.unique(hub_graph(num_nodes, 150), axis=1)
    edges_2E = edges_2E[:, np.lexsort(edges_2E)]
    edges, index = on_device(Edges(edges_2E, num_nodes).table), torch.from_numpy(edges_2E).to(DEVICE)
    torch.manual_seed(0)
    conv_class = GATConv if version == 1 else GATv2Conv
    single = conv_class(width, width, heads=HEADS, add_self_loops=False, bias=False).to(DEVICE)
    for parameter in single.parameters():
        torch.nn.init.normal_(parameter, std=width**-0.5)
    double = conv_class(width, width, heads=HEADS, add_self_loops=False, bias=False).to(DEVICE).double()
    double.load_state_dict(single.state_dict())
    x_PN, d_PM = torch.randn(num_nodes, width).to(DEVICE), torch.randn(num_nodes, HEADS * width).to(DEVICE)
    exact_out, single_out = double(x_PN.double(), index), single(x_PN, index)
    shape = (num_nodes, HEADS, width)
    if version == 1:
        a = [single.att_src[0], single.att_dst[0]]
        ours_out = gatv1_attention(single.lin(x_PN).view(shape), *a, edges, backend="triton")
    else:
        xy = single.lin_l(x_PN).view(shape), single.lin_r(x_PN).view(shape)
        ours_out = gatv2_attention(*xy, single.att[0], edges, backend="triton")
    exact = [exact_out, *torch.autograd.grad(exact_out, list(double.parameters()), d_PM.double())]
    pyg = [single_out, *torch.autograd.grad(single_out, list(single.parameters()), d_PM)]
    ours_out = ours_out.flatten(1)
    ours = [ours_out, *torch.autograd.grad(ours_out, list(single.parameters()), d_PM)]
    for mine, theirs in zip(relative_errors(ours, exact), relative_errors(pyg, exact), strict=True):
        assert mine <= 5 * theirs + 1e-6


@computes
def test_single_precision_of_patterns_errs_no_more_than_edge_by_edge():
    edges_2E = hub_graph(12, 130)
    pattern_E = np.random.default_rng(0).integers(0, PATTERNS, 130)
    problem = Problem("pattern with gates", 12, edges_2E, width=32)
    problem.shared[0].data *= 0.3
    found, indices = {}, (torch.from_numpy(edges_2E).to(DEVICE), torch.from_numpy(pattern_E).to(DEVICE))
    for dtype in (torch.float64, torch.float32):
        leaves = [on_device(leaf.detach().to(dtype).requires_grad_()) for leaf in problem.leaves]
        out_PHN = edge_by_edge(leaves, *indices)
        found[dtype] = [out_PHN, *gradients(out_PHN, leaves)]
    key, value, query, *terms = leaves
    table = on_device(PatternEdges(edges_2E, pattern_E, 12).table)
    out_PHN = pattern_attention(query, key, value, EdgeTerms(*terms), table, backend="triton")
    ours, exact = [out_PHN, *gradients(out_PHN, leaves)], found[torch.float64]
    both = zip(relative_errors(ours, exact), relative_errors(found[torch.float32], exact), strict=True)
    for mine, theirs in both:
        assert mine <= 5 * theirs + 1e-6


@on_a_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bit_for_bit_each_time_and_out_of_a_cuda_graph(kind):
    problem = placed(Problem(kind, 3000, hub_graph(3000, 60_000), width=64, dtype=torch.float32))
    d = numbers(3000, HEADS, 64, dtype=torch.float32).detach().to(DEVICE)

    def step() -> list[Tensor]:
        out_THN = problem.run("auto")
        return [out_THN, *torch.autograd.grad(out_THN, problem.leaves, d)]

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        first, second = step(), step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    graph.replay()
    torch.cuda.synchronize()
    for one, other, replayed in zip(first, second, held, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, replayed)


@on_a_gpu
def test_embeddings_in_tf32_and_bf16_are_as_near_as_their_mantissas():
    torch.manual_seed(0)
    options = config.Gat(layers=3, node_features=128, hidden=64)
    encoder = build_encoder(options, graph_input(3000, 60_000, num_graphs=1, seed=0), latent=64).to(DEVICE)
    exact = encoder().detach()
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        tf32 = encoder().detach()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    with torch.autocast("cuda", torch.bfloat16):
        bf16 = encoder().detach().float()
    errors = [((one - exact).norm() / exact.norm()).item() for one in (tf32, bf16)]
    assert 0 < errors[0] < 3e-3
    assert errors[0] < errors[1] < 3e-2


@pytest.mark.parametrize("capability", [80, 90])
def test_all_kernels_are_launched_compile_and_fit_the_registers(capability, tmp_path):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    command = [sys.executable, "-m", "tests.unit.model.compile_attention", str(capability), "64", "128"]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 15
    spilling = {name: all_of_it for name, all_of_it in found.items() if any(map(spills, all_of_it))}
    assert not spilling


def spills(used: dict[str, int]) -> bool:
    return used["stack"] > 0 or used["local"] > 0


def test_no_triton_is_imported_before_a_tensor_needs_it():
    program = (
        "import sys; from txpert_dist.model import txpert; from txpert_dist.model.encoders import build; "
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
