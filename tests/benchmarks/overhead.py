"""What `txpert train` costs over a bare torch loop of the same model, and whether its steps wait for cells.

    python -m tests.benchmarks.overhead [--quick] [--folder FOLDER] [--json FILE]

The screen is simulated and as large as the K562 screen: 160,000 cells x 5,000 genes, four knowledge graphs of
9,854 genes and up to 20 edges a target, minibatches of 256, the published presets, GAT on one of the graphs
and Exphormer-MG on all. `txpert train` runs as a user starts it, and is told to stop after 150 steps: Ray,
one worker, DeepSpeed, MLflow in a SQLite file, cells from the store. The bare loop, in a process of its own
just before and just after, takes minibatches that lie ready in memory through forward, backward, clipping and
AdamW, with the same exact cuts to the nodes that a minibatch needs. Both have all cores.

    step          median seconds between two records of the run, over the steps between them; goal: 1.05 times
                  the bare loop's
    waiting       for the loader in a step (goal: 3 % of it), and for one checkpoint
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
import yaml

from graph_store.build import build
from graph_store.config import load as load_recipe
from tests.benchmarks.encoder import hub_graph
from tests.benchmarks.record import Case, write
from tests.benchmarks.short_run import LOG_EVERY, short_run
from tests.benchmarks.training import merged
from txpert_dist import config_file
from txpert_dist.config import Config
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.loader.loader import CellLoader
from txpert_dist.loader.pairing import control_table
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.txpert import build_model
from txpert_dist.simulate.config import SimulateConfig
from txpert_dist.simulate.run import simulate
from txpert_dist.train.batch import dense_batch, resident_controls
from txpert_dist.train.inputs import embedding_key, open_inputs
from txpert_dist.train.needed import depths_in_training, needed_by, placed

ROOT = Path(__file__).resolve().parents[2]
PRESETS = {"gat": 1, "exphormer_mg": 4}
"""And how many of the graphs each uses."""
NODES, GRAPHS = 9_854, 4
MINIBATCH = 256
READY = 16
"""Minibatches that the bare loop has in memory."""


class Size(NamedTuple):
    """Of the screen."""

    cells: int
    genes: int
    perturbations: int
    nodes: int
    bare_steps: int
    steps: int
    """After which the run is told to stop."""


FULL = Size(160_000, 5_000, 1_000, NODES, 40, 150)
QUICK = Size(30_000, 2_000, 200, 3_000, 10, 60)


def prepare(size: Size, folder: Path) -> Path:
    """The configuration that both train from; what is already there is used again."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.yaml"
    if config.exists():
        return config
    screen = folder / "screen.h5ad"
    simulate(
        SimulateConfig(
            cells=size.cells, genes=size.genes, perturbations=size.perturbations, cell_lines=1, batches=40
        ),
        out=screen,
        overwrite=True,
    )
    ingest(IngestConfig(sources=(screen,), store=folder / "screen.zarr", preset="scperturb"))
    build(load_recipe(write_graphs(screen, size.nodes, folder)), out=folder / "graphs")
    screen.unlink()
    places = {"store": str(folder / "screen.zarr"), "genes": "all"}
    config.write_text(
        yaml.safe_dump({"data": places, "graph": {"location": str(folder / "graphs")}}), encoding="utf-8"
    )
    return config


def write_graphs(screen: Path, num_nodes: int, folder: Path) -> Path:
    """Four graphs over the screen's genes and others that are not measured."""
    with h5py.File(screen) as file:
        index = file["var"].attrs["_index"]
        measured = [name.decode() for name in file["var"][index][:]]
    names = np.array([*measured, *(f"NOT_MEASURED_{n}" for n in range(len(measured), num_nodes))])
    random, graphs = np.random.default_rng(0), []
    for number in range(GRAPHS):
        graph = hub_graph(f"graph_{number}", num_nodes, random)
        source, target = names[graph.edges_2E]
        path = folder / f"graph_{number}.csv"
        table = pa.table({"source": source, "target": target, "weight": graph.weight_E})
        pyarrow.csv.write_csv(table, path)
        graphs.append({"name": graph.name, "source": {"kind": "edges", "path": str(path)}})
    recipe = folder / "graphs.yaml"
    recipe.write_text(yaml.safe_dump({"graphs": graphs, "expander": {"cycles": 3}}), encoding="utf-8")
    return recipe


