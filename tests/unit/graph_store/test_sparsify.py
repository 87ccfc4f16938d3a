from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.config import KeepAll, TopInEdges, TopPercent
from graph_store.sparsify import (
    Edges,
    merge_duplicates,
    num_top_percent,
    orient,
    sparsify,
    top_in_edges,
    top_percent,
    without_self_loops,
)

NUM_GENES = 9
GENES = tuple(f"G{number}" for number in range(NUM_GENES))
ROW = st.tuples(
    st.integers(0, NUM_GENES - 1),
    st.integers(0, NUM_GENES - 1),
    st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0]),
)
ROWS = st.lists(ROW, min_size=1, max_size=60)
KEEPS = st.sampled_from([KeepAll(), TopInEdges(count=1), TopInEdges(count=3), TopPercent(percent=20)])


def as_edges(rows) -> Edges:
    array = np.array(rows, dtype=np.float64)
    return Edges(array[:, :2].T.astype(np.int32), array[:, 2].astype(np.float32))


def as_rows(edges: Edges) -> list[tuple[int, int, float]]:
    return [
        (*ends, weight)
        for ends, weight in zip(edges.edges_2E.T.tolist(), edges.weight_E.tolist(), strict=True)
    ]


def run(rows, keep, *, directed, mirrored=False, seed=0) -> Edges:
    pairs = merge_duplicates(without_self_loops(as_edges(rows)), directed=directed)
    return sparsify(pairs, GENES, keep, directed=directed, mirrored=mirrored, seed=seed)


@given(ROWS, st.booleans())
def test_merging_keeps_the_largest_weight_of_every_edge(rows, directed):
    merged = as_rows(merge_duplicates(as_edges(rows), directed=directed))
    expected = {}
    for source, target, weight in rows:
        key = (source, target) if directed else (min(source, target), max(source, target))
        expected[key] = max(expected.get(key, weight), weight, key=lambda value: (abs(value), value))
    assert merged == [(*key, expected[key]) for key in sorted(expected)]


@given(ROWS, KEEPS, st.booleans(), st.booleans(), st.integers(0, 5), st.randoms())
def test_the_order_of_rows_does_not_matter(rows, keep, directed, mirrored, seed, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    options = {"directed": directed, "mirrored": mirrored and not directed, "seed": seed}
    assert as_rows(run(rows, keep, **options)) == as_rows(run(shuffled, keep, **options))


@given(ROWS, KEEPS, st.booleans(), st.booleans())
def test_result_is_destination_sorted_without_repeats_or_self_loops(rows, keep, directed, mirrored):
    edges_2E = run(rows, keep, directed=directed, mirrored=mirrored and not directed).edges_2E
    ends = [(target, source) for source, target in edges_2E.T.tolist()]
    assert ends == sorted(set(ends))
    assert all(source != target for target, source in ends)


@given(ROWS, st.integers(0, 50))
def test_every_undirected_pair_is_kept_exactly_once(rows, seed):
    kept = as_rows(run(rows, KeepAll(), directed=False, seed=seed))
    pairs = [(min(source, target), max(source, target)) for source, target, _ in kept]
    assert sorted(pairs) == sorted({(min(a, b), max(a, b)) for a, b, _ in rows if a != b})


@given(ROWS)
def test_both_directions_keep_every_pair_twice(rows):
    kept = as_rows(run(rows, KeepAll(), directed=False, mirrored=True))
    assert {(target, source, weight) for source, target, weight in kept} == set(kept)
    assert len(kept) == 2 * len({frozenset(row[:2]) for row in rows if row[0] != row[1]})


@given(ROWS, st.integers(1, 4), st.booleans())
def test_top_in_edges_against_a_plain_sort(rows, count, directed):
    candidates = as_rows(run(rows, KeepAll(), directed=directed))
    expected = []
    for target in range(NUM_GENES):
        incoming = [row for row in candidates if row[1] == target]
        expected += sorted(incoming, key=lambda row: (-abs(row[2]), row[0]))[:count]
    kept = as_rows(run(rows, TopInEdges(count=count), directed=directed))
    assert sorted(kept) == sorted(expected)
    assert max(np.bincount([row[1] for row in kept]), default=0) <= count


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), FLOATS), st.integers(1, 4))
def test_top_in_edges_of_large_node_numbers_are_those_of_small_ones(weights, count):
    ends = np.array(list(weights), np.int32).reshape(-1, 2).T
    weight_E = np.array(list(weights.values()), np.float32)
    # Numbers beyond 16 bits are sorted in another way.
    small, large = (top_in_edges(Edges(ends + shift, weight_E), count) for shift in (0, 70_000))
    assert np.array_equal(small.edges_2E + 70_000, large.edges_2E)
    assert small.weight_E.tobytes() == large.weight_E.tobytes()
    assert (small.edges_2E.dtype, small.weight_E.dtype) == (np.int32, np.float32)


