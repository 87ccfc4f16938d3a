from collections import Counter
from fractions import Fraction

import numpy as np
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from graph_store.sparsify import Edges, destination_sorted, downsample

GENES = tuple(f"G{number:02d}" for number in range(12))
PAIRS = st.sets(
    st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda ends: ends[0] < ends[1]), min_size=1
)
SHARES = st.integers(1, 100).map(lambda percent: percent / 100)
SEEDS = st.integers(0, 2**63 - 1)


def edges_of(pairs) -> Edges:
    ends = np.array(sorted(pairs), np.int32).T
    return destination_sorted(Edges(ends, (ends[0] * 100 + ends[1]).astype(np.float32)))


def as_set(edges: Edges) -> set[tuple[int, int, float]]:
    return set(zip(*edges.edges_2E.tolist(), edges.weight_E.tolist(), strict=True))


@given(PAIRS, SHARES, SEEDS)
def test_as_many_as_asked_for_in_their_order_with_their_weights(pairs, share, seed):
    edges = edges_of(pairs)
    kept = downsample(edges, GENES, share, mirrored=False, seed=seed)
    exact = Fraction(str(share)) * len(pairs)
    assert kept.num_edges == max(1, int(exact + Fraction(1, 2)))
    assert as_set(kept) <= as_set(edges)
    order = np.lexsort(kept.edges_2E)
    np.testing.assert_array_equal(order, np.arange(kept.num_edges))


@given(PAIRS, SHARES, SEEDS, st.randoms())
def test_the_directions_of_a_pair_stay_or_go_together(pairs, share, seed, random):
    turned = {pair[::-1] if random.random() < 0.5 else pair for pair in pairs}
    # Of some pairs a limit on incoming edges has left one direction.
    there = turned | {pair[::-1] for pair in turned if random.random() < 0.5}
    kept = downsample(edges_of(there), GENES, share, mirrored=True, seed=seed)
    ends = set(zip(*kept.edges_2E.tolist(), strict=True))
    kept_pairs = {tuple(sorted(end)) for end in ends}
    assert len(kept_pairs) == max(1, int(Fraction(str(share)) * len(pairs) + Fraction(1, 2)))
    assert ends == {end for end in there if tuple(sorted(end)) in kept_pairs}


@given(PAIRS, SHARES, SHARES, SEEDS)
def test_a_smaller_share_is_part_of_a_larger_one(pairs, one, other, seed):
    edges = edges_of(pairs)
    small, large = (
        as_set(downsample(edges, GENES, share, mirrored=False, seed=seed)) for share in sorted((one, other))
    )
    assert small <= large


@given(PAIRS, SHARES, SEEDS)
def test_the_choice_is_one_of_names_not_of_numbers(pairs, share, seed):
    more = ("A", *GENES)  # every gene moves up by one
    shifted = edges_of({(one + 1, other + 1) for one, other in pairs})
    here = downsample(edges_of(pairs), GENES, share, mirrored=False, seed=seed)
    there = downsample(shifted, more, share, mirrored=False, seed=seed)
    np.testing.assert_array_equal(here.edges_2E + 1, there.edges_2E)


def test_a_whole_share_changes_nothing_and_the_smallest_leaves_one():
    edges = edges_of({(0, 1), (1, 2), (3, 5)})
    assert as_set(downsample(edges, GENES, 1.0, mirrored=False, seed=0)) == as_set(edges)
    assert downsample(edges, GENES, 1e-9, mirrored=False, seed=0).num_edges == 1


def test_every_edge_is_about_as_likely():
    pairs = {(one, other) for one in range(12) for other in range(one + 1, 12)}
    edges = edges_of(pairs)
    times = Counter(
        edge
        for seed in range(600)
        for edge in as_set(downsample(edges, GENES, 0.5, mirrored=False, seed=seed))
    )
    assert len(times) == len(pairs)
    counts = np.array(list(times.values()))
    # 300 each; negatively correlated draws spread less than binomial ones, so this bound is generous.
    assert scipy.stats.binomtest(int(counts.min()), 600).pvalue > 1e-5
    assert scipy.stats.binomtest(int(counts.max()), 600).pvalue > 1e-5
