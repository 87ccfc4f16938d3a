"""Knowledge graphs as values: what every part of the store and the trainer pass around.

Enters: arrays. Leaves: the same arrays, checked. Invariants: edges are destination-sorted (target, then
source), every end is a node of the one vocabulary, no edge is listed twice in a graph.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class GraphError(Exception):
    """Graph input or a snapshot that cannot be used: what, where, what to do."""


class KnowledgeGraph(NamedTuple):
    """One knowledge graph over the snapshot's genes."""

    name: str
    edges_2E: NDArray[np.int32]
    """(2, E) row 0 the source (regulator), row 1 the target; messages flow from source to target."""
    weight_E: NDArray[np.float32]
    """(E,) the source's own weight after filtering, 1 where the source gives none."""


class Expander(NamedTuple):
    """Random edges that make every node a few steps from every other: the union of random cycles."""

    edges_2E: NDArray[np.int32]
    """(2, E) both directions of every cycle's edges, sorted by cycle, target, source."""
    cycle_E: NDArray[np.int32]
    """(E,) number of the cycle that each edge belongs to, ascending from 0."""
    num_cycles: int


NO_EXPANDER = Expander(np.zeros((2, 0), np.int32), np.zeros(0, np.int32), 0)
"""The expander of a snapshot that was built without one."""

PositionalKind = Literal["random_walk", "laplacian"]


class PositionalEncoding(NamedTuple):
    """Where each node stands in one knowledge graph."""

    graph: str
    """Name of the knowledge graph."""
    kind: PositionalKind
    value_PN: NDArray[np.float32]
    """(P, N) probabilities of a random walk's return after 1 to N steps, or N Laplacian eigenvectors."""


COUPLING = -1
"""The layer of a coupling edge, which belongs to none."""


class Supra(NamedTuple):
    """K graphs as one (supra-adjacency): a copy of every gene in each layer, node ``layer * P + gene``."""

    edges_2M: NDArray[np.int32]
    """(2, M) row 0 the source, row 1 the target; sorted by target, then source."""
    layer_M: NDArray[np.int32]
    """(M,) position of the graph that has the edge; ``COUPLING`` between two copies of a gene."""
    weight_M: NDArray[np.float32]
    """(M,) the graph's own weight; 1 for couplings."""
    num_layers: int
    num_genes: int


class GraphIndex(NamedTuple):
    """One graph as kernels read it; all of it follows from the graph's edges."""

    graph: str
    """Name of the knowledge graph."""
    indptr_P1: NDArray[np.int32]
    """(P + 1,) where each target's edges begin."""
    source_indptr_P1: NDArray[np.int32]
    """(P + 1,) where each source's edges begin in ``by_source_E``."""
    by_source_E: NDArray[np.int32]
    """(E,) edge numbers, sorted by source, then target."""
    neighbour_VW: NDArray[np.int32]
    """(V, W) sources of each virtual row's edges, in their order; -1 in slots that are free. A target with
    more than W edges has several rows, one without edges has none."""
    row_of_V: NDArray[np.int32]
    """(V,) target of each virtual row, ascending."""
    edge_V: NDArray[np.int32]
    """(V,) number of the edge in the first slot; the edge in slot w is ``edge_V + w``."""


class Snapshot(NamedTuple):
    """An immutable, materialised set of knowledge graphs, named by the hash of its inputs and recipe."""

    id: str
    genes: tuple[str, ...]
    """(P,) node names, sorted; the node number is the position here."""
    graphs: tuple[KnowledgeGraph, ...]
    aliases: dict[str, str]
    """Other unambiguous names of nodes -> node name, as the supplied gene table has them."""
    expander: Expander = NO_EXPANDER
    positional: tuple[PositionalEncoding, ...] = ()
    """Of each graph, the kinds that the recipe asks for."""
    supra: Supra | None = None
    """All graphs as one; None in a snapshot that was not read from files."""
    indices: tuple[GraphIndex, ...] = ()
    """One a graph; none in a snapshot that was not read from files."""


def check_graph(graph: KnowledgeGraph, num_genes: int) -> None:
    """Raise ``GraphError`` unless the graph keeps this module's invariants (and has no self loop)."""
    source, target = graph.edges_2E.astype(np.int64)
    if len(graph.weight_E) != len(source):
        raise GraphError(f"graph {graph.name}: {len(source)} edges but {len(graph.weight_E)} weights")
    if len(source) and not (graph.edges_2E.min() >= 0 and graph.edges_2E.max() < num_genes):
        raise GraphError(f"graph {graph.name}: an edge ends outside the {num_genes} genes")
    if (np.diff(target * num_genes + source) <= 0).any():
        raise GraphError(f"graph {graph.name}: edges are repeated or not sorted by target, then source")
    if (source == target).any():
        raise GraphError(f"graph {graph.name}: holds a self loop")
    if not np.isfinite(graph.weight_E).all():
        raise GraphError(f"graph {graph.name}: holds a weight that is not finite")
