import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from txpert_dist.model.attention.graph_dropout import Beside, graph_activation, graph_dropout
from txpert_dist.model.dropout import (
    GRAPH,
    DropoutKey,
    cell_dropout,
    cell_normal,
    hash_integers,
    hashed,
    signed,
)

KEY = DropoutKey(seed=3, step=11, first_row=0)


def kept(shape: tuple[int, int], probability: float, layer: int = 0, key: DropoutKey = KEY) -> np.ndarray:
    return cell_dropout(torch.ones(shape), probability, layer, key).numpy() > 0


@pytest.mark.parametrize("dropout", [cell_dropout, graph_dropout])
def test_no_key_or_no_probability_drops_nothing(dropout):
    x_BN = torch.randn(4, 5)
    assert dropout(x_BN, 0.5, 0, None) is x_BN
    assert dropout(x_BN, 0.0, 0, KEY) is x_BN


@given(first=st.integers(0, 2**33), number=st.integers(0, 3))
def test_every_third_cell_draws_what_it_draws_among_all(first, number):
    x_BN = torch.ones(9, 7, dtype=torch.float64)
    whole_BN = cell_dropout(x_BN, 0.4, 1, DropoutKey(5, 6, first))
    part_BN = cell_dropout(x_BN[number::3], 0.4, 1, DropoutKey(5, 6, first + number, row_step=3))
    assert torch.equal(part_BN, whole_BN[number::3])


@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**33),
    first=st.integers(0, 2**33),
    cut=st.integers(0, 9),
)
def test_two_workers_draw_what_one_worker_draws(seed, step, first, cut):
    x_BN = torch.ones(9, 7, dtype=torch.float64)
    whole_BN = cell_dropout(x_BN, 0.4, 1, DropoutKey(seed, step, first))
    parts = [
        cell_dropout(x_BN[:cut], 0.4, 1, DropoutKey(seed, step, first)),
        cell_dropout(x_BN[cut:], 0.4, 1, DropoutKey(seed, step, first + cut)),
    ]
    assert torch.equal(torch.cat(parts), whole_BN)


def test_cell_draws_are_uniform():
    # one key and rising probabilities: a cell of the histogram is what falls between two of them
    edges = np.linspace(0, 1, 21)[:-1]
    shares = [1.0 - kept((500, 512), probability).mean() if probability else 0.0 for probability in edges]
    counts = np.diff([*shares, 1.0]) * 500 * 512
    assert stats.chisquare(counts).pvalue > 1e-3


def test_cell_draws_are_independent_of_each_other():
    centred_BN = (kept((800, 512), 0.2) - 0.8) / 0.4
    rows_BB = centred_BN @ centred_BN.T / np.sqrt(512)
    columns_NN = centred_BN.T @ centred_BN / np.sqrt(800)
    # 3e5 standard normal numbers hardly pass 6
    assert np.abs(rows_BB[~np.eye(800, dtype=bool)]).max() < 6
    assert np.abs(columns_NN[~np.eye(512, dtype=bool)]).max() < 6
    assert np.abs(centred_BN.mean(0) * np.sqrt(800)).max() < 5
    assert np.abs(centred_BN.mean(1) * np.sqrt(512)).max() < 5


@pytest.mark.parametrize(
    ("dropout", "key", "layer"),
    [
        (cell_dropout, KEY._replace(seed=4), 0),
        (cell_dropout, KEY._replace(step=12), 0),
        (cell_dropout, KEY._replace(first_row=1), 0),
        (cell_dropout, KEY, 1),
        (graph_dropout, KEY._replace(seed=4), 0),
        (graph_dropout, KEY._replace(step=12), 0),
        (graph_dropout, KEY, 1),
    ],
)
def test_another_seed_step_row_or_layer_draws_anew(dropout, key, layer):
    one_BN = dropout(torch.ones(400, 500), 0.5, 0, KEY) > 0
    other_BN = dropout(torch.ones(400, 500), 0.5, layer, key) > 0
    agreement = (one_BN == other_BN).double().mean().item()
    assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(200_000)


