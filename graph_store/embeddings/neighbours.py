"""Exact nearest neighbours of genes by cosine.

Enters: embeddings. Leaves: for each gene asked for, the genes of largest cosine. Invariants: the answer is
exact and depends neither on the order of the rows, nor on blocks, threads or machine: a matrix product only
chooses candidates, within the bound of its rounding, and their cosines are then summed in one fixed order.
Ties go by gene name. A zero vector has no cosine: it is nobody's neighbour.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.embeddings.embedding import Embedding, rows_of, without_direction
from graph_store.graph import GraphError

BLOCK_ENTRIES = 2**21
"""Cosines of a block of queries with all genes: 16 MiB."""


class Neighbour(NamedTuple):
    """A gene and its cosine with the gene asked for."""

    gene: str
    cosine: float


class Neighbourhoods(NamedTuple):
    """The neighbours of a block of queries, nearest first."""

    indptr: NDArray[np.int64]
    """Where each query's neighbours begin and end; there may be fewer than asked for."""
    row: NDArray[np.int64]
    cosine: NDArray[np.float64]


def nearest(
    embedding: Embedding, genes: Sequence[str], count: int, *, among: Embedding | None = None
) -> tuple[tuple[Neighbour, ...], ...]:
    """The at most ``count`` nearest genes of each of ``genes``, nearest first; the gene itself is left out.

    Among those of another embedding, ``among``, which must live in the same space (see ``alignment``), a
    gene's own counterpart is an answer like any other. Raises ``GraphError`` for an unknown gene, one whose
    vector is zero, and other widths.
    """
    if count < 1:
        raise GraphError(f"{count} neighbours were asked for; ask for at least 1")
    other = embedding if among is None else among
    if other.z_PD.shape[1] != embedding.z_PD.shape[1]:
        raise GraphError(
            f"embedding {embedding.version} has vectors of {embedding.z_PD.shape[1]} numbers and "
            f"{other.version} of {other.z_PD.shape[1]}; align one with the other first"
        )
    rows = rows_of(embedding, genes)
    zero = np.flatnonzero(without_direction(embedding.z_PD[rows]))
    if len(zero):
        raise GraphError(
            f"embedding {embedding.version}: the vector of {genes[zero[0]]} is zero, so nothing is near it; "
            "ask for another gene"
        )
    found: list[tuple[Neighbour, ...]] = []
    for block in neighbourhoods(
        embedding.z_PD[rows], other.z_PD, other.genes, count, own_Q=rows if among is None else None
    ):
        for begin, end in pairwise(block.indptr):
            names = (other.genes[row] for row in block.row[begin:end])
            pairs = zip(names, block.cosine[begin:end].tolist(), strict=True)
            found.append(tuple(Neighbour(name, cosine) for name, cosine in pairs))
    return tuple(found)


def neighbourhoods(
    z_QD: NDArray[np.float32],
    z_PD: NDArray[np.float32],
    genes: Sequence[str],
    count: int,
    *,
    own_Q: NDArray[np.int64] | None = None,
    block_entries: int = BLOCK_ENTRIES,
) -> Iterator[Neighbourhoods]:
    """Block by block, the rows of ``z_PD`` (whose names are ``genes``) that are nearest to those of ``z_QD``.

    ``own_Q`` is the row that each query is itself, to be left out. No query may be zero.
    """
    rank_P = np.empty(len(genes), np.int64)
    rank_P[np.argsort(np.array(genes, dtype=object), kind="stable")] = np.arange(len(genes))
    square_Q, square_P = _dots(z_QD, z_QD), _dots(z_PD, z_PD)
    there = np.flatnonzero(square_P)
    unit_ED = z_PD[there] / np.sqrt(square_P[there])[:, None]
    place_P = np.full(len(genes), -1)
    place_P[there] = np.arange(len(there))
    size = max(1, block_entries // max(len(there), 1))
    for start in range(0, len(z_QD), size):
        block = slice(start, start + size)
        near_BE = (z_QD[block] / np.sqrt(square_Q[block])[:, None]) @ unit_ED.T
        if own_Q is not None:
            near_BE[np.arange(len(near_BE)), place_P[own_Q[block]]] = -np.inf
        query, place = np.nonzero(_candidates(near_BE, count, z_PD.shape[1]))
        row = there[place]
        dot = _dots(z_QD[block], z_PD, query, row)
        # sqrt(x * x) is x: vectors that are equal, or one twice the other, have the cosine 1 exactly
        cosine = np.clip(dot / np.sqrt(square_Q[block][query] * square_P[row]), -1, 1)
        yield _first(query, row, cosine, rank_P, num_queries=len(near_BE), count=count)


def _candidates(near_BE: NDArray[np.float64], count: int, width: int) -> NDArray[np.bool_]:
    """What may be among the ``count`` largest of a row, rounding considered; minus infinity never is."""
    present = np.isfinite(near_BE)
    if near_BE.shape[1] <= count:
        return present
    least_B1 = np.partition(near_BE, -count, axis=1)[:, -count, None]
    # Unit vectors, product and fixed sum are together off by less than (3 width + 11) * 2**-53 on each side.
    margin = (width + 4) * 2.0**-50
    return present & (near_BE >= least_B1 - margin)


def _dots(
    a_QD: NDArray[np.float32],
    b_PD: NDArray[np.float32],
    query: NDArray[np.int64] | None = None,
    row: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Dot products of rows with rows (all, or those chosen), exact products summed in column order."""
    total = np.zeros(len(a_QD) if query is None else len(query))
    for column in range(a_QD.shape[1]):
        first, second = a_QD[:, column], b_PD[:, column]
        if query is not None:
            first, second = first[query], second[row]
        total += first.astype(np.float64) * second
    return total


def _first(
    query: NDArray[np.int64],
    row: NDArray[np.int64],
    cosine: NDArray[np.float64],
    rank_P: NDArray[np.int64],
    *,
    num_queries: int,
    count: int,
) -> Neighbourhoods:
    """The ``count`` nearest candidates of each query, in order."""
    order = np.lexsort((rank_P[row], -cosine, query))
    query = query[order]
    order = order[np.arange(len(order)) - np.searchsorted(query, query, side="left") < count]
    number = np.minimum(np.bincount(query, minlength=num_queries), count)
    return Neighbourhoods(np.concatenate([[0], np.cumsum(number)]), row[order], cosine[order])
