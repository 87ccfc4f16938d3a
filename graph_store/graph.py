"""Knowledge graphs as values: what every part of the store and the trainer pass around.

Enters: arrays. Leaves: the same arrays, checked. Invariants: edges are destination-sorted (target, then
source), every end is a node of the one vocabulary, no edge is listed twice in a graph.
"""

from typing import NamedTuple

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


class Snapshot(NamedTuple):
    """An immutable, materialised set of knowledge graphs, named by the hash of its inputs and recipe."""

    id: str
    genes: tuple[str, ...]
    """(P,) node names, sorted; the node number is the position here."""
    graphs: tuple[KnowledgeGraph, ...]
    aliases: dict[str, str]
    """Other unambiguous names of nodes -> node name, as the supplied gene table has them."""


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
