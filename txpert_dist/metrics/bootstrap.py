"""How sure a mean over perturbations is: bootstrap intervals, perturbations drawn with replacement.

Enters: values per unit (a perturbation in a cell line, say) and the perturbation of each. Leaves: percentile
intervals of their means. Invariants: a pure function of the values, the grouping and the seed; all units of a
perturbation are drawn together, since they are not independent; every column sees the same draws, so that an
interval of a difference is paired; undefined values stay undefined in every draw.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 256


class Bootstrap(NamedTuple):
    """How intervals are made."""

    resamples: int = 2000
    level: float = 0.95
    """Share of the draws between the ends of an interval."""
    seed: int = 0


class Interval(NamedTuple):
    """Ends of an interval; None where there is none."""

    low: float | None
    high: float | None


BOOTSTRAP = Bootstrap()


def bootstrap_means(
    values_UM: NDArray[np.floating], unit_U: NDArray[np.integer], bootstrap: Bootstrap = BOOTSTRAP
) -> tuple[Interval, ...]:
    """Interval of the mean of the defined values of each column, perturbations ``unit_U`` resampled.

    None where fewer than two perturbations have a defined value.
    """
    codes, unit_U = np.unique(unit_U, return_inverse=True)
    sum_KM, number_KM = (
        _sums(unit_U, len(codes), part) for part in (np.nan_to_num(values_UM, nan=0.0), ~np.isnan(values_UM))
    )
    rng = np.random.default_rng(bootstrap.seed)
    means = []
    for start in range(0, bootstrap.resamples, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, bootstrap.resamples - start)
        drawn_SK = rng.integers(0, max(len(codes), 1), (size, len(codes)))
        times_SK = np.stack([np.bincount(drawn, minlength=len(codes)) for drawn in drawn_SK]).astype(float)
        number_SM = times_SK @ number_KM
        means.append(times_SK @ sum_KM / np.where(number_SM > 0, number_SM, np.nan))
    mean_SM = np.concatenate(means) if means else np.zeros((0, values_UM.shape[1]))
    enough_M = (number_KM > 0).sum(0) > 1
    return tuple(
        _interval(mean_SM[:, column], bootstrap.level) if enough_M[column] else Interval(None, None)
        for column in range(values_UM.shape[1])
    )


def _interval(mean_S: NDArray[np.float64], level: float) -> Interval:
    ends = np.quantile(mean_S[~np.isnan(mean_S)], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(ends[0]), float(ends[1]))


def _sums(unit_U: NDArray[np.integer], num_units: int, values_UM: NDArray[np.generic]) -> NDArray[np.float64]:
    result_KM = np.zeros((num_units, values_UM.shape[1]))
    np.add.at(result_KM, unit_U, values_UM.astype(np.float64))
    return result_KM
