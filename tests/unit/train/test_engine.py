"""DeepSpeed's engine against plain torch, and its state across ranks and ZeRO stages."""

import itertools

import pytest
import torch
from torch import nn

from tests.processes import run
from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError

pytestmark = pytest.mark.process

NUM_STEPS = 12
RATE, DECAY = 1e-3, 0.2
"""AdamW makes steps of the rounding of a gradient that vanishes, and processors round differently: at a rate
of 1e-2 that comes to the tolerance, at this one to a seventh of it, while the weights move by 7e-3."""
STAGES = (0, 1, 2, 3)
WHOLE = (0, 1, 2)
"""Stages at which parameters are whole between steps."""


def configuration(*, stage=1, world=1, precision="fp32", clipping=0.1, offload=False):
    return Config.model_validate(
        {
            "data": {"store": "store"},
            "graph": {"location": "graphs"},
            "optimiser": {"learning_rate": RATE, "weight_decay": DECAY, "gradient_clipping": clipping},
            "train": {"minibatch_size": 8, "precision": precision},
            "cluster": {"num_workers": world, "zero_stage": stage, "offload_optimizer": offload},
        }
    )


def build_model():
    """Its largest layer is large enough for ZeRO's stage 3 to shard it, and no multiple of 3."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 401), nn.Tanh(), nn.Linear(401, 301), nn.Tanh(), nn.Linear(301, 3))


def minibatch(step):
    generator = torch.Generator().manual_seed(step)
    x_BN = torch.randn(8, 5, generator=generator)
    return x_BN, torch.sin(x_BN[:, :3]) + 2


def train(rank, world, stage, *, start=0, stop=NUM_STEPS, weights=None, state=None, offload=False):
    """Losses of steps start..stop, then weights and optimiser state as plain values."""
    from txpert_dist.train import engine as engines

    model = build_model()
    if weights is not None:
        model.load_state_dict(weights)
    engine = engines.build_engine(
        model,
        configuration(stage=stage, world=world, offload=offload),
        device=torch.device("cpu"),
        num_steps=NUM_STEPS,
        start_step=start,
    )
    engines.restore_optimiser_state(engine, state or {}, steps_taken=start)
    losses = []
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    for step in range(start, stop):
        x_BN, y_BN = minibatch(step)
        loss = (engine.deepspeed(x_BN[share]) - y_BN[share]).square().mean()
        engines.backward(engine, loss)
        assert engines.step(engine).taken
        losses.append(loss.item())
    state = {name: value.numpy() for name, value in engines.optimiser_state(engine).items()}
    return losses, {name: value.numpy() for name, value in engines.weights(engine).items()}, state


def tensors(values):
    return {name: torch.from_numpy(value) for name, value in values.items()}


def resumed(rank, world, stage, weights, state):
    return train(rank, world, stage, start=NUM_STEPS // 2, weights=tensors(weights), state=tensors(state))


def on_two_ranks(rank, world):
    """Everything that two ranks are asked, by stage: one process group for all of it."""
    halves = {stage: train(rank, world, stage, stop=NUM_STEPS // 2) for stage in STAGES}
    return {
        "whole": {stage: train(rank, world, stage) for stage in STAGES},
        "halves": halves,
        "offloaded": {stage: train(rank, world, stage, offload=True) for stage in STAGES[1:]},
        "resumed": {stage: resumed(rank, world, stage, *halves[stage][1:]) for stage in STAGES},
        "poisoned": {stage: poisoned(world, stage) for stage in STAGES},
        "bf16": {stage: bf16_losses(rank, world, stage) for stage in STAGES},
        "parts": {stage: in_parts(rank, world, stage) for stage in WHOLE},
    }


def on_other_ranks(rank, world, halves):
    """What the state of two ranks gives on ``world`` ranks, by (stage before, stage after)."""
    pairs = list(itertools.product(STAGES, STAGES))
    states = {(a, b): restored_state(world, b, *halves[a][1:]) for a, b in pairs}
    if 8 % world:
        return states, {}
    return states, {(a, b): resumed(rank, world, b, *halves[a][1:])[1] for a, b in pairs}


def plain_torch():
    from txpert_dist.train.schedule import schedule

    model = build_model()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, schedule(configuration().optimiser, num_steps=NUM_STEPS)
    )
    for step in range(NUM_STEPS):
        x_BN, y_BN = minibatch(step)
        loss = (model(x_BN) - y_BN).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        scheduler.step()
    return model.state_dict()


def assert_close(values, expected, tolerance):
    assert values.keys() == expected.keys()
    for name, value in values.items():
        torch.testing.assert_close(
            torch.as_tensor(value), torch.as_tensor(expected[name]), rtol=tolerance, atol=tolerance
        )


@pytest.fixture(scope="module")
def two_ranks():
    return run(on_two_ranks, 2)


@pytest.mark.parametrize("stage", STAGES)
def test_takes_the_steps_that_plain_torch_takes(stage, two_ranks):
    for results in two_ranks:
        assert_close(results["whole"][stage][1], plain_torch(), 1e-5)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_an_offloaded_optimiser_takes_the_same_steps(stage, two_ranks):
    for results in two_ranks:
        assert_close(results["offloaded"][stage][1], plain_torch(), 1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bitwise_the_uninterrupted_run(stage, two_ranks):
    for results in two_ranks:
        losses, weights, state = results["whole"][stage]
        losses_again, weights_again, state_again = results["resumed"][stage]
        assert losses_again == losses[NUM_STEPS // 2 :]
        assert_close(weights_again, weights, 0)
        assert_close(state_again, state, 0)
        assert max(abs(value).max() for value in state.values()) > 0


@pytest.mark.parametrize("world", [1, 3])
def test_resume_on_other_ranks_and_stages(world, two_ranks):
    halves = two_ranks[0]["halves"]
    expected = plain_torch()
    for states, weights in run(on_other_ranks, world, halves):
        for (before, _), state in states.items():
            assert_close(state, halves[before][2], 0)
        assert len(weights) == (0 if 8 % world else len(STAGES) ** 2)
        for continued in weights.values():
            assert_close(continued, expected, 1e-5)


def restored_state(world, stage, weights, state):
    from txpert_dist.train import engine as engines

    model = build_model()
    model.load_state_dict(tensors(weights))
    engine = engines.build_engine(
        model, configuration(stage=stage), device=torch.device("cpu"), num_steps=NUM_STEPS
    )
    assert world == torch.distributed.get_world_size()
    engines.restore_optimiser_state(engine, tensors(state), steps_taken=6)
    return {name: value.numpy() for name, value in engines.optimiser_state(engine).items()}


def poisoned(world, stage):
    """A step whose gradient is not finite although the loss is: was it taken, are the weights as before?"""
    from txpert_dist.train import engine as engines

    model = build_model()
    engine = engines.build_engine(
        model, configuration(stage=stage, world=world), device=torch.device("cpu"), num_steps=NUM_STEPS
    )
    before = {name: value.clone() for name, value in engines.weights(engine).items()}
    x_BN, y_BN = minibatch(0)
    # the derivative of the square root is infinite at 0, where the loss itself is finite
    loss = (engine.deepspeed(x_BN) * 0).sum().sqrt() + y_BN.mean()
    assert torch.isfinite(loss)
    engines.backward(engine, loss)
    taken = engines.step(engine).taken
    unchanged = all(torch.equal(before[name], value) for name, value in engines.weights(engine).items())
    return taken, unchanged


@pytest.mark.parametrize("stage", STAGES)
def test_refuses_a_step_whose_gradient_is_not_finite(stage, two_ranks):
    assert [results["poisoned"][stage] for results in two_ranks] == [(False, True)] * 2


def bf16_losses(rank, world, stage):
    from txpert_dist.train import engine as engines

    model = build_model()
    config = configuration(stage=stage, world=world, precision="bf16")
    engine = engines.build_engine(model, config, device=torch.device("cpu"), num_steps=NUM_STEPS)
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    kinds, losses = set(), []
    for step in range(NUM_STEPS):
        x_BN, y_BN = minibatch(step)
        yhat_BN = engine.deepspeed(x_BN[share])
        kinds.add(str(yhat_BN.dtype))
        loss = (yhat_BN.float() - y_BN[share]).square().mean()
        engines.backward(engine, loss)
        assert engines.step(engine).taken
        losses.append(loss.item())
    return kinds, {str(parameter.dtype) for parameter in model.parameters()}, losses


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_is_autocast_over_fp32_parameters(stage, two_ranks):
    for results in two_ranks:
        kinds, of_parameters, losses = results["bf16"][stage]
        assert kinds == {"torch.bfloat16"}
        assert of_parameters == {"torch.float32"}
        assert losses == pytest.approx(results["whole"][stage][0], abs=5e-2)


class Joint(nn.Module):
    """Cells that look up what a costly part of the model made."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.cells = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("table", torch.randn(6, 4))

    def encode(self):
        return torch.tanh(self.encoder(self.table))

    def forward(self, x_BN, z_PD=None):
        z_PD = self.encode() if z_PD is None else z_PD
        return self.cells(x_BN + z_PD[: len(x_BN)])


