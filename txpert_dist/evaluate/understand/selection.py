"""The test of the test metrics: which way to compare cells finds a perturbation again in another context.

Enters: an open store. Leaves: the retrieval rank of every perturbation by representation, similarity and pair
of contexts. Invariants: single cells, one drawn for each perturbation and context, the same for every
metric (methods, "Metric selection through retrieval"). Chance is a mean rank of 0.5, but more as a high
quantile over perturbations: that of the same cells with their labels shuffled is beside it.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from txpert_dist.evaluate.understand.contexts import Which
from txpert_dist.loader.conditions import Progress, cell_lines, perturbed_rows, quiet
from txpert_dist.metrics.pearson import unit_rows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import dense, gene_view, log1p_normalise, select_genes

QUANTILE = 0.9
"""Of the perturbations' mean ranks: strong ones are what metrics can be told apart by."""

COLUMNS = (
    *("representation", "similarity", "first", "second", "repeat", "perturbation", "rank"),
    "rank_shuffled",
)

Similarity = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


class Effort(NamedTuple):
    """How much is drawn."""

    repeats: int = 3
    max_perturbations: int = 500
    """Of those that both contexts of a pair have; of more, so many are drawn."""
    max_pairs: int = 28
    """Of contexts; of more, so many are drawn."""


EFFORT = Effort()


