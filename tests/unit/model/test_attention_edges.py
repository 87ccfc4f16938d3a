import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_geometric.utils import add_self_loops, coalesce, remove_self_loops

from graph_store import client
from graph_store.graph import GraphError, KnowledgeGraph
from txpert_dist.model.attention.edges import (
    EdgeList,
    Edges,
    row_blocks,
    supra_edges,
    union_edges,
    with_self_loops,
)

NUM_NODES = 6
weighted_edges = st.dictionaries(
    st.tuples(st.integers(0, NUM_NODES - 1), st.integers(0, NUM_NODES - 1)),
    st.sampled_from([-4.0, -1.0, -0.25, 0.5, 1.0, 2.0, 3.0]),
    max_size=12,
)
"""(source, target) -> weight"""
graph_lists = st.lists(weighted_edges, max_size=3)


def graph_of(weights: dict[tuple[int, int], float]) -> KnowledgeGraph:
    edges = sorted(weights, key=lambda edge: edge[::-1])
    weight_E = np.array([weights[edge] for edge in edges], np.float32)
    return KnowledgeGraph("g", np.array(edges, np.int32).reshape(-1, 2).T, weight_E)


def plain_union(
    graphs: list[dict[tuple[int, int], float]], *, self_loops: bool, reverse_edges: bool
) -> dict[tuple[int, int], list[float]]:
    """(source, target) -> weight in every graph, edge by edge."""
    union: dict[tuple[int, int], list[float]] = {}
    for number, weights in enumerate(graphs):
        largest = max((abs(weight) for weight in weights.values()), default=1.0)
        for (source, target), weight in weights.items():
            for edge in {(source, target), (target, source)} if reverse_edges else {(source, target)}:
                row = union.setdefault(edge, [0.0] * len(graphs))
                # the larger in size of both directions, the negative of two equal ones
                row[number] = max(row[number], weight / largest, key=lambda one: (abs(one), -one))
    if self_loops:
        union = {edge: row for edge, row in union.items() if edge[0] != edge[1]}
        for node in range(NUM_NODES):
            entering = [row for (_, target), row in union.items() if target == node]
            union[node, node] = np.mean(entering or [[0.0] * len(graphs)], axis=0).tolist()
    return union


def assert_same_edges(found: EdgeList, expected: dict[tuple[int, int], list[float]]) -> None:
    """The same edges and weights, and sorted."""
    order = sorted(expected, key=lambda edge: edge[::-1])
    assert list(zip(*found.edges_2E.tolist(), strict=True)) == order
    assert found.edges_2E.shape == (2, len(order))
    assert found.edges_2E.dtype == np.int64
    assert found.weight_EK.dtype == np.float32
    assert len(found.weight_EK) == len(order)
    for row_K, edge in zip(found.weight_EK, order, strict=True):
        np.testing.assert_allclose(row_K, expected[edge], rtol=1e-6, atol=1e-7)


@given(graphs=graph_lists, self_loops=st.booleans(), reverse_edges=st.booleans())
def test_union_is_the_plain_one(graphs, self_loops, reverse_edges):
    found = union_edges(
        [graph_of(weights) for weights in graphs],
        NUM_NODES,
        self_loops=self_loops,
        reverse_edges=reverse_edges,
    )
    assert_same_edges(found, plain_union(graphs, self_loops=self_loops, reverse_edges=reverse_edges))


@given(weights=weighted_edges)
def test_self_loops_are_pygs_with_mean_weights(weights):
    graph = graph_of(weights)
    edge_index, weight_E = remove_self_loops(
        torch.from_numpy(graph.edges_2E).long(), torch.from_numpy(graph.weight_E)
    )
    edge_index, weight_E = add_self_loops(edge_index, weight_E, "mean", NUM_NODES)
    edge_index, weight_E = coalesce(edge_index, weight_E, NUM_NODES, sort_by_row=False)
    found = union_edges([graph], NUM_NODES, self_loops=True, reverse_edges=False)
    np.testing.assert_array_equal(found.edges_2E, edge_index)
    largest = np.abs(graph.weight_E).max(initial=0) or 1
    np.testing.assert_allclose(found.weight_EK[:, 0], weight_E / largest, rtol=1e-6, atol=1e-7)


@given(
    graphs=st.lists(weighted_edges, min_size=1, max_size=3),
    self_loops=st.booleans(),
    reverse_edges=st.booleans(),
)
def test_supra_graph_is_the_layers_and_the_coupling(graphs, self_loops, reverse_edges):
    supra = client.supra([graph_of(weights) for weights in graphs], NUM_NODES)
    found = supra_edges(supra, self_loops=self_loops, reverse_edges=reverse_edges)
    expected = {}
    for layer, weights in enumerate(graphs):
        start = layer * NUM_NODES
        single = plain_union([weights], self_loops=self_loops, reverse_edges=reverse_edges)
        for (source, target), (weight,) in single.items():
            row = [0.0] * len(graphs)
            row[layer] = weight
            expected[source + start, target + start] = row
        for other in range(len(graphs)):
            for gene in range(NUM_NODES):
                if other != layer:
                    expected[gene + start, gene + other * NUM_NODES] = [0.0] * len(graphs)
    assert_same_edges(found, expected)


def test_self_loops_of_a_list_without_any():
    edges = EdgeList(np.array([[1, 2], [0, 0]]), np.array([[1, 0], [0.5, 1]], np.float32))
    found = with_self_loops(edges, 3)
    assert found.edges_2E.tolist() == [[0, 1, 2, 1, 2], [0, 0, 0, 1, 2]]
    assert found.weight_EK.tolist() == [[0.75, 0.5], [1, 0], [0.5, 1], [0, 0], [0, 0]]


def test_no_graph_is_self_loops_alone():
    found = union_edges([], 3, self_loops=True, reverse_edges=True)
    assert found.edges_2E.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert found.weight_EK.shape == (3, 0)
    assert union_edges([], 3, self_loops=False, reverse_edges=True).edges_2E.shape == (2, 0)


@given(weights=weighted_edges)
def test_table_is_the_list_compressed_by_target(weights):
    edges = union_edges([graph_of(weights)], NUM_NODES, self_loops=False, reverse_edges=False)
    table = Edges(edges.edges_2E, NUM_NODES).table
    assert table.source.tolist() == edges.edges_2E[0].tolist()
    assert table.target.tolist() == edges.edges_2E[1].tolist()
    for node in range(NUM_NODES):
        part = slice(table.host_indptr[node], table.host_indptr[node + 1])
        assert (table.target[part] == node).all()
    assert table.indptr.tolist() == table.host_indptr.tolist()
    assert table.host_indptr[-1] == len(table.source)


def test_table_follows_the_model_and_stays_out_of_its_state():
    model = nn.Sequential(Edges(np.array([[0, 1], [1, 2]]), 3))
    assert not model.state_dict()
    assert model.double().to("meta")[0].table.source.device.type == "meta"
    assert model[0].table.source.dtype == torch.int64


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
    graph = graph_of({(0, 1): 1.0, edge: 1.0})
    with pytest.raises(ValueError, match="'g' has an edge outside its 6 nodes"):
        union_edges([graph], NUM_NODES, self_loops=True, reverse_edges=False)
    with pytest.raises(GraphError, match="'g' has an edge outside its 6 nodes"):
        client.supra([graph], NUM_NODES)
