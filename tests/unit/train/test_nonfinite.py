"""Naming what is not finite."""

import pytest
import torch
from torch import nn

from txpert_dist.train.batch import DenseBatch
from txpert_dist.train.nonfinite import culprit

CPU = torch.device("cpu")


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.basal = nn.Linear(3, 2)
        self.perturbation = nn.Embedding(4, 2)
        self.decoder = nn.Linear(2, 3)


@pytest.fixture
def parts():
    return Parts()


def batch(**changed):
    made = DenseBatch(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 1, dtype=torch.int32))
    return made._replace(**changed)


def unreached():
    raise AssertionError("the loss is not needed to tell")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["control_BN", "observed_BG"])
def test_input(parts, bad, field):
    with torch.no_grad():
        parts.decoder.bias[0] = bad  # input comes first
    poisoned = torch.ones(2, 3)
    poisoned[1, 2] = bad
    assert culprit(parts, batch(**{field: poisoned}), unreached, device=CPU) == "the input data"


def test_parameters(parts):
    with torch.no_grad():
        parts.perturbation.weight[3, 1] = float("inf")
    assert culprit(parts, batch(), unreached, device=CPU) == "the parameters of perturbation"
    with torch.no_grad():
        parts.decoder.bias[0] = float("nan")
    assert culprit(parts, batch(), unreached, device=CPU) == "the parameters of perturbation, decoder"


def test_gradient(parts):
    def loss():
        return (parts.perturbation.weight * 0).sum().sqrt() + parts.decoder.bias.sum()

    assert torch.isfinite(loss())
    assert culprit(parts, batch(), loss, device=CPU) == "the gradient of perturbation"
    assert all(parameter.grad is None for parameter in parts.parameters())


def test_nothing_found(parts):
    assert culprit(parts, batch(), lambda: parts.decoder.bias.sum(), device=CPU) == "the loss itself"
