import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from graph_store.graph import COUPLING, GraphError, KnowledgeGraph
from graph_store.supra import check_supra, supra_adjacency

WEIGHTS = st.sampled_from([-3.0, -1.0, 0.25, 1.0, 7.0])


@st.composite
def multilayer(draw) -> tuple[list[KnowledgeGraph], int]:
    """Up to four graphs over up to six genes."""
    num_genes = draw(st.integers(1, 6))
    pairs = [(source, target) for target in range(num_genes) for source in range(num_genes)]
    graphs = []
    for number in range(draw(st.integers(1, 4))):
        # Sorted by target, then source, as the pairs are.
        weights = draw(st.dictionaries(st.sampled_from(pairs), WEIGHTS))
        edges = sorted((edge for edge in weights if edge[0] != edge[1]), key=lambda edge: edge[::-1])
        edges_2E = np.array(edges, np.int32).reshape(-1, 2).T
        weight_E = np.array([weights[edge] for edge in edges], np.float32)
        graphs.append(KnowledgeGraph(f"kg{number}", edges_2E, weight_E))
    return graphs, num_genes


def adjacency(graph: KnowledgeGraph, num_genes: int) -> scipy.sparse.csr_array:
    source, target = graph.edges_2E
    return scipy.sparse.csr_array((graph.weight_E, (target, source)), shape=(num_genes, num_genes))


@given(multilayer())
def test_it_is_scipys_block_array_of_the_graphs_and_identities(given_graphs):
    graphs, num_genes = given_graphs
    found = supra_adjacency(graphs, num_genes)
    identity = scipy.sparse.eye_array(num_genes, dtype=np.float32)
    blocks = [
        [adjacency(graph, num_genes) if one == other else identity for other in range(len(graphs))]
        for one, graph in enumerate(graphs)
    ]
    expected = scipy.sparse.block_array(blocks, format="csr")
    source, target = found.edges_2M
    np.testing.assert_array_equal(source, expected.indices)
    np.testing.assert_array_equal(target, np.repeat(np.arange(expected.shape[0]), np.diff(expected.indptr)))
    np.testing.assert_array_equal(found.weight_M, expected.data)
    layers = np.stack([source // num_genes, target // num_genes])
    np.testing.assert_array_equal(found.layer_M, np.where(layers[0] == layers[1], layers[0], COUPLING))
    assert (found.edges_2M.dtype, found.layer_M.dtype, found.weight_M.dtype) == ("i4", "i4", "f4")
    assert (found.num_layers, found.num_genes) == (len(graphs), num_genes)


@given(multilayer(), st.randoms())
def test_couplings_join_every_two_copies_of_a_gene_and_nothing_else(given_graphs, random):
    graphs, num_genes = given_graphs
    found = supra_adjacency(graphs, num_genes)
    coupling = found.layer_M == COUPLING
    assert coupling.sum() == len(graphs) * (len(graphs) - 1) * num_genes
    source, target = found.edges_2M[:, coupling]
    np.testing.assert_array_equal(source % num_genes, target % num_genes)
    assert (source != target).all()
    # A gene none of whose layers has an edge is still reached from all its copies.
    num_nodes = len(graphs) * num_genes
    joined = scipy.sparse.csr_array((np.ones(len(source)), (target, source)), shape=(num_nodes, num_nodes))
    assert scipy.sparse.csgraph.connected_components(joined)[0] == num_genes
    # Layers in another order are the same blocks in another order.
    order = random.sample(range(len(graphs)), len(graphs))
    other = supra_adjacency([graphs[layer] for layer in order], num_genes)
    place = np.argsort(order)[found.edges_2M // num_genes] * num_genes + found.edges_2M % num_genes
    np.testing.assert_array_equal(place[:, np.lexsort(place)], other.edges_2M)


@given(multilayer())
def test_what_is_made_passes_the_check(given_graphs):
    check_supra(supra_adjacency(*given_graphs), *given_graphs)


def two_layers() -> tuple[list[KnowledgeGraph], int]:
    one = KnowledgeGraph("one", np.array([[1, 0], [0, 2]], np.int32), np.array([1, 2], np.float32))
    other = KnowledgeGraph("other", np.array([[2], [0]], np.int32), np.array([3], np.float32))
    return [one, other], 3


def test_every_change_is_found():
    graphs, num_genes = two_layers()
    whole = supra_adjacency(graphs, num_genes)
    for edge in range(len(whole.layer_M)):
        ends = whole.edges_2M.copy()
        ends[0, edge] = (ends[0, edge] + 1) % 6
        layer_M, weight_M = whole.layer_M.copy(), whole.weight_M.copy()
        layer_M[edge] = 1 if layer_M[edge] == 0 else layer_M[edge] - 1
        weight_M[edge] += 1
        without = np.arange(len(layer_M)) != edge
        for changed in (
            whole._replace(edges_2M=ends),
            whole._replace(layer_M=layer_M),
            whole._replace(weight_M=weight_M),
            whole._replace(layer_M=whole.layer_M[without]),
            whole._replace(
                edges_2M=whole.edges_2M[:, without],
                layer_M=whole.layer_M[without],
                weight_M=whole.weight_M[without],
            ),
        ):
            with pytest.raises(GraphError, match="supra-adjacency: "):
                check_supra(changed, graphs, num_genes)
    with pytest.raises(GraphError, match="is not that of its graphs, coupled by their genes"):
        check_supra(whole, graphs[::-1], num_genes)


def test_more_nodes_than_numbers_are_refused():
    graphs = [KnowledgeGraph(str(layer), np.zeros((2, 0), "i4"), np.zeros(0, "f4")) for layer in range(3)]
    with pytest.raises(GraphError, match="3 layers of 1000000000 genes: more nodes than 32 bits"):
        supra_adjacency(graphs, 10**9)


def test_an_edge_into_another_layer_is_refused():
    graphs, _ = two_layers()
    with pytest.raises(GraphError, match="graph 'one' has an edge outside its 2 nodes"):
        supra_adjacency(graphs, 2)
