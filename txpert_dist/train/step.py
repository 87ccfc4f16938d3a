"""One optimiser step of all ranks together.

Enters: a ready ``Run``, the loader's iterator, the step's number. Leaves: a changed model, and metrics now
and then. Invariants: the loss is the mean over the global minibatch and all genes of (prediction -
observation)^2 in single precision; a loss or gradient that is not finite stops every rank, parameters
untouched.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from txpert_dist.errors import TrainingError
from txpert_dist.minibatch import Minibatch
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.train import engine
from txpert_dist.train.batch import DenseBatch, dense_batch
from txpert_dist.train.collective import rank, sum_in_place, world_size
from txpert_dist.train.nonfinite import culprit
from txpert_dist.train.run import Run


class _Global(NamedTuple):
    """Sums over ranks."""

    squared: float
    cells: float


def one_step(run: Run, minibatches: Iterator[Minibatch], step: int) -> None:
    """Take step number ``step`` (from 0). Raises ``TrainingError`` on every rank; see this module."""
    measured = (step + 1) % run.config.train.log_every == 0
    with run.watch.lap("data_wait", measured=measured):
        minibatch = next(minibatches)
    with run.watch.lap("to_device", measured=measured):
        batch = dense_batch(minibatch, run.controls, device=run.device)
    share = run.config.train.minibatch_size // world_size()
    key = DropoutKey(run.config.seed, step, rank() * share)
    with run.watch.lap("forward", measured=measured):
        squared = _squared_error(run, batch, key)
        total = _sum(squared, len(batch.observed_BG))
    values = total.cells * len(run.inputs.genes)
    loss = total.squared / values
    if not math.isfinite(loss):
        raise _not_finite(run, batch, key, f"the loss is {loss}")
    with run.watch.lap("backward", measured=measured):
        # DeepSpeed averages gradients over ranks: times their number, it is the global mean's gradient
        engine.backward(run.engine, squared * (world_size() / values))
    rate = run.engine.learning_rate
    with run.watch.lap("optimiser", measured=measured):
        stepped = engine.step(run.engine)
    if not stepped.taken:
        raise _not_finite(run, batch, key, f"the loss is {loss:.6g}, its gradient is not finite")
    run.watch.count(round(total.cells))
    if measured:
        metrics = {"train/loss": loss, "train/learning_rate": rate}
        metrics |= {"train/gradient_norm": stepped.gradient_norm} | run.watch.report()
        run.hooks.metrics(metrics, step + 1)


def _squared_error(run: Run, batch: DenseBatch, key: DropoutKey) -> Tensor:
    """Sum over this rank's cells and all genes of (prediction - observation)^2."""
    predicted_BG = run.engine.deepspeed(batch.control_BG, batch.perturbations_BM, key)
    squared: Tensor = (predicted_BG.float() - batch.observed_BG).square().sum()
    return squared


def _sum(squared: Tensor, cells: int) -> _Global:
    own = torch.stack([squared.detach().double(), squared.new_tensor(cells, dtype=torch.float64)])
    return _Global(*sum_in_place(own).tolist())


def _not_finite(run: Run, batch: DenseBatch, key: DropoutKey, what: str) -> TrainingError:
    def again() -> Tensor:
        # the plain model: DeepSpeed's hooks would take a second backward of one step for another step
        z_PD = run.model.perturbation_embeddings(key)
        predicted_BG = run.model.decode(batch.control_BG, batch.perturbations_BM, z_PD, key)
        return (predicted_BG - batch.observed_BG).square().sum()

    where = culprit(run.model, batch, again, device=run.device)
    return TrainingError(
        f"step {key.step + 1}: {what}; not finite: {where}. The step was not taken; "
        "lower optimiser.learning_rate, or check the cells with `txpert store verify`"
    )
