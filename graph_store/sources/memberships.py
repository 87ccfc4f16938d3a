"""Which gene is in which set, and the graph of genes that share enough of their sets (Jaccard index).

Enters: (gene, set) names, one membership after another. Leaves: a ``SourceGraph``. Invariants: names are
resolved before sets are compared, so two spellings of a gene never count as two members; a membership costs
8 bytes until repeats are merged, whatever the length of the names.
"""

from array import array
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.genes import Aliases, Resolution, resolve
from graph_store.similarity import jaccard_pairs
from graph_store.sources.source import Counts, SourceGraph, sorted_genes
from graph_store.sparsify import Edges


class Memberships(NamedTuple):
    """Memberships as a file has them, repeats included."""

    genes: tuple[str, ...]
    """Distinct names as the file spells them."""
    sets: tuple[str, ...]
    gene_R: NDArray[np.int32]
    """(R,) positions in ``genes``."""
    set_R: NDArray[np.int32]


class Members(NamedTuple):
    """Distinct memberships of resolved genes."""

    genes: tuple[str, ...]
    """Sorted names."""
    resolution: Resolution
    gene_M: NDArray[np.int32]
    set_M: NDArray[np.int32]
    num_rows: int
    """Memberships of the file."""
    num_duplicates: int
    """Those of them that repeat another."""


def collect(pairs: Iterable[tuple[str, str]]) -> Memberships:
    """All memberships of a stream of (gene, set)."""
    genes: dict[str, int] = {}
    sets: dict[str, int] = {}
    gene_R, set_R = array("i"), array("i")
    for gene, name in pairs:
        gene_R.append(genes.setdefault(gene, len(genes)))
        set_R.append(sets.setdefault(name, len(sets)))
    return Memberships(tuple(genes), tuple(sets), np.array(gene_R, np.int32), np.array(set_R, np.int32))


def resolved(found: Memberships, aliases: Aliases | None) -> Members:
    """Each membership once, with genes by their approved symbols."""
    resolution = resolve(found.genes, aliases)
    genes, number = sorted_genes(resolution.names)
    # One number a membership sorts much faster than two.
    key_M = np.unique(number[found.gene_R].astype(np.int64) * max(len(found.sets), 1) + found.set_R)
    gene_M, set_M = np.divmod(key_M, max(len(found.sets), 1))
    return Members(
        genes,
        resolution,
        gene_M.astype(np.int32),
        set_M.astype(np.int32),
        num_rows=len(found.gene_R),
        num_duplicates=len(found.gene_R) - len(key_M),
    )


def join(members: Members, *, above: float, details: Mapping[str, int]) -> SourceGraph:
    """Pairs of genes with a Jaccard index above ``above``."""
    pairs = jaccard_pairs(members.gene_M, members.set_M, above=above)
    counts = Counts(
        rows=members.num_rows,
        self_loops=0,
        duplicates=members.num_duplicates,
        below_minimum=pairs.num_below,
    )
    edges = Edges(pairs.edges_2E, pairs.weight_E)
    return SourceGraph(members.genes, edges, counts, members.resolution, details)
