"""Means that say what they leave out."""

import numpy as np
import pytest

from txpert_dist.metrics.aggregate import Mean, mean_ignoring_nan, mean_over_repeats


def test_undefined_values_are_counted_and_not_averaged() -> None:
    assert mean_ignoring_nan(np.array([1.0, np.nan, 3.0])) == Mean(2.0, 2, 1)
    assert mean_ignoring_nan(np.array([np.nan, np.nan])) == Mean(None, 0, 2)
    assert mean_ignoring_nan(np.array([])) == Mean(None, 0, 0)
    assert mean_ignoring_nan(np.array([0.0])) == Mean(0.0, 1, 0)


def test_float32_values_are_averaged_in_float64() -> None:
    values = np.full(100_000, 0.1, np.float32)
    assert mean_ignoring_nan(values).mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_repeats_average_what_is_defined() -> None:
    result = mean_over_repeats([np.array([1.0, np.nan, np.nan]), np.array([3.0, 5.0, np.nan])])
    assert result.tolist() == pytest.approx([2.0, 5.0, np.nan], nan_ok=True)
