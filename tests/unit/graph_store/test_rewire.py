import networkx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graph_store.rewire import rewire

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
