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
    first, second = np.sort(pairs.edges_2E, axis=0)
    flip = (mix64(hashes[first] ^ mix64(hashes[second])) & np.uint64(1)).astype(np.bool_)
    ends = np.stack([np.where(flip, second, first), np.where(flip, first, second)])
    return Edges(ends, pairs.weight_E)


def both_directions(pairs: Edges) -> Edges:
    """Each pair as two edges."""
    ends = np.concatenate([pairs.edges_2E, pairs.edges_2E[::-1]], axis=1)
    return Edges(ends, np.concatenate([pairs.weight_E, pairs.weight_E]))


def top_in_edges(edges: Edges, count: int) -> Edges:
    """At most ``count`` incoming edges a target: largest absolute weight first, ties by source gene order."""
    source, target = edges.edges_2E
    order = np.lexsort((source, -np.abs(edges.weight_E), target))
    sorted_target = target[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_target, sorted_target, side="left")
    return edges.take(order[rank < count])


def num_top_percent(num_genes: int, percent: float, *, directed: bool) -> int:
    """How many of all possible pairs (ordered when directed) ``percent`` is: rounded down, but never 0."""
    possible = num_genes * (num_genes - 1) // (1 if directed else 2)
    # Exact arithmetic: 0.1 * 3000 / 100 in floating point may fall just below 3.
    return max(1, int(Fraction(str(percent)) * possible / 100))


def top_percent(edges: Edges, count: int) -> Edges:
    """The ``count`` edges of largest absolute weight; ties by the order of source, then target."""
    order = np.lexsort((edges.edges_2E[1], edges.edges_2E[0], -np.abs(edges.weight_E)))
    return edges.take(order[:count])


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
