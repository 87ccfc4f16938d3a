"""The learning rate against torch's own schedulers and its closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.config import Optimiser
from txpert_dist.train.schedule import learning_rate_factor, schedule, warmup_steps


def test_agrees_with_torch_linear_then_cosine():
    num_steps, num_warmup, peak, lowest = 40, 10, 0.1, 0.01
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=peak)
    rise = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / num_warmup, 1.0, total_iters=num_warmup - 1)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps - num_warmup, eta_min=lowest)
    expected = torch.optim.lr_scheduler.SequentialLR(optimiser, [rise, fall], milestones=[num_warmup])
    ours = schedule(
        Optimiser(learning_rate=peak, minimum_learning_rate=lowest, warmup_fraction=num_warmup / num_steps),
        num_steps=num_steps,
    )
    for step in range(num_steps):
        assert peak * ours(step) == pytest.approx(expected.get_last_lr()[0], rel=1e-6), step
        optimiser.step()
        expected.step()


@given(
    num_steps=st.integers(1, 500),
    fraction=st.floats(0, 1),
    floor=st.floats(0, 1),
    start=st.integers(0, 499),
)
def test_resuming_continues_on_the_same_curve_between_its_bounds(num_steps, fraction, floor, start):
    optimiser = Optimiser(learning_rate=1.0, minimum_learning_rate=floor, warmup_fraction=fraction)
    whole = schedule(optimiser, num_steps=num_steps)
    resumed = schedule(optimiser, num_steps=num_steps, start_step=start)
    num_warmup = warmup_steps(num_steps, fraction)
    for step in range(start, num_steps):
        assert resumed(step - start) == whole(step)
        assert 0 <= whole(step) <= 1
    after = [whole(step) for step in range(num_warmup, num_steps + 3)]
    assert after == sorted(after, reverse=True)


def test_closed_form_at_the_marks():
    def factor(step):
        return learning_rate_factor(step, num_steps=110, num_warmup=10, floor=0.2)

    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(10) == 1.0
    assert factor(60) == pytest.approx(0.6)
    assert factor(35) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(110) == pytest.approx(0.2)
    assert factor(1000) == pytest.approx(0.2)
