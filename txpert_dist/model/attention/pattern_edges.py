"""Edges grouped by end and pattern, in the order that pattern attention reads them.

Enters: edges and the pattern of each, on the host. Leaves: tables that name every edge twice, once under its
target and once under its source, whole or for some of the targets. Invariants: whole tables are built once,
never in a step, follow the model to its device and stay out of its checkpoints.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist.model.attention.edges import renumbered, sorted_by
from txpert_dist.model.attention.threads import row_bounds
from txpert_dist.model.attention.virtual_rows import (
    HeldPieces,
    HeldRows,
    Pieces,
    VirtualRows,
    pieces_of,
    pieces_on,
    rows_on,
    with_slots,
)


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
    group_indptr: Tensor
    """(P + 1,) int64: where each node's groups begin."""
    host_indptr: NDArray[np.int64]
    """``indptr`` on the host, for cutting the work without asking the device."""


class PatternTable(NamedTuple):
    """Edges from both of their ends. Targets and sources are numbered apart, as those of an edge table.

    The arrays after the tensors say where sums for each pattern are kept: a block of targets has one *slot*
    for each pattern that its edges have, so that there are never many more slots than blocks times patterns,
    nor than groups.
    """

    by_target: Groups
    by_source: Groups
    order: Tensor
    """(E,) int64 for each edge by source, its number by target."""
    bounds: NDArray[np.int64]
    """(blocks + 1,) first target of each block."""
    slot_G: NDArray[np.int64]
    """(groups by target,) slot of each group."""
    slot_order: NDArray[np.int64]
    """(slots,) the slots by pattern, and there by block."""
    slot_indptr: NDArray[np.int64]
    """(patterns + 1,) where each pattern's slots begin in that order."""
    target_pieces: Pieces
    """The targets, cut as a CUDA device takes them."""
    source_pieces: Pieces
    """The sources, likewise."""
    pattern_rows: VirtualRows
    """The patterns, each with the slots of its pieces by target."""


