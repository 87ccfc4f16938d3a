"""Edges in the order that attention reads them.

Enters: knowledge graphs. Leaves: one edge table, compressed by target. Invariants: edges are sorted by
target, then source, each once; with self loops every node has exactly one; built once, never in a step.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graph_store.graph import KnowledgeGraph


class EdgeTable(NamedTuple):
    """Destination-sorted edges; the tensors lie on the device that computes."""

    indptr: Tensor
    """(P + 1,) int64: where each target's edges begin."""
    source: Tensor
    """(E,) int64 node that each edge leaves."""
    target: Tensor
    """(E,) int64 node that each edge enters, ascending."""
    host_indptr: NDArray[np.int64]
    """``indptr`` on the host, for cutting the work without asking the device."""


def edge_table(
    graphs: Sequence[KnowledgeGraph], num_nodes: int, *, self_loops: bool, reverse_edges: bool
) -> EdgeTable:
    """The union of the edges of ``graphs`` over ``num_nodes`` nodes.

    ``reverse_edges`` adds every edge's opposite; ``self_loops`` gives every node one self loop in place of
    any that the graphs have. Raises ``ValueError`` naming the graph whose edge ends outside the nodes.
    """
    for graph in graphs:
        if graph.edges_2E.size and not 0 <= graph.edges_2E.min() <= graph.edges_2E.max() < num_nodes:
            raise ValueError(f"knowledge graph {graph.name!r} has an edge outside its {num_nodes} nodes")
    edges_2E = np.concatenate([np.zeros((2, 0), np.int64), *(graph.edges_2E for graph in graphs)], axis=1)
    if reverse_edges:
        edges_2E = np.concatenate([edges_2E, edges_2E[::-1]], axis=1)
    if self_loops:
        loops_2P = np.tile(np.arange(num_nodes), (2, 1))
        edges_2E = np.concatenate([edges_2E[:, edges_2E[0] != edges_2E[1]], loops_2P], axis=1)
    target, source = np.divmod(np.unique(edges_2E[1] * num_nodes + edges_2E[0]), max(num_nodes, 1))
    indptr = np.searchsorted(target, np.arange(num_nodes + 1)).astype(np.int64)
    return EdgeTable(
        indptr=torch.from_numpy(indptr),
        source=torch.from_numpy(source),
        target=torch.from_numpy(target),
        host_indptr=indptr,
    )


def row_blocks(indptr: NDArray[np.int64], max_edges: int) -> Iterator[tuple[slice, slice]]:
    """Consecutive targets and their edges: at most ``max_edges`` edges a block, or one target with more."""
    row, num_rows = 0, len(indptr) - 1
    while row < num_rows:
        fitting = int(np.searchsorted(indptr, indptr[row] + max_edges, side="right")) - 1
        stop = min(max(fitting, row + 1), num_rows)
        yield slice(row, stop), slice(int(indptr[row]), int(indptr[stop]))
        row = stop