def config_of(preset: str, base: Path, folder: Path) -> Config:
    """The preset on the screen."""
    use = [f"graph_{number}" for number in range(PRESETS[preset])]
    tree = merged(
        yaml.safe_load((ROOT / "jobs" / "configs" / f"{preset}.yaml").read_text(encoding="utf-8")),
        yaml.safe_load(base.read_text(encoding="utf-8")),
        {"name": preset, "output": str(folder / "runs"), "graph": {"use": use}},
        {"train": {"epochs": 1, "minibatch_size": MINIBATCH, "log_every": LOG_EVERY}},
        {"cluster": {"num_workers": 1, "cpus_per_worker": os.cpu_count() or 1}},
    )
    return Config.model_validate(tree)


def bare(config: Config, num_steps: int) -> float:
    """Median seconds of a step of the bare loop."""
    inputs = open_inputs(config)
    key = embedding_key(config.model)
    table = control_table(inputs.store, config.data.control_matching, inputs.genes, key)
    loader = CellLoader(
        inputs.store,
        inputs.training,
        genes=inputs.genes,
        nodes_RM=inputs.nodes_RM,
        data=config.data,
        table=table,
        seed=config.seed,
        rank=0,
        world=1,
        minibatch_size=MINIBATCH,
    )
    device = torch.device("cpu")
    controls = resident_controls(table, num_genes=len(inputs.genes), device=device)
    minibatches = loader.epoch(0, 0)
    ready = [next(minibatches) for _ in range(READY)]
    model = build_model(
        config.model,
        num_genes=len(inputs.genes),
        basal_width=inputs.basal_width,
        graph=inputs.graph,
        seed=config.seed,
    )
    model.train()
    depths = depths_in_training(model, inputs, cells=MINIBATCH, seed=config.seed)
    adamw = torch.optim.AdamW(model.parameters(), lr=config.optimiser.learning_rate, fused=True)
    seconds = []
    for step in range(num_steps):
        started = time.perf_counter()
        minibatch = ready[step % READY]
        needed = needed_by(model, minibatch.perturbations_BM, depths)
        batch = dense_batch(placed(minibatch, needed), controls, device=device)
        key = DropoutKey(config.seed, step, 0)
        predicted = model(batch.control_BN, batch.perturbations_BM, key, None, needed.reaches)
        loss = (predicted.expression_BG - batch.observed_BG).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.gradient_clipping or math.inf)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return median(seconds[3:])


def bare_in_process(config: Path, num_steps: int) -> float:
    """``bare`` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.overhead", "--bare", str(config), str(num_steps)]
    # as txpert train has it for its workers
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1), "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def cases_of(preset: str, base: Path, size: Size, folder: Path) -> list[Case]:
    """The bare loop, the command, the bare loop again."""
    config = config_of(preset, base, folder)
    file = folder / f"{preset}.yaml"
    file.write_text(config_file.dump(config), encoding="utf-8")
    before = bare_in_process(file, size.bare_steps)
    metrics = short_run(file, config.run_folder, size.steps).metrics
    reference = mean([before, bare_in_process(file, size.bare_steps)])
    rate, waited = median(metrics["train/cells_per_s"]), mean(metrics["time/data_wait_s"])
    step, saved = MINIBATCH / rate, max(metrics["time/checkpoint_s"])
    return [
        Case(f"{preset}: step of txpert train", step, "s", "bare torch loop", reference),
        Case(f"{preset}: waiting for cells", waited, "s a step", "the step", step),
        Case(f"{preset}: waiting for a checkpoint", saved, "s a checkpoint", "the step", step),
        Case(f"{preset}: rate of txpert train", rate, "cells/s", "bare", MINIBATCH / reference),
    ]


def main() -> None:
    """Run both presets, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30,000 cells, 2,000 genes, 3,000 nodes, GAT")
    parser.add_argument("--folder", type=Path, help="keep the screen there for the next time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(bare(config_file.load(Path(options.bare[0])), int(options.bare[1])))
        return
    size, cases = QUICK if options.quick else FULL, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        base = prepare(size, folder)
        for preset in list(PRESETS)[: 1 if options.quick else None]:
            for case in cases_of(preset, base, size, Path(temporary)):
                cases.append(case)
                print(f"{case.name}: {case.value:.4g} {case.unit}; {case.reference}", end=" ")
                print(f"{case.reference_value:.4g} (ratio {case.ratio:.3f})", flush=True)
    if options.json:
        write(options.json, cases, size=size._asdict(), minibatch=MINIBATCH)


if __name__ == "__main__":
    main()