def squared(prediction_BN, y_BN):
    return (prediction_BN - y_BN).square().sum()


def in_parts(rank, world, stage):
    """Gradient norms and weights of a few steps, a rank's cells in parts of two."""
    from txpert_dist.train import engine as engines
    from txpert_dist.train.parts import gathered

    model = Joint()
    config = configuration(stage=stage, world=world)
    engine = engines.build_engine(model, config, device=torch.device("cpu"), num_steps=NUM_STEPS)
    norms = []
    for step in range(4):
        x_BN, y_BN = (cells[rank * 8 // world : (rank + 1) * 8 // world] for cells in minibatch(step))
        *earlier, last = zip(x_BN.split(2), y_BN.split(2), strict=True)
        z_PD = model.encode()
        before = gathered(
            lambda part, z_PD: squared(model.forward(part[0], z_PD), part[1]),
            *(earlier, z_PD, list(model.cells.parameters())),
        )
        objective = squared(engine.deepspeed(last[0], z_PD), last[1]) + before.inner_product()
        engines.backward(engine, objective * (world / 24))
        stepped = engines.step(engine)
        assert stepped.taken
        norms.append(stepped.gradient_norm)
    return norms, {name: value.numpy() for name, value in model.state_dict().items()}


def in_parts_plainly():
    """The same with one process and torch alone, encoding for every part."""
    from txpert_dist.train.schedule import schedule

    model = Joint()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, schedule(configuration().optimiser, num_steps=NUM_STEPS)
    )
    norms = []
    for step in range(4):
        optimiser.zero_grad()
        for x_BN, y_BN in zip(*(cells.split(2) for cells in minibatch(step)), strict=True):
            (squared(model(x_BN), y_BN) / 24).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1).item())
        optimiser.step()
        scheduler.step()
    return norms, model.state_dict()


@pytest.mark.parametrize("stage", WHOLE)
def test_parts_of_a_minibatch_are_one_step_of_its_gradient(stage, two_ranks):
    """The norm tells of a gradient that is counted twice, which the optimiser would hide."""
    norms, weights = in_parts_plainly()
    for results in two_ranks:
        theirs, their_weights = results["parts"][stage]
        assert theirs == pytest.approx(norms, rel=1e-6)
        assert_close(their_weights, weights, 1e-6)


def misfit(_rank, _world):
    from txpert_dist.train import engine as engines

    engine = engines.build_engine(
        build_model(), configuration(), device=torch.device("cpu"), num_steps=NUM_STEPS
    )
    state = {
        f"{moment}.{name}": torch.zeros_like(value)
        for moment, (name, value) in itertools.product(engines.MOMENTS, build_model().named_parameters())
    }
    state["exp_avg.2.weight"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointError, match=r"parameter 2\.weight has shape \(2, 2\)"):
        engines.restore_optimiser_state(engine, state, steps_taken=1)
    return True


def test_state_of_another_model_is_refused():
    assert run(misfit, 1) == [True]
