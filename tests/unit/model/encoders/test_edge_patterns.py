import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.graph import KnowledgeGraph
from tests.unit.model.encoders.exphormer_definition import Edge, edges_of
from tests.unit.model.encoders.random_graphs import graph_input, graph_inputs
from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.encoders.edge_patterns import EdgePatterns, edge_patterns, edge_types
from txpert_dist.model.graph_input import GraphInput

flags = {"self_loops": st.booleans(), "reverse_edges": st.booleans(), "edge_weights": st.booleans()}
shape = {"expander_cycles": st.integers(0, 2), "virtual_nodes": st.integers(0, 2)}
exphormer = st.builds(config.Exphormer, **flags, **shape)
exphormer_mg = st.builds(
    config.ExphormerMg, **flags, **shape, provenance=st.sampled_from(["multihot", "type"])
)


def listed(patterns: EdgePatterns) -> list[Edge]:
    return [
        Edge(
            int(target),
            int(source),
            tuple(int(hot) for hot in patterns.type_RN[row]),
            tuple(float(weight) for weight in patterns.weight_RK[row]),
            bool(patterns.known_R[row]),
        )
        for source, target, row in zip(*patterns.edges_2E, patterns.pattern_E, strict=True)
    ]


@settings(max_examples=150)
@given(options=exphormer | exphormer_mg, graph=graph_inputs)
def test_are_the_definitions_edges_types_and_weights(options, graph):
    patterns = edge_patterns(options, graph)
    assert listed(patterns) == edges_of(options, graph)
    assert patterns.num_nodes == graph.num_nodes + options.virtual_nodes


@settings(max_examples=50)
@given(options=exphormer | exphormer_mg, graph=graph_inputs)
def test_every_pattern_is_there_once_and_counted(options, graph):
    patterns = edge_patterns(options, graph)
    rows = np.concatenate([patterns.type_RN, patterns.weight_RK], axis=1)
    assert len({tuple(row) for row in rows}) == len(rows)
    assert patterns.count_R.tolist() == np.bincount(patterns.pattern_E, minlength=len(rows)).tolist()
    assert (patterns.count_R > 0).all()


def test_types_are_in_order_and_do_not_depend_on_the_edges():
    options = config.ExphormerMg(expander_cycles=1, virtual_nodes=1)
    names = [one.name for one in edge_types(options, graph_input(6, 20, 2, 0))]
    assert names == [
        *("kg0", "kg0 reversed", "kg1", "kg1 reversed", "self loops", "expander"),
        *("to virtual node 0", "from virtual node 0"),
    ]
    assert [one.name for one in edge_types(options, graph_input(6, 0, 2, 0))] == names
    assert [
        one.name for one in edge_types(config.Exphormer(expander_cycles=0), graph_input(6, 20, 3, 0))
    ] == [*("union", "union reversed", "self loops")]


def test_a_symmetric_graph_has_a_reverse_all_the_same():
    both_2E = np.array([[1, 0], [0, 1]], np.int32)
    graph = GraphInput(2, (KnowledgeGraph("g", both_2E, np.ones(2, np.float32)),))
    patterns = edge_patterns(config.ExphormerMg(expander_cycles=0, self_loops=False), graph)
    assert patterns.type_RN.tolist() == [[1, 1]]


def test_few_patterns_stand_for_many_edges():
    patterns = edge_patterns(config.ExphormerMg(expander_cycles=2), graph_input(400, 3000, 2, 0))
    assert patterns.edges_2E.shape[1] > 8000
    assert len(patterns.count_R) < 2**6


def test_an_edge_outside_the_genes_is_refused_also_beside_virtual_nodes():
    graph = GraphInput(2, (KnowledgeGraph("g", np.array([[2], [0]], np.int32), np.ones(1, np.float32)),))
    with pytest.raises(ValueError, match="'g' has an edge outside its 2 nodes"):
        edge_patterns(config.Exphormer(expander_cycles=0, virtual_nodes=3), graph)


def test_an_edge_that_is_there_both_ways_takes_the_larger_weight_as_in_a_union():
    edges_2E = np.array([[1, 2, 0, 0], [0, 0, 1, 2]], np.int32)
    graph = KnowledgeGraph("g", edges_2E, np.array([4, -1, -4, 2], np.float32))
    options = config.ExphormerMg(expander_cycles=0, self_loops=False, edge_weights=True)
    patterns = edge_patterns(options, GraphInput(3, (graph,)))
    union = union_edges([graph], 3, self_loops=False, reverse_edges=True)
    np.testing.assert_array_equal(patterns.edges_2E, union.edges_2E)
    np.testing.assert_array_equal(patterns.weight_RK[patterns.pattern_E], union.weight_EK)
    assert union.weight_EK.flatten().tolist() == [-1, 0.5, -1, 0.5]
