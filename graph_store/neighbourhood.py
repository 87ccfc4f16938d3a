"""The surroundings of some genes: the edges that are walked in a few steps from them.

Enters: a ``Snapshot`` and where to start. Leaves: edges. Invariant: an edge is in the answer exactly when a
walk of at most ``hops`` steps from a start can cross it, over all the chosen graphs together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import GraphError, KnowledgeGraph, Snapshot


class Neighbourhood(NamedTuple):
    """Edges in the order of the graphs, then of each graph."""

    edges_2M: NDArray[np.int32]
    weight_M: NDArray[np.float32]
    graph_M: NDArray[np.int32]
    """Number of the snapshot's graph that each edge is of."""
    step_M: NDArray[np.int8]
    """The step, counted from 1, in which each edge is crossed first."""


def nodes_of(snapshot: Snapshot, genes: Sequence[str]) -> NDArray[np.int64]:
    """The node of each gene, by name or alias; ``GraphError`` names those that are neither."""
    number = {gene: node for node, gene in enumerate(snapshot.genes)}
    known = [gene if gene in number else snapshot.aliases.get(gene, "") for gene in genes]
    missing = [gene for gene, name in zip(genes, known, strict=True) if name not in number]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise GraphError(f"snapshot {snapshot.id}: has no gene {', '.join(missing[:5])}{more}")
    return np.array([number[name] for name in known], np.int64)


def graphs_of(snapshot: Snapshot, names: Sequence[str] | None) -> tuple[int, ...]:
    """The numbers of the graphs called ``names``, all when None; ``GraphError`` lists those there are."""
    there = [graph.name for graph in snapshot.graphs]
    for name in names or ():
        if name not in there:
            raise GraphError(f"snapshot {snapshot.id}: has no graph {name}; it has {', '.join(there)}")
    return tuple(place for place, name in enumerate(there) if names is None or name in names)


def neighbourhood(
    snapshot: Snapshot,
    starts: NDArray[np.int64],
    graphs: Sequence[int],
    *,
    hops: int,
    inwards: bool,
    outwards: bool,
) -> Neighbourhood:
    """The edges crossed in at most ``hops`` steps from ``starts``.

    ``inwards`` a step leads from a target to its source, ``outwards`` from a source to its target.
    """
    chosen = [snapshot.graphs[number] for number in graphs]
    step_P = _first_steps(chosen, starts, len(snapshot.genes), hops, inwards=inwards, outwards=outwards)
    edges, weights, numbers, steps = [], [], [], []
    for number, graph in zip(graphs, chosen, strict=True):
        step_E = np.full(len(graph.weight_E), hops + 1, np.int8)
        for used, near in ((inwards, 1), (outwards, 0)):
            if used:
                step_E = np.minimum(step_E, step_P[graph.edges_2E[near]])
        crossed = np.flatnonzero(step_E <= hops)
        edges.append(graph.edges_2E[:, crossed])
        weights.append(graph.weight_E[crossed])
        numbers.append(np.full(len(crossed), number, np.int32))
        steps.append(step_E[crossed])
    return Neighbourhood(
        np.concatenate(edges, axis=1), np.concatenate(weights), np.concatenate(numbers), np.concatenate(steps)
    )


def _first_steps(
    graphs: Sequence[KnowledgeGraph],
    starts: NDArray[np.int64],
    num_nodes: int,
    hops: int,
    *,
    inwards: bool,
    outwards: bool,
) -> NDArray[np.int8]:
    """(P,) the first step that can leave each node: 1 at the starts, ``hops`` + 1 where none can."""
    step_P = np.full(num_nodes, hops + 1, np.int8)
    step_P[starts] = 1
    for step in range(1, hops):
        for graph in graphs:
            source, target = graph.edges_2E
            for used, near, far in ((inwards, target, source), (outwards, source, target)):
                if used:
                    reached = far[step_P[near] == step]
                    step_P[reached] = np.minimum(step_P[reached], step + 1)
    return step_P
