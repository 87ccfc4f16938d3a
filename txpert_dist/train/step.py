"""One optimiser step of all ranks together.

Enters: a ready ``Run``, the loader's iterator, the step's number. Leaves: a changed model, and metrics now
and then. Invariants: the loss is the mean over the global minibatch and all genes of (prediction -
observation)^2 in single precision, with a variational basal encoder plus its weighted divergence; a loss or
gradient that is not finite stops every rank, parameters untouched.

With weight 1 the loss is, up to a constant, 2/G times the negative evidence bound of a Gaussian of unit
variance: -log N(y; yhat, 1) = (y - yhat)^2 / 2 + const., so a cell's bound is the divergence plus the sum
over genes of (y - yhat)^2 / 2; times 2/G: 2/G * divergence + mean over genes of (y - yhat)^2.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from txpert_dist.config import VaeBasal
from txpert_dist.errors import TrainingError
from txpert_dist.minibatch import Minibatch
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.reach import Reach
from txpert_dist.model.txpert import Embeddings, Prediction, TxPert
from txpert_dist.train import engine
from txpert_dist.train.batch import DenseBatch, dense_batch
from txpert_dist.train.collective import rank, sum_in_place, world_size
from txpert_dist.train.needed import Needed, needed_by, placed
from txpert_dist.train.nonfinite import culprit
from txpert_dist.train.parts import Gathered, Part, gathered, in_parts
from txpert_dist.train.run import Run


class Terms(NamedTuple):
    """What the loss is made of: sums over cells of one rank."""

    squared: Tensor
    """Over all genes too, of (prediction - observation)^2."""
    divergence: Tensor
    """Of the basal states; 0 unless the basal encoder is variational."""

    def objective(self, weight: float) -> Tensor:
        """Their sum, the divergence at ``weight``."""
        return self.squared + 2 * weight * self.divergence


class Word(NamedTuple):
    """What ranks have to say beside the numbers; the same on every rank."""

    told_to_stop: bool
    """Whether a rank was."""
    time_to_ask: bool
    """Whether it is time that all ask for nodes that leave."""


class _Work(NamedTuple):
    """What a rank does in a step."""

    step: int
    parts: list[Part]
    needed: Needed


class _Global(NamedTuple):
    """Sums over ranks."""

    squared: float
    divergence: float
    cells: float
    told_to_stop: float
    """How many ranks were."""
    time_to_ask: float
    """How many ranks say so."""


def one_step(run: Run, minibatches: Iterator[Minibatch], step: int) -> Word:
    """Take step number ``step`` (from 0) and hear what the ranks say.

    Raises ``TrainingError`` on every rank; see this module.
    """
    measured = (step + 1) % run.config.train.log_every == 0
    with run.watch.lap("data_wait", measured=measured):
        minibatch = next(minibatches)
    with run.watch.lap("reach", measured=measured):
        needed = run.needed or needed_by(run.model, minibatch.perturbations_BM, run.depths, run.shares)
        minibatch = placed(minibatch, needed)
    with run.watch.lap("to_device", measured=measured):
        batch = dense_batch(minibatch, run.controls, device=run.device)
    share = run.config.train.minibatch_size // world_size()
    key = DropoutKey(run.config.seed, step, rank() * share)
    work = _Work(step, in_parts(batch, key, run.config.train.accumulation), needed)
    objective, z_PD, total = _forward(run, work, measured=measured)
    values = total.cells * len(run.inputs.genes)
    loss = (total.squared + 2 * _weight(run, step) * total.divergence) / values
    if not math.isfinite(loss):
        raise _not_finite(run, batch, work, f"the loss is {loss}")
    with run.watch.backward(z_PD, measured=measured):
        # DeepSpeed averages gradients over ranks: times their number, it is the global mean's gradient
        engine.backward(run.engine, objective * (world_size() / values))
    rate = run.engine.learning_rate
    with run.watch.lap("optimiser", measured=measured):
        stepped = engine.step(run.engine)
    if not stepped.taken:
        raise _not_finite(run, batch, work, f"the loss is {loss:.6g}, its gradient is not finite")
    run.watch.count(round(total.cells))
    if measured:
        metrics = {"train/loss": loss, "train/learning_rate": rate}
        metrics |= {"train/gradient_norm": stepped.gradient_norm} | _parts(run, total) | run.watch.report()
        run.hooks.metrics(metrics, step + 1)
    return Word(total.told_to_stop > 0, total.time_to_ask > 0)


def loss_terms(prediction: Prediction, batch: DenseBatch) -> Terms:
    """Sums over this rank's cells."""
    squared = (prediction.expression_BG.float() - batch.observed_BG).square().sum()
    divergence_B = prediction.divergence_B
    return Terms(squared, squared.new_zeros(()) if divergence_B is None else divergence_B.sum())


