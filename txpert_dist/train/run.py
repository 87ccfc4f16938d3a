"""One rank, ready to take steps.

Enters: configuration, opened inputs, a device. Leaves: ``Run``. Invariants: every rank starts from the same
checkpoint, the one that rank 0 found; a checkpoint of other inputs is refused; weights are in the model
before DeepSpeed copies them.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.loader.loader import CellLoader
from txpert_dist.loader.shared import shared_control_table
from txpert_dist.model.txpert import TxPert, build_model, parameter_counts
from txpert_dist.train import checkpoint, engine
from txpert_dist.train.batch import Controls, resident_controls
from txpert_dist.train.captured import CapturedEncoder
from txpert_dist.train.checkpoint import SCORE, RunState
from txpert_dist.train.collective import broadcast_text, rank, sum_over_ranks, world_size
from txpert_dist.train.conditions import ContextControls, context_controls
from txpert_dist.train.division import Times, measured, shares_of
from txpert_dist.train.inputs import Inputs, embedding_key
from txpert_dist.train.needed import (
    Needed,
    Shares,
    depths_in_training,
    drawn_nodes,
    needed_by,
    needed_in_training,
)
from txpert_dist.train.profiler import StepProfiler
from txpert_dist.train.stopwatch import Stopwatch


class Hooks(NamedTuple):
    """Whom the loop tells what, and asks; on every rank, so most ranks do nothing."""

    progress: Callable[[str, int, int], None]
    """(what, done, total)"""
    metrics: Callable[[Mapping[str, float], int], None]
    """Metrics of an optimiser step."""
    epoch: Callable[[Mapping[str, float], int], None]
    """An epoch's metrics and number, when it is done."""
    told_to_stop: Callable[[], bool] = lambda: False
    """Asked every step: whether this rank was told to end the run, with a checkpoint, before its time."""
    time_to_ask: Callable[[], bool] = lambda: False
    """Asked every step: whether all ranks should ask ``node_leaves`` now."""
    node_leaves: Callable[[], bool] = lambda: False
    """Asked on all ranks together, now and then: whether a node of theirs will be taken away soon."""
    keep_records: Callable[[], None] = lambda: None
    """Called before a checkpoint is sealed, from its thread: what was told so far must survive a kill."""
    artefact: Callable[[Path], None] = lambda _: None
    """A file or folder for the run's record."""


class Start(NamedTuple):
    """Where a run begins, the same on every rank."""

    folder: Path | None
    """The checkpoint to go on from."""
    state: RunState | None
    """Its state."""
    best: float
    """Highest validation Pearson delta so far; minus infinity before the first."""
    damaged: tuple[str, ...]
    """Checkpoints that were passed over, one line each."""

    @property
    def step(self) -> int:
        """Optimiser steps already done."""
        return 0 if self.state is None else self.state.step


