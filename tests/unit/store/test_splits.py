"""Splits: exact proportions, and nothing but the set of names and the seed counts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.store.splits import (
    CONTROL,
    PROPORTIONS,
    SPLITS,
    largest_remainder,
    split_hash,
    split_perturbations,
)

NAMES = st.sets(st.text("ABCDEFGH123+", min_size=1, max_size=6), min_size=0, max_size=60).map(sorted)


@given(names=NAMES, seed=st.integers(0, 5), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(names: list[str], seed: int, shuffle: "object") -> None:
    listed = [CONTROL, *names]
    split = dict(zip(listed, split_perturbations(listed, seed=seed).tolist(), strict=True))
    other = list(listed)
    shuffle.shuffle(other)  # type: ignore[attr-defined]
    again = dict(zip(other, split_perturbations(other, seed=seed).tolist(), strict=True))
    assert split == again
    assert SPLITS[split[CONTROL]] == "train"
    assert split_hash(listed, split_perturbations(listed, seed=seed)) == split_hash(
        other, split_perturbations(other, seed=seed)
    )


@given(total=st.integers(0, 3000))
def test_proportions_are_met_to_the_nearest_whole_number(total: int) -> None:
    names = [f"P{i}" for i in range(total)]
    counts = np.bincount(split_perturbations(names, seed=0), minlength=3)
    assert counts.sum() == total
    assert (np.abs(counts - total * np.array(PROPORTIONS)) < 1).all()
    assert tuple(counts) == largest_remainder(total, PROPORTIONS)


def test_known_counts() -> None:
    """1,087 perturbations of the K562 screen: a quarter is 271.75, so 272 are test."""
    assert largest_remainder(1087, PROPORTIONS) == (611, 204, 272)
    assert largest_remainder(4, PROPORTIONS) == (2, 1, 1)
    assert largest_remainder(16, PROPORTIONS) == (9, 3, 4)


def test_seeds_give_different_splits_and_the_hash_tells_them_apart() -> None:
    names = [CONTROL, *(f"P{i}" for i in range(40))]
    first, second = split_perturbations(names, seed=0), split_perturbations(names, seed=1)
    assert (first != second).any()
    assert split_hash(names, first) != split_hash(names, second)


def test_the_split_of_a_seed_is_pinned() -> None:
    """A changed algorithm would silently change every benchmark: this must fail then."""
    names = [CONTROL, *(f"P{i}" for i in range(8))]
    assert split_perturbations(names, seed=0).tolist() == [0, 0, 0, 0, 0, 2, 1, 0, 2]
