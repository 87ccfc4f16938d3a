"""Within a context and across contexts: how alike controls are, and how alike mean responses.

Enters: an open store. Leaves: one correlation for each pair of pseudobulks. Invariants: two halves never
share a cell, and those of a mean baseline never a perturbation; a batch is never cut when cell lines are
compared (methods, "Within versus across"); a pair without cells on either side has no correlation and stays
in the table.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.evaluate.halves import first_halves
from txpert_dist.loader.conditions import (
    Progress,
    cell_lines,
    perturbation_deltas,
    perturbed_rows,
    quiet,
    row_blocks,
    split_moments,
)
from txpert_dist.metrics.moments import ConditionMoments
from txpert_dist.metrics.pearson import unit_rows
from txpert_dist.store.cells import CellStore

KINDS = {
    "controls_batch": "control cells of batches of a cell line; within: random halves of the cells of one "
    "batch; across: two whole batches, which have twice the cells and so less noise",
    "controls_line": "control cells of cell lines; halves are made of whole batches (of the cells, where a "
    "line has one batch)",
    "mean_baseline": "mean delta over the perturbations of a cell line; halves are of distinct perturbations",
}
"""Kind of comparison -> what is compared."""

COLUMNS = ("kind", "relation", "first", "second", "repeat", "correlation")

Which = Literal["train", "all"]
"""Perturbations that are looked at."""

_MEMORY_BYTES = 1 << 29


class Halves(NamedTuple):
    """Pseudobulks of two halves of each context, of several repeats."""

    names: tuple[str, ...]
    """Of the contexts."""
    first_SCG: NDArray[np.float64]
    """(S, C, G) mean of the first half; NaN where it is empty."""
    second_SCG: NDArray[np.float64]


class Controls(NamedTuple):
    """Control cells of every batch: whole, and in halves."""

    batches: tuple[str, ...]
    """cell line/batch of those that have controls."""
    line_C: NDArray[np.int64]
    """(C,) cell line code of each."""
    mean_CG: NDArray[np.float64]
    halves: Halves
    """Of the cells of each batch."""
    lines: Halves
    """Of the batches of each cell line."""


def control_pseudobulks(
    store: CellStore,
    *,
    genes: NDArray[np.int64],
    seed: int = 0,
    repeats: int = 5,
    progress: Progress = quiet,
) -> Controls:
    """Mean expression of the controls of batches and cell lines, whole and in random halves."""
    rows = np.flatnonzero(store.perturbation == 0).astype(np.int64)
    part_SB = first_halves(rows, store.context[rows].astype(np.int64), seed=seed, repeats=repeats)
    whole, parts = split_moments(store, rows, part_SB, genes=genes, progress=progress)
    lines = cell_lines(store)
    line_R = lines.cell_line_C[whole.context_R]
    first = np.stack([_mean(part.sum_RG, part.num_cells_R) for part in parts])
    rest = [(whole.sum_RG - part.sum_RG, whole.num_cells_R - part.num_cells_R) for part in parts]
    second = np.stack([_mean(*pair) for pair in rest])
    names = [store.contexts[code] for code in whole.context_R]
    batches = tuple(f"{context.cell_line}/{context.batch}" for context in names)
    of_batches = Halves(batches, first, second)
    chosen_SR = first_halves(whole.context_R.astype(np.int64), line_R, seed=seed, repeats=repeats)
    return Controls(
        batches,
        line_R,
        _mean(whole.sum_RG, whole.num_cells_R),
        of_batches,
        _of_lines(lines.names, line_R, whole, chosen_SR, of_batches),
    )


def _of_lines(
    names: tuple[str, ...],
    line_R: NDArray[np.int64],
    whole: ConditionMoments,
    chosen_SR: NDArray[np.bool_],
    of_batches: Halves,
) -> Halves:
    """Halves of whole batches; of a line's only batch, the halves of its cells."""
    shape = (len(chosen_SR), len(names), whole.sum_RG.shape[1])
    first_SLG, second_SLG = np.empty(shape), np.empty(shape)
    for line in range(len(names)):
        own = np.flatnonzero(line_R == line)
        if len(own) == 1:
            first_SLG[:, line] = of_batches.first_SCG[:, own[0]]
            second_SLG[:, line] = of_batches.second_SCG[:, own[0]]
            continue
        for repeat, chosen_R in enumerate(chosen_SR[:, own]):
            first_SLG[repeat, line] = _pooled(whole, own[chosen_R])
            second_SLG[repeat, line] = _pooled(whole, own[~chosen_R])
    return Halves(names, first_SLG, second_SLG)


