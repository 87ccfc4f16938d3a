"""Forward and backward of all nodes' embeddings Z on a GPU, beside the same encoder with PyTorch Geometric.

    python -m tests.benchmarks.encoder_cuda [--quick] [--nodes N ...] [--hidden N ...] [--json FILE]

Both encoders are those of ``encoder``: same parameters, edges, skip connections and norms. Ours computes with
Triton's kernels. Without a CUDA device this says so and is done.

    encoders    steps in single precision: ours, launched kernel by kernel and out of a CUDA graph, beside
                PyG's layers, eager and compiled; ours out of a graph with TF32 and bfloat16 products, beside
                PyG's eager layers with the same
    errors      of Z and the nodes' features' gradients in each precision, against double precision
    attention   one GATv2 and one pattern attention beside as many plain gathers of rows as they cannot do
                without (4 and 6 an edge), which an embedding bag shows
    memory      the most that a step holds, of both

Ours and the other's steps take turns; medians of the device's own time are compared.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.encoder import GRAPHS, LATENT, Job, graphs_of, made_up, options_of, step, with_pyg
from tests.benchmarks.record import Case, write
from txpert_dist.model.attention.edges import Edges
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.attention.pattern import EdgeTerms, pattern_attention
from txpert_dist.model.attention.pattern_edges import PatternEdges
from txpert_dist.model.encoders.build import build_encoder

GOALS = {"gat": 6.0, "gat_mlg": 6.0, "gat_hybrid": 6.0, "exphormer": 10.0, "exphormer_mg": 10.0}
PRODUCTS = {"single": "highest", "TF32": "high", "bfloat16": "highest"}
"""How precise torch's products are: with single precision's numbers, TF32 or, autocast, bfloat16."""
ROUNDS = 15


class Both(NamedTuple):
    """The two encoders and a gradient of Z."""

    ours: nn.Module
    other: nn.Module
    d_PD: Tensor


def encoders(job: Job) -> Both:
    """On the GPU."""
    torch.manual_seed(0)
    graph = graphs_of(job, None)
    ours = build_encoder(options_of(job), graph, latent=LATENT).cuda()
    return Both(ours, with_pyg(ours).cuda(), torch.randn(graph.num_nodes, LATENT, device="cuda"))


def products(precision: str) -> AbstractContextManager[object]:
    """Sets how products are computed from now on; the context is for the steps themselves."""
    torch.set_float32_matmul_precision(PRODUCTS[precision])
    # a graph replays casts: none may come from before it
    return torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """The work as a CUDA graph, after it has run often enough to have compiled and allocated all it needs."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


def taking_turns(works: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each on the device."""
    for work in works:
        for _ in range(3):
            work()
    rounds = [[timed(work) for work in works] for _ in range(ROUNDS)]
    return [median(times) for times in zip(*rounds, strict=True)]


def timed(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def in_single_precision(job: Job, both: Both) -> list[Case]:
    """Ours, beside PyG's layers eager and compiled."""
    with products("single"):
        compiled = torch.compile(deepcopy(both.other))
        works: list[Callable[[], object]] = [
            lambda: step(both.ours, both.d_PD),
            captured(lambda: step(both.ours, both.d_PD)),
            lambda: step(both.other, both.d_PD),
            lambda: step(compiled, both.d_PD),
        ]
        ours, graph, eager, inductor = taking_turns(works)
    title = title_of(job)
    return [
        Case(f"{title}, kernel by kernel", ours, "s", "PyG's layers", eager),
        Case(f"{title}, CUDA graph", graph, "s", "PyG's layers", eager),
        Case(f"{title}, CUDA graph", graph, "s", "PyG's layers, compiled", inductor),
    ]


def in_less(job: Job, both: Both, precision: str) -> Case:
    """Ours out of a CUDA graph, beside PyG's layers."""
    with products(precision):
        graph = captured(lambda: step(both.ours, both.d_PD))
        ours, eager = taking_turns([graph, lambda: step(both.other, both.d_PD)])
    return Case(f"{title_of(job)}, CUDA graph, {precision}", ours, "s", f"PyG's layers, {precision}", eager)


def errors(job: Job, both: Both) -> dict[str, float]:
    """Of Z and of the gradient of the nodes' features, over the largest number of either."""
    exact = values(deepcopy(both.ours).double(), both.d_PD.double())
    found = {}
    for precision in PRODUCTS:
        for name, encoder in (("ours", both.ours), ("PyG", both.other)):
            with products(precision):
                pairs = zip(values(encoder, both.d_PD), exact, strict=True)
                error = max(float((one - true).abs().max() / true.abs().max()) for one, true in pairs)
            found[f"{title_of(job)}, {precision}, {name}"] = error
    return found


def values(encoder: nn.Module, d_PD: Tensor) -> list[Tensor]:
    z_PD = step(encoder, d_PD)
    grads = [p.grad for name, p in encoder.named_parameters() if name.endswith("features.table_PN")]
    return [z_PD.detach().double(), *(grad.double() for grad in grads if grad is not None)]


def memory(job: Job, both: Both) -> Case:
    """The most that a step has allocated beyond what was there."""
    peaks = []
    for encoder in both[:2]:
        step(encoder, both.d_PD)
        encoder.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(encoder, both.d_PD)
        torch.cuda.synchronize()
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**30)
    return Case(f"memory of a step: {title_of(job)}", peaks[0], "GiB", "PyG's layers", peaks[1])