def _pearson(first_PG: NDArray[np.float64], second_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    first, second = unit_rows(first_PG), unit_rows(second_PG)
    similarity_PQ = first.unit_PG @ second.unit_PG.T
    similarity_PQ[~(first.defined_P[:, None] & second.defined_P)] = np.nan
    return similarity_PQ


def _spearman(first_PG: NDArray[np.float64], second_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    return _pearson(rankdata(first_PG, axis=1), rankdata(second_PG, axis=1))


def _cosine(first_PG: NDArray[np.float64], second_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = [np.linalg.norm(x_PG, axis=1, keepdims=True) for x_PG in (first_PG, second_PG)]
    first_PG, second_PG = (
        x_PG / np.where(length_P1 > 0, length_P1, np.nan)
        for x_PG, length_P1 in zip((first_PG, second_PG), lengths, strict=True)
    )
    return np.asarray(first_PG @ second_PG.T, np.float64)


def _minus_mse(first_PG: NDArray[np.float64], second_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = [np.einsum("pg,pg->p", x_PG, x_PG) for x_PG in (first_PG, second_PG)]
    return np.asarray(2 * first_PG @ second_PG.T - squares[0][:, None] - squares[1], np.float64)


def _minus_mae(first_PG: NDArray[np.float64], second_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.asarray(cdist(first_PG, second_PG, "cityblock"), np.float64)


SIMILARITIES: dict[str, Similarity] = {
    "pearson": _pearson,
    "spearman": _spearman,
    "cosine": _cosine,
    "mse": _minus_mse,
    "mae": _minus_mae,
}
"""By the name of the metric; a smaller error is a greater similarity."""

REPRESENTATIONS = {
    "expression": "log1p expression",
    "delta": "log1p expression minus the control mean of the cell's own batch",
}


class _Contexts(NamedTuple):
    kind: str
    names: tuple[str, ...]
    code_B: NDArray[np.int64]


def metric_ranks(
    store: CellStore,
    *,
    genes: NDArray[np.int64],
    which: Which = "train",
    seed: int = 0,
    effort: Effort = EFFORT,
    progress: Progress = quiet,
) -> tuple[str, pd.DataFrame]:
    """What contexts are (``cell_line``, or ``batch`` in a store of one line), and the table of all ranks.

    For every pair of contexts and repeat, one cell is drawn of each perturbation that both have, in both; a
    cell's rank is the share of other perturbations whose cell in the other context it resembles no more than
    its own perturbation's. The two directions of a pair are averaged: one rank a perturbation, pair and
    repeat; ``rank_shuffled`` is that of another perturbation's cell in place of the own. NaN where a cell
    does not vary. The table has the columns ``COLUMNS``.
    """
    contexts = _contexts(store)
    rows = perturbed_rows(store, "train" if which == "train" else None)
    pairs = _pairs(len(contexts.names), seed, effort.max_pairs)
    found, done = [], 0
    for first, second in pairs:
        # one order for all repeats: cells that they share, shuffled ones share as well
        order_Q = np.random.default_rng([seed, first, second]).permutation(len(store.perturbations))
        for repeat in range(effort.repeats):
            random = np.random.default_rng([seed, first, second, repeat])
            drawn = _draw(store, contexts, rows, (first, second), random, effort.max_perturbations)
            done += 1
            progress("test of the metrics", done, len(pairs) * effort.repeats)
            if len(drawn[0]) < 2:
                continue
            names = [store.perturbations[code] for code in drawn[0]]
            place = (contexts.names[first], contexts.names[second], repeat)
            other_P = _another(order_Q[drawn[0]])
            for metric, rank_P2 in _ranks(store, drawn[1], genes, other_P).items():
                found += [
                    (*metric, *place, name, *ranks)
                    for name, ranks in zip(names, rank_P2.tolist(), strict=True)
                ]
    table = pd.DataFrame(found, columns=list(COLUMNS))
    return contexts.kind, table.astype({"rank": float, "rank_shuffled": float})


def summarise(table: pd.DataFrame, *, quantile: float = QUANTILE) -> pd.DataFrame:
    """One row for each representation and similarity, best first: ``quantile`` of the perturbations' means.

    A perturbation's mean is over pairs and repeats, undefined ranks left out.
    """
    keys = ["representation", "similarity"]
    means = table.groupby([*keys, "perturbation"], sort=False)[["rank", "rank_shuffled"]].mean().reset_index()
    grouped = means.groupby(keys, sort=False)
    result = grouped["rank"].agg(mean="mean", num_perturbations="count").reset_index()
    quantiles = grouped[["rank", "rank_shuffled"]].quantile(quantile)
    names = {"rank": "quantile", "rank_shuffled": "chance_quantile"}
    result = result.merge(quantiles.rename(columns=names).reset_index(), on=keys)
    undefined = table["rank"].isna().groupby([table[key] for key in keys]).sum().rename("num_nan")
    result = result.merge(undefined.reset_index(), on=keys)
    return result.sort_values(["quantile", *keys], ascending=[False, True, True], ignore_index=True)


def _contexts(store: CellStore) -> _Contexts:
    lines = cell_lines(store)
    if len(lines.names) > 1:
        return _Contexts("cell_line", lines.names, lines.cell_line_C[store.context])
    names = tuple(context.batch for context in store.contexts)
    return _Contexts("batch", names, store.context.astype(np.int64))


def _pairs(number: int, seed: int, most: int) -> list[tuple[int, int]]:
    pairs = list(combinations(range(number), 2))
    if len(pairs) <= most:
        return pairs
    chosen = np.random.default_rng([seed, number]).choice(len(pairs), most, replace=False)
    return [pairs[place] for place in np.sort(chosen).tolist()]


def _draw(
    store: CellStore,
    contexts: _Contexts,
    rows: NDArray[np.int64],
    pair: tuple[int, int],
    random: np.random.Generator,
    most: int,
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Perturbation codes of a pair of contexts, and the row of one cell of each in both."""
    sides = []
    for context in pair:
        own = random.permutation(rows[contexts.code_B[rows] == context])
        codes, where = np.unique(store.perturbation[own], return_index=True)
        sides.append((codes.astype(np.int64), own[where]))
    shared = np.intersect1d(sides[0][0], sides[1][0])
    if len(shared) > most:
        shared = np.sort(random.choice(shared, most, replace=False))
    first, second = (chosen[np.searchsorted(codes, shared)] for codes, chosen in sides)
    return shared, (first, second)


def _ranks(
    store: CellStore,
    cells: tuple[NDArray[np.int64], NDArray[np.int64]],
    genes: NDArray[np.int64],
    other_P: NDArray[np.int64],
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """(P, 2) rank of each perturbation, and with the cell of ``other_P`` for its own, by metric."""
    y_PG = [_expression(store, rows, genes) for rows in cells]
    control_PG = [store.control_mean_CG[store.context[rows]][:, genes] for rows in cells]
    sides = {
        "expression": y_PG,
        "delta": [y - control for y, control in zip(y_PG, control_PG, strict=True)],
    }
    result = {}
    for representation, (first_PG, second_PG) in sides.items():
        for name, similarity in SIMILARITIES.items():
            similarity_PQ = similarity(first_PG, second_PG)
            result[representation, name] = np.stack(
                [
                    (_rank(similarity_PQ, own_P) + _rank(similarity_PQ.T, own_P)) / 2
                    for own_P in (np.arange(len(other_P)), other_P)
                ],
                axis=1,
            )
    return result


def _expression(store: CellStore, rows: NDArray[np.int64], genes: NDArray[np.int64]) -> NDArray[np.float64]:
    cells = select_genes(store.take(rows), gene_view(genes, len(store.genes)))
    return dense(log1p_normalise(cells, input_scale=store.input_scale), len(genes)).astype(np.float64)


def _another(order_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """(P,) another perturbation for each, the next one in an order; every one once."""
    by_order = np.argsort(order_P)
    other_P = np.empty(len(order_P), np.int64)
    other_P[by_order] = np.roll(by_order, 1)
    return other_P


def _rank(similarity_PQ: NDArray[np.float64], own_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,) share of the other columns that a row resembles no more than column ``own_P``; ties count."""
    similarity_P = similarity_PQ[np.arange(len(own_P)), own_P]
    # a comparison with NaN is False: what has no similarity is not beaten
    beaten_P = (similarity_PQ <= similarity_P[:, None]).sum(1) - 1
    return np.where(np.isnan(similarity_P), np.nan, beaten_P / (len(own_P) - 1))
