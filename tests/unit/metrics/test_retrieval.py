"""Retrieval rank against the formula in rational arithmetic, with ties, duplicates and constants."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from txpert_dist.metrics.pearson import BLOCK, unit_rows
from txpert_dist.metrics.retrieval import (
    drawn_references,
    rank_among,
    retrieval_rank,
    retrieval_rank_release,
)


def signed_square(x: list[int], y: list[int]) -> Fraction | None:
    """sign(r) * r^2 of the Pearson correlation r: orders pairs as r does, and is rational."""
    a = [Fraction(v) - Fraction(sum(x), len(x)) for v in x]
    b = [Fraction(v) - Fraction(sum(y), len(y)) for v in y]
    product = sum((u * v for u, v in zip(a, b, strict=True)), Fraction(0))
    length = sum(v * v for v in a) * sum(v * v for v in b)
    return None if not length else product * abs(product) / length


def literal_rank(predicted: list[list[int]], observed: list[list[int]]) -> list[float]:
    """The formula of the methods, word for word."""
    ranks = []
    for p, prediction in enumerate(predicted):
        own = signed_square(prediction, observed[p])
        others = [signed_square(prediction, o) for q, o in enumerate(observed) if q != p]
        if own is None or not others:
            ranks.append(float("nan"))
        else:
            ranks.append(sum(s is not None and own >= s for s in others) / len(others))
    return ranks


def random_deltas(num: int, genes: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    observed_PG = rng.normal(size=(num, genes))
    return observed_PG + 2.0 * rng.normal(size=(num, genes)), observed_PG


small_rows = st.integers(1, 7).flatmap(
    lambda num: st.tuples(
        *(
            st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=num, max_size=num)
            for _ in range(2)
        )
    )
)


@given(small_rows)
@settings(max_examples=300)
def test_is_the_formula_exactly_whatever_ties_and_constants_there_are(
    rows: tuple[list[list[int]], list[list[int]]],
) -> None:
    predicted, observed = rows
    result = retrieval_rank(np.array(predicted, float), np.array(observed, float))
    assert result.tolist() == pytest.approx(literal_rank(predicted, observed), nan_ok=True, abs=1e-15)


def test_perfect_is_one_opposite_is_zero_and_noise_is_a_half() -> None:
    _, observed_PG = random_deltas(60, 500)
    assert (retrieval_rank(observed_PG, observed_PG) == 1.0).all()
    assert (retrieval_rank(-observed_PG, observed_PG) == 0.0).all()
    noise_PG = np.random.default_rng(9).normal(size=(400, 50))
    other_PG = np.random.default_rng(8).normal(size=(400, 50))
    assert retrieval_rank(noise_PG, other_PG).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_identical_references_are_ties_in_any_order_of_the_genes(
    dtype: type[np.floating], offset: float
) -> None:
    predicted_PG, one = random_deltas(40, 4001)
    observed_PG = np.repeat(one[:1] + offset, 40, 0).astype(dtype)
    order = np.random.default_rng(1).permutation(4001)
    for columns in (slice(None), order, slice(None, None, -1)):
        assert (retrieval_rank(predicted_PG[:, columns], observed_PG[:, columns]) == 1.0).all()


def test_rescaled_references_are_ties_too() -> None:
    predicted_PG, one = random_deltas(30, 997)
    scale = np.linspace(0.1, 7.0, 30)[:, None]
    assert (retrieval_rank(predicted_PG, one[:1] * scale + scale) == 1.0).all()


def test_permuting_genes_or_perturbations_changes_nothing() -> None:
    predicted_PG, observed_PG = random_deltas(50, 300)
    observed_PG[10:20] = observed_PG[10]
    whole = retrieval_rank(predicted_PG, observed_PG)
    rng = np.random.default_rng(5)
    genes, rows = rng.permutation(300), rng.permutation(50)
    assert (retrieval_rank(predicted_PG[:, genes], observed_PG[:, genes]) == whole).all()
    assert (retrieval_rank(predicted_PG[rows], observed_PG[rows]) == whole[rows]).all()


def test_blocks_make_no_difference() -> None:
    num = 2 * BLOCK + 3
    predicted_PG, observed_PG = random_deltas(num, 6)
    similarity_PQ = unit_rows(predicted_PG).unit_PG @ unit_rows(observed_PG).unit_PG.T
    own_P = np.diag(similarity_PQ)[:, None]
    expected = ((similarity_PQ <= own_P).sum(1) - 1) / (num - 1)
    assert np.abs(retrieval_rank(predicted_PG, observed_PG) - expected).max() < 1e-12


def test_constants_are_nan_as_queries_and_not_beaten_as_references() -> None:
    predicted_PG, observed_PG = random_deltas(5, 20)
    predicted_PG[0] = 0.0
    observed_PG[1] = 3.0
    result = retrieval_rank(observed_PG.copy(), observed_PG)
    assert np.isnan(result).tolist() == [False, True, False, False, False]
    assert result[0] == 3 / 4  # all but the constant reference
    assert np.isnan(retrieval_rank(predicted_PG, observed_PG)[0])
    assert np.isnan(retrieval_rank(predicted_PG[:1], observed_PG[:1])).all()
    assert retrieval_rank(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


def test_fast_retrieval_is_the_formula_on_the_drawn_references_and_the_query() -> None:
    predicted_PG, observed_PG = random_deltas(30, 25)
    drawn = drawn_references(30, 8, seed=4)
    assert len(set(drawn.tolist())) == 8
    fast = retrieval_rank(predicted_PG, observed_PG, references=8, seed=4)
    for query in range(30):
        rows = [query, *(row for row in drawn.tolist() if row != query)]
        assert len(rows) in (8, 9)
        predicted, observed = predicted_PG[[query] * len(rows)], observed_PG[rows]
        assert fast[query] == retrieval_rank(predicted, observed)[0]
    assert (retrieval_rank(predicted_PG, observed_PG, references=8, seed=4) == fast).all()
    assert (retrieval_rank(predicted_PG, observed_PG, references=8, seed=5) != fast).any()
    everything = retrieval_rank(predicted_PG, observed_PG)
    assert (retrieval_rank(predicted_PG, observed_PG, references=30) == everything).all()
    assert (retrieval_rank(predicted_PG, observed_PG, references=1000) == everything).all()
    with pytest.raises(ValueError, match="at least 1"):
        retrieval_rank(predicted_PG, observed_PG, references=0)


def test_queries_against_a_table_leave_their_own_row_out() -> None:
    predicted_PG, observed_PG = random_deltas(12, 9)
    table = unit_rows(observed_PG)
    rows = np.array([3, 7], np.int64)
    whole = retrieval_rank(predicted_PG, observed_PG)
    assert (rank_among(predicted_PG[rows], observed_PG[rows], table, rows) == whole[rows]).all()
    other_PG = observed_PG[rows] * 0 + np.arange(9.0)
    appended = np.vstack([other_PG[:1], np.delete(observed_PG, 3, 0)])
    expected = retrieval_rank(np.repeat(predicted_PG[3:4], 12, 0), appended)[0]
    assert rank_among(predicted_PG[rows], other_PG, table, rows)[0] == expected
    outside = np.array([-1, -1], np.int64)
    beaten = rank_among(predicted_PG[rows], observed_PG[rows], table, outside)
    assert np.abs(beaten * 12 - (whole[rows] * 11 + 1)).max() < 1e-12


def test_release_variant_is_the_position_among_all_with_ties_in_row_order() -> None:
    predicted_PG, observed_PG = random_deltas(40, 60)
    expected = retrieval_rank(predicted_PG, observed_PG) * 39 / 40
    assert np.abs(retrieval_rank_release(predicted_PG, observed_PG) - expected).max() < 1e-15
    tied_PG = np.repeat(observed_PG[:1], 40, 0)
    assert retrieval_rank_release(predicted_PG, tied_PG).tolist() == [p / 40 for p in range(40)]
    assert np.isnan(retrieval_rank_release(predicted_PG * 0, observed_PG)).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        retrieval_rank(np.zeros((2, 3)), np.zeros((3, 3)))


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5, 1e-7, 0.0])
def test_references_that_float32_cannot_tell_apart_are_ranked_as_float64_has_them(spread: float) -> None:
    """From clearly different references to nearly equal ones: the fast product never decides alone."""
    rng = np.random.default_rng(3)
    num, genes = BLOCK + 40, 700
    shared = rng.normal(size=genes)
    observed_PG = shared + spread * rng.normal(size=(num, genes))
    predicted_PG = observed_PG + 2.0 * rng.normal(size=(num, genes))
    predicted, observed = unit_rows(predicted_PG).unit_PG, unit_rows(observed_PG).unit_PG
    similarity_PQ = predicted @ observed.T
    slack = (genes + 8) * np.finfo(float).eps
    beaten_PQ = similarity_PQ <= np.einsum("pg,pg->p", predicted, observed)[:, None] + slack
    expected = (beaten_PQ.sum(1) - 1) / (num - 1)
    assert np.abs(retrieval_rank(predicted_PG, observed_PG) - expected).max() <= 1 / (num - 1) * (
        spread == 1e-7
    )
