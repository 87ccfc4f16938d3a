"""Which control stands beside each cell.

Enters: a cell store and a way of matching. Leaves: a resident ``ControlTable`` and, for any cells, the row of
it each is paired with. Invariants: the pairing of a cell depends on seed, epoch and the cell alone, never on
rank, world or step; a control is of the cell's own batch (or cell line) unless the batch has none, which
``fallback_cells`` counts.

    random        one control cell of the cell line        mean          mean control of the cell line
    matched       one control cell of the batch            matched_mean  mean control of the batch

A control is its expression, or an embedding of it that the store holds: drawn and averaged alike.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.config import ControlMatching
from txpert_dist.loader.rows import read_rows
from txpert_dist.minibatch import SparseRows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import InputScale

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

_EVALUATION = -1
"""In the place of an epoch: the draw of ``evaluation_rows``."""

CELLS_PER_READ = 4096
"""Embeddings that are held at once while they are averaged."""


class ControlTable(NamedTuple):
    """All controls a run can need: means, control cells over the training view, or embeddings of them."""

    input_scale: InputScale
    """Scale of ``cells``; means of expression are always log1p expression."""
    group_of_context: NDArray[np.int64]
    """(C,) the group of controls of each context: its cell line, or the context itself."""
    dense_RN: NDArray[np.float32] | None
    """Mean expression or mean embedding of each group, or the embedding of each control cell."""
    cells: SparseRows | None
    """Control cells as stored, where ``dense_RN`` is None."""
    indptr: NDArray[np.int64]
    """(groups + 1,) where the members of each group begin; empty for means."""
    members: NDArray[np.int64]
    """Rows of ``cells`` or ``dense_RN`` of each group, ascending within a group; empty for means."""

    @property
    def draws(self) -> bool:
        """Whether a group is several control cells to draw from, not one mean."""
        return len(self.indptr) > 0


def control_table(
    store: CellStore, matching: ControlMatching, genes: NDArray[np.int64], embedding: str | None = None
) -> ControlTable:
    """Make the controls of every context resident: expression of ``genes``, or the store's ``embedding``.

    Raises ``StoreError`` for damaged data and for an embedding that the store does not have.
    """
    by_line = matching in ("random", "mean")
    line_of_context = _line_of_context(store)
    group = line_of_context if by_line else np.arange(len(store.contexts), dtype=np.int64)
    none = np.zeros(0, np.int64)
    if matching in ("mean", "matched_mean"):
        mean_CN = store.control_mean_CG[:, genes] if embedding is None else _embedding_mean(store, embedding)
        mean_RN = _line_mean(store, line_of_context, mean_CN) if by_line else mean_CN
        return ControlTable(store.input_scale, group, mean_RN, None, none, none)
    rows = np.unique(store.controls.rows)
    indptr, members = _members(store, rows, line_of_context if by_line else None)
    if embedding is not None:
        dense_RN = store.take_embedding(embedding, rows)
        return ControlTable(store.input_scale, group, dense_RN, None, indptr, members)
    cells = read_rows(store, rows, genes)
    return ControlTable(store.input_scale, group, None, cells, indptr, members)


def pair(
    table: ControlTable, context: NDArray[np.int32], rows: NDArray[np.int64], *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """(B,) the row of ``table`` for each of the cells ``rows``, whose context codes are ``context``.

    Among several control cells the draw is hash(seed, epoch, row) modulo their number.
    """
    group: NDArray[np.int64] = table.group_of_context[context]
    if not table.draws:
        return group
    size = (table.indptr[group + 1] - table.indptr[group]).astype(np.uint64)
    drawn = (_hash(rows, seed, epoch) % size).astype(np.int64)
    row: NDArray[np.int64] = table.members[table.indptr[group] + drawn]
    return row


def evaluation_rows(table: ControlTable, *, seed: int, most: int) -> list[NDArray[np.int64]]:
    """By context code: the rows of ``table`` that predictions start from.

    The one mean, or ``most`` of the group's control cells (all when there are fewer), those with the least
    hash(seed, row): every perturbation of a context starts from the same ones.
    """
    if not table.draws:
        return [table.group_of_context[[context]] for context in range(len(table.group_of_context))]
    members = np.split(table.members, table.indptr[1:-1])
    chosen = [np.sort(rows[np.argsort(_hash(rows, seed, _EVALUATION))[:most]]) for rows in members]
    return [chosen[group] for group in table.group_of_context]


def fallback_cells(store: CellStore, rows: NDArray[np.int64]) -> int:
    """How many of the cells ``rows`` have no control in their own batch and borrow their cell line's."""
    return int(store.controls.fallback[store.context[rows]].sum())


def _line_of_context(store: CellStore) -> NDArray[np.int64]:
    lines = np.array([context.cell_line for context in store.contexts])
    return np.unique(lines, return_inverse=True)[1].astype(np.int64)


def _line_mean(
    store: CellStore, line_of_context: NDArray[np.int64], mean_CN: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Mean over a line's control cells: its batches' means weighted by their numbers of controls."""
    # A batch without controls has its line's mean already, so counting it leaves the line's mean as it is.
    num_controls = np.diff(store.controls.indptr)
    weight_RC = np.zeros((line_of_context.max(initial=-1) + 1, len(num_controls)))
    weight_RC[line_of_context, np.arange(len(num_controls))] = num_controls
    weight_RC /= weight_RC.sum(axis=1, keepdims=True)
    mean_RN: NDArray[np.float32] = (weight_RC @ mean_CN).astype(np.float32)
    return mean_RN


def _embedding_mean(
    store: CellStore, name: str, *, cells_per_read: int = CELLS_PER_READ
) -> NDArray[np.float32]:
    """(C, N) mean embedding of each context's controls, the cell line's where a batch has none."""
    rows = np.unique(store.controls.rows)
    sum_CN = np.zeros((len(store.contexts), store.take_embedding(name, rows[:0]).shape[1]))
    for start in range(0, len(rows), cells_per_read):
        block = rows[start : start + cells_per_read]
        block = block[np.argsort(store.context[block], kind="stable")]
        codes, first = np.unique(store.context[block], return_index=True)
        value_BN = store.take_embedding(name, block).astype(np.float64)
        sum_CN[codes] += np.add.reduceat(value_BN, first, axis=0)
    num_C = np.bincount(store.context[rows], minlength=len(sum_CN)).astype(np.float64)
    line_of_context, borrowed = _line_of_context(store), store.controls.fallback
    for line in np.unique(line_of_context[borrowed]):
        here = line_of_context == line
        # contexts that borrow have no controls of their own, so they add nothing to the line's sum
        sum_CN[here & borrowed], num_C[here & borrowed] = sum_CN[here].sum(0), num_C[here].sum()
    mean_CN: NDArray[np.float32] = (sum_CN / num_C[:, None]).astype(np.float32)
    return mean_CN


def _members(
    store: CellStore, rows: NDArray[np.int64], line_of_context: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions in ``rows`` of each context's controls (fallback included), or of each cell line's."""
    if line_of_context is None:
        return store.controls.indptr, np.searchsorted(rows, store.controls.rows)
    line = line_of_context[store.context[rows]]
    size = np.bincount(line, minlength=line_of_context.max(initial=-1) + 1)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(size)])
    return indptr, np.argsort(line, kind="stable")


def _hash(rows: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.uint64]:
    """64 well-mixed bits of each row: SplitMix64 (Steele, Lea, Flood 2014) keyed by seed and epoch."""
    key = _mix_one(_mix_one(seed & MASK) + epoch)
    bits = rows.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(key)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _mix_one(value: int) -> int:
    bits = (value + GOLDEN) & MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)
