"""In which order the cells of an epoch are read: a pure function of a few integers.

Enters: numbers of rows, chunk, window, minibatch size, seed, epoch; then step, rank and world. Leaves:
positions in the list of training rows. Invariants: an epoch's order is a permutation that no rank or world
enters; the shares of all ranks, in rank order, are the minibatch; nothing is stored, so a run resumes from
(epoch, step), on any world.

Consecutive rows form chunks and the chunks are shuffled. The result is cut into windows of about ``window``
chunks, a window into as many lanes as a minibatch has cells, and every lane is shuffled. A minibatch takes
one cell from each lane. So its cells come from all over the window, while a rank's share of all its
minibatches comes from a few whole chunks: ranks do not decode each other's cells. Where chunks begin moves
from epoch to epoch, so neighbours do not always travel together.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER_STREAM = 1
"""Second word of the generator's seed: the order of an epoch, as apart from any other draw."""


class EpochPlan(NamedTuple):
    """The order of one epoch."""

    order: NDArray[np.int64]
    """(num_rows,) a permutation of the positions; after the last full minibatch come those left out."""
    window_end: NDArray[np.int64]
    """Ascending last steps (exclusive) of what is shuffled, and read, together."""
    minibatch_size: int
    """Cells of a step over all ranks."""


def plan_epoch(
    num_rows: int, *, chunk: int, window: int, minibatch_size: int, seed: int, epoch: int
) -> EpochPlan:
    """Order ``num_rows`` positions into steps; windows are equally long, so none holds few perturbations."""
    rng = np.random.default_rng((seed, ORDER_STREAM, epoch))
    order = _shuffled_chunks(rng, num_rows, chunk)
    num_steps = steps_per_epoch(num_rows, minibatch_size=minibatch_size)
    num_windows = -(-num_steps // max(1, chunk * window // minibatch_size))
    window_end = np.arange(1, num_windows + 1) * num_steps // max(1, num_windows)
    for first, last in zip(np.append(0, window_end), window_end, strict=False):
        part = order[first * minibatch_size : last * minibatch_size]
        lanes = rng.permuted(part.reshape(minibatch_size, last - first), axis=1)
        part[:] = lanes.T.ravel()
    return EpochPlan(order, window_end, minibatch_size)


def steps_per_epoch(num_rows: int, *, minibatch_size: int) -> int:
    """Full minibatches (over all workers) of an epoch; the rest of the order, each time another, is left."""
    return num_rows // minibatch_size


def positions_at(plan: EpochPlan, step: int, *, rank: int, world: int) -> NDArray[np.int64]:
    """(minibatch_size / world,) the contiguous part of the step's minibatch that belongs to ``rank``."""
    share = plan.minibatch_size // world
    start = step * plan.minibatch_size + rank * share
    return plan.order[start : start + share]


def remaining(plan: EpochPlan, start_step: int, *, rank: int, world: int) -> list[NDArray[np.int64]]:
    """Positions that ``rank`` serves from ``start_step`` to the epoch's end, in order, one array a window."""
    share = plan.minibatch_size // world
    num_steps = int(plan.window_end[-1]) if len(plan.window_end) else 0
    steps = plan.order[: num_steps * plan.minibatch_size].reshape(num_steps, plan.minibatch_size)
    mine = steps[start_step:, rank * share : (rank + 1) * share]
    parts = np.split(mine, np.maximum(plan.window_end - start_step, 0))
    return [part.ravel() for part in parts if len(part)]


def _shuffled_chunks(rng: np.random.Generator, num_rows: int, chunk: int) -> NDArray[np.int64]:
    edges = np.unique(np.concatenate([[0], np.arange(rng.integers(chunk), num_rows, chunk), [num_rows]]))
    chosen = rng.permutation(len(edges) - 1)
    length = np.diff(edges)[chosen]
    shift = np.repeat(edges[:-1][chosen] - (np.cumsum(length) - length), length)
    return shift + np.arange(num_rows)