def divergence_weight(basal: VaeBasal, step: int, *, num_steps: int) -> float:
    """Weight of the divergence at ``step`` (from 0) of ``num_steps``: rises linearly, then stays.

    Like the learning rate it begins one step above 0: at 0 nothing would determine the means' common shift,
    which batch normalisation cancels, and AdamW would take a full step along rounding noise.
    """
    rising = basal.annealing_fraction * num_steps
    return basal.divergence_weight * (min(1.0, (step + 1) / rising) if rising else 1.0)


def _forward(run: Run, work: _Work, *, measured: bool) -> tuple[Tensor, Tensor | None, _Global]:
    """What to take the gradient of, Z where it is made before, and the sums over the global minibatch.

    The objective is that of this rank's cells: its gradient is, its value only where there is one part.
    """
    *earlier, last = work.parts
    weight, seen = _weight(run, work.step), []

    def objective(part: Part, z_PD: Tensor) -> Tensor:
        with engine.precision(run.engine):
            terms = _terms(run.model.forward, part, _handed(run, z_PD))
        seen.append(Terms(*(term.detach() for term in terms)))
        return terms.objective(weight)

    if run.engine.stage == 3:  # which hands out parameters within DeepSpeed's forward alone
        with run.watch.lap("forward", measured=measured):
            seen.append(_terms(run.engine.deepspeed, last, None, work.needed.reaches))
            total = _sum(run, seen, len(last.batch.observed_BG))
            return seen[-1].objective(weight), None, total
    with run.watch.lap("forward_gnn", measured=measured):
        z_PD = _embeddings(run, work)
    gradient = Gathered()
    if earlier:
        with run.watch.lap("earlier_parts", measured=measured):
            gradient = gathered(objective, earlier, z_PD, _without_encoder(run.model))
    with run.watch.lap("forward_cells", measured=measured):
        # DeepSpeed sees one forward and one backward a step
        seen.append(_terms(run.engine.deepspeed, last, _handed(run, z_PD)))
        total = _sum(run, seen, sum(len(part.batch.observed_BG) for part in work.parts))
        return seen[-1].objective(weight) + gradient.inner_product(), z_PD, total


def _embeddings(run: Run, work: _Work) -> Tensor:
    """z_PD, in single precision: what the parts give to it is added up."""
    if run.captured is not None:
        return run.captured.begin(work.step)
    with engine.precision(run.engine):
        return run.model.perturbation_embeddings(work.parts[-1].key, work.needed.reaches).float()


def _handed(run: Run, z_PD: Tensor) -> Embeddings:
    """For the model, which asks when the basal states are there."""
    return z_PD if run.captured is None else partial(run.captured.joined, z_PD)


def _terms(
    model: Callable[..., Prediction], part: Part, z_PD: Embeddings | None, reaches: Sequence[Reach] = ()
) -> Terms:
    control_BN, _, perturbations_BM = part.batch
    return loss_terms(model(control_BN, perturbations_BM, part.key, z_PD, reaches), part.batch)


def _without_encoder(model: TxPert) -> list[Tensor]:
    """Learned parameters that act on cells."""
    encoder = {id(parameter) for parameter in model.perturbation.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in encoder]


def _weight(run: Run, step: int) -> float:
    basal = run.config.model.basal
    return divergence_weight(basal, step, num_steps=run.num_steps) if isinstance(basal, VaeBasal) else 0.0


def _sum(run: Run, seen: Sequence[Terms], cells: int) -> _Global:
    squared, divergence = (
        torch.stack([x.detach().double() for x in part]).sum() for part in zip(*seen, strict=True)
    )
    said = (cells, run.hooks.told_to_stop(), run.hooks.time_to_ask())
    counts = (squared.new_tensor(number) for number in said)
    return _Global(*sum_in_place(torch.stack([squared, divergence, *counts])).tolist())


def _parts(run: Run, total: _Global) -> dict[str, float]:
    """The loss's parts where it has two: mean squared error, and mean divergence of a cell."""
    if not isinstance(run.config.model.basal, VaeBasal):
        return {}
    return {
        "train/squared_error": total.squared / (total.cells * len(run.inputs.genes)),
        "train/divergence": total.divergence / total.cells,
    }


def _not_finite(run: Run, batch: DenseBatch, work: _Work, what: str) -> TrainingError:
    def again() -> Tensor:
        # not through a call: DeepSpeed's hooks would take a second backward of one step for another step
        z_PD = run.model.perturbation_embeddings(work.parts[0].key, work.needed.reaches)
        weight = _weight(run, work.step)
        objectives = [_terms(run.model.forward, part, z_PD).objective(weight) for part in work.parts]
        return torch.stack(objectives).sum()

    where = culprit(run.model, batch, again, device=run.device)
    return TrainingError(
        f"step {work.step + 1}: {what}; not finite: {where}. The step was not taken; "
        "lower optimiser.learning_rate, or check the cells with `txpert store verify`"
    )
