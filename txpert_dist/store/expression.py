"""The one definition of expression, and views over genes, on sparse rows.

Enters: ``SparseRows`` as stored. Leaves: ``SparseRows`` or a dense array. Invariant: the library size belongs
to the cell, not to the view: selecting genes never changes it, so normalising before or after selection gives
the same values.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from txpert_dist.minibatch import SparseRows
from txpert_dist.store.kernels import densify, densify_log1p

TARGET_SUM = 4000.0
"""Expression is log1p(4000 * count / library size), as the methods define it."""

InputScale = Literal["counts", "log1p"]
"""What a store holds: counts, or values that were already log1p-normalised by whoever made the file."""


def log1p_normalise(rows: SparseRows, *, input_scale: InputScale) -> SparseRows:
    """The same cells with values log1p(4000 * count / library_size) in float32; zero counts stay zero.

    With ``input_scale="log1p"`` the values are expression already and only their type changes.
    """
    if input_scale == "log1p":
        return rows._replace(value=rows.value.astype(np.float32))
    scale = TARGET_SUM / rows.library_size.astype(np.float64)
    scaled = rows.value.astype(np.float64) * np.repeat(scale, np.diff(rows.indptr))
    return rows._replace(value=np.log1p(scaled).astype(np.float32))


def dense(rows: SparseRows, num_genes: int) -> NDArray[np.float32]:
    """(B, num_genes) float32 array of the rows' values, zero where a cell has no entry."""
    x_BG = np.zeros((rows.num_cells, num_genes), np.float32)
    cell = np.repeat(np.arange(rows.num_cells), np.diff(rows.indptr))
    x_BG[cell, rows.gene] = rows.value
    return x_BG


def dense_log1p(
    rows: SparseRows,
    y_BG: NDArray[np.float32],
    *,
    input_scale: InputScale,
    which: NDArray[np.int64] | None = None,
) -> None:
    """Fill ``y_BG`` with log1p expression: ``dense(log1p_normalise(rows))``, without the steps between.

    ``which`` are the rows to fill it with, in that order, repeats allowed; all of them when left out.
    Raises ``IndexError`` for a gene or row outside.
    """
    begin, end, library_size = rows.indptr[:-1], rows.indptr[1:], rows.library_size
    if which is not None:
        begin, end, library_size = begin[which], end[which], library_size[which]
    if len(begin) != len(y_BG):
        raise IndexError(f"{len(begin)} cells do not fill {len(y_BG)} rows")
    if input_scale == "log1p":
        densify(begin, end, rows.gene, rows.value, y_BG)
        return
    with np.errstate(divide="ignore"):  # a library size of 0 gives an expression that is not finite
        scale = TARGET_SUM / library_size.astype(np.float64)
    densify_log1p(begin, end, rows.gene, rows.value, scale, y_BG)


def gene_view(genes: NDArray[np.int64], num_genes: int) -> NDArray[np.int32]:
    """(num_genes,) lookup from gene number to position in ``genes``, -1 for a gene outside the view.

    ``genes`` holds distinct gene numbers; when they ascend, entries stay sorted after ``select_genes``.
    """
    view = np.full(num_genes, -1, np.int32)
    view[genes] = np.arange(len(genes), dtype=np.int32)
    return view


def select_genes(rows: SparseRows, view: NDArray[np.int32]) -> SparseRows:
    """The same cells with only the genes of ``view`` (see ``gene_view``), numbered by position in it."""
    position = view[rows.gene]
    kept = position >= 0
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
    return SparseRows(before[rows.indptr], position[kept], rows.value[kept], rows.library_size)
