import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.graph import KnowledgeGraph
from txpert_dist.model.attention.edges import edge_table, row_blocks

NUM_NODES = 6
edge_lists = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12, unique=True)


def graph_of(edges: list[tuple[int, int]]) -> KnowledgeGraph:
    edges_2E = np.array(edges, np.int32).reshape(-1, 2).T
    return KnowledgeGraph("g", edges_2E, np.ones(len(edges), np.float32))


@given(graphs=st.lists(edge_lists, max_size=3), self_loops=st.booleans(), reverse_edges=st.booleans())
def test_is_the_sorted_union(graphs, self_loops, reverse_edges):
    table = edge_table(
        [graph_of(edges) for edges in graphs], NUM_NODES, self_loops=self_loops, reverse_edges=reverse_edges
    )
    union = {edge for edges in graphs for edge in edges}
    if reverse_edges:
        union |= {(target, source) for source, target in union}
    if self_loops:
        union = {(s, t) for s, t in union if s != t} | {(node, node) for node in range(NUM_NODES)}
    found = list(zip(table.target.tolist(), table.source.tolist(), strict=True))
    assert found == sorted((target, source) for source, target in union)
    for node in range(NUM_NODES):
        part = slice(table.host_indptr[node], table.host_indptr[node + 1])
        assert (table.target[part] == node).all()
    assert table.indptr.tolist() == table.host_indptr.tolist()
    assert table.host_indptr[-1] == len(found)


@given(degrees=st.lists(st.integers(0, 9), max_size=20), max_edges=st.integers(1, 12))
def test_blocks_cover_every_row_once_and_keep_to_the_limit(degrees, max_edges):
    indptr = np.concatenate([[0], np.cumsum(degrees, dtype=np.int64)]).astype(np.int64)
    row = edge = 0
    for rows, edges in row_blocks(indptr, max_edges):
        assert (rows.start, edges.start) == (row, edge)
        assert rows.stop > rows.start
        assert edges.stop - edges.start <= max_edges or rows.stop - rows.start == 1
        row, edge = rows.stop, edges.stop
    assert (row, edge) == (len(degrees), sum(degrees))


@pytest.mark.parametrize("edge", [(0, 6), (-1, 2)])
def test_an_edge_outside_the_nodes_is_refused(edge):
    with pytest.raises(ValueError, match="'g' has an edge outside its 6 nodes"):
        edge_table([graph_of([(0, 1), edge])], NUM_NODES, self_loops=True, reverse_edges=False)
