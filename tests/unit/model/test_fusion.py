import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from txpert_dist import config
from txpert_dist.model.fusion import MAX_ORDERED, build_fusion, sum_perturbations

LATENT, NUM_NODES = 5, 12
ADDITIVE = config.AdditiveFusion()
BY_NAME = config.SequentialFusion(hidden=7, order="by_name")
ALL = config.SequentialFusion(hidden=7, order="all")


def build(fusion, control_token="none", seed=0):
    torch.manual_seed(seed)
    module = build_fusion(config.Model(latent=LATENT, fusion=fusion, control_token=control_token)).double()
    if control_token == "learned":
        with torch.no_grad():
            module.token_D.normal_()
    return module


def cells(num_cells, width, seed=0, fewest=0):
    """States, perturbations (``fewest`` and more a cell, holes anywhere) and embeddings."""
    random = np.random.default_rng(seed)
    perturbations_BM = np.full((num_cells, width), -1)
    for row_M in perturbations_BM:
        places = random.choice(width, random.integers(fewest, width + 1), replace=False)
        row_M[places] = random.choice(NUM_NODES, len(places), replace=False)
    state_BD, z_PD = (torch.from_numpy(random.standard_normal((n, LATENT))) for n in (num_cells, NUM_NODES))
    return state_BD.requires_grad_(), torch.from_numpy(perturbations_BM), z_PD.requires_grad_()


def transition(module, state_D, z_D):
    hidden_N = module.first.weight @ torch.cat([state_D, z_D]) + module.first.bias
    return state_D + module.last.weight @ torch.maximum(hidden_N, 0.01 * hidden_N)


def one_order(module, state_D, order, z_PD):
    for node in order:
        state_D = transition(module, state_D, z_PD[node])
    return state_D


def plain(fusion, module, state_BD, perturbations_BM, z_PD) -> Tensor:
    """Cell by cell, perturbation by perturbation; all orders are those of the cell's own perturbations."""
    token_D = getattr(module, "token_D", None)
    rule = module if token_D is None else module.fusion
    after = []
    for state_D, row in zip(state_BD, perturbations_BM.tolist(), strict=True):
        nodes = [node for node in row if node >= 0]
        if token_D is not None and len(nodes) < 2:
            state_D = state_D + token_D
        if fusion == ADDITIVE:
            after.append(state_D + sum((z_PD[node] for node in nodes), torch.zeros_like(state_D)))
        else:
            orders = list(itertools.permutations(nodes)) if fusion.order == "all" else [nodes]
            outcomes = [one_order(rule, state_D, order, z_PD) for order in orders]
            after.append(sum(outcomes[1:], outcomes[0]) / len(outcomes))
    return torch.stack(after)


