from itertools import count
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.model.attention_oracles import (
    assert_same,
    by_formula,
    draw_parameters,
    plain_stack,
    random_edge_list,
)
from txpert_dist import config
from txpert_dist.model.attention.graph_dropout import graph_dropout
from txpert_dist.model.attention.layers import Gatv1Layer, Gatv2Layer
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.stack import Stack, attention_stack

SKIPS = get_args(config.Skip)
NUM_NODES = 9


class LinearLayer(nn.Linear):
    """The least that a stack takes for a layer: no node hears of another."""

    def __init__(self, inputs: int, width: int = 6) -> None:
        super().__init__(inputs, width)
        self.width = width

    def forward(
        self, x_PN: Tensor, key: DropoutKey | None = None, edges: None = None, gather: None = None
    ) -> Tensor:
        return super().forward(x_PN)


def linear_stack(skip: str, norm: str = "none", dropout: float = 0.0) -> Stack:
    options = config.GraphLayers(layers=3, hidden=6, skip=skip, norm=norm, dropout=dropout)
    stack = Stack(options, LinearLayer, width=3, sites=count()).double()
    draw_parameters(stack, 0)
    return stack


def nodes(width: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_NODES, width, dtype=torch.float64, generator=generator).requires_grad_()


def run_plainly(number: int, layer: nn.Module, x_PN: Tensor) -> Tensor:
    return x_PN @ layer.weight.T + layer.bias


def learning(module: nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", get_args(config.NormKind))
@pytest.mark.parametrize("skip", SKIPS)
def test_equals_the_formula(skip, norm, training):
    stack, x_PN = linear_stack(skip, norm).train(training), nodes()
    widths = {"concat": 21, "concat_learned": 12}
    assert stack.width == widths.get(skip, 6)
    if norm == "batch":
        for one in stack.norms:
            one.running_mean.normal_()
            one.running_variance.uniform_(0.5, 2)
    expected_PN = plain_stack(stack, x_PN, run_plainly, [])
    assert_same(stack(x_PN), expected_PN, [x_PN, *learning(stack)])


@pytest.mark.parametrize("skip", ["concat_learned", "sum"])
def test_dropout_is_one_mask_a_layer_equal_on_all_workers(skip):
    stack, x_PN, key = linear_stack(skip, dropout=0.4), nodes(), DropoutKey(3, 7, 0)
    ones_PN = x_PN.new_ones(NUM_NODES, stack.width)
    masks = [graph_dropout(ones_PN, 0.4, site, key) for site in range(3)]
    assert_same(stack(x_PN, key), plain_stack(stack, x_PN, run_plainly, masks), [x_PN, *learning(stack)])
    assert torch.equal(stack(x_PN, key), stack(x_PN, key._replace(first_row=32)))
    assert not torch.allclose(stack(x_PN, key), stack(x_PN, key._replace(step=8)))


def test_batch_norm_is_torchs_over_the_nodes():
    stack, x_PN = linear_stack("none", "batch"), nodes()
    oracle = nn.BatchNorm1d(6).double()
    expected_PN = x_PN
    for layer, norm in zip(stack.layers, stack.norms, strict=True):
        with torch.no_grad():
            oracle.weight.copy_(norm.weight)
            oracle.bias.copy_(norm.bias)
        oracle.reset_running_stats()
        expected_PN = functional.leaky_relu(oracle(layer(expected_PN)), 0.01)
    torch.testing.assert_close(stack(x_PN), expected_PN, rtol=1e-9, atol=1e-9)
    last = stack.norms[2]
    torch.testing.assert_close(last.running_mean, oracle.running_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(last.running_variance, oracle.running_var, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(stack.eval()(x_PN), expected_PN)


@pytest.mark.parametrize("skip", SKIPS)
def test_biases_that_batch_norm_cancels_do_not_learn(skip):
    stack, x_PN = linear_stack(skip, "batch"), nodes()
    fixed = [layer.bias for layer in stack.layers]
    fixed += [module.bias for module in stack.skips if isinstance(module, nn.Linear)]
    assert len(fixed) == (6 if skip.endswith("learned") else 3)
    everything = {id(parameter) for parameter in stack.parameters()}
    assert everything - {id(parameter) for parameter in learning(stack)} == {id(bias) for bias in fixed}
    for bias in fixed:
        bias.requires_grad_(True)
    target_PN = torch.randn(NUM_NODES, stack.width, dtype=torch.float64)
    (stack(x_PN) - target_PN).square().sum().backward()
    for bias in fixed:
        assert bias.grad is not None
        assert bias.grad.abs().max() < 1e-10
    assert min(norm.bias.grad.abs().max() for norm in stack.norms) > 1e-3


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_every_bias_learns_without_batch_norm(norm):
    stack = linear_stack("sum_learned", norm)
    assert len(learning(stack)) == len(list(stack.parameters()))
    stack(nodes()).square().sum().backward()
    assert all(layer.bias.grad.abs().max() > 1e-6 for layer in stack.layers)


def test_sum_refuses_what_does_not_fit():
    options = config.GraphLayers(layers=1, hidden=6, skip="sum")
    with pytest.raises(ValueError, match="skip=sum cannot fill a layer of width 6 with an input of width 4"):
        Stack(options, LinearLayer, width=4, sites=count())


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("version", "layer_class"), [(1, Gatv1Layer), (2, Gatv2Layer)])
def test_attention_dropout_multiplies_the_weights(version, layer_class, weights):
    options = config.Gat(
        version=version,
        layers=2,
        hidden=4,
        node_features=4,
        dropout=0.3,
        attention_dropout=0.4,
        edge_weights=weights,
    )
    edges, sites, key = random_edge_list(NUM_NODES, 40, 0), count(), DropoutKey(3, 7, 0)
    stack = attention_stack(options, edges, NUM_NODES, width=4, sites=sites).double()
    assert next(sites) == 4
    draw_parameters(stack, 0)
    assert all(isinstance(layer, layer_class) for layer in stack.layers)
    ones_EH = torch.ones(len(edges.weight_EK), 2, dtype=torch.float64)
    keeps = [graph_dropout(ones_EH, 0.4, site, key) for site in (0, 2)]
    masks = [
        graph_dropout(torch.ones(NUM_NODES, width, dtype=torch.float64), 0.3, site, key)
        for width, site in ((12, 1), (20, 3))
    ]
    x_PN = nodes(4)
    expected_PN = plain_stack(
        stack, x_PN, lambda number, layer, x_PN: by_formula(layer, x_PN, keeps[number]), masks
    )
    assert_same(stack(x_PN, key), expected_PN, [x_PN, *learning(stack)])
    assert torch.equal(stack(x_PN, key), stack(x_PN, key._replace(first_row=32)))
    without_PN = plain_stack(stack, x_PN, lambda number, layer, x_PN: by_formula(layer, x_PN), [])
    torch.testing.assert_close(stack(x_PN), without_PN, rtol=1e-9, atol=1e-9)


def test_the_graph_is_held_once_and_is_not_in_the_checkpointed_state():
    edges = random_edge_list(NUM_NODES, 40, 0)
    stack = attention_stack(config.Gat(edge_weights=True), edges, NUM_NODES, width=4, sites=count())
    # the edges' weights; by target and by source three tensors of edges and five of virtual rows
    assert len(list(stack.buffers())) == 17
    assert set(stack.state_dict()) == {name for name, _ in stack.named_parameters()}
