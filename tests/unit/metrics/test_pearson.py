"""Pearson delta against SciPy and against exact rational arithmetic."""

from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr

from txpert_dist.metrics.pearson import BLOCK, pearson_delta, unit_rows


def exact_pearson(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """In rational numbers up to the last square root."""
    a, b = [Fraction(float(v)) for v in x], [Fraction(float(v)) for v in y]
    a = [v - sum(a) / len(a) for v in a]
    b = [v - sum(b) / len(b) for v in b]
    product = sum(u * v for u, v in zip(a, b, strict=True))
    square = product * product / (sum(v * v for v in a) * sum(v * v for v in b))
    return sqrt(square) * (1 if product > 0 else -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_genes", [2, 3, 64, 5000])
def test_agrees_with_scipy(dtype: type[np.floating], num_genes: int) -> None:
    rng = np.random.default_rng(num_genes)
    predicted_PG = rng.normal(size=(20, num_genes)).astype(dtype)
    observed_PG = (0.3 * predicted_PG + rng.normal(size=(20, num_genes))).astype(dtype)
    expected = [
        pearsonr(p.astype(float), o.astype(float))[0] for p, o in zip(predicted_PG, observed_PG, strict=True)
    ]
    assert np.abs(pearson_delta(predicted_PG, observed_PG) - expected).max() < 1e-12


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e8, 1e12])
@pytest.mark.parametrize("spread", [1e-280, 1e-9, 1.0, 1e150])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_exact_for_large_offsets_and_tiny_spreads(
    offset: float, spread: float, dtype: type[np.floating]
) -> None:
    rng = np.random.default_rng(3)
    predicted, observed = rng.normal(size=(2, 50))
    observed += predicted
    with np.errstate(over="ignore", under="ignore"):
        predicted = (offset + spread * predicted).astype(dtype)
        observed = (spread * observed - offset).astype(dtype)
    result = pearson_delta(predicted[None], observed[None])[0]
    if not np.isfinite([predicted, observed]).all() or np.ptp(predicted) == 0 or np.ptp(observed) == 0:
        assert np.isnan(result)
    else:
        assert result == pytest.approx(exact_pearson(predicted, observed), abs=1e-9)


@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=12),
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=12),
)
@settings(max_examples=200)
def test_agrees_with_exact_arithmetic(first: list[int], second: list[int]) -> None:
    num = min(len(first), len(second))
    x, y = np.array(first[:num], float), np.array(second[:num], float)
    result = pearson_delta(x[None], y[None])[0]
    if x.max() == x.min() or y.max() == y.min():
        assert np.isnan(result)
    else:
        assert result == pytest.approx(exact_pearson(x, y), abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_without_a_correlation_are_nan_and_leave_others_alone(bad: float) -> None:
    rng = np.random.default_rng(0)
    predicted_PG, observed_PG = rng.normal(size=(2, 6, 30))
    whole = pearson_delta(predicted_PG, observed_PG)
    predicted_PG[1] = 0.0
    observed_PG[2] = 0.1  # a constant whose mean is rounded
    predicted_PG[3, 4] = bad
    observed_PG[4, 29] = bad
    result = pearson_delta(predicted_PG, observed_PG)
    assert np.isnan(result).tolist() == [False, True, True, True, True, False]
    assert result[[0, 5]].tolist() == whole[[0, 5]].tolist()


def test_perfect_agreement_is_one_and_never_more() -> None:
    x_PG = np.random.default_rng(1).normal(size=(200, 37))
    assert pearson_delta(x_PG, 3.0 * x_PG + 1.0).max() <= 1.0
    assert pearson_delta(x_PG, 3.0 * x_PG + 1.0).min() == pytest.approx(1.0, abs=1e-14)
    assert pearson_delta(x_PG, -x_PG).min() >= -1.0


def test_blocks_of_rows_make_no_difference() -> None:
    rng = np.random.default_rng(2)
    predicted_PG, observed_PG = rng.normal(size=(2, BLOCK + 7, 5))
    single = [pearson_delta(p[None], o[None])[0] for p, o in zip(predicted_PG, observed_PG, strict=True)]
    assert pearson_delta(predicted_PG, observed_PG).tolist() == pytest.approx(single, abs=1e-14)


def test_inputs_are_left_alone_and_shapes_are_checked() -> None:
    x_PG = np.random.default_rng(4).normal(5.0, size=(3, 4))
    before = x_PG.copy()
    unit_rows(x_PG)
    assert (x_PG == before).all()
    assert pearson_delta(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)
    assert np.isnan(pearson_delta(np.zeros((2, 0)), np.zeros((2, 0)))).all()
    with pytest.raises(ValueError, match="differ in shape"):
        pearson_delta(x_PG, x_PG[:2])
