"""The training loop of one rank: epochs, validation, checkpoints.

Enters: configuration, opened inputs, a device, and what to tell whom. Leaves: ``Outcome`` and checkpoints.
Invariants: every rank takes the same steps; the result does not depend on the number of ranks but for
rounding; a run that stops anywhere and starts again takes the steps it would have taken.
"""

import time
from collections.abc import Generator
from typing import NamedTuple, cast

import torch

from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError
from txpert_dist.minibatch import Minibatch
from txpert_dist.train import checkpoint, engine
from txpert_dist.train.checkpoint import SCORE, RunState
from txpert_dist.train.collective import broadcast_text, rank
from txpert_dist.train.inputs import Inputs
from txpert_dist.train.run import Hooks, Run, Start, find_start, prepare
from txpert_dist.train.step import one_step
from txpert_dist.train.validate import observe, validate


class Outcome(NamedTuple):
    """How a run ended on this rank."""

    epochs: int
    """Whole epochs done."""
    step: int
    """Optimiser steps done."""
    started_at: int
    """The step this process started from: 0, or the resumed checkpoint's."""
    damaged: tuple[str, ...]
    """Checkpoints that were passed over, one line each."""


def fit(
    config: Config,
    inputs: Inputs,
    *,
    device: torch.device,
    hooks: Hooks,
    git_commit: str = "unknown",
    max_steps: int | None = None,
) -> Outcome:
    """Train from the newest sound checkpoint of the run's folder, or from the beginning, to the end.

    The process group must exist when there is more than one rank. ``max_steps`` ends the run early, with a
    checkpoint, after so many steps in all. Raises ``TrainingError`` on every rank when the loss or a gradient
    is not finite, ``CheckpointError`` when the checkpoint is of other inputs or cannot be written.
    """
    start = find_start(config, inputs, device)
    run = prepare(config, inputs, start, device=device, hooks=hooks)
    stop = run.num_steps if max_steps is None else min(max_steps, run.num_steps)
    step = _train(run, start, stop, git_commit)
    return Outcome(step // run.loader.num_steps, step, start.step, start.damaged)


def _train(run: Run, start: Start, stop: int, git_commit: str) -> int:
    """Steps to ``stop``, with validation and a checkpoint after whole epochs; returns the steps done."""
    step, best = start.step, start.best
    metrics = {} if start.state is None else start.state.metrics
    observed = None
    per_epoch = run.loader.num_steps
    while step < stop:
        epoch = step // per_epoch
        step = _steps_of_epoch(run, epoch, step, min(stop, (epoch + 1) * per_epoch))
        if step % per_epoch:  # stopped within an epoch: nothing to validate yet
            _save(run, epoch, step, metrics, git_commit)
            break
        started = time.perf_counter()
        if observed is None:
            observed = observe(run.inputs, progress=run.hooks.progress)
        metrics = validate(run.model, run.inputs, observed, run.validation_controls, device=run.device)
        metrics["time/validation_s"] = time.perf_counter() - started
        due = (epoch + 1) % run.config.train.checkpoint_every_epochs == 0 or step == stop
        if due or metrics[SCORE] > best:
            _save(run, epoch + 1, step, metrics, git_commit)
        best = metrics[SCORE] if metrics[SCORE] > best else best
        run.hooks.metrics(metrics, step)
        run.hooks.epoch(metrics, epoch + 1)
    return step


def _steps_of_epoch(run: Run, epoch: int, step: int, stop: int) -> int:
    """Steps ``step`` to ``stop``, all of one epoch; returns ``stop``."""
    run.engine.module.train()
    run.watch.restart()
    first = step - epoch * run.loader.num_steps
    minibatches = cast(Generator[Minibatch], run.loader.epoch(epoch, first))
    try:
        for number in range(step, stop):
            one_step(run, minibatches, number)
            run.hooks.progress("train", number + 1, run.num_steps)
    finally:
        minibatches.close()
    return stop


def _save(run: Run, epochs: int, step: int, metrics: dict[str, float], git_commit: str) -> None:
    """All ranks gather the state, rank 0 writes it; a failure is every rank's failure."""
    optimiser = engine.optimiser_state(run.engine)
    failure = ""
    if rank() == 0:
        state = RunState(
            epoch=epochs,
            step=step,
            metrics=metrics,
            store_hash=run.inputs.store.manifest_hash,
            split_hash=run.inputs.store.split_hash,
            snapshot_id=run.inputs.snapshot.id,
            git_commit=git_commit,
            genes=run.inputs.gene_names,
            vocabulary=run.inputs.vocabulary,
            basal_width=run.inputs.basal_width,
        )
        try:
            checkpoint.write_checkpoint(
                run.config.run_folder, state, run.config, weights=run.model.state_dict(), optimiser=optimiser
            )
            checkpoint.prune(run.config.run_folder, keep=run.config.train.keep_checkpoints)
        except CheckpointError as error:
            failure = str(error)
    failure = broadcast_text(failure, device=run.device)
    if failure:
        raise CheckpointError(failure)
