"""Compiled loops over stored entries.

Enters: arrays, already checked by the caller except for what a kernel says that it checks. Leaves: arrays of
the caller, filled. Invariants: no kernel holds the interpreter's lock, so threads run them side by side; gene
numbers are checked before they index anything; results do not depend on the number of threads.

Loops run over slices from 0 on, and indices are unsigned: a position that could be negative would cost a test
an entry, and the vector instructions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

BAD_GENE = -1
"""What ``keep_entries`` answers in place of a row when a gene number is none of the store's."""


class Wanted(NamedTuple):
    """Where in the store some rows' entries lie."""

    start: NDArray[np.int64]
    """Ascending."""
    stop: NDArray[np.int64]


class Kept(NamedTuple):
    """Which genes are kept, and their new numbers."""

    view: NDArray[np.int32]
    """New number of each gene, -1 for one that is left out; empty to keep all as they are."""
    num_genes: int


class FetchedRows(NamedTuple):
    """Some cells' entries, each cell's together, the cells wherever they are."""

    begin: NDArray[np.int64]
    """(rows,) where each cell's entries begin in ``gene`` and ``value``."""
    length: NDArray[np.int64]
    """(rows,) how many it has."""
    gene: NDArray[Any]
    """Gene numbers (positions in the view, where there is one), ascending within a cell."""
    value: NDArray[Any]


_SMALL = 64
"""Counts below this have their logarithm looked up: nearly all of a cell's."""


def _compiled(function: Compiled) -> Compiled:
    """``function``, compiled when first called; the machine code is kept for later processes."""
    try:
        return cast(Compiled, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # nowhere to keep it: a read-only installation without a home folder
        return cast(Compiled, numba.njit(nogil=True)(function))


@_compiled
def _copy(of: NDArray[Any], into: NDArray[Any]) -> None:
    for entry in range(len(of)):
        into[entry] = of[entry]


@_compiled
def _select(
    of_gene: NDArray[np.int32],
    of_value: NDArray[Any],
    view: NDArray[np.int32],
    into_gene: NDArray[Any],
    into_value: NDArray[Any],
) -> int:
    """Copy the entries of genes in the view, numbered anew; answers how many there are."""
    kept = np.uint64(0)
    for entry in range(len(of_gene)):
        position = view[np.uint32(of_gene[entry])]
        # written whether wanted or not: what is not is overwritten by the next, without a branch
        into_gene[kept] = position
        into_value[kept] = of_value[entry]
        kept += np.uint64(position >= 0)
    return int(np.int64(kept))


@_compiled
def _outside(gene: NDArray[np.int32], num_genes: int) -> int:
    """The first entry whose gene number is none of 0 to ``num_genes``, or -1."""
    least, most = np.int32(0), np.int32(0)
    for entry in range(len(gene)):  # no way out of this loop, so that it is compiled to vector instructions
        least = min(least, gene[entry])
        most = max(most, gene[entry])
    if least < 0 or most >= num_genes:
        for entry in range(len(gene)):
            if gene[entry] < 0 or gene[entry] >= num_genes:
                return entry
    return -1


@_compiled
def keep_entries(
    gene_K: NDArray[np.int32],
    value_K: NDArray[Any],
    first_entry: int,
    wanted: Wanted,
    kept: Kept,
    place: FetchedRows,
    progress: tuple[int, int],
) -> tuple[int, int]:
    """Append to ``place`` what some rows have in one chunk, which begins at the store's ``first_entry``.

    ``progress`` is the first row that is not complete yet, and how many entries there are so far; the answer
    is the same afterwards, or ``(BAD_GENE, entry)``.
    """
    start_R, stop_R = wanted
    view, num_genes = kept
    begin_R, length_R, gene, value = place
    row, filled = progress
    last_entry = first_entry + len(gene_K)
    everything = len(view) == 0
    while row < len(start_R) and start_R[row] < last_entry:
        if start_R[row] == stop_R[row]:  # no entry, and perhaps before this chunk
            row += 1
            continue
        if start_R[row] >= first_entry:
            begin_R[row] = filled
        first = max(start_R[row], first_entry) - first_entry
        last = min(stop_R[row], last_entry) - first_entry
        bad = _outside(gene_K[first:last], num_genes)
        if bad >= 0:
            return BAD_GENE, first_entry + first + bad
        into_gene, into_value = gene[filled:], value[filled:]
        if everything:
            _copy(gene_K[first:last], into_gene)
            _copy(value_K[first:last], into_value)
            filled += last - first
        else:
            filled += _select(gene_K[first:last], value_K[first:last], view, into_gene, into_value)
        if stop_R[row] > last_entry:
            break
        length_R[row] = filled - begin_R[row]
        row += 1
    return row, filled


@_compiled
def gather(
    begin_B: NDArray[np.int64],
    from_gene: NDArray[Any],
    from_value: NDArray[Any],
    indptr: NDArray[np.int64],
    gene: NDArray[Any],
    value: NDArray[Any],
) -> None:
    """Copy row after row, each from ``begin_B`` on, to where ``indptr`` has it."""
    for cell in range(len(begin_B)):
        here, count, there = indptr[cell], indptr[cell + 1] - indptr[cell], begin_B[cell]
        _copy(from_gene[there : there + count], gene[here:])
        _copy(from_value[there : there + count], value[here:])


@_compiled
def _row(
    begin_B: NDArray[np.int64],
    end_B: NDArray[np.int64],
    gene: NDArray[Any],
    value: NDArray[Any],
    y_BG: NDArray[np.float32],
    cell: int,
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]]:
    """Zeros to fill in, and the genes and values to fill in."""
    y_G = y_BG[cell]
    y_G[:] = 0
    return y_G, gene[begin_B[cell] : end_B[cell]], value[begin_B[cell] : end_B[cell]]


