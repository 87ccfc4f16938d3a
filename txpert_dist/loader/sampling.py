"""Which cells an epoch serves, and how often: a pure function of (seed, epoch), before any order.

Enters: the training rows' perturbations or weights. Leaves: positions in the list of training rows, as many
as there are rows. Invariants: neither rank nor world nor step enters; every number of draws differs from the
exact share by less than one; a cell of weight 0 is never drawn.

    cells           every cell once
    perturbations   every perturbation equally often (control cells, where they are targets, are one of them),
                    and within it every cell
    weights         every cell in proportion to its weight

The positions ascend, first every drawn cell once, then those that are drawn twice, and so on: neighbours stay
neighbours for the reader, and the draws of one cell lie far apart in the epoch.
"""

import numpy as np
from numpy.typing import NDArray

from txpert_dist.config import Data
from txpert_dist.errors import InputError
from txpert_dist.store.cells import CellStore, numeric_column

SAMPLING_STREAM = 2
"""Second word of the generator's seed; ``plan.ORDER_STREAM`` is another."""


def sampling_weights(store: CellStore, rows: NDArray[np.int64], data: Data) -> NDArray[np.float64] | None:
    """The weight of each of ``rows``; None unless ``data.sampling`` is by weights.

    Raises ``InputError`` for a column that is missing or whose values cannot be weights.
    """
    if data.weight_key is None:
        return None
    weight_R = numeric_column(store.path, data.weight_key)[rows]
    bad = ~np.isfinite(weight_R) | (weight_R < 0)
    if bad.any() or not (weight_R > 0).any():
        what = f"{bad.sum()} of {len(rows)} training cells have no weight (negative or not finite)"
        raise InputError(
            f"{store.path}: data.weight_key={data.weight_key}: "
            f"{what if bad.any() else 'no training cell has a weight above 0'}; repair the column"
        )
    return weight_R


def draws_of_perturbations(
    perturbation_R: NDArray[np.integer], *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """(R,) how often each cell is drawn when perturbations are drawn equally often, R draws in all.

    Perturbations differ by at most one draw, and so do the cells of a perturbation; who has the one more is
    drawn anew each epoch.
    """
    rng = np.random.default_rng((seed, SAMPLING_STREAM, epoch))
    num_R = len(perturbation_R)
    _, group_R, size_P = np.unique(perturbation_R, return_inverse=True, return_counts=True)
    quota_P = _shared(rng, num_R, len(size_P))
    shuffled = rng.permutation(num_R)
    order = shuffled[np.argsort(group_R[shuffled], kind="stable")]  # by perturbation, shuffled within
    place_R = np.arange(num_R) - np.repeat(np.cumsum(size_P) - size_P, size_P)
    each_P, more_P = np.divmod(quota_P, size_P)
    draws_R = np.empty(num_R, np.int64)
    draws_R[order] = np.repeat(each_P, size_P) + (place_R < np.repeat(more_P, size_P))
    return draws_R


def draws_by_weight(weight_R: NDArray[np.float64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """(R,) how often each cell is drawn by its weight, R draws in all: the share rounded up or down.

    Systematic sampling: on average over seeds and epochs exactly the share.
    """
    rng = np.random.default_rng((seed, SAMPLING_STREAM, epoch))
    chosen = rng.permutation(np.flatnonzero(weight_R > 0))
    total = len(weight_R)
    end = np.cumsum(weight_R[chosen] / weight_R.max())
    end *= total / end[-1]
    end[-1] = total
    ticks = np.minimum(np.floor(end + rng.random()), total)
    draws_R = np.zeros(total, np.int64)
    draws_R[chosen] = np.diff(ticks, prepend=0).astype(np.int64)
    return draws_R


def drawn_positions(draws_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position ``r`` ``draws_R[r]`` times: ascending among the first draws of all, then the second, ..."""
    position = np.repeat(np.arange(len(draws_R)), draws_R)
    which = np.arange(len(position)) - np.repeat(np.cumsum(draws_R) - draws_R, draws_R)
    return position[np.argsort(which, kind="stable")]


def _shared(rng: np.random.Generator, total: int, parts: int) -> NDArray[np.int64]:
    """``total`` in equal whole numbers, the rest one each to parts drawn at random."""
    quota = np.full(parts, total // parts, np.int64)
    quota[rng.permutation(parts)[: total % parts]] += 1
    return quota
