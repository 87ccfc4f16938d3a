import torch

from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.perceptron import Perceptron


def test_is_linear_norm_leaky_linear():
    torch.manual_seed(0)
    perceptron = Perceptron(5, 8, 3, norm="batch", dropout=0.5, layer=0).double()
    x_BN = torch.randn(6, 5, dtype=torch.float64)
    hidden_BN = x_BN @ perceptron.first.weight.T + perceptron.first.bias
    normed_BN = (hidden_BN - hidden_BN.mean(0)) / (hidden_BN.var(0, unbiased=False) + 1e-5).sqrt()
    leaky_BN = torch.maximum(normed_BN, 0.01 * normed_BN)
    expected_BN = leaky_BN @ perceptron.last.weight.T + perceptron.last.bias
    torch.testing.assert_close(perceptron(x_BN), expected_BN)


def test_dropout_is_switched_by_the_key_and_differs_between_layers():
    torch.manual_seed(0)
    one = Perceptron(5, 8, 3, norm="none", dropout=0.5, layer=0)
    other = Perceptron(5, 8, 3, norm="none", dropout=0.5, layer=1)
    other.load_state_dict(one.state_dict())
    x_BN, key = torch.randn(6, 5), DropoutKey(0, 0, 0)
    assert torch.equal(one(x_BN), other(x_BN))
    assert torch.equal(one(x_BN, key), one(x_BN, key))
    assert not torch.allclose(one(x_BN, key), one(x_BN))
    assert not torch.allclose(one(x_BN, key), other(x_BN, key))
