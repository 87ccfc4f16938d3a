"""Rows on their way from the order of the sources to the order of the store.

Enters: blocks of cells with the row that each cell will have. Leaves: any range of the store's entries.
Invariants: a bucket holds one block's cells by ascending store row, so that a range of rows is one contiguous
piece of every bucket; putting together a range costs one read a bucket and memory for the range alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from txpert_dist.errors import StoreError
from txpert_dist.ingest.kernels import copy_rows
from txpert_dist.ingest.results import load
from txpert_dist.store.expression import InputScale

_NARROW_GENES = 1 << 16


class Entries(NamedTuple):
    """Consecutive entries of the store."""

    gene: NDArray[np.int32]
    value: NDArray[Any]


def value_type(largest: float, scale: InputScale) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds counts up to ``largest``; float32 for log1p values."""
    return np.min_scalar_type(int(largest)) if scale == "counts" else np.dtype(np.float32)


def bucket_of(stored: Any, row: NDArray[np.int64], scale: InputScale) -> dict[str, NDArray[Any]]:
    """The cells of the canonical CSR ``stored`` by ascending store ``row``, in the narrowest types."""
    indptr = stored.indptr.astype(np.int64)
    order = np.argsort(row)
    length = np.diff(indptr)[order]
    sorted_indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
    arrays = {"row": row[order], "indptr": sorted_indptr}
    types = {
        "gene": np.dtype(np.uint16 if stored.shape[1] <= _NARROW_GENES else np.int32),
        "value": value_type(stored.data.max(initial=0), scale),
    }
    for name, source in (("gene", stored.indices), ("value", stored.data)):
        arrays[name] = np.empty(len(source), types[name])
        copy_rows(source.astype(types[name]), indptr[:-1][order], length, arrays[name], sorted_indptr[:-1])
    return arrays


def entries_of_rows(buckets: Sequence[Path], num_rows: int) -> NDArray[np.int64]:
    """(rows + 1,) where each row's entries begin; ``StoreError`` unless every row is in one bucket."""
    length = np.full(num_rows, -1, np.int64)
    for bucket in buckets:
        length[load(bucket, "row")] = np.diff(load(bucket, "indptr"))
    if (length < 0).any():
        raise StoreError(f"cell {int(np.argmin(length))} of {num_rows} is missing; start again")
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])


def collect(
    buckets: Sequence[Path], indptr: NDArray[np.int64], start: int, stop: int, dtype: DTypeLike
) -> Entries:
    """The store's entries ``start`` to ``stop`` (exclusive); rows that stick out are cut.

    ``indptr`` says where each row's entries begin; values become ``dtype``, which holds them all.
    """
    found = Entries(np.empty(stop - start, np.int32), np.empty(stop - start, dtype))
    first = int(np.searchsorted(indptr, start, side="right")) - 1
    last = int(np.searchsorted(indptr, stop, side="left"))
    placed = sum(_add(found, bucket, indptr, start, (first, last)) for bucket in buckets)
    if placed != stop - start:
        raise StoreError(f"{placed} of the entries {start} to {stop} found; start again")
    return found


def _add(found: Entries, bucket: Path, indptr: NDArray[np.int64], start: int, rows: tuple[int, int]) -> int:
    """Put the entries of ``rows`` that are in ``bucket`` into ``found``; returns how many there were."""
    row = load(bucket, "row")
    low, high = np.searchsorted(row, rows)
    if low == high:
        return 0
    begin = np.array(load(bucket, "indptr")[low : high + 1])
    piece = slice(begin[0], begin[-1])
    length = np.diff(begin)
    where = indptr[row[low:high]] - start
    cut = np.maximum(-where, 0)
    kept = np.minimum(where + length, len(found.gene)) - (where + cut)
    for name, target in (("gene", found.gene), ("value", found.value)):
        source = load(bucket, name)[piece].astype(target.dtype)
        copy_rows(source, begin[:-1] - begin[0] + cut, kept, target, where + cut)
    return int(kept.sum())
