import pytest
import torch
from torch import Tensor, distributions

from txpert_dist import config
from txpert_dist.model.basal import build_basal, normal_divergence
from txpert_dist.model.dropout import DropoutKey, cell_normal

KEY = DropoutKey(seed=2, step=7, first_row=0)
VAE = config.VaeBasal(hidden=16)


def build(basal, width=20, **changed):
    torch.manual_seed(0)
    model = config.Model(latent=6, basal=basal, **changed)
    return build_basal(model, width).double()


def cells(num_cells=9, width=20):
    return torch.rand(num_cells, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize(
    ("basal", "width"), [(config.MlpBasal(hidden=16), 20), (config.EmbeddingBasal(key="X_pca", hidden=16), 7)]
)
def test_a_perceptron_on_expression_or_embedding(basal, width):
    module = build(basal, width, norm="none")
    control_BN = cells(width=width)
    perceptron = module.perceptron
    hidden_BN = control_BN @ perceptron.first.weight.T + perceptron.first.bias
    hidden_BN = torch.maximum(hidden_BN, 0.01 * hidden_BN)
    expected_BD = hidden_BN @ perceptron.last.weight.T + perceptron.last.bias
    state = module(control_BN)
    torch.testing.assert_close(state.state_BD, expected_BD)
    assert state.divergence_B is None
    assert not torch.equal(module(control_BN, KEY).state_BD, state.state_BD)


def test_identity_has_no_state_and_nothing_to_learn():
    module = build(config.IdentityBasal())
    state = module(cells(), KEY)
    assert torch.equal(state.state_BD, torch.zeros(9, 6, dtype=torch.float64))
    assert state.divergence_B is None
    assert list(module.parameters()) == []


def heads(module, control_BN) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by the formula, without dropout and norm."""
    hidden_BN = control_BN @ module.trunk.first.weight.T + module.trunk.first.bias
    hidden_BN = torch.maximum(hidden_BN, 0.01 * hidden_BN)
    mean_BD = hidden_BN @ module.mean.weight.T + module.mean.bias
    return mean_BD, ((hidden_BN @ module.log_variance.weight.T + module.log_variance.bias) / 2).exp()


def test_variational_equals_torch_distributions_in_state_divergence_and_gradient():
    module = build(VAE, norm="none", dropout=0.0)
    control_BN = cells().requires_grad_()
    mean_BD, deviation_BD = heads(module, control_BN)
    expected_BD = mean_BD + cell_normal(mean_BD, 0, KEY) * deviation_BD
    expected_B = distributions.kl_divergence(
        distributions.Normal(mean_BD, deviation_BD),
        distributions.Normal(torch.zeros_like(mean_BD), torch.ones_like(mean_BD)),
    ).sum(1)
    state_BD, divergence_B = module(control_BN, KEY)
    torch.testing.assert_close(state_BD, expected_BD, rtol=0, atol=1e-12)
    torch.testing.assert_close(divergence_B, expected_B, rtol=0, atol=1e-12)
    inputs = [control_BN, *module.parameters()]
    ours = torch.autograd.grad(state_BD.square().sum() + divergence_B.sum(), inputs)
    theirs = torch.autograd.grad(expected_BD.square().sum() + expected_B.sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_variational_without_a_key_is_the_mean_every_time():
    module = build(VAE).eval()
    control_BN = cells()
    one, again = module(control_BN), module(control_BN)
    assert torch.equal(one.state_BD, again.state_BD)
    assert torch.equal(one.state_BD, module.mean(module.trunk(control_BN)))
    assert torch.equal(one.divergence_B, again.divergence_B)


def test_variational_draws_have_the_mean_and_the_deviation():
    module = build(VAE, norm="none", dropout=0.0)
    control_BN = cells()
    mean_BD, deviation_BD = heads(module, control_BN)
    with torch.no_grad():
        keys = [KEY._replace(step=step) for step in range(4000)]
        drawn_RBD = torch.stack([module(control_BN, key).state_BD for key in keys])
    standard_RBD = (drawn_RBD - mean_BD) / deviation_BD
    assert standard_RBD.mean(0).abs().max() < 5 / 4000**0.5
    assert (standard_RBD.var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("cut", [0, 4, 9])
def test_workers_draw_what_one_draws(cut):
    module = build(VAE, norm="layer")
    control_BN = cells()
    whole = module(control_BN, KEY._replace(first_row=5))
    parts = [
        module(control_BN[:cut], KEY._replace(first_row=5)),
        module(control_BN[cut:], KEY._replace(first_row=5 + cut)),
    ]
    for field in ("state_BD", "divergence_B"):
        together = torch.cat([getattr(part, field) for part in parts])
        torch.testing.assert_close(together, getattr(whole, field), rtol=0, atol=1e-12)


def test_divergence_is_zero_at_the_prior_and_exact_beside_it():
    zero_BD = torch.zeros(1, 3)
    assert normal_divergence(zero_BD, zero_BD).item() == 0
    # second order of e^v - 1 - v: single precision would lose it in (1 + v) - e^v
    near = normal_divergence(torch.zeros(1, 1), torch.full((1, 1), 1e-3)).item()
    assert near == pytest.approx(0.25e-6, rel=1e-3)


def test_variational_state_is_single_precision_under_autocast():
    module = build(VAE).float()
    control_BN = cells().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state_BD, divergence_B = module(control_BN, KEY)
    assert state_BD.dtype == divergence_B.dtype == torch.float32
    exact_BD = module(control_BN, KEY).state_BD
    assert (state_BD - exact_BD).abs().max() < 0.1


def test_a_variance_that_overflows_is_seen_in_the_divergence():
    module = build(VAE).float()
    with torch.no_grad():
        module.log_variance.bias.fill_(100)
    assert module(cells().float(), KEY).divergence_B.isinf().all()
