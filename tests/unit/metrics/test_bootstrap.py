"""Intervals against SciPy's percentile bootstrap, coverage, and what they must not depend on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from txpert_dist.metrics.bootstrap import Bootstrap, Interval, bootstrap_means


def test_agrees_with_scipys_percentile_interval() -> None:
    values = np.random.default_rng(0).gamma(2.0, 1.0, 80)
    found = bootstrap_means(values[:, None], np.arange(80), Bootstrap(resamples=20_000, seed=1))[0]
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert found == pytest.approx(theirs.confidence_interval, abs=0.02)


def test_is_a_function_of_values_grouping_and_seed() -> None:
    rng = np.random.default_rng(0)
    values_UM, unit_U = rng.normal(size=(60, 3)), rng.permutation(60)
    whole = bootstrap_means(values_UM, unit_U)
    assert bootstrap_means(values_UM, unit_U) == whole
    assert bootstrap_means(values_UM, unit_U, Bootstrap(seed=1)) != whole
    assert bootstrap_means(values_UM[:, :1], unit_U)[0] == pytest.approx(whole[0], abs=1e-12)
    order = rng.permutation(60)
    for found, expected in zip(bootstrap_means(values_UM[order], unit_U[order]), whole, strict=True):
        assert found == pytest.approx(expected, abs=1e-12)


def test_units_of_one_perturbation_are_drawn_together() -> None:
    value_K = np.random.default_rng(0).normal(size=30)
    alone = bootstrap_means(value_K[:, None], np.arange(30))[0]
    thrice = bootstrap_means(np.repeat(value_K, 3)[:, None], np.repeat(np.arange(30), 3))[0]
    assert thrice == pytest.approx(alone, abs=1e-12)
    apart = bootstrap_means(np.repeat(value_K, 3)[:, None], np.arange(90))[0]
    assert apart.high - apart.low < 0.75 * (alone.high - alone.low)


def test_undefined_values_are_left_out_of_every_draw() -> None:
    values_UM = np.random.default_rng(0).normal(size=(50, 2))
    values_UM[::5, 1] = np.nan
    _, found = bootstrap_means(values_UM, np.arange(50))
    mean = np.nanmean(values_UM[:, 1])
    assert found.low < mean < found.high
    values_UM[1:, 1] = np.nan
    assert bootstrap_means(values_UM, np.arange(50))[1] == Interval(None, None)
    assert bootstrap_means(np.zeros((0, 1)), np.zeros(0, int)) == (Interval(None, None),)


@given(value=st.floats(-5, 5), num=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_equal_values_are_certain(value: float, num: int) -> None:
    found = bootstrap_means(np.full((num, 1), value), np.arange(num), Bootstrap(resamples=50))[0]
    assert found == pytest.approx((value, value), abs=1e-12)


def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    trials = [
        bootstrap_means(rng.normal(size=(100, 1)), np.arange(100), Bootstrap(300))[0] for _ in range(400)
    ]
    assert 0.90 < np.mean([low < 0 < high for low, high in trials]) < 0.98
