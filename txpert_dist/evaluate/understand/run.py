"""Everything that is said of a screen without a model.

Enters: an open store; perhaps a table of knowledge scores, a report of an evaluation, and files of the Gene
Ontology. Leaves: an ``Understanding``. Invariants: perturbed cells outside the training split are read only
when asked for; the same store and seed give the same numbers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist import __version__
from txpert_dist.errors import InputError
from txpert_dist.evaluate.groups import NO_GROUP, means_by_group
from txpert_dist.evaluate.tiers import LEVELS, Tiers
from txpert_dist.evaluate.understand import contexts, enrichment, selection
from txpert_dist.evaluate.understand.contexts import Halves, Which
from txpert_dist.loader.conditions import Progress, cell_lines, perturbed_rows, quiet
from txpert_dist.store.cells import CellStore


class Asked(NamedTuple):
    """What to look at besides the store."""

    which: Which = "train"
    """Perturbed cells that are looked at."""
    seed: int = 0
    repeats: int = 5
    """Divisions into halves."""
    metrics: selection.Effort = selection.EFFORT
    tiers: Tiers | None = None
    scores: pd.DataFrame | None = None
    """Table of a report: its scores are averaged by tier."""
    ontology: tuple[Path, Path] | None = None
    """OBO and GAF."""


class Enriched(NamedTuple):
    """Terms of the genes that the meta baseline changes."""

    version: str
    """Of the ontology, as it says itself."""
    annotations: dict[str, int]
    table: pd.DataFrame


class TierCounts(NamedTuple):
    """Perturbations of the store by level."""

    perturbations: dict[str, int]
    """Level, or ``none`` for those with a gene that is not in the table -> how many."""
    table: pd.DataFrame | None
    """Mean scores by predictor, level and metric."""


@dataclass(frozen=True, eq=False)
class Understanding:
    """What a screen says."""

    provenance: dict[str, Any]
    contexts: pd.DataFrame
    meta: pd.DataFrame
    """Columns gene, delta: the meta baseline, the greatest change first."""
    threshold: float
    enriched: Enriched | None
    context_kind: str
    """What the test of the metrics crosses: cell_line or batch."""
    ranks: pd.DataFrame
    tiers: TierCounts | None


def understand(store: CellStore, asked: Asked, *, progress: Progress = quiet) -> Understanding:
    """Look at a store. Raises ``InputError`` for what cannot be used and ``StoreError`` for damaged data."""
    split = "train" if asked.which == "train" else None
    if not len(perturbed_rows(store, split)):
        raise InputError(f"{store.path}: no perturbed cell is in the train split; give --split all")
    view, every = store.selected, np.arange(len(store.genes), dtype=np.int64)
    drawing = {"seed": asked.seed, "repeats": asked.repeats}
    controls = contexts.control_pseudobulks(store, genes=view, **drawing, progress=progress)
    mean_LG, halves = contexts.mean_baselines(
        store, genes=every, which=asked.which, **drawing, progress=progress
    )
    of_view = Halves(halves.names, halves.first_SCG[:, :, view], halves.second_SCG[:, :, view])
    meta_G = enrichment.meta_baseline(mean_LG)
    kind, ranks = selection.metric_ranks(
        store, genes=view, which=asked.which, seed=asked.seed, effort=asked.metrics, progress=progress
    )
    return Understanding(
        provenance=_provenance(store, asked),
        contexts=contexts.within_and_across(controls, of_view),
        meta=_meta(store, meta_G),
        threshold=enrichment.THRESHOLD,
        enriched=None if asked.ontology is None else _enriched(store, meta_G, *asked.ontology),
        context_kind=kind,
        ranks=ranks,
        tiers=None if asked.tiers is None else _tiers(store, asked.tiers, asked.scores),
    )


def _meta(store: CellStore, meta_G: NDArray[np.float64]) -> pd.DataFrame:
    table = pd.DataFrame({"gene": store.genes, "delta": meta_G})
    order = np.argsort(-np.abs(meta_G), kind="stable")
    return table.iloc[order].reset_index(drop=True)


def _enriched(store: CellStore, meta_G: NDArray[np.float64], obo: Path, gaf: Path) -> Enriched:
    dag = enrichment.read_ontology(obo)
    annotations = enrichment.read_annotations(gaf, dag, store.genes)
    changed = enrichment.changed_genes(meta_G, store.genes)
    table = enrichment.enrichment(changed, store.genes, annotations, dag)
    return Enriched(str(getattr(dag, "data_version", None) or "unknown"), annotations.counts, table)


def _tiers(store: CellStore, tiers: Tiers, scores: pd.DataFrame | None) -> TierCounts:
    levels = [tiers.level(name) for name in store.perturbations[1:]]
    counts = {str(level): levels.count(level) for level in range(LEVELS)} | {NO_GROUP: levels.count(None)}
    if scores is None:
        return TierCounts(counts, None)
    found = [tiers.level(name) for name in scores["perturbation"]]
    return TierCounts(
        counts, means_by_group(scores, [None if level is None else str(level) for level in found])
    )


def _provenance(store: CellStore, asked: Asked) -> dict[str, Any]:
    return {
        "store": str(store.path),
        "store_hash": store.manifest_hash,
        "split_hash": store.split_hash,
        "perturbations_of": asked.which,
        "cell_lines": list(cell_lines(store).names),
        "batches": len(store.contexts),
        "genes": len(store.genes),
        "genes_of_correlations": len(store.selected),
        "seed": asked.seed,
        "repeats": asked.repeats,
        "repeats_of_cells": asked.metrics.repeats,
        "ontology": None if asked.ontology is None else [path.name for path in asked.ontology],
        "version": __version__,
    }
