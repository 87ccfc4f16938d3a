"""Filling a sharded array from front to back.

Enters: an empty array and blocks of its rows, of any size. Leaves: the full array. Invariants: rows leave in
whole shards, so no shard is read back and compressed twice; at most one shard and one block are in memory.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import StoreError


class AppendedArray:
    """Rows of one array, appended in order: ``append`` all, then ``close``."""

    def __init__(self, array: Any, shard: int) -> None:
        """``array`` is a Zarr array to fill along its first axis, ``shard`` its rows per shard."""
        self._array = array
        self._shard = shard
        self._pending: list[NDArray[Any]] = []
        self._num_pending = 0
        self._written = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Add ``rows`` after those already there."""
        self._pending.append(rows.astype(self._array.dtype, copy=False))
        self._num_pending += len(rows)
        whole = self._num_pending - self._num_pending % self._shard
        if whole:
            self._write(whole)

    def close(self) -> None:
        """Write what is left; ``StoreError`` when the array is not full now."""
        self._write(self._num_pending)
        if self._written != self._array.shape[0]:
            raise StoreError(
                f"{self._array.name}: {self._written} entries written, {self._array.shape[0]} announced; "
                "the source changed while it was read, start again"
            )

    def _write(self, count: int) -> None:
        if not count:
            return
        rows = np.concatenate(self._pending)
        self._array[self._written : self._written + count] = rows[:count]
        self._pending = [rows[count:].copy()]
        self._num_pending -= count
        self._written += count
