import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from graph_store.graph import GraphError, KnowledgeGraph
from graph_store.index import WIDTH, check_index, index_graph


def graph_of(edges: set[tuple[int, int]]) -> KnowledgeGraph:
    ordered = sorted(edges, key=lambda edge: edge[::-1])
    edges_2E = np.array(ordered, np.int32).reshape(-1, 2).T
    return KnowledgeGraph("kg", edges_2E, np.arange(1, len(ordered) + 1, dtype=np.float32))


@st.composite
def graphs(draw) -> tuple[KnowledgeGraph, int]:
    """Random edges, and hubs that many nodes enter or leave."""
    num_genes = draw(st.integers(1, 3 * WIDTH))
    node = st.integers(0, num_genes - 1)
    edges = draw(st.sets(st.tuples(node, node), max_size=60))
    for hub in draw(st.lists(node, max_size=2)):
        neighbours = range(draw(st.integers(0, num_genes)))
        edges |= {(other, hub) if draw(st.booleans()) else (hub, other) for other in neighbours}
    return graph_of({edge for edge in edges if edge[0] != edge[1]}), num_genes


@given(graphs())
def test_pointers_and_transpose_are_scipys(given_graph):
    graph, num_genes = given_graph
    found = index_graph(graph, num_genes)
    source, target = graph.edges_2E
    numbers = np.arange(1, len(source) + 1)
    csr = scipy.sparse.csr_array((numbers, (target, source)), shape=(num_genes, num_genes))
    np.testing.assert_array_equal(found.indptr_P1, csr.indptr)
    csc = csr.tocsc()
    np.testing.assert_array_equal(found.source_indptr_P1, csc.indptr)
    np.testing.assert_array_equal(found.by_source_E, csc.data - 1)
    np.testing.assert_array_equal(target[found.by_source_E], csc.indices)
    assert {array.dtype.str for array in found[1:]} == {"<i4"}


@given(graphs())
def test_the_neighbour_table_is_the_edges_in_rows_of_a_fixed_width(given_graph):
    graph, num_genes = given_graph
    found = index_graph(graph, num_genes)
    source, target = graph.edges_2E
    rows = []
    for node in range(num_genes):
        own = np.flatnonzero(target == node)
        for start in range(0, len(own), WIDTH):
            sources = source[own[start : start + WIDTH]].tolist()
            rows.append((node, own[start], sources + [-1] * (WIDTH - len(sources))))
    assert found.row_of_V.tolist() == [row for row, _, _ in rows]
    assert found.edge_V.tolist() == [edge for _, edge, _ in rows]
    assert found.neighbour_VW.tolist() == [sources for _, _, sources in rows]
    assert found.neighbour_VW.shape == (len(rows), WIDTH)


@given(graphs(), st.integers(0, 2**32 - 1))
def test_kernels_that_read_it_compute_what_the_edges_say(given_graph, seed):
    graph, num_genes = given_graph
    found = index_graph(graph, num_genes)
    source, target = graph.edges_2E
    x_P = np.random.default_rng(seed).integers(-9, 9, num_genes).astype(np.float64)
    adjacency = scipy.sparse.csr_array((graph.weight_E, (target, source)), shape=(num_genes, num_genes))
    filled_VW = found.neighbour_VW >= 0
    slot_VW = np.where(filled_VW, found.edge_V[:, None] + np.arange(WIDTH), 0)
    padded_E = np.append(graph.weight_E, np.float32(0))
    term_VW = np.where(filled_VW, padded_E[slot_VW] * x_P[found.neighbour_VW], 0)
    forward_P = np.bincount(found.row_of_V, term_VW.sum(1), num_genes)
    np.testing.assert_array_equal(forward_P, adjacency @ x_P)
    by_source = found.by_source_E
    term_E = graph.weight_E[by_source] * x_P[target[by_source]]
    backward_P = np.diff(np.append(0, np.cumsum(term_E))[found.source_indptr_P1])
    np.testing.assert_array_equal(backward_P, adjacency.T @ x_P)


@given(graphs())
def test_what_is_made_passes_the_check(given_graph):
    graph, num_genes = given_graph
    check_index(index_graph(graph, num_genes), graph, num_genes)


def test_every_change_is_found():
    graph = graph_of({(0, 1), (2, 1), (1, 0), (2, 0), (0, 3)} | {(other, 4) for other in range(5, 45)})
    whole = index_graph(graph, 45)
    check_index(whole, graph, 45)
    for field in whole._fields[1:]:
        array = getattr(whole, field)
        for place in np.ndindex(array.shape):
            for step in (-1, 1):
                changed = array.copy()
                changed[place] += step
                with pytest.raises(GraphError, match="index of graph kg: "):
                    check_index(whole._replace(**{field: changed}), graph, 45)
        with pytest.raises(GraphError, match="index of graph kg: "):
            check_index(whole._replace(**{field: array[:-1]}), graph, 45)


def test_swapped_edges_by_source_are_found():
    graph = graph_of({(0, 1), (0, 2), (1, 2)})
    whole = index_graph(graph, 3)
    for by_source in ([1, 0, 2], [0, 0, 2], [0, 1, 3], [0, 1, -1]):
        changed = whole._replace(by_source_E=np.array(by_source, np.int32))
        with pytest.raises(GraphError, match="by source are not sorted or not all there"):
            check_index(changed, graph, 3)
