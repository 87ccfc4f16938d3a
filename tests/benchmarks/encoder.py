"""Forward and backward of all nodes' embeddings Z, beside the same encoder with PyTorch Geometric's layers.

    python -m tests.benchmarks.encoder [--quick] [--nodes N ...] [--hidden N ...] [--json FILE]

Both encoders have the same parameters, edges, skip connections and norms; Z and its gradients are compared
before anything is timed. The other one's attention is ``GATv2Conv``, or for Exphormer what one writes with
PyG: features of every edge through every layer's map, gathers and ``scatter``. Its self loops are
added once, its gathers are ``index_select`` (faster backward than indexing), its malloc is tuned and default.

    encoders    GAT as published, GAT-MLG and GAT-Hybrid with 4 graphs, Exphormer, Exphormer-MG with 4 graphs;
                hub graphs of up to 20 edges a target, and the real graphs of TXPERT_SHARED_DATA; no dropout
    minibatch   GAT of the nodes alone that 64 perturbations, drawn from 1,800, need; finding those is counted
    attention   one GATv2 and one pattern attention beside the time of as many plain gathers of rows as they
                cannot do without (4 and 6 an edge), which an embedding bag shows
    memory      what two steps take above the resident encoder, each in a process of its own, default malloc;
                Exphormer-MG with 20,000 nodes, whole process, which is to stay within 8 GiB

A case's setting runs in a process of its own, with OpenMP's threads waiting as `txpert train` has them wait
for its workers; ours and the other's steps take turns there, medians are compared.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv
from torch_geometric.utils import scatter

from graph_store.build import build
from graph_store.client import open_snapshot
from graph_store.config import load
from graph_store.expander import random_cycles
from graph_store.graph import KnowledgeGraph
from tests.benchmarks.record import Case, write
from tests.real_screens import DATA, GO_SETS, STRING, write_recipe
from txpert_dist import config
from txpert_dist.model.attention.edges import Edges
from txpert_dist.model.attention.gatv2 import gatv2_attention
from txpert_dist.model.attention.layers import Gatv2Layer
from txpert_dist.model.attention.pattern import CLIP, EPSILON, EdgeTerms, pattern_attention
from txpert_dist.model.attention.pattern_edges import PatternEdges
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.build import build_encoder
from txpert_dist.model.encoders.exphormer import ExphormerEncoder, TransformerLayer
from txpert_dist.model.encoders.stack import StackEncoder
from txpert_dist.model.graph_input import GraphInput

LATENT = 64
EDGES_A_TARGET = 20
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
GOALS = {"gat": 8.0, "gat_mlg": 10.0, "gat_hybrid": 10.0, "exphormer": 12.0, "exphormer_mg": 18.0}
MINIBATCH_GOAL, CELLS, PERTURBED = 14.0, 64, 1_800
MOST_GIB = 8.0
GRAPHS = {"gat": 1, "gat_mlg": 4, "gat_hybrid": 4, "exphormer": 1, "exphormer_mg": 4}


class Job(NamedTuple):
    """One case's setting."""

    what: str
    """An encoder, or ``attention``."""
    nodes: int
    """0 for the real graphs."""
    hidden: int
    threads: int
    tuned: bool
    side: str = "both"
    """``ours`` or ``PyG`` to measure the memory of one of them."""
    seconds: float = 12.0
    """After which no further round is begun."""
    cells: int = 0
    """Of a minibatch whose nodes alone are wanted; 0 for all the nodes."""

    @property
    def goal(self) -> float | None:
        return MINIBATCH_GOAL if self.cells else GOALS.get(self.what)

    @property
    def title(self) -> str:
        graphs = f" with {GRAPHS[self.what]} graphs" if GRAPHS.get(self.what, 1) > 1 else ""
        nodes = f"N={self.nodes:,}" if self.nodes else "real graphs"
        malloc = "tuned" if self.tuned else "default"
        cells = f", {self.cells} cells" if self.cells else ""
        size = f"{self.what}{graphs}, {nodes}, hidden {self.hidden}{cells}"
        return f"{size}, {self.threads} threads, {malloc} malloc"


class Spent(NamedTuple):
    """Median seconds of a step."""

    ours: float
    other: float
    error: float = 0.0
    """Largest difference of Z and its gradients, over the largest number of each."""