def attention(num_nodes: int, width: int) -> list[Case]:
    """GATv2 and pattern attention, each out of a CUDA graph, beside the gathers they cannot do without."""
    graph, heads, nodes = made_up(num_nodes, 1), 2, np.arange(num_nodes)
    edges_2E = np.concatenate([graph.graphs[0].edges_2E, np.stack([nodes, nodes])], axis=1).astype(np.int64)
    union_2E = np.concatenate([edges_2E, graph.graphs[0].edges_2E[::-1], graph.expander.edges_2E], axis=1)
    pattern_E = np.repeat(np.arange(3), [edges_2E.shape[1], len(graph.graphs[0].weight_E), 6 * num_nodes])
    edges = Edges(edges_2E[:, np.lexsort(edges_2E)], num_nodes).cuda().table
    patterns = PatternEdges(union_2E.astype(np.int64), pattern_E, num_nodes).cuda().table
    shape = (num_nodes, heads, width)
    x_PHN, y_PHN, value_PHN = (torch.randn(shape, device="cuda", requires_grad=True) for _ in range(3))
    a_HN = torch.randn(shape[1:], device="cuda", requires_grad=True)
    d_PHN = torch.randn(shape, device="cuda")
    feature_RHN = (torch.randn(3, *shape[1:], device="cuda") / width).requires_grad_()
    terms = EdgeTerms(feature_RHN, torch.randn(3, heads, device="cuda", requires_grad=True))

    def gatv2() -> None:
        torch.autograd.grad(gatv2_attention(x_PHN, y_PHN, a_HN, edges), [x_PHN, y_PHN, a_HN], d_PHN)

    def pattern() -> None:
        out_PHN = pattern_attention(x_PHN, y_PHN, value_PHN, terms, patterns)
        torch.autograd.grad(out_PHN, [x_PHN, y_PHN, value_PHN, feature_RHN, terms.bias_RH], d_PHN)

    def gathers(source: Tensor, indptr: Tensor, count: int) -> Callable[[], None]:
        x_PM = x_PHN.detach().flatten(1)

        def run() -> None:
            for _ in range(count):
                nn.functional.embedding_bag(source, x_PM, indptr, mode="sum", include_last_offset=True)

        return captured(run)

    cases, groups = [], patterns.by_target
    pairs = (
        ("GATv2", gatv2, gathers(edges.source, edges.indptr, 4), "4 gathers"),
        ("pattern", pattern, gathers(groups.other, groups.node_indptr, 6), "6 gathers"),
    )
    for name, work, limit, of in pairs:
        ours, bound = taking_turns([captured(work), limit])
        title = f"{name} attention, N={num_nodes:,}, width {width}"
        cases.append(Case(title, ours, "s", f"{of} an edge", bound))
    return cases


def title_of(job: Job) -> str:
    graphs = f" with {GRAPHS[job.what]} graphs" if GRAPHS[job.what] > 1 else ""
    return f"{job.what}{graphs}, N={job.nodes:,}, hidden {job.hidden}"


def jobs_of(options: argparse.Namespace) -> list[Job]:
    sizes = [2_000] if options.quick else [2_000, 10_000, 20_000]
    chosen = [(n, h) for n in options.nodes or sizes for h in options.hidden or (128,)]
    return [Job(what, n, h, 1, False) for n, h in chosen for what in GRAPHS]


def shown(case: Case, goal: float | None = None) -> Case:
    """The case, once it is printed."""
    ratio = case.reference_value / case.value if case.value else 0.0
    numbers = f"{case.value:.5f} {case.unit}, {case.reference}: {case.reference_value:.5f} {case.unit}"
    print(f"{case.name}: {numbers}; {ratio:.1f}{f' (goal {goal:.0f})' if goal else ''}", flush=True)
    return case


def run(jobs: Sequence[Job], widths: Sequence[int]) -> tuple[list[Case], dict[str, float]]:
    cases, found = [], {}
    for job in jobs:
        torch.cuda.empty_cache()
        both = encoders(job)
        found |= errors(job, both)
        cases += [shown(case, GOALS[job.what]) for case in in_single_precision(job, both)]
        cases += [shown(in_less(job, both, precision)) for precision in ("TF32", "bfloat16")]
        cases.append(shown(memory(job, both)))
        del both
    for nodes in sorted({job.nodes for job in jobs}):
        cases += [shown(case) for width in widths for case in attention(nodes, width)]
    return cases, found


def main() -> None:
    """Run every setting, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 nodes")
    parser.add_argument("--nodes", type=int, nargs="*", help="every encoder with these numbers of nodes")
    parser.add_argument("--hidden", type=int, nargs="*", help="and these widths")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return
    cases, found = run(jobs_of(options), options.hidden or (64, 128))
    for name, error in found.items():
        print(f"error: {name}: {error:.1e}")
    if options.json:
        write(options.json, cases, device=torch.cuda.get_device_name(), goals=GOALS, errors=found)


if __name__ == "__main__":
    main()