@_compiled
def densify(
    begin_B: NDArray[np.int64],
    end_B: NDArray[np.int64],
    gene: NDArray[Any],
    value: NDArray[Any],
    y_BG: NDArray[np.float32],
) -> None:
    """Rows of values as they are, zero where a row has no entry.

    Raises ``IndexError`` for a gene outside ``y_BG``.
    """
    num_genes = np.uint32(y_BG.shape[1])
    for cell in range(len(begin_B)):
        y_G, of_gene, of_value = _row(begin_B, end_B, gene, value, y_BG, cell)
        for entry in range(len(of_gene)):
            number = np.uint32(of_gene[entry])
            if number >= num_genes:
                raise IndexError("gene outside the view")
            y_G[number] = of_value[entry]


@_compiled
def densify_log1p(
    begin_B: NDArray[np.int64],
    end_B: NDArray[np.int64],
    gene: NDArray[Any],
    value: NDArray[Any],
    scale_B: NDArray[np.float64],
    y_BG: NDArray[np.float32],
) -> None:
    """Rows of log1p(``scale_B`` * value), zero where a row has no entry.

    Raises ``IndexError`` for a gene outside ``y_BG``.
    """
    num_genes = y_BG.shape[1]
    known = np.zeros(
        _SMALL, np.int64
    )  # the last cell, counted from 1, whose logarithm of this count is known
    logarithm = np.zeros(_SMALL, np.float32)
    for cell in range(len(begin_B)):
        y_G, of_gene, of_value = _row(begin_B, end_B, gene, value, y_BG, cell)
        scale = scale_B[cell]
        for entry in range(len(of_gene)):
            number = np.uint32(of_gene[entry])
            if number >= num_genes:
                raise IndexError("gene outside the view")
            count = of_value[entry]
            small = np.uint64(count) if count < _SMALL else np.uint64(0)
            if small == 0 or count != small:
                y_G[number] = np.log1p(scale * np.float64(count))
                continue
            if known[small] != cell + 1:
                known[small] = cell + 1
                logarithm[small] = np.log1p(scale * np.float64(count))
            y_G[number] = logarithm[small]
