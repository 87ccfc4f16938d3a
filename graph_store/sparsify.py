"""Which edges are kept, and which way an undirected pair points. Pure functions of arrays and a seed.

Enters: edges over genes numbered in name order, in any row order, repeats allowed. Leaves: destination-sorted
edges without repeats. Invariant: the result depends on the set of (names, weight) rows and the seed only, not
on the order of the rows. Everything is decided by the absolute weight; ties go by gene order.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.config import KeepAll, TopInEdges, TopPercent
from graph_store.hashing import mix64, name_hashes

BLOCK = 2**18
"""Pairs that get directions at a time: what is computed of them stays in the cache."""
_LARGEST = 2**31 - 1
"""The bits of the largest number that a float32 without its sign can be."""


class Edges(NamedTuple):
    """Edges before they are final: any order, any direction."""

    edges_2E: NDArray[np.int32]
    """(2, E) source and target, as positions in the sorted gene names."""
    weight_E: NDArray[np.float32]

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return len(self.weight_E)

    def take(self, which: NDArray[np.generic]) -> "Edges":
        """The edges a mask or an index picks."""
        return Edges(self.edges_2E[:, which], self.weight_E[which])


def without_self_loops(edges: Edges) -> Edges:
    """Edges between two different genes."""
    return edges.take(edges.edges_2E[0] != edges.edges_2E[1])


def merge_duplicates(edges: Edges, *, directed: bool) -> Edges:
    """One edge a (source, target), or one a pair with source < target when undirected; sorted by it.

    Of repeats the largest absolute weight stays; between w and -w the positive one.
    """
    ends = edges.edges_2E if directed else np.sort(edges.edges_2E, axis=0)
    order = np.lexsort((-edges.weight_E, -np.abs(edges.weight_E), ends[1], ends[0]))
    ends, weight_E = ends[:, order], edges.weight_E[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (ends[:, 1:] != ends[:, :-1]).any(axis=0)
    return Edges(ends[:, first], weight_E[first])


def orient(pairs: Edges, genes: Sequence[str], *, seed: int) -> Edges:
    """Give each pair one direction: arbitrary, even-handed, and decided by the two names and the seed alone.

    The reference has directions assigned arbitrarily (TxPert methods, graph filtering); ours can be repeated.
    """
    hashes = name_hashes(genes, seed=seed)
    ends = np.stack([pairs.edges_2E.min(axis=0), pairs.edges_2E.max(axis=0)])
    for start in range(0, pairs.num_edges, BLOCK):
        first, second = block = ends[:, start : start + BLOCK]
        flip = (mix64(hashes[first] ^ mix64(hashes[second])) & np.uint64(1)).astype(np.bool_)
        block[:, flip] = block[::-1, flip]
    return Edges(ends, pairs.weight_E)


def both_directions(pairs: Edges) -> Edges:
    """Each pair as two edges."""
    ends = np.concatenate([pairs.edges_2E, pairs.edges_2E[::-1]], axis=1)
    return Edges(ends, np.concatenate([pairs.weight_E, pairs.weight_E]))


def top_in_edges(edges: Edges, count: int) -> Edges:
    """At most ``count`` incoming edges a target: largest absolute weight first, ties by source gene order."""
    source, target = edges.edges_2E
    degree_P = np.bincount(target)
    kept_P = np.minimum(degree_P, count)
    # Where each target's edges begin when they are sorted, less where its kept ones begin.
    shift_P = (np.cumsum(degree_P) - degree_P) - (np.cumsum(kept_P) - kept_P)
    kept = np.arange(kept_P.sum()) + np.repeat(shift_P, kept_P)
    bits = int(edges.edges_2E.max(initial=0)).bit_length()
    if 2 * bits + 32 > 64:
        order = np.lexsort((source, -np.abs(edges.weight_E), target))
        return edges.take(order[kept])
    packed = _packed(edges, bits)
    packed.sort()
    return _unpacked(packed[kept], bits)


def num_top_percent(num_genes: int, percent: float, *, directed: bool) -> int:
    """How many of all possible pairs (ordered when directed) ``percent`` is: rounded down, but never 0."""
    possible = num_genes * (num_genes - 1) // (1 if directed else 2)
    # Exact arithmetic: 0.1 * 3000 / 100 in floating point may fall just below 3.
    return max(1, int(Fraction(str(percent)) * possible / 100))


def top_percent(edges: Edges, count: int) -> Edges:
    """The ``count`` edges of largest absolute weight; ties by the order of source, then target."""
    order = np.lexsort((edges.edges_2E[1], edges.edges_2E[0], -np.abs(edges.weight_E)))
    return edges.take(order[:count])


def downsample(edges: Edges, genes: Sequence[str], share: float, *, mirrored: bool, seed: int) -> Edges:
    """``share`` of the edges (rounded, but never none), in their order, chosen by names and seed alone.

    A smaller share is part of a larger one. When ``mirrored``, it is a share of the pairs, and the two
    directions of a pair stay or go together.
    """
    ends = (np.sort(edges.edges_2E, axis=0) if mirrored else edges.edges_2E).astype(np.int64)
    units, unit_E = np.unique(ends[0] * len(genes) + ends[1], return_inverse=True)
    hashes = name_hashes(genes, seed=seed)
    first, second = hashes[units // len(genes)], hashes[units % len(genes)]
    # Exact arithmetic, and a half is rounded up.
    count = int(Fraction(str(float(share))) * len(units) + Fraction(1, 2))
    chosen = np.zeros(len(units), dtype=np.bool_)
    chosen[np.argsort(mix64(first ^ mix64(second)), kind="stable")[: max(count, 1)]] = True
    return edges.take(chosen[unit_E])


def _packed(edges: Edges, bits: int) -> NDArray[np.uint64]:
    """One number an edge: target, how far the weight is from the largest there is, source, sign.

    Numbers of up to ``bits`` bits; sorting them takes a fraction of the time of sorting rows.
    """
    source, target = edges.edges_2E
    # Floating-point numbers of one sign are ordered as their bits are.
    size = np.abs(edges.weight_E).view(np.uint32).astype(np.uint64)
    packed: NDArray[np.uint64] = target.astype(np.uint64)
    for field, width in ((np.uint64(_LARGEST) - size, 31), (source, bits), (np.signbit(edges.weight_E), 1)):
        packed <<= np.uint64(width)
        packed |= field.astype(np.uint64)
    return packed


def _unpacked(packed: NDArray[np.uint64], bits: int) -> Edges:
    fields = []
    for width in (1, bits, 31):
        fields.append(packed & np.uint64(2**width - 1))
        packed = packed >> np.uint64(width)
    sign, source, distance = fields
    size = (np.uint64(_LARGEST) - distance).astype(np.uint32).view(np.float32)
    return Edges(np.stack([source, packed]).astype(np.int32), np.where(sign == 1, -size, size))


def destination_sorted(edges: Edges) -> Edges:
    """Sorted by target, then source."""
    return edges.take(np.lexsort((edges.edges_2E[0], edges.edges_2E[1])))


def sparsify(
    pairs: Edges,
    genes: Sequence[str],
    keep: TopInEdges | TopPercent | KeepAll,
    *,
    directed: bool,
    mirrored: bool,
    seed: int,
) -> Edges:
    """Merged pairs -> the kept edges, with directions, destination-sorted.

    A share of all pairs is a property of pairs and is taken before they get directions; a limit on incoming
    edges needs directions first.
    """
    if isinstance(keep, TopPercent):
        pairs = top_percent(pairs, num_top_percent(len(genes), keep.percent, directed=directed))
    if not directed:
        pairs = both_directions(pairs) if mirrored else orient(pairs, genes, seed=seed)
    if isinstance(keep, TopInEdges):
        pairs = top_in_edges(pairs, keep.count)
    return destination_sorted(pairs)
