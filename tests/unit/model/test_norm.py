import pytest
import torch
from torch import Tensor, nn

from txpert_dist.model.norm import GlobalBatchNorm, norm_layer


def pair(width: int, dtype: torch.dtype = torch.float64) -> tuple[GlobalBatchNorm, nn.BatchNorm1d]:
    ours, theirs = GlobalBatchNorm(width).to(dtype), nn.BatchNorm1d(width).to(dtype)
    with torch.no_grad():
        for mine, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
            mine.copy_(other.copy_(torch.randn(width)))
    return ours, theirs


def test_equals_torch_in_training_gradient_running_statistics_and_evaluation():
    torch.manual_seed(0)
    ours, theirs = pair(7)
    for step in range(4):
        x_BN = (torch.randn(5 + step, 7, dtype=torch.float64) * 3 + 10).requires_grad_()
        y_BN = x_BN.detach().clone().requires_grad_()
        weight_BN = torch.randn(5 + step, 7, dtype=torch.float64)
        for norm, rows in ((ours, x_BN), (theirs, y_BN)):
            norm.zero_grad()
            (norm(rows) * weight_BN).sum().backward()
        close(ours(x_BN), theirs(y_BN))
        for mine, other in ((x_BN, y_BN), (ours.weight, theirs.weight), (ours.bias, theirs.bias)):
            assert mine.grad is not None
            assert other.grad is not None
            close(mine.grad, other.grad)
        assert theirs.running_mean is not None
        assert theirs.running_var is not None
        close(ours.running_mean, theirs.running_mean)
        close(ours.running_variance, theirs.running_var)
    x_BN = torch.randn(3, 7, dtype=torch.float64)
    close(ours.eval()(x_BN), theirs.eval()(x_BN))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_large_mean_costs_no_precision():
    torch.manual_seed(0)
    x_BN = torch.randn(64, 3) + 1e4
    exact_BN = nn.BatchNorm1d(3).double()(x_BN.double())
    torch.testing.assert_close(GlobalBatchNorm(3)(x_BN).double(), exact_BN, rtol=0, atol=2e-3)


def test_statistics_stay_single_precision_under_autocast():
    torch.manual_seed(0)
    norm = GlobalBatchNorm(3)
    x_BN = torch.randn(64, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_BN = norm(x_BN)
    assert y_BN.dtype == torch.float32
    torch.testing.assert_close(y_BN, nn.BatchNorm1d(3)(x_BN.float()))


def test_one_row_normalises_to_the_bias_and_no_row_to_none():
    norm = GlobalBatchNorm(3)
    assert torch.equal(norm(torch.randn(1, 3)), torch.zeros(1, 3))
    assert norm.running_variance.isfinite().all()
    assert norm.eval()(torch.randn(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("kind", "expected"), [("batch", GlobalBatchNorm), ("layer", nn.LayerNorm), ("none", nn.Identity)]
)
def test_configuration_chooses(kind, expected):
    assert isinstance(norm_layer(kind, 4), expected)
