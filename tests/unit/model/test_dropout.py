import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from txpert_dist.model.dropout import DropoutKey, cell_dropout, graph_dropout, hash_integers

KEY = DropoutKey(seed=3, step=11, first_row=0)


def kept(shape: tuple[int, int], probability: float, layer: int = 0, key: DropoutKey = KEY) -> np.ndarray:
    return cell_dropout(torch.ones(shape), probability, layer, key).numpy() > 0


@pytest.mark.parametrize("dropout", [cell_dropout, graph_dropout])
def test_no_key_or_no_probability_drops_nothing(dropout):
    x_BN = torch.randn(4, 5)
    assert dropout(x_BN, 0.5, 0, None) is x_BN
    assert dropout(x_BN, 0.0, 0, KEY) is x_BN


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


@pytest.mark.parametrize("dropout", [cell_dropout, graph_dropout])
def test_random_streams_are_left_alone_and_gradient_follows_the_mask(dropout):
    before = torch.get_rng_state()
    x_BN = torch.ones(6, 9, requires_grad=True)
    y_BN = dropout(x_BN, 0.5, 0, KEY)
    y_BN.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert x_BN.grad is not None
    assert torch.equal(x_BN.grad, y_BN.detach())


def test_hash_is_splitmix64():
    # first outputs of SplitMix64 from state 0 (Vigna's splitmix64.c)
    assert hash_integers(0) == 0xE220A8397B1DCDAF
