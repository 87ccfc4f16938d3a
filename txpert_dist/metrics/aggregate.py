"""The number a report shows: a mean over perturbations, and how many had no value.

Enters: one value per unit. Leaves: ``Mean``. Invariant: NaN is left out of the mean and
counted, never a zero.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Mean(NamedTuple):
    """An unweighted mean and what it is over."""

    mean: float | None
    """None when there is no value at all."""
    num_values: int
    """Units the mean is over."""
    num_nan: int
    """Units whose value is undefined; they are not in the mean."""


def mean_ignoring_nan(values: NDArray[np.floating]) -> Mean:
    """Mean of the defined values, with the number of undefined ones stated."""
    defined = values[~np.isnan(values)]
    mean = float(np.mean(defined, dtype=np.float64)) if len(defined) else None
    return Mean(mean, len(defined), len(values) - len(defined))


def mean_over_repeats(repeats: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """(P,) mean over repeats of each unit's defined values; NaN where no repeat has one."""
    stacked_SP = np.stack([np.asarray(values, np.float64) for values in repeats])
    defined_SP = ~np.isnan(stacked_SP)
    number_P = defined_SP.sum(0)
    total_P = np.where(defined_SP, stacked_SP, 0.0).sum(0)
    return np.asarray(total_P / np.where(number_P > 0, number_P, np.nan), np.float64)
