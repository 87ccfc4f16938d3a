"""What every reader returns, and what it says about the rows it dropped.

Enters: codes into raw names. Leaves: pairs over sorted, resolved gene names. Invariant: rows are accounted
for: rows = self loops + below the minimum + duplicates + pairs (for gene sets: memberships = duplicates +
kept ones). What else there is to say about a kind of source stands under ``details``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.genes import Resolution
from graph_store.sparsify import Edges


class Counts(NamedTuple):
    """How many rows a source had and what became of them."""

    rows: int
    """Rows of an edge list, memberships of gene sets."""
    self_loops: int
    duplicates: int
    """Rows merged into another: same edge again (or reversed, when undirected); same membership again."""
    below_minimum: int
    """Rows under the minimum weight; pairs that share a set but not enough."""


class SourceGraph(NamedTuple):
    """A source as distinct pairs of different genes, before anything is selected."""

    genes: tuple[str, ...]
    """Sorted names of every gene of the source, also of those that keep no pair."""
    pairs: Edges
    """Over ``genes``; undirected ones with first < second; sorted by (source, target)."""
    counts: Counts
    resolution: Resolution
    details: Mapping[str, int] = MappingProxyType({})
    """What else the reader counted, by a few plain words: {"negated annotations": 412}."""
    num_candidates: int | None = None
    """Pairs that the reader chose ``pairs`` from, when it selects the strongest itself; None: it did not."""


def sorted_genes(names: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The distinct names, sorted, and the position there of each name given."""
    genes = tuple(sorted(set(names)))
    position = {name: number for number, name in enumerate(genes)}
    return genes, np.fromiter((position[name] for name in names), dtype=np.int32, count=len(names))
