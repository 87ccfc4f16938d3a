"""What a perturbation encoder sees of a snapshot.

Enters: a snapshot, the names of the graphs to use, the number of nodes (the snapshot's genes first, then
isolated ones). Leaves: a ``GraphInput``. Invariant: edges keep the snapshot's node numbers; nodes that the
snapshot lacks have no edges and positional encodings of zero.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store import client
from graph_store.graph import NO_EXPANDER, Expander, KnowledgeGraph, Snapshot, Supra
from txpert_dist.errors import ConfigError


class GraphInput(NamedTuple):
    """Graphs and encodings over one set of nodes."""

    num_nodes: int
    graphs: tuple[KnowledgeGraph, ...]
    expander: Expander = NO_EXPANDER
    random_walk_PN: NDArray[np.float32] | None = None
    """Return probabilities of random walks, the used graphs side by side; None when there are none."""
    laplacian_PN: NDArray[np.float32] | None = None
    """Laplacian eigenvectors, likewise."""
    supra: Supra | None = None
    """The snapshot's own supra-adjacency, when it is of these very graphs and nodes."""


def graph_input(snapshot: Snapshot, use: Sequence[str] | None, num_nodes: int) -> GraphInput:
    """The graphs of ``snapshot`` named in ``use``, in that order (all when None), over ``num_nodes`` nodes.

    Raises ``ConfigError`` naming an unknown graph and the near ones.
    """
    graphs = _chosen(snapshot, use)
    names = [graph.name for graph in graphs]
    is_whole = num_nodes == len(snapshot.genes) and names == [graph.name for graph in snapshot.graphs]
    return GraphInput(
        num_nodes,
        graphs,
        snapshot.expander,
        _side_by_side(snapshot, names, "random_walk", num_nodes),
        _side_by_side(snapshot, names, "laplacian", num_nodes),
        snapshot.supra if is_whole else None,
    )


def multilayer(graph: GraphInput) -> Supra:
    """The graphs as layers of one: the snapshot's when it has just these, otherwise made by the same rule."""
    return client.supra(graph.graphs, graph.num_nodes) if graph.supra is None else graph.supra


def _chosen(snapshot: Snapshot, use: Sequence[str] | None) -> tuple[KnowledgeGraph, ...]:
    if use is None:
        return snapshot.graphs
    named = {graph.name: graph for graph in snapshot.graphs}
    for name in use:
        if name not in named:
            near = difflib.get_close_matches(name, named, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(named)}"
            raise ConfigError(f"graph.use: snapshot {snapshot.id} has no graph {name!r}; {hint}")
        if list(use).count(name) > 1:
            raise ConfigError(f"graph.use: names graph {name!r} twice; name it once")
    return tuple(named[name] for name in use)


def _side_by_side(
    snapshot: Snapshot, names: Sequence[str], kind: str, num_nodes: int
) -> NDArray[np.float32] | None:
    found = {part.graph: part.value_PN for part in snapshot.positional if part.kind == kind}
    if not names or not set(names) <= found.keys():
        return None
    known_PN = np.concatenate([found[name] for name in names], axis=1)
    value_PN = np.zeros((num_nodes, known_PN.shape[1]), np.float32)
    value_PN[: len(known_PN)] = known_PN
    return value_PN
