"""The strongest pairs of genes by |cosine| of their profiles, exact and the same on every machine.

Enters: one row of D numbers a gene. Leaves: a given number of pairs. Invariants: the result is a function of
the rows alone, to the bit: not of the threads or kernels of BLAS, nor of the size of the blocks, nor of the
order of the features; memory is the profiles once more, one block of products, and about three times the
pairs asked for.

Floating-point sums depend on the order in which BLAS adds. So everything that is summed here is a whole
number, small enough that every partial sum, in whatever order, is exact:

* a row is scaled by a power of two and rounded to whole numbers q of so many bits that the sum of their
  squares fits 63 bits: 26 bits for 1,000 features, 23 for 60,000;
* its direction is u = q / |q|, rounded to multiples of 2^-26. By Cauchy and Schwarz any part of the sum of
  products u v is at most about 1 in size, which is 2^52 in units of 2^-52, and float64 counts to 2^53. What
  rounding does to the length of u is divided out again.

Cosines come out within some 1e-8 of the real ones and are kept as float32. The choice is made by the float32
number, so it can be checked against what the snapshot shows; between equals gene order decides.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_ENTRIES = 2**23
"""Products of a block: 64 MiB."""
DIRECTION_BITS = 26
MAX_BITS = 30
"""Of a rounded value; more would gain nothing over the 26 bits of a direction."""


class Directions(NamedTuple):
    """Unit vectors of the rows, rounded."""

    u_GD: NDArray[np.float64]
    """Whole numbers, in units of 2^-26."""
    per_length_G: NDArray[np.float64]
    """1 / |u|, about 2^-26."""


class CosinePairs(NamedTuple):
    """Pairs of rows, each once, first < second, sorted by (first, second)."""

    edges_2E: NDArray[np.int32]
    weight_E: NDArray[np.float32]
    """(E,) cosine, with its sign."""


def cosine_pairs(x_GD: NDArray[np.floating], count: int, *, max_entries: int = MAX_ENTRIES) -> CosinePairs:
    """The ``count`` pairs of rows with the largest |cosine| (all of them when there are fewer).

    Ties go by the number of the first row, then the second. Raises ``ValueError`` for a row of zeros, which
    has no direction, and for values that are not finite.
    """
    rows = directions(x_GD, max_entries=max_entries)
    height = max(1, max_entries // max(len(x_GD), 1))
    parts: list[CosinePairs] = []
    waiting, above = 0, -1.0
    for start in range(0, len(x_GD), height):
        parts.append(_block(rows, start, start + height, above))
        waiting += len(parts[-1].weight_E)
        if waiting > 2 * count:
            parts = [_strongest(parts, count)]
            waiting = count
            # Pairs come in order, so a later one of the same size loses the tie.
            above = float(np.abs(parts[0].weight_E).min(initial=1))
    return _strongest(parts, count)


def directions(x_GD: NDArray[np.floating], *, max_entries: int = MAX_ENTRIES) -> Directions:
    """The directions of the rows; raises as ``cosine_pairs`` does."""
    num_genes, width = x_GD.shape
    # Squares of numbers up to 2^bits, summed over the width, stay below 2^63.
    bits = min(MAX_BITS, (62 - max(width - 1, 0).bit_length()) // 2)
    u_GD, per_length_G = np.empty((num_genes, width)), np.empty(num_genes)
    height = max(1, max_entries // max(width, 1))
    for start in range(0, num_genes, height):
        block = slice(start, start + height)
        x_BD = x_GD[block].astype(np.float64)
        largest_B = np.abs(x_BD).max(axis=1, initial=0)
        if not (np.isfinite(largest_B) & (largest_B > 0)).all():
            raise ValueError("a row is all zeros or holds a value that is not finite")
        _, exponent_B = np.frexp(largest_B)
        q_BD = np.rint(np.ldexp(x_BD, (bits - exponent_B)[:, None]))
        u_BD = np.rint(np.ldexp(q_BD, DIRECTION_BITS) / _length(q_BD)[:, None])
        u_GD[block], per_length_G[block] = u_BD, 1 / _length(u_BD)
    return Directions(u_GD, per_length_G)


def _length(whole_BD: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) of rows of whole numbers, rounded twice only: the sum of squares is exact."""
    whole = whole_BD.astype(np.int64)
    return np.asarray(np.sqrt(np.einsum("bd,bd->b", whole, whole).astype(np.float64)))


def _block(rows: Directions, start: int, stop: int, above: float) -> CosinePairs:
    """Pairs whose first row is in ``start:stop``, of a size above ``above``."""
    product_BP = rows.u_GD[start:stop] @ rows.u_GD[start:].T
    product_BP *= rows.per_length_G[start:stop, None]
    product_BP *= rows.per_length_G[start:]
    weight_BP = product_BP.astype(np.float32)
    size_BP = np.abs(weight_BP)
    height, width = size_BP.shape
    # Only what lies right of the diagonal is a pair, and each pair only once.
    size_BP[:, :height][np.tril_indices(height)] = -1
    chosen = np.flatnonzero(size_BP > above)
    first, second = np.divmod(chosen, width)
    edges_2E = (np.stack([first, second]) + start).astype(np.int32)
    # Rounding may take a cosine past 1.
    return CosinePairs(edges_2E, np.clip(weight_BP.reshape(-1)[chosen], -1, 1))


def _strongest(parts: list[CosinePairs], count: int) -> CosinePairs:
    """The ``count`` largest of pairs that come in order; they stay in order."""
    empty = CosinePairs(np.zeros((2, 0), np.int32), np.zeros(0, np.float32))
    edges_2E = np.concatenate([part.edges_2E for part in (empty, *parts)], axis=1)
    weight_E = np.concatenate([part.weight_E for part in (empty, *parts)])
    if len(weight_E) <= count:
        return CosinePairs(edges_2E, weight_E)
    size_E = np.abs(weight_E)
    border = np.partition(size_E, len(size_E) - count)[len(size_E) - count] if count else np.inf
    kept_E = size_E > border
    kept_E[np.flatnonzero(size_E == border)[: count - int(kept_E.sum())]] = True
    return CosinePairs(edges_2E[:, kept_E], weight_E[kept_E])
