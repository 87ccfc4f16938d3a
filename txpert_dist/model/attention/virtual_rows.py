"""Rows of edges cut into parts of about equal work, as a CUDA device takes them.

Enters: where each row's edges begin, on the host; by option the groups that they fall into. Leaves: *virtual
rows* of at most a few dozen edges, one after the other, at least one for each row, and the order in which
the sums of a row that is cut in several are merged. Invariants: every edge lies in one virtual row; tables
are built once, never in a step, follow the model to its device and stay out of its checkpoints.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist.model.attention.compiled import order_by

MOST_EDGES = 32
"""Edges of a virtual row. Hubs have thousands: one program would be at them when all others are done."""
MOST_PIECES = 512
"""Pieces of a virtual row of patterns, of which there are few with very many."""


class VirtualRows(NamedTuple):
    """Parts of rows. Sums have a place for each row and, beyond the rows, for each part of a split one."""

    first: Tensor
    """(V + 1,) int64: where each virtual row's edges begin."""
    row: Tensor
    """(V,) int64 row that each is of, ascending."""
    place: Tensor
    """(V,) int64 where its sums go: to its row's own place when it is all of its row."""
    split: Tensor
    """(M,) int64 rows that are cut in several."""
    part_first: Tensor
    """(M + 1,) int64: the places of each one's parts, which lie side by side."""

    @property
    def num_places(self) -> int:
        """Of rows and parts."""
        return len(self.row) + len(self.split)


class Pieces(NamedTuple):
    """Virtual rows of edges that are grouped by pattern: each is of several pieces, each of one pattern."""

    rows: VirtualRows
    """``first`` counts pieces."""
    edge: Tensor
    """(G + 1,) int64: where each piece's edges begin."""
    pattern: Tensor
    """(G,) int64 pattern of each piece."""
    slot: Tensor
    """(G,) int64 place of each piece among all, sorted by pattern; none by source."""


class HeldRows(nn.Module):
    """Holds virtual rows for a module that computes with them."""

    def __init__(self, rows: VirtualRows) -> None:
        super().__init__()
        for name, tensor in zip(VirtualRows._fields, rows, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def table(self) -> VirtualRows:
        """The rows, on the module's device."""
        return VirtualRows(*(getattr(self, name) for name in VirtualRows._fields))


class HeldPieces(nn.Module):
    """Holds pieces."""

    edge: Tensor
    pattern: Tensor
    slot: Tensor

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self.rows = HeldRows(pieces.rows)
        for name, tensor in zip(Pieces._fields[1:], pieces[1:], strict=True):
            self.register_buffer(name, tensor, persistent=False)

    @property
    def table(self) -> Pieces:
        """The pieces, on the module's device."""
        return Pieces(self.rows.table, self.edge, self.pattern, self.slot)


def virtual_rows(indptr: NDArray[np.int64], most: int = MOST_EDGES) -> VirtualRows:
    """Virtual rows of at most ``most`` edges, on the host; ``indptr`` says where each row's edges begin."""
    num_rows = len(indptr) - 1
    parts = np.maximum(-(-np.diff(indptr) // most), 1)
    row = np.repeat(np.arange(num_rows), parts)
    number = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
    split, beyond = np.flatnonzero(parts > 1), parts[row] > 1
    place = row.copy()
    place[beyond] = num_rows + np.arange(np.count_nonzero(beyond))
    return VirtualRows(
        *(_tensor(np.append(indptr[row] + most * number, indptr[-1])), _tensor(row), _tensor(place)),
        *(_tensor(split), _tensor(num_rows + np.append(0, np.cumsum(parts[split])))),
    )


def pieces_of(
    indptr: NDArray[np.int64],
    group_first: NDArray[np.int64],
    pattern: NDArray[np.int64],
    most: int = MOST_EDGES,
) -> Pieces:
    """The pieces of each row's virtual rows, on the host, without slots.

    ``group_first`` says where each group's edges begin, and its last number how many there are; each group
    lies in one row, and ``pattern`` is its own.
    """
    rows, num_edges = virtual_rows(indptr, most), int(indptr[-1])
    first = rows.first.numpy()
    group_E, begins_E = np.zeros(num_edges, np.int64), np.zeros(num_edges, bool)
    group_E[group_first[:-1]] = 1
    begins_E[group_first[:-1]] = True
    begins_E[first[first < num_edges]] = True
    begin, before = np.flatnonzero(begins_E), np.append(0, np.cumsum(begins_E))
    return Pieces(
        rows._replace(first=_tensor(before[first])),
        *(_tensor(np.append(begin, num_edges)), _tensor(pattern[np.cumsum(group_E)[begin] - 1])),
        _tensor(begin[:0]),
    )


def with_slots(pieces: Pieces, num_patterns: int, most: int = MOST_PIECES) -> tuple[Pieces, VirtualRows]:
    """The pieces with their slots, and virtual rows of each pattern's slots."""
    pattern = pieces.pattern.numpy()
    order, slot = np.arange(len(pattern)), np.empty_like(pattern)
    indptr = np.empty(num_patterns + 1, np.int64)
    order_by(pattern, order, indptr, np.empty_like(order))
    slot[order] = np.arange(len(pattern))
    return pieces._replace(slot=_tensor(slot)), virtual_rows(indptr, most)


def rows_on(rows: VirtualRows, device: torch.device) -> VirtualRows:
    """The rows on ``device``."""
    return VirtualRows(*(part.to(device) for part in rows))


def pieces_on(pieces: Pieces, device: torch.device) -> Pieces:
    """The pieces on ``device``."""
    return Pieces(rows_on(pieces.rows, device), *(part.to(device) for part in pieces[1:]))


def _tensor(array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64))