@dataclass(frozen=True)
class Run:
    """What stays the same from step to step."""

    config: Config
    inputs: Inputs
    model: TxPert
    engine: engine.Engine
    loader: CellLoader
    controls: Controls
    validation_controls: ContextControls
    """Which of them validation starts from."""
    device: torch.device
    hooks: Hooks
    watch: Stopwatch
    profiler: StepProfiler
    depths: tuple[int, ...]
    """How many of the encoder's last layers each step leaves nodes out of."""
    shares: Shares
    """This rank's part of the others; empty where every rank does all of them."""
    needed: Needed | None
    """Nodes whose embeddings any training cell needs; None where each minibatch's are worked out."""
    captured: CapturedEncoder | None
    """Makes their embeddings out of CUDA graphs; None where every step launches the encoder's operations."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.loader.num_steps * self.config.train.epochs


def find_start(config: Config, inputs: Inputs, device: torch.device) -> Start:
    """The newest sound checkpoint; rank 0 looks, all ranks hear the same.

    Raises ``CheckpointError`` when the checkpoint was made from other inputs.
    """
    text = json.dumps(_look(config.run_folder)) if rank() == 0 else ""
    name, best, damaged = json.loads(broadcast_text(text, device=device))
    folder = None if name is None else config.run_folder / checkpoint.FOLDER / name
    state = None if folder is None else checkpoint.read_state(folder)
    if folder is not None and state is not None:
        _check_fits(state, inputs, folder)
    return Start(folder, state, -math.inf if best is None else best, tuple(damaged))


def prepare(config: Config, inputs: Inputs, start: Start, *, device: torch.device, hooks: Hooks) -> Run:
    """Loader, model and optimiser as they are at ``start``."""
    table = shared_control_table(
        inputs.store,
        config.data.control_matching,
        inputs.genes,
        embedding_key(config.model),
        folder=config.run_folder,
    )
    loader = CellLoader(
        inputs.store,
        inputs.training,
        genes=inputs.genes,
        nodes_RM=inputs.nodes_RM,
        data=config.data,
        table=table,
        seed=config.seed,
        rank=rank(),
        world=world_size(),
        minibatch_size=config.train.minibatch_size,
    )
    model = build_model(
        config.model,
        num_genes=len(inputs.genes),
        basal_width=inputs.basal_width,
        graph=inputs.graph,
        seed=config.seed,
        reduce=sum_over_ranks,
    )
    _tell_size(model, hooks)
    if start.folder is not None:
        checkpoint.put_weights(model, checkpoint.read_weights(start.folder), start.folder)
    model.to(device)
    num_steps = loader.num_steps * config.train.epochs
    built = engine.build_engine(model, config, device=device, num_steps=num_steps, start_step=start.step)
    if start.folder is not None:
        engine.restore_optimiser_state(built, checkpoint.read_optimiser(start.folder), steps_taken=start.step)
    controls = resident_controls(table, num_genes=len(inputs.genes), device=device)
    starts = context_controls(table, controls, seed=config.seed)
    share = config.train.minibatch_size // world_size()
    depths = depths_in_training(model, inputs, cells=share, seed=config.seed)
    if config.cluster.zero_stage == 3:  # which takes away parameters that cut layers use parts of
        depths = (0,) * len(depths)
    shares = () if world_size() == 1 or built.stage == 3 else shares_of(model)
    if start.state is None and any(shares):
        drawn = needed_by(model, drawn_nodes(inputs, cells=share, seed=config.seed), depths)
        _tell_times(measured(built, model, drawn, shares), hooks)
    shares = shares if config.cluster.partition_nodes else ()
    needed = None if device.type == "cpu" else needed_in_training(model, inputs, shares)
    return Run(
        *(config, inputs, model, built, loader, controls, starts, device, hooks, Stopwatch(device)),
        profiler=StepProfiler(
            config.train.profile_steps if rank() == 0 else None,
            config.run_folder,
            device=device,
            done=hooks.artefact,
        ),
        depths=depths,
        shares=shares,
        needed=needed,
        captured=None if not config.cluster.cuda_graph else _captured(config, built, model, needed),
    )


def _captured(config: Config, built: engine.Engine, model: TxPert, needed: Needed | None) -> CapturedEncoder:
    if needed is None:
        raise ConfigError(
            "cluster.cuda_graph=true: this worker was given no CUDA device; leave it out, or give Ray GPUs"
        )
    precision = partial(engine.precision, built, casts_kept=False)
    return CapturedEncoder(model.perturbation, needed.reaches, seed=config.seed, precision=precision)


def _tell_times(times: Times, hooks: Hooks) -> None:
    """News and metrics of step 0: what the embeddings take either way."""
    hooks.progress(str(times), 0, 0)
    hooks.metrics({"time/graph_whole_s": times.whole, "time/graph_divided_s": times.divided}, 0)


def _tell_size(model: TxPert, hooks: Hooks) -> None:
    """News and metrics of step 0: the learned numbers of each part."""
    counts = parameter_counts(model)
    counts["total"] = sum(counts.values())
    shown = ", ".join(f"{part} {number:,}" for part, number in counts.items())
    hooks.progress(f"parameters: {shown}", 0, 0)
    hooks.metrics({f"parameters/{part}": float(number) for part, number in counts.items()}, 0)


def _look(run_folder: Path) -> tuple[str | None, float | None, tuple[str, ...]]:
    found = checkpoint.newest_sound(run_folder)
    if found.folder is None:
        return None, None, found.damaged
    best = checkpoint.read_state(checkpoint.best_checkpoint(run_folder)).metrics.get(SCORE, math.nan)
    return found.folder.name, None if math.isnan(best) else best, found.damaged


def _check_fits(state: RunState, inputs: Inputs, folder: Path) -> None:
    for what, saved, current in (
        ("cell store", state.store_hash, inputs.store.manifest_hash),
        ("graph snapshot", state.snapshot_id, inputs.snapshot.id),
        ("gene list", state.genes, inputs.gene_names),
        ("perturbation vocabulary", state.vocabulary, inputs.vocabulary),
    ):
        if saved != current:
            raise CheckpointError(
                f"{folder}: was made from another {what}; "
                "restore that one, or choose another name= for a new run"
            )
