"""Mean response to each single-gene perturbation of the training split, for graphs made from a screen.

Enters: the path of a cell store. Leaves: a ``Pseudobulk``. Invariants: no perturbed cell outside the training
split is read, nor one of a held-out cell line, and there is no way to ask for them; cells are read a block
at a time and what is summed at once is bounded; the numbers do not depend on the number of threads.

A response is what evaluation calls delta: mean over cells of expression minus the control mean of the cell's
own batch, cells of all cell lines together. Deltas are rounded to multiples of 2^-20, far below the noise of
any screen, so that the last digits of a logarithm, which differ between machines, hardly ever show.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.loader.conditions import cells_of_lines, perturbation_deltas, perturbed_rows
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore, open_store, read_summary
from txpert_dist.store.splits import CONTROL, TRAIN

MAX_VALUES = 2**25
"""Sums held at once: 256 MiB, and a few temporary copies of it."""
CONTROL_STEP = 2.0**-24
"""Control means are rounded to multiples of this: their products with numbers of cells are then exact, and so
are their sums in whatever order BLAS adds. A float32 of 1 and above is such a multiple already."""
DELTA_STEP = 2.0**-20


class Pseudobulk(NamedTuple):
    """What the training cells of a store say about each gene that was perturbed alone."""

    genes: tuple[str, ...]
    """Sorted."""
    delta_PG: NDArray[np.float32]
    """(P, G) mean delta of each over its training cells."""
    origin: dict[str, str]
    """``store`` (hash of the manifest), ``split`` (hash), ``sources`` (hashes of the files the store was made
    from) and ``cell_lines`` (whose perturbed cells were read), the last two as JSON lists."""
    details: dict[str, int]
    """Cells read, and perturbations left out by reason."""


def training_pseudobulk(
    path: Path,
    *,
    held_out_cell_lines: Sequence[str] = (),
    minimum_cells: int = 10,
    genes: Literal["selected", "all"] = "selected",
    max_values: int = MAX_VALUES,
) -> Pseudobulk:
    """Mean deltas of the store in ``path``; perturbations with fewer than ``minimum_cells`` are left out.

    Raises ``InputError`` for a cell line that the store does not have and when nothing is left, and
    ``StoreError`` for a damaged store.
    """
    store = open_store(path)
    rows = perturbed_rows(store, "train", among=~cells_of_lines(store, held_out_cell_lines))
    cells_Q = np.bincount(store.perturbation[rows], minlength=len(store.perturbations))
    single_Q = np.array([name != CONTROL and "+" not in name for name in store.perturbations])
    wanted = np.flatnonzero(single_Q & (cells_Q >= minimum_cells))
    if not len(wanted):
        raise InputError(
            f"{path}: no single-gene perturbation has {minimum_cells} training cells (outside held-out cell "
            "lines); lower minimum_cells, or hold out less"
        )
    rows = rows[np.isin(store.perturbation[rows], wanted)]
    wanted = wanted[np.argsort([store.perturbations[code] for code in wanted])]
    in_training_Q = single_Q & (store.split == TRAIN)
    return Pseudobulk(
        tuple(store.perturbations[code] for code in wanted),
        _deltas(store, rows, wanted, store.training_genes(genes), max_values),
        _origin(store, rows),
        {
            "cells": len(rows),
            "perturbations of other splits, not read": int((store.split != TRAIN).sum()),
            "perturbations of several genes, left out": int((~single_Q & (cells_Q > 0)).sum()),
            "perturbations of too few cells, left out": int(in_training_Q.sum()) - len(wanted),
        },
    )


def source_files(path: Path) -> frozenset[str]:
    """SHA-256 (hex) of the files that the store in ``path`` was made from; none when it does not say."""
    return frozenset(str(source["sha256"]) for source in json.loads(read_summary(path)).get("sources", ()))


def _deltas(
    store: CellStore,
    rows: NDArray[np.int64],
    wanted: NDArray[np.int64],
    genes: NDArray[np.int64],
    max_values: int,
) -> NDArray[np.float32]:
    """(P, G) in the order of the codes ``wanted``, some perturbations at a time."""
    control_CG = np.rint(store.control_mean_CG / CONTROL_STEP) * CONTROL_STEP
    exact = replace(store, control_mean_CG=control_CG.astype(np.float32))
    num_lines = len({context.cell_line for context in store.contexts})
    at_once = max(1, max_values // (max(len(genes), 1) * num_lines))
    delta_PG = np.empty((len(wanted), len(genes)), np.float32)
    for start in range(0, len(wanted), at_once):
        codes = wanted[start : start + at_once]
        part = rows[np.isin(store.perturbation[rows], codes)]
        found = _over_lines(perturbation_deltas(exact, part, genes=genes))
        delta_PG[start + np.argsort(codes)] = np.rint(found / DELTA_STEP) * DELTA_STEP
    return delta_PG


def _over_lines(deltas: PerturbationDeltas) -> NDArray[np.float64]:
    """(P, G) mean over the cells of each perturbation, in the order of the codes."""
    _, first = np.unique(deltas.perturbation_P, return_index=True)
    total_PG = np.add.reduceat(deltas.delta_PG * deltas.num_cells_P[:, None], first, axis=0)
    return np.asarray(total_PG / np.add.reduceat(deltas.num_cells_P, first)[:, None], np.float64)


def _origin(store: CellStore, rows: NDArray[np.int64]) -> dict[str, str]:
    lines = {store.contexts[code].cell_line for code in np.unique(store.context[rows]).tolist()}
    return {
        "store": store.manifest_hash,
        "split": store.split_hash,
        "sources": json.dumps(sorted(source_files(store.path))),
        "cell_lines": json.dumps(sorted(lines)),
    }