def mean_baselines(
    store: CellStore,
    *,
    genes: NDArray[np.int64],
    which: Which = "train",
    seed: int = 0,
    repeats: int = 5,
    progress: Progress = quiet,
) -> tuple[NDArray[np.float64], Halves]:
    """(L, G) mean delta over the perturbations of each cell line, and of random halves of them.

    The cells of a perturbation are averaged first, so each weighs the same; a perturbation is in the same
    half in every cell line. Memory: 16 S bytes for each cell line and gene, and some blocks.
    """
    rows = perturbed_rows(store, "train" if which == "train" else None)
    lines = cell_lines(store).names
    codes = np.arange(len(store.perturbations), dtype=np.int64)
    half_SQ = first_halves(codes, np.zeros(len(codes), np.int64), seed=seed, repeats=repeats)
    part_SQ = np.concatenate([np.ones((1, len(codes)), bool), half_SQ, ~half_SQ])
    sum_SLG = np.zeros((len(part_SQ), len(lines), len(genes)))
    number_SL = np.zeros((len(part_SQ), len(lines)))
    for delta_PG, perturbation_P, line_P in _blocks(store, rows, genes, progress):
        for line in np.unique(line_P):
            here = np.flatnonzero(line_P == line)
            weight_SP = part_SQ[:, perturbation_P[here]].astype(np.float64)
            sum_SLG[:, line] += weight_SP @ delta_PG[here]
            number_SL[:, line] += weight_SP.sum(1)
    mean_SLG = sum_SLG / np.where(number_SL > 0, number_SL, np.nan)[:, :, None]
    first, second = mean_SLG[1 : repeats + 1], mean_SLG[repeats + 1 :]
    return mean_SLG[0], Halves(lines, first, second)


def within_and_across(controls: Controls, baselines: Halves) -> pd.DataFrame:
    """Every correlation, with the columns ``COLUMNS``; NaN where a side has no cells or does not vary.

    Across contexts i and j the first half of i meets the second of j, so that both comparisons are of halves
    of the same size; whole batches meet whole batches.
    """
    rows = [
        *_compare("controls_batch", controls.halves, across=False),
        *_whole_batches(controls),
        *_compare("controls_line", controls.lines),
        *_compare("mean_baseline", baselines),
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each kind and relation: mean and median correlation, how many, how many undefined."""
    grouped = table.groupby(["kind", "relation"], sort=False)["correlation"]
    return grouped.agg(
        mean="mean",
        median="median",
        num_values="count",
        num_nan=lambda values: int(values.isna().sum()),
    ).reset_index()


def _blocks(
    store: CellStore, rows: NDArray[np.int64], genes: NDArray[np.int64], progress: Progress
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]]:
    """Deltas of some perturbations at a time, their codes and cell lines."""
    most, done = max(1, _MEMORY_BYTES // (8 * len(genes))), 0
    for block in row_blocks(store, rows, by="perturbation", max_conditions=most):
        found = perturbation_deltas(store, block, genes=genes)
        done += len(block)
        progress("mean responses", done, len(rows))
        yield found.delta_PG, found.perturbation_P, found.cell_line_P


def _compare(kind: str, halves: Halves, *, across: bool = True) -> list[tuple[object, ...]]:
    places = range(len(halves.names))
    pairs = [(i, j) for i, j in product(places, places) if i == j or across]
    rows: list[tuple[object, ...]] = []
    for repeat, (first_CG, second_CG) in enumerate(zip(halves.first_SCG, halves.second_SCG, strict=True)):
        rows += _correlations(kind, halves.names, first_CG, second_CG, pairs, repeat)
    return rows


def _whole_batches(controls: Controls) -> list[tuple[object, ...]]:
    number = len(controls.batches)
    pairs = [
        (i, j)
        for i in range(number)
        for j in range(i + 1, number)
        if controls.line_C[i] == controls.line_C[j]
    ]
    return _correlations(
        "controls_batch", controls.batches, controls.mean_CG, controls.mean_CG, pairs, repeat=0
    )


def _correlations(
    kind: str,
    names: Sequence[str],
    first_CG: NDArray[np.float64],
    second_CG: NDArray[np.float64],
    pairs: Sequence[tuple[int, int]],
    repeat: int,
) -> list[tuple[object, ...]]:
    first, second = unit_rows(first_CG), unit_rows(second_CG)
    correlation_CC = np.clip(first.unit_PG @ second.unit_PG.T, -1.0, 1.0)
    correlation_CC[~(first.defined_P[:, None] & second.defined_P)] = np.nan
    return [
        (kind, "within" if i == j else "across", names[i], names[j], repeat, float(correlation_CC[i, j]))
        for i, j in pairs
    ]


def _mean(sum_RG: NDArray[np.float64], num_cells_R: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(sum_RG / np.where(num_cells_R > 0, num_cells_R, np.nan)[:, None], np.float64)


def _pooled(moments: ConditionMoments, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """(G,) mean over the cells of some conditions."""
    return np.asarray(moments.sum_RG[chosen].sum(0) / moments.num_cells_R[chosen].sum(), np.float64)
