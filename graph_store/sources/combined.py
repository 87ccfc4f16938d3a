"""Graphs of one recipe as one graph: the pairs that some of them have, or that all have. Pure.

Enters: the kept edges of several graphs, each over its own genes. Leaves: a ``SourceGraph``. Invariants:
graphs are compared as sets of pairs, so a pair counts whichever way it points; weights are divided by each
graph's largest; a pair points as in the first graph that has it (both ways, when it does there).
"""

from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.genes import Resolution
from graph_store.sources.source import Counts, SourceGraph
from graph_store.sparsify import Edges, merge_duplicates


class Part(NamedTuple):
    """One of the graphs."""

    genes: tuple[str, ...]
    """Sorted names; those of the source, also the ones without an edge."""
    edges: Edges
    """Over ``genes``; each once, no self loop."""


class _Rows(NamedTuple):
    """The edges of all parts, one after the other, over the genes of all."""

    edges: Edges
    pair_R: NDArray[np.int64]
    """(R,) number of the pair, the same for both directions."""
    part_R: NDArray[np.int64]
    """(R,) the part that has the edge."""


def combine(parts: Sequence[Part], how: Literal["union", "intersection"], *, mirrored: bool) -> SourceGraph:
    """``parts`` as one graph, of directed edges or, when ``mirrored``, of undirected pairs.

    A pair weighs as much as in the graph where it is strongest (union) or weakest (intersection), by absolute
    weight; between w and -w the positive one.
    """
    every = tuple(sorted(set().union(*(part.genes for part in parts))))
    rows = _rows(parts, every)
    pairs, weight_Q = _pairs(rows, how, len(parts))
    kept_R = np.isin(rows.pair_R, pairs)
    edges = _directed(rows, pairs, weight_Q) if len(pairs) else rows.edges.take(kept_R)
    merged = merge_duplicates(edges, directed=not mirrored)
    in_all = reduce(set.intersection, (set(part.genes) for part in parts))
    genes = every if how == "union" else tuple(sorted(in_all))
    position = {gene: number for number, gene in enumerate(genes)}
    # Of an intersection's pairs both genes are in all graphs; the others' numbers are never looked up.
    number = np.array([position.get(gene, -1) for gene in every], dtype=np.int32)
    counts = Counts(
        rows=len(kept_R),
        self_loops=0,
        duplicates=int(kept_R.sum()) - merged.num_edges,
        below_minimum=int((~kept_R).sum()),
    )
    ends = number[merged.edges_2E].astype(np.int32).reshape(2, -1)
    return SourceGraph(genes, Edges(ends, merged.weight_E), counts, Resolution(genes, {}, (), ()))


def _rows(parts: Sequence[Part], genes: tuple[str, ...]) -> _Rows:
    position = {gene: number for number, gene in enumerate(genes)}
    ends, weights = [], []
    for part in parts:
        number = np.array([position[gene] for gene in part.genes], dtype=np.int32)
        ends.append(number[part.edges.edges_2E])
        largest = np.abs(part.edges.weight_E).max(initial=0)
        weights.append(part.edges.weight_E / (largest if largest > 0 else np.float32(1)))
    edges_2R = np.concatenate(ends, axis=1)
    first, second = np.sort(edges_2R.astype(np.int64), axis=0)
    part_R = np.repeat(np.arange(len(parts)), [part.edges.num_edges for part in parts])
    return _Rows(Edges(edges_2R, np.concatenate(weights)), first * len(genes) + second, part_R)


def _pairs(rows: _Rows, how: str, num_parts: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The pairs of the combined graph, ascending, and their weights."""
    weight_R, sign = rows.edges.weight_E, -1 if how == "union" else 1
    # Of the two directions in one graph the stronger is the pair's weight there.
    order = np.lexsort((-weight_R, -np.abs(weight_R), rows.part_R, rows.pair_R))
    once = order[_is_first(rows.pair_R[order], rows.part_R[order])]
    weight = weight_R[once]
    chosen = once[np.lexsort((-weight, sign * np.abs(weight), rows.pair_R[once]))]
    pairs, place, times = np.unique(rows.pair_R[chosen], return_index=True, return_counts=True)
    kept = times == (num_parts if how == "intersection" else times)
    return pairs[kept], weight_R[chosen[place]][kept]


def _directed(rows: _Rows, pairs: NDArray[np.int64], weight_Q: NDArray[np.float32]) -> Edges:
    """The edges of each pair in the first graph that has it, with the pair's weight."""
    place_R = np.minimum(np.searchsorted(pairs, rows.pair_R), len(pairs) - 1)
    kept_R = pairs[place_R] == rows.pair_R
    first_Q = np.full(len(pairs), np.iinfo(np.int64).max)
    np.minimum.at(first_Q, place_R[kept_R], rows.part_R[kept_R])
    of_first = kept_R & (rows.part_R == first_Q[place_R])
    return Edges(rows.edges.edges_2E[:, of_first], weight_Q[place_R[of_first]])


def _is_first(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row differs from the one before it."""
    first = np.ones(len(columns[0]), dtype=np.bool_)
    first[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return first
