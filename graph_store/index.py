"""A knowledge graph in the orders that kernels read it, made once where the graph is made.

Enters: a graph's destination-sorted edges. Leaves: a ``GraphIndex``: pointers of the edges by target (CSR)
and by source (CSC, for the backward pass), and a table of neighbours with a fixed number of slots a row, in
which hubs take several rows. Invariant: all of it follows from the edges alone.
"""

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import GraphError, GraphIndex, KnowledgeGraph

WIDTH = 32
"""Slots of a row of the neighbour table: a warp's threads, and room for the default of 20 edges a node."""


def index_graph(graph: KnowledgeGraph, num_genes: int) -> GraphIndex:
    """The index of ``graph``, which keeps the invariants of ``graph_store.graph``."""
    source, target = graph.edges_2E
    return GraphIndex(
        graph.name,
        _pointers(target, num_genes),
        _pointers(source, num_genes),
        # The edges are sorted by target, and a stable sort leaves them so.
        np.argsort(source, kind="stable").astype(np.int32),
        *_neighbours(source, _pointers(target, num_genes)),
    )


def check_index(index: GraphIndex, graph: KnowledgeGraph, num_genes: int) -> None:
    """Raise ``GraphError`` unless ``index`` is what ``index_graph`` makes of ``graph``; without sorting."""
    source, target = graph.edges_2E
    indptr_P1 = _pointers(target, num_genes)
    pairs = [
        (index.indptr_P1, indptr_P1),
        (index.source_indptr_P1, _pointers(source, num_genes)),
        *zip((index.neighbour_VW, index.row_of_V, index.edge_V), _neighbours(source, indptr_P1), strict=True),
    ]
    if not all(np.array_equal(found, expected) for found, expected in pairs):
        raise GraphError(f"index of graph {graph.name}: does not belong to its edges")
    by_source = index.by_source_E
    inside = len(by_source) == len(source) and ((by_source >= 0) & (by_source < len(source))).all()
    # Ascending without a repeat, and as many as there are edges: each of them is there once.
    if not inside or (np.diff(source[by_source].astype(np.int64) * num_genes + target[by_source]) <= 0).any():
        raise GraphError(f"index of graph {graph.name}: its edges by source are not sorted or not all there")


def _pointers(node_E: NDArray[np.int32], num_genes: int) -> NDArray[np.int32]:
    """(P + 1,) where each node's edges begin when they are sorted by node."""
    return np.concatenate([[0], np.cumsum(np.bincount(node_E, minlength=num_genes))]).astype(np.int32)


def _neighbours(
    source: NDArray[np.int32], indptr_P1: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The padded table of sources, the target of its rows, and the edge each row begins with."""
    rows_P = -(-np.diff(indptr_P1) // WIDTH)
    row_of_V = np.repeat(np.arange(len(rows_P), dtype=np.int32), rows_P)
    first_row_P = np.cumsum(rows_P) - rows_P
    rank_V = np.arange(len(row_of_V)) - first_row_P[row_of_V]
    edge_V = (indptr_P1[row_of_V] + WIDTH * rank_V).astype(np.int32)
    filled_VW = np.arange(WIDTH) < (indptr_P1[row_of_V + 1] - edge_V)[:, None]
    neighbour_VW = np.full(filled_VW.shape, -1, np.int32)
    # Rows and slots follow each other as the edges do.
    neighbour_VW[filled_VW] = source
    return neighbour_VW, row_of_V, edge_V