@pytest.mark.parametrize("dropout", [cell_dropout, graph_dropout])
@pytest.mark.parametrize("probability", [0.05, 0.2, 0.9])
def test_share_and_scale_keep_the_mean(dropout, probability):
    x_BN = dropout(torch.full((500, 401), 3.0), probability, 0, KEY)
    dropped = (x_BN == 0).double().mean().item()
    assert abs(dropped - probability) < 5 * np.sqrt(probability * (1 - probability) / x_BN.numel())
    torch.testing.assert_close(x_BN.max().item(), 3.0 / (1 - probability), rtol=1e-3, atol=0)


def test_graph_draws_do_not_depend_on_the_workers_rows_nor_on_the_dtype():
    one_PN = graph_dropout(torch.ones(30, 7), 0.3, 2, KEY)
    other_PN = graph_dropout(torch.ones(30, 7, dtype=torch.float64), 0.3, 2, KEY._replace(first_row=64))
    assert torch.equal(one_PN > 0, other_PN > 0)


@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**33), rows=st.lists(st.integers(0, 29), unique=True))
def test_some_nodes_draw_what_they_draw_among_all(seed, step, rows):
    key, x_PN = DropoutKey(seed, step, 0), torch.ones(30, 7, dtype=torch.float64)
    some_RN = graph_dropout(x_PN[rows], 0.4, 2, key, torch.tensor(rows, dtype=torch.int64))
    assert torch.equal(some_RN, graph_dropout(x_PN, 0.4, 2, key)[rows])


@pytest.mark.parametrize("width", [1, 3, 4, 130])
def test_the_compiled_draws_are_those_of_torchs_operations(width):
    """bfloat16 is not compiled, as no accelerator's tensor is; powers of two survive it exactly."""
    rows = torch.tensor([0, 5, 2**40, 2**62])
    compiled_PN = graph_dropout(torch.ones(4, width), 0.5, 2, KEY, rows)
    plain_PN = graph_dropout(torch.ones(4, width, dtype=torch.bfloat16), 0.5, 2, KEY, rows)
    assert torch.equal(compiled_PN, plain_PN.float())


def test_graph_draws_are_independent_of_each_other():
    centred_PN = (graph_dropout(torch.ones(800, 512), 0.2, 0, KEY).gt(0).numpy() - 0.8) / 0.4
    rows_PP = centred_PN @ centred_PN.T / np.sqrt(512)
    columns_NN = centred_PN.T @ centred_PN / np.sqrt(800)
    assert np.abs(rows_PP[~np.eye(800, dtype=bool)]).max() < 6
    assert np.abs(columns_NN[~np.eye(512, dtype=bool)]).max() < 6
    assert np.abs(centred_PN.mean(0) * np.sqrt(800)).max() < 5
    assert np.abs(centred_PN.mean(1) * np.sqrt(512)).max() < 5


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, Beside | None, Tensor | None]:
    """Activations, what stands beside some of them, numbers of their rows."""
    rows, width, more, others = (draw(st.integers(0, most)) for most in (7, 9, 9, 5))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    values = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x_PN, other_SM = (
        torch.randn(*shape, generator=values).to(dtype).requires_grad_()
        for shape in ((rows, width), (rows + others, more))
    )
    number = torch.tensor(
        draw(st.lists(st.integers(0, 2**40), min_size=rows, max_size=rows)), dtype=torch.int64
    )
    place = torch.randperm(len(other_SM), generator=values)[:rows]
    besides = [None, Beside(other_SM, place), Beside(other_SM[:rows].contiguous(), None)]
    return x_PN, draw(st.sampled_from(besides)), draw(st.sampled_from([None, number]))


