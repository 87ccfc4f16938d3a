"""Which cells baselines are fitted on, and which baselines say something about a split.

Enters: a store, deltas of all its cells, what is held out. Leaves: ``Training`` and fitted predictors.
Invariant: of perturbed cells outside the train split or of held-out cell lines nothing reaches a baseline.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import Snapshot
from txpert_dist.evaluate.baselines import (
    PerContext,
    Training,
    fit_additive,
    fit_batch_mean,
    fit_nearest_line,
    fit_neighbours,
    fit_train_mean,
    general_of,
    training_from,
)
from txpert_dist.evaluate.linear import DIMENSIONS, FEWEST, fit_ridge, gene_embedding
from txpert_dist.evaluate.neighbours import GraphGenes
from txpert_dist.evaluate.predictor import Predictor
from txpert_dist.evaluate.report import Exclusion
from txpert_dist.evaluate.survey import context_means
from txpert_dist.loader.conditions import Progress, cell_lines, cells_of_lines, perturbed_rows, quiet
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore
from txpert_dist.store.splits import TRAIN


def training_of(
    store: CellStore,
    everything: PerturbationDeltas,
    *,
    genes: NDArray[np.int64],
    held_out_cell_lines: Sequence[str] = (),
    progress: Progress = quiet,
) -> Training:
    """What baselines may know of ``store``; ``everything`` are the deltas of all its perturbed cells."""
    lines = cell_lines(store)
    rows = perturbed_rows(store, "train", among=~cells_of_lines(store, held_out_cell_lines))
    return training_from(
        training_deltas(store, everything, [lines.names.index(name) for name in held_out_cell_lines]),
        store.perturbations,
        store.control_mean_CG[:, genes],
        lines.cell_line_C,
        context_means(store, rows, genes=genes, progress=progress),
    )


def training_deltas(
    store: CellStore, everything: PerturbationDeltas, held_out: Sequence[int]
) -> PerturbationDeltas:
    """Deltas of training perturbations in cell lines whose codes are not ``held_out``."""
    kept_P = (store.split[everything.perturbation_P] == TRAIN) & ~np.isin(everything.cell_line_P, held_out)
    return PerturbationDeltas(*(part[kept_P] for part in everything))


def fit_baselines(
    training: Training,
    store: CellStore,
    genes: NDArray[np.int64],
    rows: NDArray[np.int64],
    snapshot: Snapshot | None,
) -> tuple[list[Predictor], list[Exclusion]]:
    """Every baseline that says something about the cells ``rows``, and why the others do not."""
    control_CG, names = training.control_mean_CG, training.perturbations
    general = general_of(training.known, names, control_CG)
    found: list[Predictor] = [
        PerContext(control_CG),
        general,
        fit_train_mean(training),
        fit_batch_mean(training),
    ]
    left_out = []

    def without(name: str, why: str) -> None:
        left_out.append(Exclusion(f"baseline {name}", None, why))

    if len(np.unique(training.deltas.cell_line_P)) > 1:
        found.append(fit_nearest_line(training))
    else:
        without("nearest_line", "training cells are of one cell line")
    if any("+" in names[code] for code in np.unique(store.perturbation[rows])):
        found.append(fit_additive(training))
    else:
        without("additive", "no combination is scored")
    gene_GK = gene_embedding(training)
    measured = dict(zip((store.genes[number] for number in genes), gene_GK, strict=True))
    embeddings = {"ridge": measured}
    if snapshot is not None:
        graph = GraphGenes(snapshot)
        found.append(fit_neighbours(training, graph.neighbours))
        embeddings["ridge_graph"] = graph.embedding(DIMENSIONS)
    else:
        for name in ("knn_graph", "ridge_graph"):
            without(name, "no graph was given")
    for name, embedding in embeddings.items():
        ridge = fit_ridge(training, gene_GK, embedding, name)
        if ridge is not None:
            found.append(ridge)
        else:
            without(name, f"fewer than {FEWEST} training perturbations are of genes with an embedding")
    return found, left_out
