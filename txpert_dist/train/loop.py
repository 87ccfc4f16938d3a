"""The training loop of one rank: epochs, validation, checkpoints.

Enters: configuration, opened inputs, a device, and what to tell whom. Leaves: ``Outcome`` and checkpoints.
Invariants: every rank takes the same steps; the result does not depend on the number of ranks but for
rounding; a run that stops anywhere and starts again takes the steps and validations it would have taken.
"""

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Literal, NamedTuple, cast

import torch

from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError
from txpert_dist.minibatch import Minibatch
from txpert_dist.train import engine
from txpert_dist.train.checkpoint import SCORE, RunState
from txpert_dist.train.collective import broadcast_text, rank
from txpert_dist.train.inputs import Inputs
from txpert_dist.train.run import Hooks, Run, Start, find_start, prepare
from txpert_dist.train.saving import Saver
from txpert_dist.train.step import Word, one_step
from txpert_dist.train.validate import observe, validate

Save = Callable[[int, int, dict[str, float]], None]
"""(whole epochs, steps, metrics): on all ranks together, write a checkpoint."""

Early = Literal["told to stop", "a node leaves"]


class Outcome(NamedTuple):
    """How a run ended on this rank."""

    epochs: int
    """Whole epochs done, and validated."""
    step: int
    """Optimiser steps done."""
    started_at: int
    """The step this process started from: 0, or the resumed checkpoint's."""
    damaged: tuple[str, ...]
    """Checkpoints that were passed over, one line each."""
    early: Early | None
    """Why it ended, with a checkpoint, before its time."""


class Reached(NamedTuple):
    """How far training has come."""

    epochs: int
    """Whole epochs done, and validated."""
    step: int
    early: Early | None = None


def fit(
    config: Config,
    inputs: Inputs,
    *,
    device: torch.device,
    hooks: Hooks,
    git_commit: str = "unknown",
    max_steps: int | None = None,
    allowed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Outcome:
    """Train from the newest sound checkpoint of the run's folder, or from the beginning, to the end.

    The process group must exist when there is more than one rank. ``max_steps`` ends the run early, with a
    checkpoint, after so many steps in all; a checkpoint is written within ``allowed()``, which may raise.
    Raises ``TrainingError`` on every rank when the loss or a gradient is not finite, ``CheckpointError`` when
    the checkpoint is of other inputs or cannot be written.
    """
    start = find_start(config, inputs, device)
    _tell_start(start, hooks)
    run = prepare(config, inputs, start, device=device, hooks=hooks)
    last = run.num_steps if max_steps is None else min(max_steps, run.num_steps)
    writer = Saver(config, allowed=allowed, news=hooks.progress, before=hooks.keep_records)
    with closing(writer) as saver:

        def save(epochs: int, step: int, metrics: dict[str, float]) -> None:
            _save(run, saver, _state(run, epochs, step, metrics, git_commit))

        reached = _train(run, start, last, save)
        run.profiler.close(reached.step)
        _agree(saver.finish() if rank() == 0 else "", device)
    return Outcome(reached.epochs, reached.step, start.step, start.damaged, reached.early)


def _train(run: Run, start: Start, last: int, save: Save) -> Reached:
    """Steps to ``last``, with validation after whole epochs, and checkpoints."""
    reached = Reached(0 if start.state is None else start.state.epoch, start.step)
    best, observed = start.best, None
    per_epoch = run.loader.num_steps
    while not reached.early:
        if reached.step == (reached.epochs + 1) * per_epoch:
            started = time.perf_counter()
            if observed is None:
                observed = observe(run.inputs, progress=run.hooks.progress)
            metrics = validate(run.model, run.inputs, observed, run.validation_controls, device=run.device)
            metrics["time/validation_s"] = time.perf_counter() - started
            reached = reached._replace(epochs=reached.epochs + 1)
            run.hooks.metrics(metrics, reached.step)  # first: a checkpoint keeps all that was logged before
            if reached.step == last or metrics[SCORE] > best or _due(run, reached):
                save(*reached[:2], metrics)
            best = metrics[SCORE] if metrics[SCORE] > best else best
            run.hooks.epoch(metrics, reached.epochs)
        if reached.step >= last:
            break
        reached = _steps_of_epoch(run, reached, min(last, (reached.epochs + 1) * per_epoch), save)
    return reached


def _steps_of_epoch(run: Run, reached: Reached, until: int, save: Save) -> Reached:
    """Steps to ``until``, all of one epoch, or to the one after which training ends early."""
    run.engine.module.train()
    run.watch.restart()
    epoch, per_epoch = reached.epochs, run.loader.num_steps
    minibatches = cast(Generator[Minibatch], run.loader.epoch(epoch, reached.step - epoch * per_epoch))
    with closing(minibatches):
        while reached.step < until and not reached.early:
            with run.profiler.step(reached.step + 1):
                word = one_step(run, minibatches, reached.step)
            reached = Reached(epoch, reached.step + 1, _early(run, word))
            run.hooks.progress("train", reached.step, run.num_steps)
            within = reached.step % per_epoch != 0  # at the epoch's end validation comes first
            if reached.early or (within and (reached.step == until or _due_within(run, reached.step))):
                save(*reached[:2], {})
    return reached


def _early(run: Run, word: Word) -> Early | None:
    """Why to end now, if there is a reason; the same on every rank."""
    if word.told_to_stop:
        return "told to stop"
    return "a node leaves" if word.time_to_ask and run.hooks.node_leaves() else None


def _due(run: Run, reached: Reached) -> bool:
    """Whether a checkpoint is wanted after this epoch, however good the weights are."""
    return reached.epochs % run.config.train.checkpoint_every_epochs == 0 or _due_within(run, reached.step)


def _due_within(run: Run, step: int) -> bool:
    every = run.config.train.checkpoint_every_steps
    return every is not None and step % every == 0


def _tell_start(start: Start, hooks: Hooks) -> None:
    """News of where this start begins, and why not later."""
    for line in start.damaged:
        hooks.progress(f"a damaged checkpoint is passed over: {line}", 0, 0)
    if start.folder is not None:
        hooks.progress(f"going on from step {start.step:,} ({start.folder.name})", 0, 0)
    elif start.damaged:
        hooks.progress("no checkpoint is sound: beginning anew", 0, 0)


def _state(run: Run, epochs: int, step: int, metrics: dict[str, float], git_commit: str) -> RunState:
    return RunState(
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


def _save(run: Run, saver: Saver, state: RunState) -> None:
    """All ranks gather the state, rank 0 begins to write it; if the last one failed, every rank fails."""
    started = time.perf_counter()
    _agree(saver.settle() if rank() == 0 else "", run.device)
    weights, optimiser = engine.weights(run.engine), engine.optimiser_state(run.engine)
    if rank() == 0:
        saver.begin(state, weights=weights, optimiser=optimiser)
    run.hooks.metrics({"time/checkpoint_s": time.perf_counter() - started}, state.step)


def _agree(failure: str, device: torch.device) -> None:
    """Raise rank 0's failure on every rank."""
    failure = broadcast_text(failure, device=device)
    if failure:
        raise CheckpointError(failure)
