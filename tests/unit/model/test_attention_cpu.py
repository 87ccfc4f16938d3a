"""What the compiled kernels promise beyond the definitions, which they share with the reference."""

import multiprocessing
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.nn import GATConv, GATv2Conv

from txpert_dist.model.attention import cpu_kernels, pattern_edges
from txpert_dist.model.attention import edges as edge_tables
from txpert_dist.model.attention.aggregate import weighted_sum
from txpert_dist.model.attention.backend import Backend
from txpert_dist.model.attention.compiled import inlined
from txpert_dist.model.attention.edges import Edges, EdgeTable, sorted_by
from txpert_dist.model.attention.gatv1 import gatv1_attention
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.attention.pattern import CLIP, EPSILON, EdgeTerms, pattern_attention
from txpert_dist.model.attention.pattern_edges import PatternEdges, PatternTable
from txpert_dist.model.attention.threads import over_blocks, row_bounds

HEADS, WIDTH, PATTERNS = 2, 5, 3
WIDTHS = (WIDTH, 16, 64 + 16 + WIDTH)
"""The kernels cut a width into pieces of 128, 64, 32, 16 and 1."""
SHAPES = [*((HEADS, width) for width in WIDTHS), (HEADS, 128 + 64 + 32 + 16 + WIDTH), (1, 64)]
"""Heads and widths."""
KINDS = ("gatv2", "gatv2 with everything", "gatv1", "sum", "pattern", "pattern with gates")

Table = EdgeTable | PatternTable


@st.composite
def multigraphs(draw: st.DrawFn) -> tuple[int, NDArray[np.int64]]:
    """Nodes and edges sorted by target and source: hubs, parallel edges, nodes without edges, no edge."""
    num_nodes = draw(st.integers(1, 9))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=30))
    hub, degree = draw(node), draw(st.integers(0, 25))
    edges += [(number % num_nodes, hub) for number in range(degree)]
    edges += [(hub, number % num_nodes) for number in range(draw(st.integers(0, 25)))]
    edges_2E = np.array(edges, np.int64).reshape(-1, 2).T
    return num_nodes, edges_2E[:, np.lexsort(edges_2E)]


