"""Sampling: exact shares, pure, world-independent through the plan, unbiased over seeds."""

from pathlib import Path

import numpy as np
import pydantic
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.loader.exactness import Shape, faults, loader, perturbation_of, write
from txpert_dist.config import Data
from txpert_dist.errors import InputError
from txpert_dist.loader.sampling import (
    drawn_positions,
    draws_by_weight,
    draws_of_perturbations,
    sampling_weights,
)
from txpert_dist.store.cells import CellStore

DRAW = {"seed": st.integers(0, 2**40), "epoch": st.integers(0, 1000)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    return write(tmp_path_factory.mktemp("sampling") / "screen.zarr", Shape(301, chunk=40))


@given(codes=st.lists(st.integers(0, 9), min_size=1, max_size=200), **DRAW)
def test_every_perturbation_is_drawn_equally_often_and_every_cell_of_it(
    codes: list[int], seed: int, epoch: int
) -> None:
    perturbation_R = np.array(codes)
    draws_R = draws_of_perturbations(perturbation_R, seed=seed, epoch=epoch)
    assert draws_R.sum() == len(codes)
    by_perturbation = [draws_R[perturbation_R == code] for code in set(codes)]
    totals = [int(draws.sum()) for draws in by_perturbation]
    assert max(totals) - min(totals) <= 1
    assert all(draws.max() - draws.min() <= 1 for draws in by_perturbation)


@given(weights=st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=1, max_size=200).filter(any), **DRAW)
def test_every_cell_is_drawn_its_share_rounded_up_or_down(
    weights: list[float], seed: int, epoch: int
) -> None:
    weight_R = np.array(weights)
    draws_R = draws_by_weight(weight_R, seed=seed, epoch=epoch)
    share_R = len(weight_R) * weight_R / weight_R.sum()
    assert draws_R.sum() == len(weights)
    assert (np.abs(draws_R - share_R) < 1 + 1e-6).all()
    assert (draws_R[weight_R == 0] == 0).all()


def test_weights_are_met_on_average() -> None:
    weight_R = np.random.default_rng(0).gamma(0.5, size=50)
    share_R = 50 * weight_R / weight_R.sum()
    num = 4000
    draws = np.array([draws_by_weight(weight_R, seed=seed, epoch=seed % 7) for seed in range(num)])
    fraction = share_R - np.floor(share_R)
    error = (draws.mean(0) - share_R) / np.sqrt(np.maximum(fraction * (1 - fraction), 1e-9) / num)
    assert scipy.stats.kstest(error[fraction > 0.01], "norm").pvalue > 1e-4


def test_which_cells_are_drawn_once_more_changes_evenly() -> None:
    perturbation_R = np.repeat([0, 1, 2], [10, 40, 70])  # 40 draws each: 4 times, once, 4 of 7
    draws = np.array([draws_of_perturbations(perturbation_R, seed=1, epoch=epoch) for epoch in range(700)])
    assert (draws[:, :10] == 4).all()
    assert (draws[:, 10:50] == 1).all()
    assert scipy.stats.chisquare(draws[:, 50:].sum(0)).pvalue > 1e-4


@given(draws=st.lists(st.integers(0, 6), max_size=80))
def test_positions_ascend_draw_after_draw(draws: list[int]) -> None:
    positions = drawn_positions(np.array(draws, np.int64)).tolist()
    expected = [position for number in range(6) for position, times in enumerate(draws) if times > number]
    assert positions == expected


@given(
    sampling=st.sampled_from(["cells", "perturbations", "weights"]),
    worlds=st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3])),
    stop=st.integers(0, 25),
    epoch=st.integers(0, 3),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_drawn_is_served_on_any_world_over_any_interruption(
    store: CellStore, sampling: str, worlds: tuple[int, int], stop: int, epoch: int
) -> None:
    """Cell by cell what one worker without a stop serves, which are the draws, less the last few."""
    data = {"sampling": sampling, "weight_key": "weight" if sampling == "weights" else None, "chunk": 8}
    whole = loader(store, rank=0, world=1, minibatch_size=12, **data)
    straight, wrong = faults(whole.epoch(epoch), whole)
    assert wrong == []
    steps_12 = np.array(straight).reshape(-1, 12)
    pieces = []
    for world, first, last in ((worlds[0], 0, stop), (worlds[1], stop, len(steps_12))):
        ranks = []
        for rank in range(world):
            one = loader(store, rank=rank, world=world, minibatch_size=12, **data)
            minibatches = one.epoch(epoch, first)
            cells, wrong = faults((next(minibatches) for _ in range(last - first)), one)
            assert wrong == []
            ranks.append(np.array(cells, np.int64).reshape(last - first, 12 // world))
        pieces.append(np.concatenate(ranks, axis=1))
    np.testing.assert_array_equal(np.concatenate(pieces), steps_12)
    times = np.bincount(straight, minlength=store.num_cells)
    cell = np.arange(store.num_cells)
    if sampling == "cells":
        assert times.max() == 1
    elif sampling == "perturbations":
        totals = np.bincount(perturbation_of(cell), times)
        # each exactly a seventh of all draws, of which the last incomplete minibatch was left out
        assert totals.max() - totals.min() <= 1 + store.num_cells % 12
    else:
        assert not times[cell % 3 == 0].any()
        assert times[cell % 3 == 2].sum() > 1.5 * times[cell % 3 == 1].sum()


def test_epochs_and_seeds_draw_anew() -> None:
    weight_R = np.arange(1, 60) / 7
    first = draws_by_weight(weight_R, seed=0, epoch=0).tolist()
    assert first == draws_by_weight(weight_R, seed=0, epoch=0).tolist()
    assert first != draws_by_weight(weight_R, seed=0, epoch=1).tolist()
    assert first != draws_by_weight(weight_R, seed=1, epoch=0).tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling": "weights"}, "needs weight_key"),
        ({"weight_key": "n"}, "sampling=weights only, not cells"),
        ({"sampling": "perturbations", "weight_key": "n"}, "only, not perturbations"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        Data.model_validate({"store": "s.zarr", **values})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("wieght", "no numeric column 'wieght'.*obs has .*weight"),
        ("text", "no numeric column 'text'"),
        ("negative", "training cells have no weight"),
        ("missing", "3 of 301 training cells have no weight"),
        ("nothing", "no training cell has a weight above 0"),
    ],
)
def test_a_column_that_holds_no_weights_is_refused_before_training(
    tmp_path: Path, store: CellStore, key: str, message: str
) -> None:
    columns = {
        "negative": np.where(np.arange(301) == 7, -1.0, 1.0),
        "missing": np.where(np.arange(301) < 3, np.nan, 1.0),
        "nothing": np.zeros(301),
    }
    other = write(tmp_path / "s.zarr", Shape(301), **columns)
    data = {"sampling": "weights", "weight_key": key}
    with pytest.raises(InputError, match=message):
        loader(other, rank=0, world=1, minibatch_size=12, **data)


def test_weights_are_the_columns_values_of_the_rows(store: CellStore) -> None:
    data = Data.model_validate({"store": store.path, "sampling": "weights", "weight_key": "weight"})
    rows = np.array([5, 3, 200])
    weight_R = sampling_weights(store, rows, data)
    assert weight_R is not None
    taken = store.take(rows)
    cell = (taken.value[taken.indptr[:-1]].astype(np.int64) - 1) // len(store.genes)
    assert weight_R.tolist() == (cell % 3).tolist()
