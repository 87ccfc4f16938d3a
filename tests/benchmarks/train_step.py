"""A whole training step, beside one written straightforwardly with PyTorch Geometric.

    python -m tests.benchmarks.train_step [--quick] [--nodes N ...] [--json FILE]

5,000 genes, 1,800 perturbed genes, minibatches of 64 and 512 cells that are dense already (what the loader
costs is in ``loader``), GAT and Exphormer as published and Exphormer-MG with 4 graphs on the hub graphs of
``encoder``, no dropout but where it says so. Both sides have the same parameters; losses and gradients are
compared before anything is timed.

    ours       the nodes that the minibatch needs, Z once, fused AdamW
    other      every step all nodes through ``GATv2Conv`` (or attention edge by edge with ``scatter``),
               torch's batch norm, a gather of each cell's perturbations (no loop over cells), torch's AdamW
    split      GNN, cells and optimiser; the GNN's backward starts from the gradient of Z
    limit      the matrix products that ours does at the rate of a large one, and the gathers of rows that its
               attention cannot do without (4 an edge, 6 for patterns) at the rate of an embedding bag
    pruning    ours with the nodes of the minibatch, with those of the whole screen, with all
    parts      8 parts of 64 cells, with dropout: Z once beside Z for every part, of the nodes that all parts
               need or of the part's own

Every setting runs in a process of its own, its variants take turns there, medians are compared.
"""

import argparse
import json
import os
import subprocess
import sys
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
from torch.nn import functional

from tests.benchmarks.encoder import GRAPHS, TUNED_MALLOC, made_up, timed, with_pyg
from tests.benchmarks.record import Case, write
from txpert_dist import config
from txpert_dist.minibatch import Minibatch, SparseRows
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.exphormer import ExphormerEncoder
from txpert_dist.model.encoders.reach import Reach
from txpert_dist.model.encoders.stack import Stack
from txpert_dist.model.txpert import TxPert, build_model
from txpert_dist.train.batch import DenseBatch
from txpert_dist.train.needed import Needed, needed_by, placed
from txpert_dist.train.parts import Part, gathered, in_parts
from txpert_dist.train.step import loss_terms

NUM_GENES, PERTURBED, PARTS = 5_000, 1_800, 8
GOALS = {"gat": 5.0, "exphormer": 8.0, "exphormer_mg": 8.0, "parts": 6.0}
MOST_NODES = {"exphormer_mg": 2_000}
"""Beyond which PyG's side needs more than 24 GiB."""
SPLIT = ("GNN", "cells", "optimiser")


class Job(NamedTuple):
    """One setting."""

    what: str
    """An encoder."""
    nodes: int
    cells: int
    threads: int
    tuned: bool
    hidden: int = 128
    dropout: float = 0.0
    seconds: float = 20.0
    """After which no further round is begun."""

    @property
    def title(self) -> str:
        malloc = "tuned" if self.tuned else "default"
        dropout = f", dropout {self.dropout}" if self.dropout else ""
        return (
            f"{self.what}, N={self.nodes:,}, hidden {self.hidden}, {self.cells} cells, "
            f"{self.threads} threads, {malloc} malloc{dropout}"
        )


Seconds = dict[str, float]
"""Of each part of a step."""