def hub_graph(num_nodes: int, num_edges: int, seed: int = 0) -> NDArray[np.int64]:
    """A third of the edges enter few nodes, a third leave few; the last tenth of the nodes has none."""
    random = np.random.default_rng(seed)
    edges_2E = random.integers(0, num_nodes * 9 // 10, (2, num_edges))
    edges_2E[1, : num_edges // 3] //= num_nodes // 4
    edges_2E[0, -num_edges // 3 :] //= num_nodes // 4
    return edges_2E[:, np.lexsort(edges_2E)]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


class Problem:
    """One kind of attention over one graph: its table, its tensors, and how to call it."""

    def __init__(
        self,
        kind: str,
        num_nodes: int,
        edges_2E: NDArray[np.int64],
        *,
        heads: int = HEADS,
        width: int = WIDTH,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.kind, num_edges = kind, edges_2E.shape[1]

        def draw(*shape: int, seed: int) -> Tensor:
            return numbers(*shape, seed=seed, dtype=dtype)

        self.table: Table
        self.by_source = [draw(num_nodes, heads, width, seed=1)]
        self.by_target, self.shared = [], []
        self.feature_EK = draw(num_edges, 2, seed=5).detach()
        self.keep_EH = (draw(num_edges, heads, seed=6) > 0).to(dtype) * 1.7
        self.weight_EH = draw(num_edges, heads, seed=7).detach()
        if kind.startswith("pattern"):
            pattern_E = np.random.default_rng(0).integers(0, PATTERNS, num_edges)
            self.table = PatternEdges(edges_2E, pattern_E, num_nodes).table
            self.by_source.append(draw(num_nodes, heads, width, seed=2))
            self.by_target = [draw(num_nodes, heads, width, seed=3)]
            self.shared = [draw(PATTERNS, heads, width, seed=4), draw(PATTERNS, heads, seed=8)]
            if kind.endswith("gates"):
                self.shared.append(draw(PATTERNS, heads, width, seed=9))
            return
        self.table = Edges(edges_2E, num_nodes).table
        if kind.startswith("gatv2"):
            self.by_target = [draw(num_nodes, heads, width, seed=3)]
            self.shared = [draw(heads, width, seed=4)]
        if kind == "gatv2 with everything":
            self.shared.append(draw(2, heads, width, seed=9))
        if kind == "gatv1":
            self.shared = [draw(heads, width, seed=4), draw(heads, width, seed=9)]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.by_source, *self.by_target, *self.shared]

    def run(
        self,
        backend: Backend = "compiled",
        rows: NDArray[np.int64] | None = None,
        sources: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """The output, of the targets ``rows`` alone where given, the sources numbered anew by ``sources``."""
        table, edge = self.table, slice(None)
        if rows is not None and isinstance(table, PatternTable):
            table = pattern_edges.restricted(table, rows, sources)
        elif rows is not None:
            table = edge_tables.restricted(table, rows, sources)
            edge = table.edge
        far = self.by_source if sources is None else [x[torch.from_numpy(sources)] for x in self.by_source]
        near = self.by_target if rows is None else [y[torch.from_numpy(rows)] for y in self.by_target]
        match self.kind:
            case "gatv2":
                return gatv2_attention(*far, *near, *self.shared, table, backend=backend)
            case "gatv2 with everything":
                features = self.feature_EK[edge], self.shared[1]
                return gatv2_attention(
                    *(*far, *near, self.shared[0], table),
                    features=features,
                    keep_EH=self.keep_EH[edge],
                    backend=backend,
                )
            case "gatv1":
                return gatv1_attention(*far, *self.shared, table, keep_EH=self.keep_EH[edge], backend=backend)
            case "sum":
                return weighted_sum(self.weight_EH[edge], *far, table, backend=backend)
        return pattern_attention(*near, *far, EdgeTerms(*self.shared), table, backend=backend)


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Of one random projection."""
    return list(torch.autograd.grad(out, leaves, numbers(*out.shape, seed=11, dtype=out.dtype).detach()))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(graph=multigraphs(), shape=st.sampled_from(SHAPES))
def test_compiled_and_reference_agree_on_any_degrees(kind, graph, shape):
    problem = Problem(kind, *graph, heads=shape[0], width=shape[1])
    ours, reference = problem.run("compiled"), problem.run("reference")
    both = zip(
        [ours, *gradients(ours, problem.leaves)],
        [reference, *gradients(reference, problem.leaves)],
        strict=True,
    )
    for one, other in both:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(graph=multigraphs(), shape=st.sampled_from(SHAPES), data=st.data())
def test_some_rows_equal_those_of_all(backend, kind, graph, shape, data):
    num_nodes, edges_2E = graph
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, num_nodes - 1)))), np.int64)
    needed = np.union1d(rows, edges_2E[0, np.isin(edges_2E[1], rows)])
    sources = data.draw(st.sampled_from([None, needed]))
    problem = Problem(kind, num_nodes, edges_2E, heads=shape[0], width=shape[1])
    some_RHN, all_THN = problem.run(backend, rows, sources), problem.run(backend)
    torch.testing.assert_close(some_RHN, all_THN[torch.from_numpy(rows)], rtol=1e-12, atol=1e-12)
    some, everything = (
        torch.autograd.grad(out.square().sum(), problem.leaves, allow_unused=True, materialize_grads=True)
        for out in (some_RHN, all_THN[torch.from_numpy(rows)])
    )
    for one, other in zip(some, everything, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_table_of_some_rows_is_cut_again_and_keeps_its_edges_numbers():
    edges_2E = hub_graph(40, 300)
    whole = Edges(edges_2E, 40).table
    once = edge_tables.restricted(whole, np.arange(0, 40, 2))
    twice = edge_tables.restricted(once, np.arange(0, 20, 3))
    assert twice.rows is not None
    assert twice.edge is not None
    assert torch.equal(twice.rows, torch.arange(0, 40, 6))
    assert torch.equal(whole.source[twice.edge], twice.source)
    assert torch.equal(whole.target[twice.edge], twice.rows[twice.target])


def test_leaving_out_a_source_that_is_needed_is_an_error():
    whole = Edges(np.array([[0, 1], [1, 2]]), 3).table
    with pytest.raises(ValueError, match="none of the sources"):
        edge_tables.restricted(whole, np.array([2]), np.array([0, 2]))


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(7, 9))
def test_sorting_by_counting_is_a_stable_sort(keys, num_keys):
    key_E = np.array(keys, np.int64)
    order, indptr = sorted_by(key_E, num_keys)
    np.testing.assert_array_equal(order, np.argsort(key_E, kind="stable"))
    np.testing.assert_array_equal(indptr, np.searchsorted(key_E[order], np.arange(num_keys + 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bit_for_bit_whatever_the_number_of_threads(kind, dtype, threads):
    edges_2E = hub_graph(3000, 60_000)
    runs = []
    for count in (1, 2, 3, 1):
        threads(count)
        problem = Problem(kind, 3000, edges_2E, width=WIDTHS[-1], dtype=dtype)
        out_THN = problem.run()
        runs.append([out_THN, *gradients(out_THN, problem.leaves)])
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_do_not_fit_the_table_are_an_error(kind):
    problem = Problem(kind, 5, np.array([[0, 1, 3], [1, 2, 4]]))
    problem.by_source[0] = problem.by_source[0][:4]
    with pytest.raises(ValueError, match=r"of shape \(4, 2(, 5)?\) where \(5, 2(, 5)?\) fits"):
        problem.run()


@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks_equal_the_reference(kind):
    edges_2E = hub_graph(2000, 50_000)
    assert len(row_bounds(np.searchsorted(edges_2E[1], np.arange(2001)))) > 4
    problem = Problem(kind, 2000, edges_2E, width=WIDTHS[-1])
    ours, reference = problem.run("compiled"), problem.run("reference")
    both = zip(
        [ours, *gradients(ours, problem.leaves)],
        [reference, *gradients(reference, problem.leaves)],
        strict=True,
    )
    for one, other in both:
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    problem = Problem("gatv2", 1000, hub_graph(1000, 30_000))
    expected_THN = problem.run().detach()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply(_in_fork, (problem.table, [leaf.detach().numpy() for leaf in problem.leaves]))
    np.testing.assert_array_equal(found, expected_THN.numpy())


def _in_fork(table: EdgeTable, leaves: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return gatv2_attention(*map(torch.from_numpy, leaves), table).numpy()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 40_000), max_size=60), st.integers(1, 4))
def test_blocks_cover_all_rows_in_order_and_are_about_equal(threads, degrees, number_of_threads):
    threads(number_of_threads)
    indptr = np.append(0, np.cumsum(np.array(degrees, np.int64)))
    bounds = row_bounds(indptr)
    spans = []
    over_blocks(bounds, lambda block, span: spans.append((block, span)))
    rows = [row for _, (first, last) in sorted(spans) for row in range(first, last)]
    assert rows == list(range(len(degrees)))
    assert all(bounds[block] == first for block, (first, _) in spans)
    for first, last in pairwise(bounds):
        # one row more than its share at most
        assert indptr[last] - indptr[first] <= max(indptr[-1] / 64, 8192) * 2 + max(degrees, default=0)


def test_an_error_in_a_thread_reaches_the_caller(threads):
    threads(2)

    def fail(number: int, span: tuple[int, int]) -> None:
        raise ValueError(f"block {number}")

    with pytest.raises(ValueError, match="block"):
        over_blocks(np.arange(5), fail)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_reaches_just_those_who_see_it(kind, bad):
    # 0 -> 1 -> 2 and 3 -> 4 alone
    problem = Problem(kind, 5, np.array([[0, 1, 3], [1, 2, 4]]))
    problem.keep_EH.fill_(1)
    for leaf in problem.by_source:
        leaf.data[0] = bad
    out_PHN = problem.run()
    assert not torch.isfinite(out_PHN[1]).any()
    assert torch.isfinite(out_PHN[[0, 2, 3, 4]]).all()
    for gradient_PHN in gradients(out_PHN, problem.by_source):
        assert torch.isfinite(gradient_PHN[[2, 3, 4]]).all()


@inlined  # and not kept: nothing tells it that the kernels' file has changed
def _powers(x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    for k in range(0, len(x), 16):
        cpu_kernels._store(cpu_kernels._exp(cpu_kernels._load(cpu_kernels._of_16(x), x, k)), out, k)


def test_powers_are_exact_to_two_units_in_the_last_place():
    """And 0 where they are less than the smallest normal number."""
    tiny, ends = np.finfo(np.float32).tiny, (-87.33655, -87.33654, 88.72283, 88.72284)
    special = np.array([0, -0.0, 1e-30, -1e-30, 1e30, -1e30, np.inf, -np.inf, np.nan, *ends])
    x = np.append(np.linspace(-112, 92, 2_000_000), special).astype(np.float32)
    x = np.append(x, np.zeros(-len(x) % 16, np.float32))
    found = np.empty_like(x)
    _powers(x, found)
    with np.errstate(over="ignore"):
        exact = np.exp(x.astype(np.float64))
        rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(rounded))
    normal = np.isfinite(rounded) & (rounded >= tiny)
    assert np.max(np.abs(found[normal] - exact[normal]) / np.spacing(rounded[normal])) <= 2
    assert not found[rounded < tiny].any()


def test_a_slope_above_one_is_an_error():
    problem = Problem("gatv2", 2, np.array([[0], [1]]))
    with pytest.raises(ValueError, match=r"slope of 1\.5 where at most 1"):
        gatv2_attention(*problem.leaves, problem.table, 1.5)


def test_no_kernels_for_another_device():
    tensors = [torch.zeros(3, 1, 2, device="meta"), torch.zeros(3, 1, 2, device="meta")]
    table = Edges(np.array([[0], [1]]), 3).table
    with pytest.raises(ValueError, match=r"no compiled graph attention for .*float32 on meta"):
        gatv2_attention(*tensors, torch.zeros(1, 2, device="meta"), table, backend="compiled")


def relative_errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [
        float((one.detach().double() - other.detach()).norm() / other.detach().norm().clamp(min=1e-12))
        for one, other in zip(found, exact, strict=True)
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [32, 64, 208])
@pytest.mark.parametrize("version", [1, 2])
def test_single_precision_errs_no_more_than_pygs(version, width, seed):
    """At most five times PyG's error against double precision, and 1e-6."""
    num_nodes = 400
    edges_2E = np.unique(hub_graph(num_nodes, 8000, seed), axis=1)
    edges_2E = edges_2E[:, np.lexsort(edges_2E)]
    edges, index = Edges(edges_2E, num_nodes).table, torch.from_numpy(edges_2E)
    torch.manual_seed(seed)
    conv_class = GATConv if version == 1 else GATv2Conv
    single = conv_class(width, width, heads=HEADS, add_self_loops=False, bias=False)
    for parameter in single.parameters():
        torch.nn.init.normal_(parameter, std=width**-0.5)
    double = conv_class(width, width, heads=HEADS, add_self_loops=False, bias=False).double()
    double.load_state_dict(single.state_dict())
    x_PN = torch.randn(num_nodes, width)
    exact_out, single_out = double(x_PN.double(), index), single(x_PN, index)
    shape = (num_nodes, HEADS, width)
    if version == 1:
        a = [single.att_src[0], single.att_dst[0]]
        ours_out = gatv1_attention(single.lin(x_PN).view(shape), *a, edges)
    else:
        ours_out = gatv2_attention(
            single.lin_l(x_PN).view(shape), single.lin_r(x_PN).view(shape), single.att[0], edges
        )
    d_PM = torch.randn(num_nodes, HEADS * width)
    exact = [exact_out, *torch.autograd.grad(exact_out, list(double.parameters()), d_PM.double())]
    pyg = [single_out, *torch.autograd.grad(single_out, list(single.parameters()), d_PM)]
    ours_out = ours_out.flatten(1)
    ours = [ours_out, *torch.autograd.grad(ours_out, list(single.parameters()), d_PM)]
    for mine, theirs in zip(relative_errors(ours, exact), relative_errors(pyg, exact), strict=True):
        assert mine <= 5 * theirs + 1e-6


def edge_by_edge(tensors: list[Tensor], edges_2E: Tensor, pattern_E: Tensor) -> Tensor:
    """Pattern attention as one writes it down with a tensor of all edges."""
    key, value, query, feature, bias, gate = tensors
    source, target = edges_2E
    product_EHN = query[target] * key[source] * feature[pattern_E]
    weight_EH = (product_EHN.sum(-1) + bias[pattern_E]).clamp(-CLIP, CLIP).exp()
    value_EHN = weight_EH.unsqueeze(-1) * value[source] * gate[pattern_E]
    sum_PHN = torch.zeros_like(query).index_add(0, target, value_EHN)
    total_PH = weight_EH.new_zeros(query.shape[:2]).index_add(0, target, weight_EH)
    return sum_PHN / (total_PH + EPSILON).unsqueeze(-1)


@pytest.mark.parametrize("seed", range(3))
def test_single_precision_of_patterns_errs_no_more_than_edge_by_edge(seed):
    edges_2E = hub_graph(400, 20_000, seed)
    pattern_E = np.random.default_rng(0).integers(0, PATTERNS, 20_000)
    problem = Problem("pattern with gates", 400, edges_2E, width=32)
    problem.shared[0].data *= 0.3
    found = {}
    for dtype in (torch.float64, torch.float32):
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in problem.leaves]
        out_PHN = edge_by_edge(leaves, torch.from_numpy(edges_2E), torch.from_numpy(pattern_E))
        found[dtype] = [out_PHN, *gradients(out_PHN, leaves)]
    key, value, query, *terms = leaves
    table = PatternEdges(edges_2E, pattern_E, 400).table
    out_PHN = pattern_attention(query, key, value, EdgeTerms(*terms), table)
    ours = [out_PHN, *gradients(out_PHN, leaves)]
    exact = found[torch.float64]
    both = zip(relative_errors(ours, exact), relative_errors(found[torch.float32], exact), strict=True)
    for mine, theirs in both:
        assert mine <= 5 * theirs + 1e-6
