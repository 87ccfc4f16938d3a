import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.graph import GraphError, KnowledgeGraph
from graph_store.positional import check_positional, encode, laplacian, random_walk

NUM_NODES = 14
EDGES = st.lists(st.tuples(st.integers(0, NUM_NODES - 1), st.integers(0, NUM_NODES - 1)), max_size=40).map(
    lambda edges: np.array(edges, dtype=np.int32).reshape(-1, 2).T
)


def as_array(graph: networkx.Graph) -> np.ndarray:
    return np.array(list(graph.edges), dtype=np.int32).reshape(-1, 2).T


def dense(edges_2E, num_nodes: int) -> np.ndarray:
    """Symmetric 0/1 adjacency without loops."""
    adjacency = np.zeros((num_nodes, num_nodes))
    for source, target in edges_2E.T.tolist():
        adjacency[source, target] = adjacency[target, source] = 1
    np.fill_diagonal(adjacency, 0)
    return adjacency


def dense_laplacian(edges_2E, num_nodes: int) -> np.ndarray:
    """Of the nodes that have an edge; zero rows for the others, which is no eigenvalue of theirs."""
    adjacency = dense(edges_2E, num_nodes)
    degree = adjacency.sum(1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros(num_nodes), where=degree > 0)
    return np.diag((degree > 0).astype(float)) - scale[:, None] * adjacency * scale[None, :]


@given(EDGES, st.integers(1, 9), st.sampled_from([1, 20, 10**6]))
def test_return_probabilities_against_matrix_powers_whatever_the_block_size(edges_2E, num_steps, entries):
    found_PN = random_walk(edges_2E, NUM_NODES, num_steps, block_entries=entries)
    adjacency = dense(edges_2E, NUM_NODES)
    degree = adjacency.sum(1, keepdims=True)
    step = np.divide(adjacency, degree, out=np.zeros_like(adjacency), where=degree > 0)
    expected = [np.diag(np.linalg.matrix_power(step, number)) for number in range(1, num_steps + 1)]
    assert (found_PN.dtype, found_PN.shape) == (np.float32, (NUM_NODES, num_steps))
    np.testing.assert_allclose(found_PN, np.stack(expected, axis=1), atol=1e-7)
    assert not found_PN[degree[:, 0] == 0].any()


def test_return_probabilities_known_by_heart():
    # A pair is back after every second step; a triangle's walker has two ways to go; node 5 stays alone.
    edges_2E = np.array([[0, 2, 3, 4], [1, 3, 4, 2]], np.int32)
    found_PN = random_walk(edges_2E, 6, 4)
    np.testing.assert_allclose(found_PN[0], [0, 1, 0, 1])
    np.testing.assert_allclose(found_PN[2], [0, 1 / 2, 1 / 4, 3 / 8])
    assert not found_PN[5].any()


def test_return_probabilities_of_a_long_walk_are_the_share_of_the_degree():
    graph = networkx.barabasi_albert_graph(80, 4, seed=0)
    found_PN = random_walk(as_array(graph), 80, 64)
    degree = np.array([degree for _, degree in graph.degree])
    np.testing.assert_allclose(found_PN[:, -1], degree / degree.sum(), rtol=1e-5)


@pytest.mark.parametrize("function", [random_walk, laplacian])
def test_directions_repeats_and_order_do_not_matter_and_nodes_may_be_renamed(function):
    random = np.random.default_rng(0)
    edges_2E = as_array(networkx.gnm_random_graph(30, 60, seed=1))
    expected_PN = function(edges_2E, 30, 4)
    other = np.concatenate([edges_2E[::-1], edges_2E[:, :20], [[3], [3]]], axis=1)
    np.testing.assert_allclose(function(random.permutation(other, axis=1), 30, 4), expected_PN, atol=1e-6)
    order = random.permutation(30).astype(np.int32)
    renamed_PN = function(order[edges_2E], 30, 4)[order]
    # Signs follow the largest entry, which keeps its node.
    np.testing.assert_allclose(renamed_PN, expected_PN, atol=1e-6)


def check_eigenvectors(found_PN, edges_2E, num_nodes: int) -> None:
    """Against numpy: eigenvalues one by one, vectors by the projector on each eigenspace that is whole."""
    matrix = dense_laplacian(edges_2E, num_nodes)
    connected = dense(edges_2E, num_nodes).any(1)
    values, vectors = np.linalg.eigh(matrix[np.ix_(connected, connected)])
    nontrivial = values > 1e-9
    values, vectors = values[nontrivial], vectors[:, nontrivial]
    count = min(found_PN.shape[1], len(values))
    assert not found_PN[:, count:].any()
    assert not found_PN[~connected].any()
    found = found_PN[connected][:, :count].astype(np.float64)
    np.testing.assert_allclose(found.T @ found, np.eye(count), atol=1e-5)
    rayleigh = np.diag(found.T @ matrix[np.ix_(connected, connected)] @ found)
    np.testing.assert_allclose(rayleigh, values[:count], atol=1e-5)
    for value in np.unique(values[:count].round(6)):
        space = np.abs(values - value) < 1e-5
        projector = vectors[:, space] @ vectors[:, space].T
        inside = found[:, space[:count]]
        np.testing.assert_allclose(projector @ inside, inside, atol=1e-5)
        if space[:count].sum() == space.sum():
            np.testing.assert_allclose(inside @ inside.T, projector, atol=1e-5)


