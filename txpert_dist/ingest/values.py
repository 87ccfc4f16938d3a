"""Checks of the numbers themselves: are these counts (or log1p values), and whose library size is it?

Enters: blocks of cells as the file has them. Leaves: nothing, or ``InputError`` naming file, cell and gene.
Invariant: whatever passes is finite and not negative, and in counts mode whole.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.source import Source
from txpert_dist.store.expression import InputScale

_LARGEST_LOG1P = 20.0
"""log1p of a count per million is below 14; larger values are no logarithms."""
_LARGEST_COUNT = float(np.iinfo(np.uint32).max)


def check_values(source: Source, rows: NDArray[np.int64], matrix: Any, scale: InputScale) -> None:
    """Raise ``InputError`` for the first value that is NaN, infinite, negative, or not on ``scale``.

    ``matrix`` is the CSR of cells ``rows`` of ``source``.
    """
    value, refuse = matrix.data, partial(_refuse, source, rows, matrix)
    if value.dtype.kind == "f":
        refuse(~np.isfinite(value), "not a finite number", "remove or repair that cell")
    refuse(value < 0, "negative", f"give unscaled values{_other_layers(source)}")
    if scale == "log1p":
        remedy = "leave --input-scale out if these are counts"
        refuse(value > _LARGEST_LOG1P, "too large for a log1p value", remedy)
        return
    if value.dtype.kind == "f":
        remedy = f"name the counts with --layer{_other_layers(source)}, or give --input-scale log1p"
        what = "not a whole number, so these look like normalised or logged values, not counts"
        refuse(value != np.floor(value), what, remedy)
    refuse(value > _LARGEST_COUNT, "too large for a count", "check the file")


def check_holds(
    source: Source, rows: NDArray[np.int64], stored: Any, genes: Sequence[str], dtype: np.dtype[Any]
) -> None:
    """Raise ``InputError`` for the first value that ``dtype``, the type of a store's values, does not hold.

    ``stored`` is the CSR of cells ``rows`` of ``source`` over the store's ``genes``.
    """
    if dtype.kind == "f" or stored.data.max(initial=0) <= np.iinfo(dtype).max:
        return
    entry = int(np.argmax(stored.data > np.iinfo(dtype).max))
    row = int(np.searchsorted(stored.indptr, entry, side="right")) - 1
    raise InputError(
        f"{source.path}: {source.place}: value {stored.data[entry]:g} of {source.cell(int(rows[row]))}, gene "
        f"{genes[int(stored.indices[entry])]!r} is more than the store's type, {dtype}, holds; ingest all "
        "files together"
    )


def library_column(source: Source, column: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The library sizes that obs ``column`` gives for ``rows``; ``InputError`` unless all are positive."""
    try:
        sizes = pd.to_numeric(source.obs[column].iloc[rows].astype(object)).to_numpy(np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{source.path}: obs column {column!r} is not numeric; name a column of total counts"
        ) from None
    wrong = np.flatnonzero(~(np.isfinite(sizes) & (sizes > 0)))
    if len(wrong):
        raise InputError(
            f"{source.path}: library size {sizes[wrong[0]]:g} of {source.cell(int(rows[wrong[0]]))} in obs "
            f"column {column!r} is not positive; correct it, or leave --library-size-key out"
        )
    return sizes


def check_library(
    source: Source, rows: NDArray[np.int64], total: NDArray[np.float64], given: NDArray[np.float64] | None
) -> None:
    """Raise ``InputError`` for a cell without counts, or with more counts than its given library size."""
    empty = np.flatnonzero(total == 0)
    if len(empty):
        raise InputError(
            f"{source.path}: {source.cell(int(rows[empty[0]]))} has no counts at all; "
            "leave such cells out with --empty-cells drop"
        )
    if given is None:
        return
    # Columns are often rounded to float32: half a count in a hundred thousand is no contradiction.
    short = np.flatnonzero(given < total * (1 - 1e-5))
    if len(short):
        row = int(rows[short[0]])
        raise InputError(
            f"{source.path}: library size {given[short[0]]:g} of {source.cell(row)} is smaller than the sum "
            f"of its counts, {total[short[0]]:g}; name the column of total counts, or leave "
            "--library-size-key out"
        )


def _refuse(
    source: Source, rows: NDArray[np.int64], matrix: Any, wrong: NDArray[Any], what: str, remedy: str
) -> None:
    if not wrong.any():
        return
    entry = int(np.argmax(wrong))
    row = int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
    gene = source.gene(int(matrix.indices[entry]))
    raise InputError(
        f"{source.path}: {source.place}: value {matrix.data[entry]:g} of {source.cell(int(rows[row]))}, "
        f"{gene} is {what}; {remedy}"
    )


def _other_layers(source: Source) -> str:
    others = [name for name in source.layers if source.place != f"layers/{name}"]
    return f" (layers: {listing(others)})" if others else ""