class Cells(NamedTuple):
    """A minibatch."""

    batch: DenseBatch
    minibatch: Minibatch
    """The same perturbations, on the host."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """The perturbed nodes."""
        nodes_BM = self.minibatch.perturbations_BM
        return np.unique(nodes_BM[nodes_BM >= 0]).astype(np.int64)


def cells_of(job: Job, genes: NDArray[np.int64], seed: int) -> Cells:
    """Cells with one perturbation each, one in ten with two, one in ten with none."""
    random = np.random.default_rng(seed)
    nodes_BM = random.choice(genes, (job.cells, 2)).astype(np.int32)
    drawn = random.random(job.cells)
    nodes_BM[drawn < 0.9, 1] = -1
    nodes_BM[drawn < 0.1, 0] = -1
    control_BG, observed_BG = torch.rand(2, job.cells, NUM_GENES)
    none = SparseRows(np.zeros(1, "i8"), np.zeros(0, "u2"), np.zeros(0, "u1"), np.zeros(0, "f4"))
    minibatch = Minibatch(none, np.zeros(job.cells, np.int64), nodes_BM)
    return Cells(DenseBatch(control_BG, observed_BG, torch.from_numpy(nodes_BM)), minibatch)


class Ours:
    """Our step, but for the process group and the checks: see ``txpert_dist.train.step``."""

    def __init__(self, job: Job) -> None:
        torch.manual_seed(0)
        self.model = build_model(
            model_of(job),
            num_genes=NUM_GENES,
            basal_width=NUM_GENES,
            graph=made_up(job.nodes, GRAPHS[job.what]),
            seed=0,
        )
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.cells = [p for n, p in self.model.named_parameters() if not n.startswith("perturbation.")]
        self.cells = [p for p in self.cells if p.requires_grad]

    def step(self, cells: Cells, needed: Callable[[], Needed], *, parts: int = 1) -> Seconds:
        """A step with the nodes that ``needed`` says, Z once for all ``parts``."""
        spent, clock, key = {}, Clock(), DropoutKey(0, 0, 0)
        self.optimiser.zero_grad(set_to_none=True)
        some = needed()
        z_PD = self.model.perturbation_embeddings(key, some.reaches)
        spent["GNN"] = clock.lap()
        places_BM = torch.from_numpy(placed(cells.minibatch, some).perturbations_BM)
        *earlier, last = in_parts(cells.batch._replace(perturbations_BM=places_BM), key, parts)
        leaf_PD = z_PD.detach().requires_grad_()
        gradient = gathered(self.objective, earlier, leaf_PD, self.cells)
        (self.objective(last, leaf_PD) + gradient.inner_product()).backward()
        spent["cells"] = clock.lap()
        z_PD.backward(leaf_PD.grad)
        spent["GNN"] += clock.lap()
        self.optimiser.step()
        spent["optimiser"] = clock.lap()
        return spent

    def objective(self, part: Part, z_PD: Tensor) -> Tensor:
        prediction = self.model(part.batch.control_BN, part.batch.perturbations_BM, part.key, z_PD)
        return loss_terms(prediction, part.batch).squared / NUM_GENES

    def recomputing(self, cells: Cells, needed: Callable[[NDArray[np.int32]], Needed]) -> Seconds:
        """A step that encodes the graph for every part, for the nodes that ``needed`` says of the part's."""
        clock = Clock()
        self.optimiser.zero_grad(set_to_none=True)
        for number, part in enumerate(in_parts(cells.batch, DropoutKey(0, 0, 0), PARTS)):
            nodes_BM = cells.minibatch.perturbations_BM[number::PARTS]
            some = needed(nodes_BM)
            own = placed(cells.minibatch._replace(perturbations_BM=nodes_BM), some).perturbations_BM
            z_PD = self.model.perturbation_embeddings(part.key, some.reaches)
            batch = part.batch._replace(perturbations_BM=torch.from_numpy(own))
            self.objective(part._replace(batch=batch), z_PD).backward()
        self.optimiser.step()
        return {"all": clock.lap()}


class Straightforward(nn.Module):
    """The same parameters, as one writes it with PyG."""

    def __init__(self, ours: TxPert) -> None:
        super().__init__()
        self.perturbation = with_pyg(ours.perturbation)
        self.basal, self.decoder = (
            _perceptron(deepcopy(one)) for one in (ours.basal.perceptron, ours.decoder)
        )
        self.optimiser = torch.optim.AdamW(self.parameters(), lr=1e-4)

    def step(self, cells: Cells) -> Seconds:
        spent, clock = {}, Clock()
        self.optimiser.zero_grad()
        z_PD: Tensor = self.perturbation()
        spent["GNN"] = clock.lap()
        leaf_PD = z_PD.detach().requires_grad_()
        control_BG, observed_BG, nodes_BM = cells.batch
        there_BM = nodes_BM >= 0
        shift_BMD = leaf_PD[nodes_BM.clamp(min=0)] * there_BM.unsqueeze(2)
        predicted_BG = self.decoder(self.basal(control_BG) + shift_BMD.sum(1))
        functional.mse_loss(predicted_BG, observed_BG, reduction="sum").div(NUM_GENES).backward()
        spent["cells"] = clock.lap()
        z_PD.backward(leaf_PD.grad)
        spent["GNN"] += clock.lap()
        self.optimiser.step()
        spent["optimiser"] = clock.lap()
        return spent