@given(activations(), st.sampled_from([0.0, 0.3]), st.sampled_from([None, KEY]))
def test_an_activation_is_the_joint_then_leaky_relu_then_dropout(given_, probability, key):
    x_PN, beside, rows = given_
    ours_PN = graph_activation(x_PN, 0.01, (probability, 3), key, rows, beside=beside)
    joint_PN, leaves = x_PN, [x_PN]
    if beside is not None:
        other_SM, place = beside
        right_PM = other_SM if place is None else other_SM[place]
        joint_PN, leaves = torch.cat([x_PN, right_PM], 1), [x_PN, other_SM]
    plain_PN = graph_dropout(functional.leaky_relu(joint_PN, 0.01), probability, 3, key, rows)
    torch.testing.assert_close(ours_PN, plain_PN, rtol=1e-6, atol=0)
    d_PN = torch.randn_like(plain_PN)
    for one, other in zip(*(torch.autograd.grad(y, leaves, d_PN) for y in (ours_PN, plain_PN)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_an_activation_keeps_what_is_not_finite_where_it_is_not_dropped():
    x_PN = torch.full((1, 400), torch.nan)
    x_PN[0, 200:] = torch.inf
    ours_PN = graph_activation(x_PN, 0.01, (0.5, 0), KEY)
    assert ours_PN[0, :200].isnan().all()
    assert set(ours_PN[0, 200:].nan_to_num(nan=-1, posinf=1).tolist()) == {-1.0, 1.0}  # inf times 0 is NaN


def test_activations_do_not_depend_on_the_threads():
    x_PN, other_SM, place = torch.randn(3000, 101), torch.randn(4000, 200), torch.randperm(4000)[:3000]
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaves = x_PN.requires_grad_(), other_SM.requires_grad_()
            y_PN = graph_activation(leaves[0], 0.01, (0.3, 0), KEY, beside=Beside(leaves[1], place))
            made.append([y_PN, *torch.autograd.grad(y_PN.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, first) for again in made for one, first in zip(again, made[0], strict=True))


def test_graph_draws_do_not_depend_on_the_threads():
    x_PN = torch.randn(3000, 301)
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            drawn.append(graph_dropout(x_PN, 0.3, 0, KEY))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_a_graph(value):
    thinned_PN = graph_dropout(torch.full((20, 20), value), 0.5, 0, KEY)
    assert not thinned_PN.isfinite().any()


@pytest.mark.parametrize("dropout", [cell_dropout, graph_dropout])
def test_random_streams_are_left_alone_and_gradient_follows_the_mask(dropout):
    before = torch.get_rng_state()
    x_BN = torch.ones(6, 9, requires_grad=True)
    y_BN = dropout(x_BN, 0.5, 0, KEY)
    y_BN.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert x_BN.grad is not None
    assert torch.equal(x_BN.grad, y_BN.detach())


steps = st.one_of(st.integers(0, 2**33), st.integers(-(2**63), 2**63 - 1))
seeds = st.one_of(st.integers(0, 2**33), st.integers(0, 2**64 - 1), st.integers(2**64, 2**90))
layers = st.one_of(st.integers(0, 99), st.integers(0, 2**63 - 1))


def with_tensor(key: DropoutKey) -> DropoutKey:
    return key._replace(step=torch.tensor(key.step))


@given(st.integers(0, 5), seeds, steps, st.lists(layers, max_size=3))
def test_a_tensors_step_is_hashed_as_its_number(stream, seed, step, numbers):
    key = DropoutKey(seed, step, 0)
    found = hashed(stream, with_tensor(key), *numbers)
    assert (found.shape, found.dtype) == ((), torch.int64)
    assert found.item() == hashed(stream, key, *numbers)
    assert found.item() == signed(hash_integers(stream, seed, step, *numbers))


def test_hashes_of_tensors_are_negative_as_often_as_not():
    """Their masks are then bases of both signs."""
    signs = [hashed(GRAPH, with_tensor(DropoutKey(3, step, 0)), 1).item() < 0 for step in range(1000)]
    assert abs(np.mean(signs) - 0.5) < 5 * 0.5 / np.sqrt(1000)


@given(activations(), seeds, steps, layers, st.sampled_from([0.0, 0.3]))
def test_a_tensors_step_thins_a_graph_as_its_number(given_, seed, step, layer, probability):
    (x_PN, beside, rows), key = given_, DropoutKey(seed, step, 0)
    leaves = [x_PN] if beside is None else [x_PN, beside.x_SM]
    found = []
    for one in (key, with_tensor(key)):
        activated_PN = graph_activation(x_PN, 0.01, (probability, layer), one, rows, beside=beside)
        thinned_PN = graph_dropout(x_PN, probability, layer, one, rows)
        d_PN = torch.ones_like(activated_PN)
        gradients = torch.autograd.grad(activated_PN, leaves, d_PN)
        found.append([thinned_PN, activated_PN, *gradients])
    for ours, tensors in zip(*found, strict=True):
        assert torch.equal(ours, tensors)


@given(seeds, steps, layers)
def test_a_tensors_step_draws_for_cells_as_its_number(seed, step, layer):
    key, x_BN = DropoutKey(seed, step, 5, row_step=3), torch.ones(6, 7)
    for draw in (
        lambda one: cell_dropout(x_BN, 0.4, layer, one),
        lambda one: cell_normal(x_BN, layer, one),
    ):
        assert torch.equal(draw(key), draw(with_tensor(key)))


def test_a_tensors_step_is_drawn_by_torchs_operations_everywhere():
    """Who gives one records them; compiled loops would be left out of the record."""
    x_PN = torch.ones(3, 5, requires_grad=True)
    for draw in (
        lambda key: graph_dropout(x_PN, 0.4, 0, key),
        lambda key: graph_activation(x_PN, 0.01, (0.4, 0), key),
    ):
        assert "Mul" in draw(with_tensor(KEY)).grad_fn.name()
        assert "Mul" not in draw(KEY).grad_fn.name()


def normal(num_cells: int, width: int, layer: int = 0, key: DropoutKey = KEY) -> np.ndarray:
    return cell_normal(torch.empty(num_cells, width, dtype=torch.float64), layer, key).numpy()


@given(
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**33),
    first=st.integers(0, 2**33),
    cut=st.integers(0, 9),
)
def test_two_workers_draw_the_normal_numbers_of_one(seed, step, first, cut):
    key = DropoutKey(seed, step, first)
    parts = [normal(cut, 7, 1, key), normal(9 - cut, 7, 1, key._replace(first_row=first + cut))]
    np.testing.assert_allclose(np.concatenate(parts), normal(9, 7, 1, key), rtol=1e-12, atol=1e-12)


def test_normal_numbers_are_normal():
    drawn_BN = normal(2000, 512)
    assert stats.kstest(drawn_BN.ravel(), "norm").pvalue > 1e-3
    # the first four moments, of a million numbers; standard errors 1, sqrt(2), sqrt(15), sqrt(96) thousandths
    for power, moment, error in ((1, 0, 1), (2, 1, np.sqrt(2)), (3, 0, np.sqrt(15)), (4, 3, np.sqrt(96))):
        assert abs((drawn_BN**power).mean() - moment) < 5 * error / np.sqrt(drawn_BN.size)
    assert 4.5 < np.abs(drawn_BN).max() < 6.8


def test_normal_numbers_are_independent_of_each_other_and_of_the_masks():
    drawn_BN = normal(800, 512)
    rows_BB = drawn_BN @ drawn_BN.T / np.sqrt(512)
    columns_NN = drawn_BN.T @ drawn_BN / np.sqrt(800)
    assert np.abs(rows_BB[~np.eye(800, dtype=bool)]).max() < 6
    assert np.abs(columns_NN[~np.eye(512, dtype=bool)]).max() < 6
    masked = kept((800, 512), 0.5)
    assert stats.ks_2samp(drawn_BN[masked], drawn_BN[~masked]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        (KEY._replace(seed=4), 0),
        (KEY._replace(step=12), 0),
        (KEY._replace(first_row=1), 0),
        (KEY, 1),
    ],
)
def test_another_seed_step_row_or_layer_draws_other_normal_numbers(key, layer):
    correlation = (normal(400, 500) * normal(400, 500, layer, key)).mean()
    assert abs(correlation) < 5 / np.sqrt(200_000)


def test_normal_numbers_follow_the_type_and_leave_the_streams_alone():
    before = torch.get_rng_state()
    single_BN = cell_normal(torch.full((30, 7), torch.nan), 0, KEY)
    assert torch.equal(torch.get_rng_state(), before)
    assert single_BN.dtype == torch.float32
    np.testing.assert_allclose(single_BN.numpy(), normal(30, 7), rtol=1e-6)
    assert cell_normal(torch.empty(0, 7), 0, KEY).shape == (0, 7)


def test_hash_is_splitmix64():
    # first outputs of SplitMix64 from state 0 (Vigna's splitmix64.c)
    assert hash_integers(0) == 0xE220A8397B1DCDAF