class GroupedEdges(nn.Module):
    """Holds ``Groups``."""

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.host_indptr = groups.host_indptr
        for name, tensor in zip(Groups._fields[:-1], groups[:-1], strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def table(self) -> Groups:
        """The groups, on the module's device."""
        return Groups(*(getattr(self, name) for name in Groups._fields))


class PatternEdges(nn.Module):
    """Holds edges and their patterns for a module that computes with them."""

    order: Tensor

    def __init__(self, edges_2E: NDArray[np.int64], pattern_E: NDArray[np.int64], num_nodes: int) -> None:
        """``pattern_E`` is each edge's row of the features."""
        super().__init__()
        table = _pattern_table(edges_2E, pattern_E, (num_nodes, num_nodes))
        self.by_target, self.by_source = GroupedEdges(table.by_target), GroupedEdges(table.by_source)
        self.register_buffer("order", table.order, persistent=False)
        self.slots = table[3:7]
        self.target_pieces = HeldPieces(table.target_pieces)
        self.source_pieces = HeldPieces(table.source_pieces)
        self.pattern_rows = HeldRows(table.pattern_rows)

    @property
    def table(self) -> PatternTable:
        """The table, on the module's device."""
        return PatternTable(
            *(self.by_target.table, self.by_source.table, self.order, *self.slots),
            *(self.target_pieces.table, self.source_pieces.table, self.pattern_rows.table),
        )


def restricted(
    edges: PatternTable, rows: NDArray[np.int64], sources: NDArray[np.int64] | None = None
) -> PatternTable:
    """The edges that enter the targets ``rows``, which ascend; target n is then ``rows[n]``.

    ``sources``, ascending, numbers the sources anew: it holds all that the edges leave. Raises
    ``ValueError`` when it does not. The work is that of the edges that remain, and a pass over sources.
    """
    groups = edges.by_target
    indptr = groups.node_indptr.cpu().numpy()
    length = indptr[rows + 1] - indptr[rows]
    target = np.repeat(np.arange(len(rows)), length)
    edge = np.arange(len(target)) + (indptr[rows] - (np.cumsum(length) - length))[target]
    source = groups.other.cpu().numpy()[edge]
    num_sources = len(edges.by_source.node_indptr) - 1
    if sources is not None:
        source, num_sources = renumbered(source, sources, num_sources), len(sources)
    pattern = groups.pattern.cpu().numpy()[groups.group.cpu().numpy()[edge]]
    table = _pattern_table(np.stack([source, target]), pattern, (num_sources, len(rows)))
    device = edges.order.device
    return PatternTable(
        *(_on(table.by_target, device), _on(table.by_source, device), table.order.to(device), *table[3:7]),
        *(pieces_on(table.target_pieces, device), pieces_on(table.source_pieces, device)),
        rows_on(table.pattern_rows, device),
    )


def _pattern_table(
    edges_2E: NDArray[np.int64], pattern_E: NDArray[np.int64], shape: tuple[int, int]
) -> PatternTable:
    """The table on the host; ``shape`` is the number of sources and of targets."""
    num_sources, num_targets = shape
    num_patterns = int(pattern_E.max(initial=-1)) + 1
    source, target, pattern = (np.ascontiguousarray(part, np.int64) for part in (*edges_2E, pattern_E))
    order, _ = sorted_by(source, num_sources)
    order, _ = sorted_by(pattern, num_patterns, order)
    order, _ = sorted_by(target, num_targets, order)
    source, target, pattern = source[order], target[order], pattern[order]
    by_target = _groups(target, source, pattern, num_targets)
    order, _ = sorted_by(pattern, num_patterns)
    order, _ = sorted_by(source, num_sources, order)
    by_source = _groups(source[order], target[order], pattern[order], num_sources)
    bounds = row_bounds(by_target.node_indptr.numpy())
    block_G = np.searchsorted(bounds, by_target.node.numpy(), side="right") - 1
    slots, slot_G = np.unique(block_G * num_patterns + by_target.pattern.numpy(), return_inverse=True)
    slot_order, slot_indptr = sorted_by(slots % max(num_patterns, 1), num_patterns)
    target_pieces, pattern_rows = with_slots(_pieces(by_target), num_patterns)
    return PatternTable(
        *(by_target, by_source, torch.from_numpy(order), bounds, slot_G, slot_order, slot_indptr),
        *(target_pieces, _pieces(by_source), pattern_rows),
    )


def _groups(
    node_E: NDArray[np.int64], other_E: NDArray[np.int64], pattern_E: NDArray[np.int64], num_nodes: int
) -> Groups:
    """The edges are sorted by ``node_E``, then ``pattern_E``."""
    changes_E = (np.diff(node_E, prepend=-1) != 0) | (np.diff(pattern_E, prepend=-1) != 0)
    first = np.flatnonzero(changes_E)
    indptr, node, nodes = np.append(first, len(node_E)), node_E[first], np.arange(num_nodes + 1)
    other, group, first_indptr, node_, pattern, node_indptr, group_indptr = (
        torch.from_numpy(array.astype(np.int64))
        for array in (
            *(other_E, np.cumsum(changes_E) - 1, indptr, node, pattern_E[first]),
            *(np.searchsorted(node_E, nodes), np.searchsorted(node, nodes)),
        )
    )
    return Groups(other, group, first_indptr, node_, pattern, node_indptr, group_indptr, indptr)


def _pieces(groups: Groups) -> Pieces:
    return pieces_of(groups.node_indptr.numpy(), groups.host_indptr, groups.pattern.numpy())


def _on(groups: Groups, device: torch.device) -> Groups:
    other, group, indptr, node, pattern, node_indptr, group_indptr = (part.to(device) for part in groups[:-1])
    return Groups(other, group, indptr, node, pattern, node_indptr, group_indptr, groups.host_indptr)
