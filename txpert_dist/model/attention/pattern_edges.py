"""Edges grouped by end and pattern, in the order that pattern attention reads them.

Enters: edges and the pattern of each, on the host. Leaves: tables that name every edge twice, once under its
target and once under its source. Invariants: built once, never in a step; tables follow the model to its
device and stay out of its checkpoints.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Groups(NamedTuple):
    """Edges sorted by one of their ends and there by pattern; the tensors lie on the device that computes."""

    other: Tensor
    """(E,) int64 node at the edge's other end."""
    group: Tensor
    """(E,) int64 number of the edge's group, ascending."""
    indptr: Tensor
    """(groups + 1,) int64: where each group's edges begin."""
    node: Tensor
    """(groups,) int64 the end that a group's edges share, ascending."""
    pattern: Tensor
    """(groups,) int64 row of their features."""
    node_indptr: Tensor
    """(P + 1,) int64: where each node's edges begin."""
    host_indptr: NDArray[np.int64]
    """``indptr`` on the host, for cutting the work without asking the device."""


class GroupedEdges(nn.Module):
    """Holds ``Groups``."""

    other: Tensor
    group: Tensor
    indptr: Tensor
    node: Tensor
    pattern: Tensor
    node_indptr: Tensor

    def __init__(
        self,
        node_E: NDArray[np.int64],
        other_E: NDArray[np.int64],
        pattern_E: NDArray[np.int64],
        num_nodes: int,
    ) -> None:
        """The edges are sorted by ``node_E``, then ``pattern_E``."""
        super().__init__()
        changes_E = (np.diff(node_E, prepend=-1) != 0) | (np.diff(pattern_E, prepend=-1) != 0)
        first = np.flatnonzero(changes_E)
        self.host_indptr = np.append(first, len(node_E))
        for name, values in {
            "other": other_E,
            "group": np.cumsum(changes_E) - 1,
            "indptr": self.host_indptr,
            "node": node_E[first],
            "pattern": pattern_E[first],
            "node_indptr": np.searchsorted(node_E, np.arange(num_nodes + 1)),
        }.items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.int64)), persistent=False)

    @property
    def table(self) -> Groups:
        """The groups, on the module's device."""
        return Groups(
            *(self.other, self.group, self.indptr, self.node, self.pattern, self.node_indptr),
            self.host_indptr,
        )


class PatternTable(NamedTuple):
    """Edges from both of their ends."""

    by_target: Groups
    by_source: Groups
    order: Tensor
    """(E,) int64 for each edge by source, its number by target."""


class PatternEdges(nn.Module):
    """Holds edges and their patterns for a module that computes with them."""

    order: Tensor

    def __init__(self, edges_2E: NDArray[np.int64], pattern_E: NDArray[np.int64], num_nodes: int) -> None:
        """``pattern_E`` is each edge's row of the features."""
        super().__init__()
        order = np.lexsort([edges_2E[0], pattern_E, edges_2E[1]])
        (source_E, target_E), pattern_E = edges_2E[:, order], pattern_E[order]
        self.by_target = GroupedEdges(target_E, source_E, pattern_E, num_nodes)
        order = np.lexsort([target_E, pattern_E, source_E])
        self.by_source = GroupedEdges(source_E[order], target_E[order], pattern_E[order], num_nodes)
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    @property
    def table(self) -> PatternTable:
        """The table, on the module's device."""
        return PatternTable(self.by_target.table, self.by_source.table, self.order)
