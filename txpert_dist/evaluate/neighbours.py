"""What a graph snapshot says of genes, for baselines.

Enters: a snapshot. Leaves: neighbours of a gene with weights, embeddings of the nodes. Invariant: all graphs
of the snapshot count the same, each edge in both directions.
"""

from collections.abc import Mapping

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from graph_store.graph import Snapshot


class GraphGenes:
    """The graphs of a snapshot as one, by gene name."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._number = {name: number for number, name in enumerate(snapshot.genes)}
        self._alias = {**{name: name for name in snapshot.genes}, **snapshot.aliases}
        self._names_of: dict[int, list[str]] = {}
        for name, node in self._alias.items():
            self._names_of.setdefault(self._number[node], []).append(name)
        self._weight_NN = _together(snapshot)

    def neighbours(self, gene: str) -> Mapping[str, float]:
        """Every name of each neighbour of ``gene`` and the weight of the edge; none for an unknown gene."""
        if gene not in self._alias:
            return {}
        row = self._weight_NN[[self._number[self._alias[gene]]]]
        return {
            name: weight
            for node, weight in zip(row.indices.tolist(), row.data.tolist(), strict=True)
            for name in self._names_of[node]
        }

    def embedding(self, dimensions: int) -> dict[str, NDArray[np.float64]]:
        """Leading eigenvectors of the normalised adjacency, by gene name; none for a graph of a few nodes."""
        degree_N = np.asarray(self._weight_NN.sum(1)).ravel()
        if (degree_N > 0).sum() <= dimensions + 1:
            return {}
        scale = scipy.sparse.diags_array(1.0 / np.sqrt(np.where(degree_N > 0, degree_N, 1.0)))
        start_N = np.random.default_rng(0).normal(size=len(degree_N))
        _, vector_NK = eigsh(scale @ self._weight_NN @ scale, k=dimensions, which="LA", v0=start_N)
        connected = {name for name, node in self._alias.items() if degree_N[self._number[node]] > 0}
        return {name: vector_NK[self._number[self._alias[name]]] for name in connected}


def _together(snapshot: Snapshot) -> scipy.sparse.csr_array:
    size = len(snapshot.genes)
    total = scipy.sparse.csr_array((size, size))
    for graph in snapshot.graphs:
        weight_E = np.abs(graph.weight_E.astype(np.float64))
        largest = weight_E.max(initial=0.0)
        if largest > 0:
            source, target = graph.edges_2E
            edges = scipy.sparse.coo_array((weight_E / largest, (source, target)), shape=(size, size))
            total = total + edges + edges.T
    return total.tocsr()
