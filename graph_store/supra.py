"""Several knowledge graphs as one: the supra-adjacency of a multilayer network with identity coupling.

Enters: K graphs over the same P genes. Leaves: a ``Supra``. Invariant: its edges are those of the K x K
blocks that have the graphs' adjacency matrices (target by source) on the diagonal, the identity elsewhere:

    [A_1  I  ...  I ]
    [ I  A_2 ...  I ]
    [ I   I  ... A_K]

So every copy of a gene is joined with its other copies, both ways, and all couplings are of size 1 (De
Domenico et al., Phys. Rev. X 3, 041022). Node ``layer * P + gene`` is the copy of ``gene`` in ``layer``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import COUPLING, GraphError, KnowledgeGraph, Supra


def supra_adjacency(graphs: Sequence[KnowledgeGraph], num_genes: int) -> Supra:
    """All edges of ``graphs`` and the couplings of their layers.

    Raises ``GraphError`` for an edge that would end in another layer, and for more nodes than have numbers.
    """
    num_layers = len(graphs)
    if num_layers * num_genes > np.iinfo(np.int32).max:
        raise GraphError(
            f"{num_layers} layers of {num_genes} genes: more nodes than 32 bits; use fewer graphs"
        )
    for graph in graphs:
        if graph.edges_2E.size and not 0 <= graph.edges_2E.min() <= graph.edges_2E.max() < num_genes:
            raise GraphError(f"graph {graph.name!r} has an edge outside its {num_genes} nodes")
    couplings_2M = _couplings(num_layers, num_genes)
    within = [graph.edges_2E + np.int32(layer * num_genes) for layer, graph in enumerate(graphs)]
    edges_2M = np.concatenate([*within, couplings_2M], axis=1)
    layers = [np.full(len(graph.weight_E), layer, np.int32) for layer, graph in enumerate(graphs)]
    layer_M = np.concatenate([*layers, np.full(couplings_2M.shape[1], COUPLING, np.int32)])
    ones = np.ones(couplings_2M.shape[1], np.float32)
    weight_M = np.concatenate([*(graph.weight_E for graph in graphs), ones]).astype(np.float32)
    # Stable, so edges that a graph repeats stay in its order.
    order = np.argsort(_keys(edges_2M, num_layers * num_genes), kind="stable")
    return Supra(edges_2M[:, order], layer_M[order], weight_M[order], num_layers, num_genes)


def check_supra(supra: Supra, graphs: Sequence[KnowledgeGraph], num_genes: int) -> None:
    """Raise ``GraphError`` unless ``supra`` is what ``supra_adjacency`` makes of ``graphs``."""
    num_edges = len(supra.layer_M)
    if supra.edges_2M.shape != (2, num_edges) or len(supra.weight_M) != num_edges:
        raise GraphError(f"supra-adjacency: {num_edges} layers of edges, but not as many ends and weights")
    if (np.diff(_keys(supra.edges_2M, supra.num_layers * num_genes)) <= 0).any():
        raise GraphError("supra-adjacency: edges are repeated or not sorted by target, then source")
    couplings_2M = _couplings(len(graphs), num_genes)
    weights = [np.ones(couplings_2M.shape[1], np.float32), *(graph.weight_E for graph in graphs)]
    within = [graph.edges_2E + np.int32(layer * num_genes) for layer, graph in enumerate(graphs)]
    expected_2M = np.concatenate([couplings_2M, *within], axis=1)
    # A stable sort by layer leaves every layer in its graph's order; couplings come first.
    order = np.argsort(supra.layer_M, kind="stable")
    for found, expected in (
        (supra.layer_M, np.repeat(np.arange(COUPLING, len(graphs)), [len(part) for part in weights])),
        (supra.edges_2M[0], expected_2M[0]),
        (supra.edges_2M[1], expected_2M[1]),
        (supra.weight_M, np.concatenate(weights)),
    ):
        if not np.array_equal(found[order], expected):
            raise GraphError("supra-adjacency: is not that of its graphs, coupled by their genes")


def _couplings(num_layers: int, num_genes: int) -> NDArray[np.int32]:
    """(2, K * (K - 1) * P) edges between the copies of each gene, sorted by target, then source."""
    layers, genes = np.arange(num_layers), np.arange(num_genes)[:, None]
    others = np.nonzero(layers[:, None] != layers)[1].reshape(num_layers, 1, max(num_layers - 1, 0))
    ends = np.broadcast_arrays(others * num_genes + genes, layers[:, None, None] * num_genes + genes)
    return np.stack([end.ravel() for end in ends]).astype(np.int32)


def _keys(edges_2M: NDArray[np.int32], num_nodes: int) -> NDArray[np.int64]:
    """(M,) one number an edge, ascending by target, then source."""
    source, target = edges_2M.astype(np.int64)
    keys: NDArray[np.int64] = target * num_nodes + source
    return keys
