"""The read plan: every row once, world-independent, resumable, well shuffled, each rank its own chunks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.loader.plan import EpochPlan, plan_epoch, positions_at, remaining, steps_per_epoch

SIZES = {"chunk": st.integers(1, 60), "window": st.integers(1, 8)}
DRAWS = {"seed": st.integers(0, 2**31), "epoch": st.integers(0, 30)}
PLANS = st.builds(plan_epoch, st.integers(1, 500), minibatch_size=st.integers(1, 40), **SIZES, **DRAWS)
WORLDS = st.sampled_from([1, 2, 3, 4, 6, 12])
PLANS_OF_12 = st.builds(plan_epoch, st.integers(1, 500), minibatch_size=st.just(12), **SIZES, **DRAWS)


def num_steps(plan: EpochPlan) -> int:
    return steps_per_epoch(len(plan.order), minibatch_size=plan.minibatch_size)


@given(plan=PLANS)
def test_an_epoch_is_a_permutation(plan: EpochPlan) -> None:
    np.testing.assert_array_equal(np.sort(plan.order), np.arange(len(plan.order)))
    assert 0 <= len(plan.order) - num_steps(plan) * plan.minibatch_size < plan.minibatch_size


@given(num_rows=st.integers(1, 500), minibatch_size=st.integers(1, 40), **SIZES, **DRAWS)
def test_windows_hold_whole_steps_and_about_as_many_chunks_as_asked(
    num_rows: int, minibatch_size: int, chunk: int, window: int, seed: int, epoch: int
) -> None:
    sizes = {"chunk": chunk, "window": window, "minibatch_size": minibatch_size}
    plan = plan_epoch(num_rows, **sizes, seed=seed, epoch=epoch)
    again = plan_epoch(num_rows, **sizes, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(plan.order, again.order)
    steps = np.diff(plan.window_end, prepend=0)
    assert steps.sum() == num_steps(plan)
    assert (steps > 0).all()
    assert (steps <= max(1, chunk * window // minibatch_size)).all()
    for part in np.split(plan.order, plan.window_end * minibatch_size)[:-1]:
        # The window may begin and end within a chunk, and the edge of the rows cuts two more.
        assert (np.diff(np.sort(part)) > 1).sum() <= -(-len(part) // chunk) + 2


@given(plan=PLANS_OF_12, world=WORLDS)
def test_shares_of_all_ranks_are_the_global_order(plan: EpochPlan, world: int) -> None:
    shares = [
        positions_at(plan, step, rank=rank, world=world)
        for step in range(num_steps(plan))
        for rank in range(world)
    ]
    assert all(len(part) == 12 // world for part in shares)
    np.testing.assert_array_equal(np.concatenate([[], *shares]), plan.order[: num_steps(plan) * 12])


@given(plan=PLANS_OF_12, worlds=st.tuples(WORLDS, WORLDS), stop=st.integers(0, 50))
def test_resuming_on_another_world_delivers_the_rest_once(
    plan: EpochPlan, worlds: tuple[int, int], stop: int
) -> None:
    stop = min(stop, num_steps(plan))
    served = [
        positions_at(plan, step, rank=rank, world=worlds[0])
        for step in range(stop)
        for rank in range(worlds[0])
    ]
    rest = [
        np.concatenate([np.zeros(0, int), *remaining(plan, stop, rank=rank, world=worlds[1])])
        for rank in range(worlds[1])
    ]
    together = np.concatenate([[], *served, *rest])
    np.testing.assert_array_equal(np.sort(together), np.sort(plan.order[: num_steps(plan) * 12]))
    # ... and step by step what a run without a stop gets.
    share = 12 // worlds[1]
    for rank, mine in enumerate(rest):
        for k, step in enumerate(range(stop, num_steps(plan))):
            expected = positions_at(plan, step, rank=rank, world=worlds[1])
            np.testing.assert_array_equal(mine[k * share : (k + 1) * share], expected)


@given(plan=PLANS_OF_12, world=WORLDS, stop=st.integers(0, 50))
def test_resuming_reads_the_same_windows_less_what_was_served(plan: EpochPlan, world: int, stop: int) -> None:
    stop = min(stop, num_steps(plan))
    whole, rest = (remaining(plan, first, rank=0, world=world) for first in (0, stop))
    kept = whole[len(whole) - len(rest) :]
    assert sum(map(len, rest)) == (num_steps(plan) - stop) * (12 // world)
    for before, after in zip(kept, rest, strict=True):
        np.testing.assert_array_equal(before[len(before) - len(after) :], after)


@given(seed=st.integers(0, 1000), epoch=st.integers(0, 50))
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = plan_epoch(300, chunk=10, window=4, minibatch_size=8, seed=seed, epoch=epoch)
        return plan.order.tolist()

    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order(seed + 1, epoch)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_read_chunks_of_their_own(world: int) -> None:
    """Reads of 30 cells, the least a store decodes: all ranks together fetch hardly more of them than one."""
    plan = plan_epoch(40_000, chunk=256, window=64, minibatch_size=64, seed=0, epoch=0)

    def reads(rank: int, world: int) -> int:
        parts = remaining(plan, 0, rank=rank, world=world)
        return sum(len(np.unique(part // 30)) for part in parts)

    assert sum(reads(rank, world) for rank in range(world)) < 1.15 * reads(0, 1)


def label_excess(order: np.ndarray, label: np.ndarray, minibatch_size: int) -> float:
    """How much likelier two cells of a minibatch share a label than two cells of the screen (1: not)."""
    steps = len(order) // minibatch_size
    labels = label[order[: steps * minibatch_size]].reshape(steps, minibatch_size)
    count_SL = np.apply_along_axis(np.bincount, 1, labels, minlength=label.max() + 1)
    within = (count_SL * (count_SL - 1)).sum() / (steps * minibatch_size * (minibatch_size - 1))
    total = np.bincount(label)
    return float(within / ((total * (total - 1)).sum() / (len(label) * (len(label) - 1))))


def default_order(num_rows: int, epoch: int) -> np.ndarray:
    """With the defaults of ``config.Data`` and ``config.Train``."""
    return plan_epoch(num_rows, chunk=256, window=64, minibatch_size=64, seed=0, epoch=epoch).order


@pytest.mark.parametrize(("cells_per_label", "bound"), [(20, 1.2), (100, 1.2), (1_000, 1.5)])
def test_a_store_sorted_by_perturbation_is_shuffled_about_as_well_as_by_a_full_shuffle(
    cells_per_label: int, bound: float
) -> None:
    """The 4 chunks of a label of 1,000 cells fall unevenly into 6 windows, hence the wider bound."""
    num_cells = 100_000
    label = np.sort(np.random.default_rng(0).integers(num_cells // cells_per_label, size=num_cells))
    full = label_excess(np.random.default_rng(1).permutation(num_cells), label, 64)
    ours = max(label_excess(default_order(num_cells, epoch), label, 64) for epoch in range(3))
    assert 0.8 < full < 1.2
    assert ours < bound
    assert label_excess(np.arange(num_cells), label, 64) > 20


def test_the_composition_of_minibatches_scatters_no_more_than_independent_draws() -> None:
    """Means of a label code over minibatches: within and between windows, against a full shuffle."""
    num_cells = 100_000
    label = np.sort(np.random.default_rng(0).integers(1_000, size=num_cells)).astype(float)
    mean = label[default_order(num_cells, 0)][: num_cells // 64 * 64].reshape(-1, 64).mean(axis=1)
    assert mean.std() < 1.1 * label.std() / np.sqrt(64)
    assert abs(mean.mean() - label.mean()) < 0.01 * label.std()


@pytest.mark.parametrize("distance", [1, 10, 100, 1_000])
def test_cells_of_one_chunk_are_apart_as_often_as_not(distance: int) -> None:
    """Two cells this far apart in the store come in either order, and seldom in the same minibatches."""
    first = np.arange(0, 20_000, 37)
    gaps = []
    for epoch in range(20):
        place = np.argsort(default_order(30_000, epoch)) // 64
        gaps.append(place[first + distance] - place[first])
    gap = np.array(gaps)
    assert abs((gap > 0).mean() - (gap < 0).mean()) < 0.05
    assert (np.abs(gap) > 20).mean() > 0.7
