import networkx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graph_store.rewire import num_share, rewire, rewire_share

EDGES = st.sets(
    st.tuples(st.integers(0, 14), st.integers(0, 14)).filter(lambda ends: ends[0] != ends[1]), max_size=80
)


def as_array(edges) -> np.ndarray:
    return np.array(list(edges), dtype=np.int32).reshape(-1, 2).T


@given(EDGES, st.integers(0, 2**63 - 1), st.randoms())
def test_degrees_stay_and_no_self_loop_or_repeat_appears(edges, seed, random):
    rewired = rewire(as_array(edges), 15, seed=seed)
    ends = list(map(tuple, rewired.T.tolist()))
    assert ends == sorted(set(ends), key=lambda edge: (edge[1], edge[0]))
    assert all(source != target for source, target in ends)
    for row in (0, 1):
        before = np.bincount(as_array(edges)[row], minlength=15)
        assert np.array_equal(np.bincount(rewired[row], minlength=15), before)
    shuffled = list(edges)
    random.shuffle(shuffled)
    assert np.array_equal(rewire(as_array(shuffled), 15, seed=seed), rewired)


def test_a_complete_graph_and_a_star_have_no_other_wiring():
    for graph in (networkx.complete_graph(6, networkx.DiGraph), networkx.star_graph(6).to_directed()):
        rewired = rewire(as_array(graph.edges), 7, seed=1)
        assert set(map(tuple, rewired.T.tolist())) == set(graph.edges)


def test_a_large_sparse_graph_forgets_its_edges():
    graph = networkx.gnm_random_graph(500, 3000, seed=2, directed=True)
    rewired = set(map(tuple, rewire(as_array(graph.edges), 500, seed=0).T.tolist()))
    # By chance 3000 * 3000 / (500 * 499) = 36 edges are common to two such graphs.
    assert len(rewired & set(graph.edges)) < 80
    assert rewired != set(map(tuple, rewire(as_array(graph.edges), 500, seed=1).T.tolist()))


def test_all_wirings_of_a_small_graph_are_about_equally_likely():
    three = np.array([[0, 1, 2], [3, 4, 5]], dtype=np.int32)
    seen = [tuple(rewire(three, 6, seed=seed)[0].tolist()) for seed in range(480)]
    counts = [seen.count(wiring) for wiring in set(seen)]
    assert len(counts) == 6
    assert min(counts) > 45
    assert max(counts) < 120


def sorted_edges(edges) -> np.ndarray:
    ends = as_array(edges)
    return ends[:, np.lexsort(ends)]


@given(EDGES, st.integers(0, 2**63 - 1), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_of_a_share_the_others_stay_with_their_weights(edges, seed, share):
    ends = sorted_edges(edges)
    weight_E = np.arange(ends.shape[1], dtype=np.float32)
    rewired, weights = rewire_share(ends, weight_E, 15, share=share, seed=seed)
    after = list(map(tuple, rewired.T.tolist()))
    assert after == sorted(set(after), key=lambda edge: (edge[1], edge[0]))
    assert all(source != target for source, target in after)
    for row in (0, 1):
        before = np.bincount(ends[row], minlength=15)
        assert np.array_equal(np.bincount(rewired[row], minlength=15), before)
    weight_of = dict(zip(map(tuple, ends.T.tolist()), weight_E.tolist(), strict=True))
    same = [
        edge for edge, weight in zip(after, weights.tolist(), strict=True) if weight_of.get(edge) == weight
    ]
    assert len(same) >= len(edges) - num_share(len(edges), share)
    # A weight stays with the target that it enters.
    targets = {weight: target for (_, target), weight in weight_of.items()}
    assert [targets[weight] for weight in weights.tolist()] == rewired[1].tolist()


@given(EDGES, st.integers(0, 2**63 - 1))
def test_a_whole_share_is_all_and_none_is_nothing(edges, seed):
    ends = sorted_edges(edges)
    weight_E = np.arange(ends.shape[1], dtype=np.float32)
    whole, weights = rewire_share(ends, weight_E, 15, share=1.0, seed=seed)
    assert np.array_equal(whole, rewire(ends, 15, seed=seed))
    assert np.array_equal(weights, weight_E)
    none, weights = rewire_share(ends, weight_E, 15, share=0.0, seed=seed)
    assert np.array_equal(none, ends)
    assert np.array_equal(weights, weight_E)


def test_half_of_a_large_graph_is_rewired():
    graph = networkx.gnm_random_graph(500, 3000, seed=2, directed=True)
    ends = sorted_edges(graph.edges)
    half, _ = rewire_share(ends, np.ones(3000, np.float32), 500, share=0.5, seed=0)
    common = len(set(map(tuple, half.T.tolist())) & set(graph.edges))
    # 1500 stay; of the others some 1500 * 3000 / (500 * 499) = 18 become an edge that was there.
    assert 1500 <= common < 1560


def test_edges_that_stand_aside_are_no_place_to_go():
    # Two edges that could only exchange their targets, one of which pairs is taken already.
    moving, aside = as_array([(0, 2), (1, 3)]), as_array([(0, 3)])
    for seed in range(20):
        assert np.array_equal(rewire(moving, 4, seed=seed, others_2E=aside), moving)