def hub_graph(name: str, num_nodes: int, random: np.random.Generator) -> KnowledgeGraph:
    """Up to 20 edges a target (85 % have 20), 70 % from its community of about 100; sources are Zipf(0.8)."""
    community = random.permutation(num_nodes) // 100
    order = np.argsort(community, kind="stable")
    begin = np.searchsorted(community[order], community)
    size = np.searchsorted(community[order], community, side="right") - begin
    popular = np.argsort(random.permutation(num_nodes) + 0.0)
    share = np.cumsum((popular[order] + 1.0) ** -0.8)
    degree = np.where(random.random(num_nodes) < 0.85, EDGES_A_TARGET, random.integers(1, 21, num_nodes))
    target = np.repeat(np.arange(num_nodes), 2 * degree)  # some will be drawn twice
    near = random.random(len(target)) < 0.7
    low = np.where(near, np.append(0, share)[begin[target]], 0)
    high = np.where(near, share[begin[target] + size[target] - 1], share[-1])
    drawn = np.searchsorted(share, low + random.random(len(target)) * (high - low), side="right")
    source = order[np.minimum(drawn, num_nodes - 1)]
    target, source = target[source != target], source[source != target]
    key = target * num_nodes + source
    key = key[np.sort(np.unique(key, return_index=True)[1])]
    key = key[np.argsort(key // num_nodes, kind="stable")]
    rank = np.arange(len(key)) - np.searchsorted(key // num_nodes, key // num_nodes)
    key = np.sort(key[rank < degree[key // num_nodes]])
    edges_2E = np.stack([key % num_nodes, key // num_nodes]).astype(np.int32)
    return KnowledgeGraph(name, edges_2E, random.random(len(key)).astype(np.float32) + 0.1)


def made_up(num_nodes: int, num_graphs: int) -> GraphInput:
    random = np.random.default_rng(0)
    graphs = tuple(hub_graph(f"graph {number}", num_nodes, random) for number in range(num_graphs))
    return GraphInput(num_nodes, graphs, random_cycles(num_nodes, 3, seed=0, stream=0))


def real_recipe(folder: Path) -> Path:
    """STRING, GO, Reactome and HuMAP, 20 edges a target."""
    keep = {"kind": "top_in_edges", "count": EDGES_A_TARGET}
    sources = {
        "string": {"kind": "edges", "path": str(STRING.absolute())},
        "go": {"kind": "gmt", "path": str(GO_SETS.absolute())},
        "reactome": {"kind": "gmt", "path": str((DATA / "reactome-gmt" / "ReactomePathways.gmt").absolute())},
        "humap": {"kind": "edges", "path": str((DATA / "efaar-annotations" / "HuMAP.txt").absolute())},
    }
    return write_recipe(
        folder, [{"name": name, "source": source, "keep": keep} for name, source in sources.items()]
    )


class PygGatv2(nn.Module):
    """Our layer's parameters in PyG's layer."""

    def __init__(self, layer: Gatv2Layer) -> None:
        super().__init__()
        heads, hidden = layer.shape_HN
        edges = layer.features.edges.table
        self.width = layer.width
        self.conv = GATv2Conv(
            layer.project.in_features, hidden, heads, concat=not layer.average, add_self_loops=False
        )
        source_RN, target_RN = layer.project.weight.detach().chunk(2)
        source_R, target_R = layer.project.bias.detach().chunk(2)
        self.conv.load_state_dict(
            {
                "att": layer.attention_HN.detach()[None],
                "bias": layer.bias.detach(),
                "lin_l.weight": source_RN,
                "lin_l.bias": source_R,
                "lin_r.weight": target_RN,
                "lin_r.bias": target_R,
            }
        )
        self.edges_2E = torch.stack([edges.source, edges.target])

    def forward(
        self, x_PN: Tensor, key: DropoutKey | None = None, edges: None = None, gather: None = None
    ) -> Tensor:
        out_PN: Tensor = self.conv(x_PN, self.edges_2E)
        return out_PN


class EveryEdge(nn.Module):
    """The features of every edge in place of every pattern."""

    def __init__(self, encoder: ExphormerEncoder) -> None:
        super().__init__()
        groups = encoder.edges.by_target.table
        self.types = encoder.edge_features.types
        self.type_EN = encoder.edge_features.type_RN[groups.pattern[groups.group]]

    def forward(self) -> Tensor:
        e_EN: Tensor = self.types(self.type_EN)
        return e_EN


class PygTransformer(nn.Module):
    """Our layer's parameters, its attention edge by edge."""

    def __init__(self, layer: TransformerLayer) -> None:
        super().__init__()
        self.layer = layer
        if layer.local is not None:
            layer.local = PygGatv2(layer.local)  # type: ignore[assignment]

    def forward(
        self,
        h_PN: Tensor,
        e_EN: Tensor,
        edges: PatternEdges,
        key: DropoutKey | None = None,
        cut: None = None,
    ) -> tuple[Tensor, Tensor]:
        layer, groups = self.layer, edges.by_target.table
        source, target = groups.other, groups.node[groups.group]
        query_PHN, key_PHN, value_PHN = layer.project(h_PN).unflatten(1, (3, layer.heads, -1)).unbind(1)
        terms, e_EN = layer.edge_map(e_EN)
        product_EHN = key_PHN.index_select(0, source) * query_PHN.index_select(0, target)
        score_EH = (product_EHN * terms.feature_RHN).sum(-1) + terms.bias_RH
        weight_EH = score_EH.clamp(-CLIP, CLIP).exp()
        message_EHN = value_PHN.index_select(0, source) * weight_EH.unsqueeze(-1)
        sum_PHN = scatter(message_EHN, target, 0, len(h_PN), "sum")
        total_PH = scatter(weight_EH, target, 0, len(h_PN), "sum")
        x_PN = layer.first_norm(h_PN + (sum_PHN / (total_PH + EPSILON).unsqueeze(-1)).flatten(1))
        if layer.local is not None:
            x_PN = x_PN + layer.local(h_PN)
        wide_PN = torch.relu(layer.expand(x_PN))
        return layer.second_norm(x_PN + layer.contract(wide_PN)), e_EN


def with_pyg(encoder: nn.Module) -> nn.Module:
    """A copy of ``encoder`` with PyG's attention."""
    encoder = deepcopy(encoder)
    if isinstance(encoder, ExphormerEncoder):
        encoder.edge_features = EveryEdge(encoder)  # type: ignore[assignment]
        encoder.layers = nn.ModuleList(PygTransformer(layer) for layer in encoder.layers)  # type: ignore[arg-type]
        return encoder
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Gatv2Layer):
                setattr(module, name, PygGatv2(child))
    return encoder


def options_of(job: Job) -> config.Perturbation:
    """As published, but for the width, and without dropout."""
    width = job.hidden
    match job.what:
        case "gat":
            return config.Gat(hidden=width, node_features=width, dropout=0)
        case "gat_mlg":
            return config.GatMlg(hidden=width, node_features=width, dropout=0)
        case "gat_hybrid":
            return config.GatHybrid(hidden=width, node_features=width, dropout=0)
        case "exphormer":
            return config.Exphormer(hidden=width, dropout=0)
    return config.ExphormerMg(hidden=width, dropout=0)


def graphs_of(job: Job, real: str | None) -> GraphInput:
    if job.nodes:
        return made_up(job.nodes, GRAPHS[job.what])
    assert real is not None
    snapshot = open_snapshot(real)
    expander = random_cycles(len(snapshot.genes), 3, seed=0, stream=0)
    return GraphInput(len(snapshot.genes), snapshot.graphs[: GRAPHS[job.what]], expander)


def step(encoder: nn.Module, d_PD: Tensor, rows: NDArray[np.int64] | None = None) -> Tensor:
    """Z, its gradient in all the parameters; with ``rows`` of these nodes alone, where that is less work."""
    encoder.zero_grad(set_to_none=True)
    if rows is None:
        z_PD: Tensor = encoder()
    elif isinstance(encoder, StackEncoder) and isinstance(encoder.stack.layers[0], Gatv2Layer):
        z_PD = encoder(reaches=encoder.reaches(rows, encoder.depths(rows)))
    else:
        z_PD = encoder().index_select(0, torch.from_numpy(rows))
    z_PD.backward(d_PD)
    return z_PD


def taking_turns(ours: Callable[[], object], other: Callable[[], object], seconds: float) -> Spent:
    """Medians; three rounds at least and fifteen at most, none begun after ``seconds``."""
    ours()
    started, times = time.perf_counter(), []
    while len(times) < 3 or (len(times) < 15 and time.perf_counter() - started < seconds):
        times.append((timed(ours), timed(other)))
    return Spent(median(one for one, _ in times), median(one for _, one in times))


def timed(work: Callable[[], object]) -> float:
    """Seconds; the process's own where it has one thread, so that other work on the machine counts little."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    work()
    return clock() - started


def difference(one: nn.Module, other: nn.Module, d_PD: Tensor, rows: NDArray[np.int64] | None) -> float:
    """Of Z and of the gradient that every encoder has, that of the nodes' features."""
    found = []
    for encoder in (one, other):
        z_PD = step(encoder, d_PD, rows)
        grads = [p.grad for name, p in encoder.named_parameters() if name.endswith("features.table_PN")]
        found.append([z_PD.detach(), *(grad for grad in grads if grad is not None)])
    pairs = zip(*found, strict=True)
    return max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs)


def run_encoder(job: Job, real: str | None) -> Spent:
    torch.manual_seed(0)
    graph = graphs_of(job, real)
    ours = build_encoder(options_of(job), graph, latent=LATENT)
    rows = rows_of(job) if job.cells else None
    d_PD = torch.randn(graph.num_nodes if rows is None else len(rows), LATENT)
    if job.side != "both":
        encoder = ours if job.side == "ours" else with_pyg(ours)
        del ours
        before = _settled_gib()
        step(encoder, d_PD)
        step(encoder, d_PD)
        peak = _memory_gib("VmHWM")
        return Spent(peak - before, peak)
    other = with_pyg(ours)
    error = difference(ours, other, d_PD, rows)
    both = (lambda: step(ours, d_PD, rows)), (lambda: step(other, d_PD, rows))
    return taking_turns(*both, job.seconds)._replace(error=error)


def rows_of(job: Job) -> NDArray[np.int64]:
    """The nodes that a minibatch perturbs, ascending."""
    random = np.random.default_rng(2)
    perturbed = random.choice(job.nodes, min(PERTURBED, job.nodes // 2), replace=False)
    return np.unique(random.choice(perturbed, job.cells)).astype(np.int64)


def run_attention(job: Job) -> list[Spent]:
    """GATv2's and patterns' attention, beside the gathers that they cannot do without."""
    graph, heads = made_up(job.nodes, 1), 2
    torch.manual_seed(0)
    nodes = np.arange(job.nodes)
    edges_2E = np.concatenate([graph.graphs[0].edges_2E, np.stack([nodes, nodes])], axis=1)
    union_2E = np.concatenate([edges_2E, graph.graphs[0].edges_2E[::-1], graph.expander.edges_2E], axis=1)
    pattern_E = np.repeat(np.arange(3), [edges_2E.shape[1], len(graph.graphs[0].weight_E), 6 * job.nodes])
    edges = Edges(edges_2E[:, np.lexsort(edges_2E)].astype(np.int64), job.nodes).table
    patterns = PatternEdges(union_2E.astype(np.int64), pattern_E, job.nodes).table
    shape = (job.nodes, heads, job.hidden)
    x_PHN, y_PHN, value_PHN = (torch.randn(shape, requires_grad=True) for _ in range(3))
    a_HN, d_PHN = torch.randn(heads, job.hidden, requires_grad=True), torch.randn(shape)
    feature_RHN = (torch.randn(3, heads, job.hidden) / job.hidden).requires_grad_()
    terms = EdgeTerms(feature_RHN, torch.randn(3, heads, requires_grad=True))

    def gatv2() -> None:
        out_PHN = gatv2_attention(x_PHN, y_PHN, a_HN, edges)
        torch.autograd.grad(out_PHN, [x_PHN, y_PHN, a_HN], d_PHN)

    def pattern() -> None:
        out_PHN = pattern_attention(x_PHN, y_PHN, value_PHN, terms, patterns)
        torch.autograd.grad(out_PHN, [x_PHN, y_PHN, value_PHN, feature_RHN, terms.bias_RH], d_PHN)

    x_PM = x_PHN.detach().flatten(1)

    def gathers(source: Tensor, indptr: Tensor, count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                nn.functional.embedding_bag(source, x_PM, indptr, mode="sum", include_last_offset=True)

        return run

    groups = patterns.by_target
    return [
        taking_turns(gatv2, gathers(edges.source, edges.indptr, 4), job.seconds / 2),
        taking_turns(pattern, gathers(groups.other, groups.node_indptr, 6), job.seconds / 2),
    ]


def _settled_gib() -> float:
    """What is resident once all that building needed is given back, its peak forgotten."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again
    return _memory_gib("VmRSS")


def _memory_gib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(key + ":"))
    return int(kib) / 2**20


def in_process(job: Job, real: str | None) -> list[Spent]:
    """The job's times from a process with its threads and malloc; none when it ran out of memory."""
    threads = {"OMP_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **threads, **(TUNED_MALLOC if job.tuned else {})}
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.encoder",
        "--job",
        json.dumps(job),
        *([real] if real else []),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{job.title}: did not finish ({done.stderr.strip().splitlines()[-1:]})", flush=True)
        return []
    return [Spent(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def jobs_of(options: argparse.Namespace, real: str | None) -> list[Job]:
    """What to run, the most telling first."""
    settings = [(1, True), (2, True), (2, False)]
    if options.quick:
        settings = [(2, True)]
    chosen = [(what, n, h) for what in GRAPHS for n in options.nodes or () for h in options.hidden or (64,)]
    if not options.nodes:
        small = [(what, 2_000, 64) for what in GRAPHS]
        large = [("gat", 10_000, 64), ("gat", 10_000, 128), ("gat", 20_000, 64), ("exphormer", 10_000, 64)]
        large += [("gat_mlg", 10_000, 64), ("gat_hybrid", 10_000, 64), ("gat", 2_000, 256)]
        chosen = small if options.quick else [*large, *small]
        if real is not None:
            chosen += [("gat", 0, 64), ("exphormer_mg", 0, 64)] if not options.quick else [("gat", 0, 64)]
    seconds = 4.0 if options.quick else 8.0
    jobs = [Job(*one, *setting, seconds=seconds) for one in chosen for setting in settings]
    jobs += [
        job._replace(cells=CELLS) for job in jobs if job.what == "gat" and job.nodes and job.hidden == 64
    ]
    sizes = sorted({n for _, n, _ in chosen if n})
    return jobs + [Job("attention", n, 64, t, True, seconds=seconds) for n in sizes for t in (1, 2)]


def cases_of(job: Job, found: Sequence[Spent]) -> list[Case]:
    if job.what == "attention":
        names = (("GATv2 attention", "4 gathers"), ("pattern attention", "6 gathers"))
        return [
            Case(f"{name}, {job.title.partition(', ')[2]}", spent.ours, "s", f"{limit} an edge", spent.other)
            for (name, limit), spent in zip(names, found, strict=True)
        ]
    return [Case(job.title, found[0].ours, "s", "the same encoder with PyG's attention", found[0].other)]


def memory_cases(jobs: Sequence[Job], real: str | None) -> list[Case]:
    """Peak memory of both, where both finish."""
    cases = []
    for job in jobs:
        sides = [in_process(job._replace(side=side, tuned=False), real) for side in ("ours", "PyG")]
        if all(sides):
            ours, other = (side[0].ours for side in sides)
            cases.append(Case(f"peak memory: {job.title}", ours, "GiB", "with PyG's attention", other))
    return cases


def whole_process() -> list[Case]:
    """What the largest encoder's process takes, beside what it may take."""
    job = Job("exphormer_mg", 20_000, 128, 2, tuned=False, side="ours")
    found = in_process(job, None)
    return [Case(f"whole process: {job.title}", one.other, "GiB", "goal", MOST_GIB) for one in found]


def main() -> None:
    """Run every setting in its process, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 nodes, hidden 64, 2 threads")
    parser.add_argument("--nodes", type=int, nargs="*", help="every encoder with these numbers of nodes")
    parser.add_argument("--hidden", type=int, nargs="*", help="and these widths")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job, real = Job(*json.loads(options.job[0])), (options.job[1:] or [None])[0]
        found = run_attention(job) if job.what == "attention" else [run_encoder(job, real)]
        print(json.dumps(found))
        return
    cases: list[Case] = []
    errors = {}
    with tempfile.TemporaryDirectory() as folder:
        real = None
        if STRING.exists():
            real = str(Path(folder) / "graphs")
            build(load(real_recipe(Path(folder))), out=Path(real))
        jobs = jobs_of(options, real)
        for job in jobs:
            found = in_process(job, real)
            for case in cases_of(job, found) if found else ():
                cases.append(case)
                print(f"{case.name}: {case.value:.4f} s, {case.reference_value:.4f} s", end="; ")
                goal = f" (goal {job.goal:.0f})" if job.goal else ""
                print(f"{case.reference_value / case.value:.1f} times as fast{goal}", flush=True)
                errors[case.name] = max(spent.error for spent in found)
        sized = [
            job for job in jobs if job.what in GRAPHS and job.threads == 2 and job.tuned and not job.cells
        ]
        whole = [] if options.quick or options.nodes else whole_process()
        for case in [*whole, *memory_cases(sized[:2] if options.quick else sized, real)]:
            cases.append(case)
            print(f"{case.name}: {case.value:.2f} GiB, {case.reference_value:.2f} GiB", flush=True)
    if options.json:
        write(options.json, cases, goals=GOALS | {"minibatch": MINIBATCH_GOAL}, largest_difference=errors)


if __name__ == "__main__":
    main()