@pytest.mark.parametrize("control_token", ["none", "learned"])
@pytest.mark.parametrize("fusion", [ADDITIVE, BY_NAME, ALL])
@settings(max_examples=40)
@given(width=st.integers(1, 4), seed=st.integers(0, 1000))
def test_equals_plain_loops_in_value_and_gradient(fusion, control_token, width, seed):
    """All orders of a cell with fewer perturbations than columns are averaged correctly: exactly its own."""
    module = build(fusion, control_token, seed)
    state_BD, perturbations_BM, z_PD = cells(6, width, seed)
    ours_BD = module(state_BD, perturbations_BM, z_PD)
    expected_BD = plain(fusion, module, state_BD, perturbations_BM, z_PD)
    torch.testing.assert_close(ours_BD, expected_BD, rtol=0, atol=1e-9)
    d_BD = torch.randn(ours_BD.shape, dtype=torch.float64)
    inputs = [state_BD, z_PD, *module.parameters()]
    ours, expected = (
        torch.autograd.grad(after_BD, inputs, d_BD, allow_unused=True, materialize_grads=True)
        for after_BD in (ours_BD, expected_BD)
    )
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("fusion", [ADDITIVE, ALL])
def test_order_of_a_cells_perturbations_does_not_matter(fusion, width):
    module = build(fusion)
    state_BD, perturbations_BM, z_PD = cells(30, width)
    expected_BD = module(state_BD, perturbations_BM, z_PD)
    for order in itertools.permutations(range(width)):
        other_BD = module(state_BD, perturbations_BM[:, list(order)], z_PD)
        torch.testing.assert_close(other_BD, expected_BD, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_order_by_name_is_the_order_of_the_columns(width):
    module = build(BY_NAME)
    state_BD, perturbations_BM, z_PD = cells(30, width, fewest=2)
    one_BD = module(state_BD, perturbations_BM, z_PD)
    other_BD = module(state_BD, perturbations_BM.flip(1), z_PD)
    assert (one_BD - other_BD).abs().amax(1).min() > 1e-6


def test_one_perturbation_has_one_order():
    state_BD, perturbations_BM, z_PD = cells(8, 1)
    by_name, both = build(BY_NAME), build(ALL)
    assert torch.equal(by_name(state_BD, perturbations_BM, z_PD), both(state_BD, perturbations_BM, z_PD))


@pytest.mark.parametrize("fusion", [ADDITIVE, BY_NAME, ALL])
def test_padding_adds_nothing_wherever_it_is(fusion):
    module = build(fusion)
    state_BD, perturbations_BM, z_PD = cells(20, 3)
    expected_BD = module(state_BD, perturbations_BM, z_PD)
    none_BM = torch.full((20, 1), -1)
    for padded_BM in (torch.cat([none_BM, perturbations_BM], 1), torch.cat([perturbations_BM, none_BM], 1)):
        padded_BD = module(state_BD, padded_BM, z_PD)
        torch.testing.assert_close(padded_BD, expected_BD, rtol=0, atol=1e-12)
    assert torch.equal(module(state_BD, none_BM, z_PD), state_BD)


@pytest.mark.parametrize("fusion", [ADDITIVE, BY_NAME, ALL])
def test_padding_is_not_contaminated_by_a_node_that_is_not_finite(fusion):
    module = build(fusion)
    state_BD, _, z_PD = cells(3, 2)
    perturbations_BM = torch.tensor([[-1, -1], [3, -1], [-1, 0]])
    with torch.no_grad():
        z_PD[0] = torch.nan
    after_BD = module(state_BD, perturbations_BM, z_PD)
    assert after_BD.isfinite().all(1).tolist() == [True, True, False]
    (gradient_BD,) = torch.autograd.grad(after_BD[:2].sum(), state_BD)
    assert gradient_BD.isfinite().all()


def test_more_perturbations_than_can_be_ordered():
    state_BD, perturbations_BM, z_PD = cells(4, MAX_ORDERED + 1)
    with pytest.raises(ValueError, match=r"up to 5 perturbations, whose 120 orders .*order=by_name"):
        build(ALL)(state_BD, perturbations_BM, z_PD)
    for fusion in (ADDITIVE, BY_NAME):
        ours_BD = build(fusion)(state_BD, perturbations_BM, z_PD)
        torch.testing.assert_close(ours_BD, plain(fusion, build(fusion), state_BD, perturbations_BM, z_PD))


def test_the_control_token_is_of_cells_with_at_most_one_perturbation():
    with_token, without = build(ADDITIVE, "learned"), build(ADDITIVE)
    state_BD, _, z_PD = cells(5, 2)
    perturbations_BM = torch.tensor([[-1, -1], [3, -1], [-1, 2], [3, 2], [2, 3]])
    difference_BD = with_token(state_BD, perturbations_BM, z_PD) - without(state_BD, perturbations_BM, z_PD)
    expected_BD = with_token.token_D * torch.tensor([1, 1, 1, 0, 0]).unsqueeze(1)
    torch.testing.assert_close(difference_BD, expected_BD)


def test_a_fresh_control_token_changes_nothing():
    fresh = build_fusion(config.Model(latent=LATENT, control_token="learned")).double()
    state_BD, perturbations_BM, z_PD = cells(5, 2)
    after_BD = fresh(state_BD, perturbations_BM, z_PD)
    assert torch.equal(after_BD, build(ADDITIVE)(state_BD, perturbations_BM, z_PD))


def test_a_node_that_does_not_exist_is_an_error():
    state_BD, z_PD = (torch.zeros(rows, LATENT, dtype=torch.float64) for rows in (1, 3))
    for fusion in (ADDITIVE, BY_NAME, ALL):
        with pytest.raises(IndexError):
            build(fusion)(state_BD, torch.tensor([[4]]), z_PD)


def test_sum_is_zero_without_perturbations():
    assert torch.equal(sum_perturbations(torch.ones(3, 2), torch.full((1, 2), -1)), torch.zeros(1, 2))
