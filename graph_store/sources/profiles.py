"""From profiles of genes to a graph: the pairs whose profiles point the same way, or opposite ways.

Enters: named rows of numbers. Leaves: a ``SourceGraph`` of the strongest pairs by |cosine|. Invariants: names
are resolved first, and rows of one gene are averaged; sums are exact or taken in an order that values decide,
so neither the order of rows nor that of features matters, to the bit; whatever is left out is counted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.cosine import cosine_pairs
from graph_store.genes import Aliases, resolve
from graph_store.graph import GraphError
from graph_store.source_config import Centre
from graph_store.sources.source import Counts, SourceGraph, sorted_genes
from graph_store.sparsify import Edges, num_top_percent

ROUNDING = 2.0**-40
"""What centring leaves of a row, relative to its largest value, that is rounding and no direction."""


class Choice(NamedTuple):
    """Which pairs become edges, and how their profiles are compared."""

    percent: float
    """Share of all pairs of genes that have a direction."""
    centre: Centre
    signed: bool
    """Whether weights keep the sign of the cosine."""


def profile_graph(
    names: Sequence[str],
    value_RD: NDArray[np.float32],
    aliases: Aliases | None,
    choice: Choice,
    *,
    where: str,
    details: Mapping[str, int],
) -> SourceGraph:
    """The strongest pairs of the genes ``names``, whose R rows of finite values are ``value_RD``.

    ``details`` are counts of the reader, to which ours are added; ``where`` opens messages. Raises
    ``GraphError`` when fewer than two genes have a direction.
    """
    resolution = resolve(names, aliases)
    genes, number_R = sorted_genes(resolution.names)
    x_GD = centred(_averaged(value_RD, number_R, len(genes)), choice.centre)
    pointing_G = x_GD.any(axis=1)
    left = tuple(genes[number] for number in np.flatnonzero(pointing_G).tolist())
    if len(left) < 2:
        raise GraphError(
            f"{where}: {len(left)} of its {len(genes)} genes have a profile that is not zero everywhere; "
            "a graph needs two"
        )
    if len(left) < len(genes):
        x_GD = x_GD[pointing_G]
    pairs = cosine_pairs(x_GD, num_top_percent(len(left), choice.percent, directed=False))
    return SourceGraph(
        genes=left,
        pairs=Edges(pairs.edges_2E, pairs.weight_E if choice.signed else np.abs(pairs.weight_E)),
        counts=Counts(rows=len(names), self_loops=0, duplicates=len(names) - len(genes), below_minimum=0),
        resolution=resolution,
        details={
            "features": value_RD.shape[1],
            **details,
            "genes of zeros, left out": len(genes) - len(left),
        },
        num_candidates=len(left) * (len(left) - 1) // 2,
    )


def centred(x_GD: NDArray[np.float64], centre: Centre) -> NDArray[np.float64]:
    """The rows less the mean of each feature, of each gene, or of both; changes and returns ``x_GD``.

    Means are of exact sums. A row that is constant but for rounding becomes zero.
    """
    if centre == "none":
        return x_GD
    largest_G = np.abs(x_GD).max(axis=1, initial=0)
    if centre in ("feature", "both"):
        x_GD -= np.array([exact_mean(column_G) for column_G in x_GD.T])
    if centre in ("gene", "both"):
        x_GD -= np.array([exact_mean(row_D) for row_D in x_GD])[:, None]
    x_GD[np.abs(x_GD).max(axis=1, initial=0) <= largest_G * ROUNDING] = 0
    return x_GD


def exact_mean(values: NDArray[np.floating]) -> float:
    """The mean by the exact sum: the order of the values does not matter."""
    return math.fsum(values.tolist()) / len(values)


def _averaged(
    value_RD: NDArray[np.float32], number_R: NDArray[np.int32], num_genes: int
) -> NDArray[np.float64]:
    """(G, D) the mean of the rows of each gene."""
    x_GD = np.empty((num_genes, value_RD.shape[1]))
    x_GD[number_R] = value_RD
    times_G = np.bincount(number_R, minlength=num_genes)
    by_gene = np.split(np.argsort(number_R, kind="stable"), np.cumsum(times_G)[:-1])
    for gene in np.flatnonzero(times_G > 1).tolist():
        x_GD[gene] = _mean_of_rows(value_RD[by_gene[gene]].astype(np.float64))
    return x_GD


def _mean_of_rows(value_RD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Added up from a feature's smallest value to its largest, so that the order of rows does not matter."""
    total_D = np.zeros(value_RD.shape[1])
    for row_D in np.sort(value_RD, axis=0):
        total_D += row_D
    return total_D / len(value_RD)
