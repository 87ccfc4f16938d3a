"""Filling a sharded array from front to back.

Enters: the folder of an empty array, shards that are written already, blocks of its rows, of any size.
Leaves: its shard files. Invariants: rows leave in whole shards, so no shard is read back and compressed
twice; at most one shard and one block are in memory.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from txpert_dist.errors import StoreError
from txpert_dist.store.shard_file import FileHash, ShardSizes, shard_file, write_shard


class AppendedArray:
    """Rows of one array, in order: ``adopt`` what is written, ``append`` the rest, then ``close``."""

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: DTypeLike, shards: ShardSizes, fill: float
    ) -> None:
        """``folder`` holds the metadata of an array of this ``shape``, cut into ``shards`` along axis 0."""
        self._folder, self._shape, self._dtype = folder, shape, np.dtype(dtype)
        self._shards, self._fill = shards, fill
        self._pending: list[NDArray[Any]] = []
        self._num_pending = 0
        self._written = 0
        self.files: dict[Path, FileHash] = {}
        """The shard files written so far."""

    def adopt(self, files: Sequence[tuple[Path, FileHash]]) -> None:
        """Take the array's first shards, whole ones unless they are all of it, before any ``append``.

        They are linked, or copied where there are no links.
        """
        for number, (source, found) in enumerate(files):
            path = shard_file(self._folder, number, len(self._shape))
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, path)
            except OSError:  # not every file system has hard links
                shutil.copyfile(source, path)
            self.files[path] = found
        self._written = min(len(files) * self._shards.shard, self._shape[0])

    def append(self, rows: NDArray[Any]) -> None:
        """Add ``rows`` after those already there."""
        self._pending.append(rows.astype(self._dtype, copy=False))
        self._num_pending += len(rows)
        whole = self._num_pending - self._num_pending % self._shards.shard
        if whole:
            self._write(whole)

    def close(self) -> None:
        """Write what is left; ``StoreError`` when the array is not full now."""
        self._write(self._num_pending)
        if self._written != self._shape[0]:
            raise StoreError(
                f"{self._folder}: {self._written} entries written, {self._shape[0]} announced; "
                "the source changed while it was read, start again"
            )

    def _write(self, count: int) -> None:
        if not count:
            return
        rows = np.concatenate(self._pending)
        for start in range(0, count, self._shards.shard):
            path = shard_file(self._folder, (self._written + start) // self._shards.shard, len(self._shape))
            path.parent.mkdir(parents=True, exist_ok=True)
            part = rows[start : min(start + self._shards.shard, count)]
            self.files[path] = write_shard(path, part, self._shards, self._fill)
        self._pending = [rows[count:].copy()]
        self._num_pending -= count
        self._written += count
