"""Random halves: balanced, repeatable, independent of reading order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txpert_dist.evaluate.halves import first_halves


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20), seed=st.integers(0, 1000))
@settings(max_examples=80)
def test_halves_differ_by_at_most_one_cell(sizes: list[int], seed: int) -> None:
    condition = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.random.default_rng(seed).permutation(10 * len(condition))[: len(condition)].astype(np.int64)
    halves_SB = first_halves(rows, condition, seed=seed, repeats=3)
    for first_B in halves_SB:
        in_first = np.bincount(condition, first_B, minlength=len(sizes))
        assert (np.abs(2 * in_first - np.array(sizes)) <= 1).all()


def test_halves_depend_on_rows_and_seed_only() -> None:
    rng = np.random.default_rng(0)
    condition = rng.integers(0, 30, 500)
    rows = rng.permutation(5000)[:500].astype(np.int64)
    whole = first_halves(rows, condition, seed=1, repeats=4)
    order = rng.permutation(500)
    assert (first_halves(rows[order], condition[order], seed=1, repeats=4) == whole[:, order]).all()
    some = condition < 7
    renumbered = np.unique(condition[some], return_inverse=True)[1]
    assert (first_halves(rows[some], renumbered, seed=1, repeats=4) == whole[:, some]).all()
    assert (first_halves(rows, condition, seed=2, repeats=4) != whole).any()


def test_repeats_are_different_and_every_cell_is_as_often_on_either_side() -> None:
    rows = np.arange(40, dtype=np.int64)
    halves_SB = first_halves(rows, np.zeros(40, np.int64), seed=3, repeats=400)
    assert len({tuple(half) for half in halves_SB.tolist()}) == 400
    assert np.abs(halves_SB.mean(0) - 0.5).max() < 0.12
    together = np.corrcoef(halves_SB.T.astype(float))
    assert np.abs(together[~np.eye(40, dtype=bool)]).max() < 0.3


def test_single_cells_fall_on_both_sides() -> None:
    rows = np.arange(2000, dtype=np.int64)
    half = first_halves(rows, rows, seed=0, repeats=1)[0]
    assert half.mean() == pytest.approx(0.5, abs=0.05)
    odd = first_halves(rows, rows // 3, seed=0, repeats=1)[0]
    assert odd.mean() == pytest.approx(0.5, abs=0.03)
