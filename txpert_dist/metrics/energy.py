"""Energy distance between two clouds of points.

Enters: points and their weights. Leaves: a distance. Invariant: 0 for equal clouds, never negative.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist


def energy_distance(
    first_AG: NDArray[np.floating],
    second_BG: NDArray[np.floating],
    weight_A: NDArray[np.floating] | None = None,
    weight_B: NDArray[np.floating] | None = None,
) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean lengths over the genes (Szekely and Rizzo 2013).

    Expectations are over all pairs of the points, by weight, a point and itself included. NaN without points.
    """
    if not len(first_AG) or not len(second_BG):
        return float("nan")
    share_A, share_B = _shares(len(first_AG), weight_A), _shares(len(second_BG), weight_B)
    between = share_A @ cdist(first_AG, second_BG) @ share_B
    within = share_A @ cdist(first_AG, first_AG) @ share_A + share_B @ cdist(second_BG, second_BG) @ share_B
    return max(float(2 * between - within), 0.0)


def _shares(number: int, weight: NDArray[np.floating] | None) -> NDArray[np.float64]:
    weight_A = np.ones(number) if weight is None else np.asarray(weight, np.float64)
    return np.asarray(weight_A / weight_A.sum(), np.float64)