@settings(max_examples=150)
@given(EDGES, st.integers(1, NUM_NODES + 2))
def test_eigenvectors_against_numpy(edges_2E, num_vectors):
    found_PN = laplacian(edges_2E, NUM_NODES, num_vectors)
    assert (found_PN.dtype, found_PN.shape) == (np.float32, (NUM_NODES, num_vectors))
    check_eigenvectors(found_PN, edges_2E, NUM_NODES)


GRAPHS = {
    "scale-free": networkx.barabasi_albert_graph(150, 3, seed=0),
    "two components and a lonely node": networkx.disjoint_union_all(
        [networkx.gnm_random_graph(60, 150, seed=3), networkx.empty_graph(1), networkx.cycle_graph(70)]
    ),
    "hypercube, whose eigenvalues repeat": networkx.convert_node_labels_to_integers(
        networkx.hypercube_graph(7)
    ),
    "torus": networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(12, 12, periodic=True)),
    "many alike components": networkx.disjoint_union_all([networkx.path_graph(4)] * 20),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("num_vectors", [1, 7, 12])
def test_the_iteration_finds_what_numpy_finds(name, num_vectors):
    graph = GRAPHS[name]
    edges_2E, num_nodes = as_array(graph), len(graph)
    check_eigenvectors(laplacian(edges_2E, num_nodes, num_vectors, dense_up_to=2), edges_2E, num_nodes)


@given(EDGES)
def test_the_largest_entry_is_positive_and_vectors_live_on_one_component(edges_2E):
    found_PN = laplacian(edges_2E, NUM_NODES, 6)
    components = list(networkx.connected_components(networkx.from_numpy_array(dense(edges_2E, NUM_NODES))))
    for vector in found_PN.T[found_PN.any(axis=0)]:
        # Of entries that are nearly equal, which one counts is a matter of rounding.
        assert vector[np.abs(vector) > np.abs(vector).max() * (1 - 1e-5)].max() > 0
        support = set(np.flatnonzero(np.abs(vector) > 1e-6).tolist())
        assert any(support <= component for component in components)


def test_vectors_known_by_heart():
    # A path 0-1-2: eigenvalues 0, 1, 2; equal ends: the first is positive.
    edges_2E = np.array([[0, 1], [1, 2]], np.int32)
    half = np.sqrt(0.5)
    expected = np.array([[half, -0.5, 0], [0, half, 0], [-half, -0.5, 0]])
    np.testing.assert_allclose(laplacian(edges_2E, 3, 3), expected, atol=1e-6)


@pytest.mark.parametrize("dense_up_to", [0, 1000])
def test_the_same_twice(dense_up_to):
    edges_2E = as_array(GRAPHS["scale-free"])
    first, second = (laplacian(edges_2E, 150, 8, dense_up_to=dense_up_to) for _ in range(2))
    assert np.array_equal(first, second)


def test_no_edges_and_no_columns():
    none = np.zeros((2, 0), np.int32)
    for function in (random_walk, laplacian):
        assert function(none, 4, 3).tolist() == [[0.0] * 3] * 4
        assert function(np.array([[0], [1]], np.int32), 4, 0).shape == (4, 0)


@pytest.mark.parametrize(("kind", "function"), [("random_walk", random_walk), ("laplacian", laplacian)])
def test_encode_names_graph_and_kind_and_tells_how_far_it_is(kind, function):
    edges_2E = as_array(GRAPHS["two components and a lonely node"])
    graph = KnowledgeGraph("go", edges_2E, np.ones(edges_2E.shape[1], np.float32))
    seen = []
    encoding = encode(graph, 131, kind, 5, lambda *step: seen.append(step))
    assert encoding[:2] == ("go", kind)
    assert np.array_equal(encoding.value_PN, function(edges_2E, 131, 5))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    check_positional(encoding, 131)


def test_an_iteration_that_does_not_end_is_an_error_that_says_what_to_do(monkeypatch):
    # Eigenvalues of a long cycle lie so close that few restarts never tell them apart.
    monkeypatch.setattr("graph_store.positional.MAX_RESTARTS", 1)
    edges_2E = as_array(networkx.cycle_graph(3000))
    graph = KnowledgeGraph("ring", edges_2E, np.ones(3000, np.float32))
    with pytest.raises(
        GraphError, match="graph ring: 4 Laplacian eigenvectors do not converge; ask for fewer"
    ):
        encode(graph, 3000, "laplacian", 4)
