"""The strongest cosines, against scikit-learn, whole-number arithmetic and other kernels of BLAS."""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from graph_store.cosine import cosine_pairs, directions
from graph_store.sparsify import Edges, top_percent

ALL = 10**9


def profiles(num_genes: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x_GD = rng.normal(size=(num_genes, 3)) @ rng.normal(size=(3, width)) + rng.normal(size=(num_genes, width))
    return (x_GD * np.exp(rng.normal(0, 3, (num_genes, 1)))).astype(np.float32)


def as_bytes(pairs) -> bytes:
    return pairs.edges_2E.tobytes() + pairs.weight_E.tobytes()


small_rows = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-3, 3), min_size=width, max_size=width).filter(any), min_size=1, max_size=14
    )
)
"""Few different directions, so that ties abound."""


@given(small_rows)
def test_all_pairs_have_the_cosine_of_scikit_learn(rows):
    x_GD = np.array(rows, np.float64)
    pairs = cosine_pairs(x_GD, ALL)
    first, second = np.triu_indices(len(rows), 1)
    assert pairs.edges_2E.tolist() == [first.tolist(), second.tolist()]
    assert pairs.weight_E.dtype == np.float32
    np.testing.assert_allclose(pairs.weight_E, cosine_similarity(x_GD)[first, second], atol=2e-7)
    assert np.abs(pairs.weight_E).max(initial=0) <= 1


@given(small_rows, st.integers(0, 100), st.integers(1, 60))
def test_the_strongest_are_those_of_the_whole_list_whatever_the_blocks(rows, count, max_entries):
    x_GD = np.array(rows, np.float64)
    everything = cosine_pairs(x_GD, ALL)
    chosen = top_percent(Edges(*everything), count)
    expected = chosen.take(np.lexsort((chosen.edges_2E[1], chosen.edges_2E[0])))
    found = cosine_pairs(x_GD, count, max_entries=max_entries)
    assert as_bytes(found) == as_bytes(expected)


@pytest.mark.parametrize("count", [1, 137, 4_000])
def test_the_strongest_of_many_are_those_of_scikit_learn(count):
    x_GD = profiles(301, 40, seed=count)
    found = cosine_pairs(x_GD, count, max_entries=5_000)
    first, second = np.triu_indices(len(x_GD), 1)
    expected = cosine_similarity(x_GD.astype(np.float64))[first, second]
    order = np.argsort(-np.abs(expected))[:count]
    wanted = set(zip(first[order].tolist(), second[order].tolist(), strict=True))
    # float32 may order two cosines of the same size another way: such pairs only
    border = np.abs(expected)[order[-1]]
    for pair in wanted ^ set(map(tuple, found.edges_2E.T.tolist())):
        size = np.abs(expected)[(first == pair[0]) & (second == pair[1])]
        assert abs(size - border) < 1e-7
    keys = found.edges_2E[0].astype(np.int64) * len(x_GD) + found.edges_2E[1]
    assert len(keys) == count
    assert (np.diff(keys) > 0).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 300))
def test_products_are_exact(seed, num_genes, width):
    u_GD, per_length_G = directions(profiles(num_genes, width, seed))
    whole = [[int(value) for value in row] for row in u_GD.tolist()]
    product_GG = u_GD @ u_GD.T
    for first, second in [(0, 0), (0, num_genes - 1), (num_genes // 2, 1)]:
        terms = [a * b for a, b in zip(whole[first], whole[second], strict=True)]
        assert sum(map(abs, terms)) <= 2**53
        assert int(product_GG[first, second]) == sum(terms)
    for row, per_length in zip(whole, per_length_G.tolist(), strict=True):
        length = Fraction(per_length) ** 2 * sum(value * value for value in row)
        assert abs(length - 1) < 1e-15


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_order_of_features_and_powers_of_two_change_nothing(seed, width):
    rng = np.random.default_rng(seed)
    x_GD = profiles(20, width, seed)
    scale_G1 = np.ldexp(1.0, rng.integers(-60, 60, (20, 1)))
    shuffled = (x_GD.astype(np.float64) * scale_G1)[:, rng.permutation(width)]
    assert as_bytes(cosine_pairs(shuffled, 60)) == as_bytes(cosine_pairs(x_GD, 60))


def test_order_of_rows_changes_numbers_only():
    x_GD = profiles(80, 25, seed=1)
    order = np.random.default_rng(2).permutation(80)
    plain, shuffled = cosine_pairs(x_GD, 300), cosine_pairs(x_GD[order], 300)

    def by_names(pairs, names):
        ends = np.sort(names[pairs.edges_2E], axis=0).T.tolist()
        return sorted(zip(ends, pairs.weight_E.tolist(), strict=True))

    assert by_names(plain, np.arange(80)) == by_names(shuffled, order)


def test_same_opposite_and_orthogonal_rows():
    rng = np.random.default_rng(0)
    row = rng.normal(size=1000)
    x_GD = np.stack([row * 1e-38, row * 1e38, -row, np.zeros(1000), np.zeros(1000)])
    x_GD[3, 7], x_GD[4, 8] = 1e-45, 3e38
    weights = cosine_pairs(x_GD, ALL).weight_E
    assert weights[:2].tolist() == [1, -1]
    assert weights[4] == -1
    assert weights[-1] == 0


@pytest.mark.parametrize("width", [1, 2, 1024, 1025, 2**16, 2**17 + 1])
def test_sums_of_squares_never_overflow(width):
    x_GD = np.ones((3, width), np.float32)
    x_GD[2] = -np.nextafter(np.float32(1), np.float32(2))
    assert cosine_pairs(x_GD, ALL).weight_E.tolist() == [1, -1, -1]


@pytest.mark.parametrize("bad", [np.zeros(3), [0, np.nan, 1], [0, np.inf, 1]])
def test_rows_without_a_direction_are_refused(bad):
    with pytest.raises(ValueError, match="all zeros or holds a value that is not finite"):
        cosine_pairs(np.array([[1.0, 2, 3], bad]), ALL)


def test_no_and_one_row_give_no_pair():
    for num_genes in (0, 1):
        assert cosine_pairs(np.ones((num_genes, 4)), ALL).edges_2E.shape == (2, 0)


DIGEST = """
import hashlib, sys
import numpy as np
from graph_store.cosine import cosine_pairs
rng = np.random.Generator(np.random.PCG64(5))
x_GD = rng.integers(-999, 999, (700, 4)) @ rng.integers(-9, 9, (4, 333)) / 7 + rng.random((700, 333))
pairs = cosine_pairs(x_GD, 3_000)
digest = hashlib.sha256(pairs.edges_2E.tobytes() + pairs.weight_E.tobytes()).hexdigest()
sys.stdout.write(digest)
"""


def test_other_threads_and_kernels_of_blas_give_the_same_bytes():
    changes = [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "2"},
        {"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Nehalem"},
        {"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "AVX512F"},
    ]
    command = [sys.executable, "-W", "ignore", "-c", DIGEST]
    runs = [
        subprocess.Popen(command, env={**os.environ, **change}, stdout=subprocess.PIPE, text=True)
        for change in changes
    ]
    found = [run.communicate()[0] for run in runs]
    assert len(found[0]) == 64
    assert found == found[:1] * len(changes)