class Clock:
    """Seconds since the last lap; the process's own where it has one thread, for other work counts little."""

    def __init__(self) -> None:
        self._now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        self._since = self._now()

    def lap(self) -> float:
        before, self._since = self._since, self._now()
        return self._since - before


def _perceptron(one: nn.Module) -> nn.Sequential:
    norm = nn.BatchNorm1d(one.first.out_features)
    norm.load_state_dict({"weight": one.norm.weight, "bias": one.norm.bias}, strict=False)
    return nn.Sequential(one.first, norm, nn.LeakyReLU(0.01), one.last)


def model_of(job: Job) -> config.Model:
    """As published, but for the dropout."""
    width, dropout = job.hidden, job.dropout
    encoder: config.Perturbation = config.Gat(hidden=width, node_features=width, dropout=dropout)
    if job.what == "exphormer":
        encoder = config.Exphormer(hidden=width, dropout=dropout)
    if job.what == "exphormer_mg":
        encoder = config.ExphormerMg(hidden=width, dropout=dropout)
    return config.Model(perturbation=encoder, dropout=dropout)


def rounds(variants: dict[str, Callable[[], Seconds]], seconds: float) -> dict[str, Seconds]:
    """Medians; three rounds at least and fifteen at most, none begun after ``seconds``."""
    for run in variants.values():
        run()
    started, times = time.perf_counter(), []
    while len(times) < 3 or (len(times) < 15 and time.perf_counter() - started < seconds):
        times.append({name: run() for name, run in variants.items()})
    return {
        name: {part: median(one[name][part] for one in times) for part in times[0][name]} for name in variants
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of the parameters that both sides call alike: the nodes' features, the last map of the decoder."""
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name.rpartition(".")[2]: g for name, g in named.items() if name.endswith("features.table_PN")}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest, over the largest number of each."""
    return max(float((x - other[name]).abs().max() / other[name].abs().max()) for name, x in one.items())


def run_job(job: Job) -> dict[str, Seconds]:
    """Seconds of ours, of the other's, of ours pruned otherwise; the limit, and the differences."""
    ours = Ours(job)
    model = ours.model.train()
    genes = np.sort(np.random.default_rng(1).choice(job.nodes, min(PERTURBED, job.nodes // 2), replace=False))
    cells = cells_of(job, genes, seed=2)
    nodes_BM = cells.minibatch.perturbations_BM
    depths = model.depths(cells_of(job, genes, seed=3).rows)
    screen = needed_by(model, genes[:, None].astype(np.int32), model.depths(genes))
    everything = np.arange(job.nodes, dtype=np.int32)[:, None]
    whole = needed_by(model, everything, (0,) * len(depths))
    by_minibatch = lambda: needed_by(model, nodes_BM, depths)  # noqa: E731
    variants: dict[str, Callable[[], Seconds]] = {
        "ours": lambda: ours.step(cells, by_minibatch),
        "nodes of the screen": lambda: ours.step(cells, lambda: screen),
        "all nodes": lambda: ours.step(cells, lambda: whole),
    }
    found: dict[str, Seconds] = {}
    if not job.dropout:
        other = Straightforward(model).train()
        ours.step(cells, by_minibatch)
        mine = gradients(model)
        other.step(cells)
        found["difference"] = {"PyG": difference(mine, gradients(other))}
        variants["other"] = lambda: other.step(cells)
    found |= rounds(variants, job.seconds)
    found["limit"] = limit_of(job, model, by_minibatch())
    found["reach"] = {"seconds": timed(by_minibatch)}
    return found


def run_parts(job: Job) -> dict[str, Seconds]:
    """8 parts: Z once, and Z for every part, of the nodes that all parts need or of the part's own."""
    ours = Ours(job)
    genes = np.arange(min(PERTURBED, job.nodes // 2))
    cells = cells_of(job, genes, seed=2)
    nodes_BM = cells.minibatch.perturbations_BM
    depths = ours.model.depths(cells.rows)
    part_depths = ours.model.depths(cells_of(job._replace(cells=job.cells // PARTS), genes, seed=3).rows)
    union = needed_by(ours.model, nodes_BM, depths)
    ours.step(cells, lambda: union, parts=PARTS)
    state = [p.grad.clone() for p in ours.model.parameters() if p.grad is not None]
    again = Ours(job)  # the optimiser has taken a step
    again.recomputing(cells, lambda _: union)
    theirs = [p.grad for p in again.model.parameters() if p.grad is not None]
    least = 1e-3 * max(float(y.abs().max()) for y in theirs)  # below, a gradient is rounding
    error = max(
        float((x - y).abs().max()) / max(float(y.abs().max()), least)
        for x, y in zip(state, theirs, strict=True)
    )
    variants: dict[str, Callable[[], Seconds]] = {
        "ours": lambda: ours.step(cells, lambda: needed_by(ours.model, nodes_BM, depths), parts=PARTS),
        "Z for every part": lambda: ours.recomputing(cells, lambda _: union),
        "Z for every part, of its own nodes": lambda: ours.recomputing(
            cells, lambda own_BM: needed_by(ours.model, own_BM, part_depths)
        ),
    }
    return {"difference": {"parts": error}} | rounds(variants, job.seconds)


def limit_of(job: Job, model: TxPert, needed: Needed) -> Seconds:
    """Seconds of the matrix products of our step, and of the gathers of its attention."""
    a_NM, b_MM = torch.rand(4096, 1024), torch.rand(1024, 1024)
    rate = 2 * a_NM.numel() * len(b_MM) / timed_best(lambda: a_NM @ b_MM)
    basal, decoder = model.basal.perceptron, model.decoder
    products = sum(6 * job.cells * one.weight.numel() for one in (basal.last, decoder.first, decoder.last))
    products += 4 * job.cells * basal.first.weight.numel()
    encoder_products, gathered_bytes = encoder_work(model.perturbation, needed.reaches[0])
    x_PN = torch.rand(job.nodes, 2 * job.hidden)
    row = torch.randint(0, job.nodes, (20 * job.nodes,))
    bag = torch.arange(0, len(row) + 1, 20)
    gather = timed_best(
        lambda: functional.embedding_bag(row, x_PN, bag, mode="sum", include_last_offset=True)
    ) / (len(row) * x_PN.shape[1] * 4)
    return {"products": (products + encoder_products) / rate, "gathers": gathered_bytes * gather}


def timed_best(work: Callable[[], object]) -> float:
    return min(timed(work) for _ in range(7))


def encoder_work(encoder: nn.Module, reach: Reach) -> tuple[float, float]:
    """Operations of matrix products, and bytes gathered, forward and backward."""
    products = bytes_ = 0.0
    if isinstance(encoder, ExphormerEncoder):  # batch norm: every layer works on all the nodes
        for layer in encoder.layers:
            maps = (layer.project, layer.expand, layer.contract, layer.local.project)
            products += sum(6 * encoder.num_nodes * one.weight.numel() for one in maps)
            width = layer.expand.in_features
            bytes_ += 6 * 4 * width * len(encoder.edges.by_target.other)
            bytes_ += 4 * 4 * width * layer.heads * len(layer.local.table.source)
        return products + 6 * len(reach.rows) * encoder.last.weight.numel(), bytes_
    stack = encoder.stack
    assert isinstance(stack, Stack)
    cuts = [None] * (len(stack.layers) - len(reach.cuts)) + list(reach.cuts)
    sources = len(reach.first)
    for layer, cut in zip(stack.layers, cuts, strict=True):
        table = layer.table if cut is None else cut.tables.edges
        targets = len(table.host_indptr) - 1
        half = layer.project.weight.numel() / 2
        products += 6 * half * ((targets if cut is None else sources) + targets)
        bytes_ += 4 * 4 * layer.width * len(table.source)
        sources = targets if cut is not None else sources
    return products + 6 * len(reach.rows) * encoder.last.weight.numel(), bytes_


def in_process(job: Job, what: str) -> dict[str, Seconds]:
    """The job's times from a process with its threads and malloc."""
    threads = {"OMP_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **threads, **(TUNED_MALLOC if job.tuned else {})}
    command = [sys.executable, "-m", "tests.benchmarks.train_step", "--job", what, json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{job.title}: did not finish ({done.stderr.strip().splitlines()[-1:]})", flush=True)
        return {}
    found: dict[str, Seconds] = json.loads(done.stdout.splitlines()[-1])
    return found


def step_cases(job: Job, found: dict[str, Seconds]) -> list[Case]:
    """Of a whole step, its split, the limit, and the other ways to prune."""
    ours, limit = found["ours"], sum(found["limit"].values())
    cases = []
    if "other" in found:
        other = found["other"]
        cases.append(Case(job.title, sum(ours.values()), "s", "written with PyG", sum(other.values())))
        cases += [Case(f"{part}: {job.title}", ours[part], "s", "with PyG", other[part]) for part in SPLIT]
    cases.append(Case(f"limit: {job.title}", sum(ours.values()), "s", "matrix products and gathers", limit))
    cases += [
        Case(f"pruned by minibatch: {job.title}", sum(ours.values()), "s", name, sum(found[name].values()))
        for name in ("nodes of the screen", "all nodes")
    ]
    return cases


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """What to run, the most telling first."""
    nodes = options.nodes or ([2_000] if options.quick else [10_000, 2_000])
    settings = [(1, True)] if options.quick else [(2, True), (1, True), (2, False)]
    seconds = 4.0 if options.quick else 20.0
    sizes = (64,) if options.quick else (64, 512)
    encoders = [(what, n) for n in nodes for what in GRAPHS if what in GOALS and n <= MOST_NODES.get(what, n)]
    chosen = [(*one, cells) for one in encoders for cells in sizes]
    jobs = [Job(*one, *setting, seconds=seconds) for one in chosen for setting in settings]
    dropout = [
        Job(what, nodes[0], 64, *settings[0], dropout=0.2, seconds=seconds)
        for what, n in encoders
        if n == nodes[0]
    ]
    return jobs + dropout


def main() -> None:
    """Run every setting in its process, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 nodes, 1 thread, tuned malloc")
    parser.add_argument("--nodes", type=int, nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = Job(*json.loads(options.job[1]))
        print(json.dumps(run_parts(job) if options.job[0] == "parts" else run_job(job)))
        return
    cases, details = [], {}
    jobs = jobs_of(options)
    for job in jobs:
        found = in_process(job, "step")
        new = step_cases(job, found) if found else []
        cases += shown(new)
        details[job.title] = {name: found[name] for name in ("difference", "limit", "reach") if name in found}
    parts = (job._replace(cells=64 * PARTS, dropout=0.2) for job in jobs if job.cells == 64)
    for job in dict.fromkeys(parts):
        found = in_process(job, "parts")
        if found:
            title, once = f"{PARTS} parts: {job.title}", sum(found["ours"].values())
            others = [name for name in found if name.startswith("Z for")]
            cases += shown([Case(title, once, "s", name, found[name]["all"]) for name in others])
            details[title] = {"difference": found["difference"]}
    if options.json:
        write(options.json, cases, goals=GOALS, settings=details)


def shown(cases: Sequence[Case]) -> list[Case]:
    """Printed, and handed on."""
    for case in cases:
        times = case.reference_value / case.value
        both = f"{case.value:.4f} s; {case.reference}: {case.reference_value:.4f} s"
        print(f"{case.name}: {both}, {times:.2f} times", flush=True)
    return list(cases)


if __name__ == "__main__":
    main()
