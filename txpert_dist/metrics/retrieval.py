"""Retrieval rank: is a prediction nearer to its own perturbation than to others?

Enters: predicted and observed deltas. Leaves: a rank from 0 to 1 per prediction, 1 the best, 0.5 no better
than chance. Invariants: references that are equal up to rounding are ties whatever order the sums are taken
in; memory is bounded by blocks of rows, not by the number of pairs.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from txpert_dist.metrics.pearson import BLOCK, UnitRows, row_correlation, unit_rows

FAST_REFERENCES = 100
"""References of the methods' fast retrieval."""

_EPSILON = float(np.finfo(np.float64).eps)
_QUERIES = 2048
"""Queries worked on at once; every block of them passes over the whole table."""
_GENES_AT_ONCE = 1024
"""Genes of a float32 product: the fewer, the closer it is known to be to the exact one."""
_FEW = 0.05
"""Share of close pairs up to which they are looked at one by one."""
_PAIRS_AT_ONCE = 2048


def retrieval_rank(
    predicted_PG: NDArray[np.floating],
    observed_PG: NDArray[np.floating],
    *,
    references: int | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """(P,) share of the other perturbations that a prediction resembles no more than its own.

    rank(p) = 1/(N-1) * sum over q != p of 1[sim(p, p) >= sim(p, q)] with sim(p, q) the Pearson correlation of
    prediction p and observation q (methods, "Retrieval"): ties count for the prediction. ``references`` is
    the fast variant: that many perturbations drawn by ``seed``, the same for every prediction, and N the
    drawn ones and the query.

    NaN where the prediction or its own observation is constant or not finite, and where nothing else is left
    to compare with. Another perturbation whose observation is constant has no similarity and, as the formula
    has it, is not beaten. Raises ``ValueError`` when the shapes differ.
    """
    if predicted_PG.shape != observed_PG.shape:
        raise ValueError(f"predicted {predicted_PG.shape} and observed {observed_PG.shape} differ in shape")
    itself = np.arange(len(observed_PG))
    return rank_among(
        predicted_PG, observed_PG, unit_rows(observed_PG), itself, references=references, seed=seed
    )


def rank_among(
    predicted_RG: NDArray[np.floating],
    own_RG: NDArray[np.floating],
    table: UnitRows,
    own_row_R: NDArray[np.int64],
    *,
    references: int | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """(R,) ``retrieval_rank`` of queries against a table of observations that they are not part of.

    ``own_RG`` is what each query should resemble; ``table`` the ``unit_rows`` of the observations and
    ``own_row_R`` the row of each query's perturbation in it, which is left out of the comparison (-1 where
    the table has none).
    """
    chosen = drawn_references(len(table.defined_P), references, seed)
    among_R = len(chosen) - np.isin(own_row_R, chosen)
    result_R = np.full(len(predicted_RG), np.nan)
    for start in range(0, len(result_R), _QUERIES):
        block = slice(start, start + _QUERIES)
        predicted, own = unit_rows(predicted_RG[block]), unit_rows(own_RG[block])
        beaten_R = _beaten(predicted, own, _table_blocks(table, chosen), own_row_R[block])
        defined_R = predicted.defined_P & own.defined_P & (among_R[block] > 0)
        result_R[block] = np.where(defined_R, beaten_R / np.maximum(among_R[block], 1), np.nan)
    return result_R


def drawn_references(num_rows: int, references: int | None, seed: int) -> NDArray[np.int64]:
    """Ascending row numbers of the reference set: all rows, or ``references`` of them drawn by ``seed``.

    Raises ``ValueError`` for fewer than one reference.
    """
    if references is not None and references < 1:
        raise ValueError(f"references={references}: at least 1 is needed")
    if references is None or references >= num_rows:
        return np.arange(num_rows, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(num_rows, references, replace=False).astype(np.int64))


def retrieval_rank_release(
    predicted_PG: NDArray[np.floating], observed_PG: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(P,) the rank as the public release counts it, for comparison with its numbers only.

    The position of the true perturbation among all N (itself included) by ascending similarity, ties in row
    order, divided by N: it ends at (N-1)/N. NaN as in ``retrieval_rank``.
    """
    num = len(observed_PG)
    result_P = np.full(num, np.nan)
    table = unit_rows(observed_PG)
    for start in range(0, num, BLOCK):
        block = slice(start, start + BLOCK)
        predicted, own = (
            unit_rows(predicted_PG[block]),
            UnitRows(table.unit_PG[block], table.defined_P[block]),
        )
        own_P = row_correlation(predicted, own)[:, None]
        query_P = np.arange(start, start + len(own_P))[:, None]
        before_P = np.zeros(len(own_P))
        slack = _rounding(predicted.unit_PG.shape[1])
        for rows, part in _table_blocks(table, np.arange(num)):
            similarity_PQ = _similarity(predicted, part)
            tied_PQ = np.abs(similarity_PQ - own_P) <= slack
            before_P += np.where(tied_PQ, rows < query_P, similarity_PQ < own_P).sum(1)
        result_P[block] = np.where(np.isnan(own_P[:, 0]), np.nan, before_P / num)
    return result_P


def _beaten(
    predicted: UnitRows,
    own: UnitRows,
    table_blocks: Iterator[tuple[NDArray[np.int64], UnitRows]],
    own_row_R: NDArray[np.int64],
) -> NDArray[np.float64]:
    """How many references each query resembles no more than its own, its own row left out."""
    own_R = row_correlation(predicted, own) + _rounding(predicted.unit_PG.shape[1])
    short_RG = predicted.unit_PG.astype(np.float32)
    beaten_R = np.zeros(len(own_R))
    for rows, part in table_blocks:
        beaten_RQ = _no_nearer(predicted.unit_PG, short_RG, part.unit_PG, own_R)
        # an undefined reference is not beaten
        beaten_R += (beaten_RQ & part.defined_P & (rows != own_row_R[:, None])).sum(1)
    return beaten_R


def _no_nearer(
    unit_RG: NDArray[np.float64],
    short_RG: NDArray[np.float32],
    table_QG: NDArray[np.float64],
    own_R: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """(R, Q) whether the similarity to each reference is at most ``own_R``, as float64 has it.

    Twice as fast as in float64 alone: a float32 product decides all pairs but the close ones. It is off by at
    most ``slack``: products over n genes by n * 2^-24 times the sum of their sizes, which is at most 1 over
    all genes, in whatever order they are added.
    """
    num_genes = unit_RG.shape[1]
    pieces = range(0, num_genes, _GENES_AT_ONCE)
    slack = (_GENES_AT_ONCE + len(pieces) + 8) * 2.0**-24
    short_QG = table_QG.astype(np.float32)
    similarity_RQ = np.zeros((len(unit_RG), len(table_QG)), np.float32)
    for start in pieces:
        genes = slice(start, start + _GENES_AT_ONCE)
        similarity_RQ += short_RG[:, genes] @ short_QG[:, genes].T
    difference_RQ = similarity_RQ - own_R[:, None]
    result_RQ: NDArray[np.bool_] = difference_RQ <= 0
    close = np.flatnonzero(np.abs(difference_RQ) <= slack)
    if len(close) > _FEW * result_RQ.size:
        return np.asarray(unit_RG @ table_QG.T <= own_R[:, None])
    for start in range(0, len(close), _PAIRS_AT_ONCE):
        some = close[start : start + _PAIRS_AT_ONCE]
        query, reference = np.divmod(some, len(table_QG))
        exact = np.einsum("ig,ig->i", unit_RG[query], table_QG[reference])
        result_RQ.flat[some] = exact <= own_R[query]
    return result_RQ


def _table_blocks(table: UnitRows, chosen: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], UnitRows]]:
    everything = len(chosen) == len(table.defined_P)
    for start in range(0, len(chosen), BLOCK):
        rows = chosen[start : start + BLOCK]
        # a slice is a view: no copy of the table for every block of queries
        where = slice(start, start + BLOCK) if everything else rows
        yield rows, UnitRows(table.unit_PG[where], table.defined_P[where])


def _similarity(predicted: UnitRows, table: UnitRows) -> NDArray[np.float64]:
    similarity_RQ = predicted.unit_PG @ table.unit_PG.T
    similarity_RQ[:, ~table.defined_P] = np.nan
    return np.clip(similarity_RQ, -1.0, 1.0)


def _rounding(num_genes: int) -> float:
    """How far apart two float64 inner products of the same unit vectors can be, taken in different orders.

    Each is off by at most G * eps / 2 times the product of the lengths, which is 1: exact duplicates are
    within this bound of each other by proof, and nothing measured is that close by accident.
    """
    return (num_genes + 8) * _EPSILON