@given(ROWS, st.integers(1, 80))
def test_top_percent_against_a_plain_sort(rows, count):
    pairs = merge_duplicates(as_edges(rows), directed=False)
    expected = sorted(as_rows(pairs), key=lambda row: (-abs(row[2]), row[0], row[1]))[:count]
    assert as_rows(top_percent(pairs, count)) == expected


@given(ROWS, st.sampled_from([1, 2.5, 10, 50, 100]), st.booleans())
def test_top_percent_counts_all_possible_pairs(rows, percent, directed):
    everything = run(rows, KeepAll(), directed=directed)
    kept = run(rows, TopPercent(percent=percent), directed=directed)
    possible = NUM_GENES * (NUM_GENES - 1) // (1 if directed else 2)
    assert kept.num_edges == min(everything.num_edges, max(1, int(Fraction(str(percent)) * possible / 100)))
    left_out = np.sort(np.abs(everything.weight_E))[: everything.num_edges - kept.num_edges]
    assert np.abs(kept.weight_E).min(initial=9.0) >= left_out.max(initial=0.0)


@pytest.mark.parametrize(
    ("genes", "percent", "directed", "count"),
    [
        (112, 1.0, False, 62),
        (112, 1.0, True, 124),
        (25, 0.1, False, 1),
        (76, 0.2, True, 11),
        (4, 0.001, True, 1),
    ],
)
def test_num_top_percent(genes, percent, directed, count):
    assert num_top_percent(genes, percent, directed=directed) == count


def test_directions_depend_on_names_and_seed_not_on_the_other_genes():
    def directions(names, seed):
        numbers = [names.index(name) for name in "ABC"]
        pairs = as_edges([(numbers[i], numbers[j], 1.0) for i, j in ((0, 1), (2, 0), (1, 2))])
        ends = orient(pairs, names, seed=seed).edges_2E.T.tolist()
        return frozenset((names[source], names[target]) for source, target in ends)

    assert directions(("A", "B", "C"), 4) == directions(("A", "AA", "B", "BB", "C"), 4)
    assert len({directions(("A", "B", "C"), seed) for seed in range(64)}) == 8


def test_directions_are_even_handed():
    first, second = np.triu_indices(200, 1)
    pairs = Edges(np.stack([first, second]).astype(np.int32), np.ones(len(first), np.float32))
    for seed in range(4):
        oriented = orient(pairs, [f"GENE{number}" for number in range(200)], seed=seed)
        assert abs((oriented.edges_2E[0] < oriented.edges_2E[1]).mean() - 0.5) < 0.02
        # No gene is a source or a target by nature: out-degrees scatter as coin flips do.
        assert np.bincount(oriented.edges_2E[0]).min() > 60
        assert np.bincount(oriented.edges_2E[0]).max() < 140


def test_in_edges_are_limited_after_directions_are_given():
    star = [(0, leaf, float(leaf)) for leaf in range(1, NUM_GENES)]
    kept = run(star, TopInEdges(count=2), directed=False, mirrored=True)
    assert kept.weight_E[kept.edges_2E[1] == 0].tolist() == [7.0, 8.0]
    assert (kept.edges_2E[0] == 0).sum() == NUM_GENES - 1
    assert top_in_edges(kept, 1).edges_2E.shape == (2, NUM_GENES)
