"""Resampled screens that select their own genes: by scanpy on the very cells that were drawn."""

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from numpy.typing import NDArray

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.test_evaluate_run import view
from tests.unit.evaluate.test_leakage import ingested
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.leakage import selection_rules
from txpert_dist.evaluate.reproducibility import RESELECTED
from txpert_dist.evaluate.run import evaluate
from txpert_dist.evaluate.sampling import _drawn, draw, pooled_counts, sampled_selection
from txpert_dist.ingest.variable_genes import select_variable_genes
from txpert_dist.loader.conditions import perturbed_rows
from txpert_dist.store.cells import CellStore

EFFORT = Effort(repeats=1, reselect=True)


def drawn_cells(store: CellStore, rows: NDArray[np.int64], screen: int) -> NDArray[np.float64]:
    """Expression of the resampled cells, one row each, all genes: entries grouped by the cell they are of."""
    pooled = pooled_counts(store, rows, genes=np.arange(len(store.genes), dtype=np.int64))
    cells = []
    for r, value, gene in _drawn(pooled, seed=3, screen=screen):
        number = int((pooled.row_B == r).sum())
        # the genes of a cell ascend, so that a new cell begins where they do not
        cell = np.cumsum(np.append(0, np.diff(gene) <= 0)) if len(gene) else np.zeros(0, int)
        dense = np.zeros((number, len(store.genes)))
        dense[cell, gene] = value
        cells.append(dense)
    return np.concatenate(cells)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    return ingested(tmp_path_factory.mktemp("selected"), select_genes=20)


@pytest.mark.parametrize("flavour", ["seurat", "cell_ranger"])
def test_genes_are_those_that_scanpy_selects_on_the_drawn_cells(store: CellStore, flavour: str) -> None:
    rows = np.flatnonzero((store.perturbation == 0) | (store.split[store.perturbation] == 0))
    for most in (1, 1000):
        found = sampled_selection(store, rows, seed=3, screen=1, max_conditions=most)
        genes = select_variable_genes(getattr(found, flavour), 20, flavour)  # type: ignore[arg-type]
        data = anndata.AnnData(drawn_cells(store, rows, 1))
        data.uns["log1p"] = {"base": None}
        scanpy.pp.highly_variable_genes(data, n_top_genes=20, flavor=flavour)
        assert genes.tolist() == np.flatnonzero(data.var["highly_variable"]).tolist()


def test_moments_of_some_genes_are_those_of_all_cut_to_them(store: CellStore) -> None:
    rows, kept = perturbed_rows(store, "test"), np.array([1, 4, 7, 30])
    pooled = pooled_counts(store, rows, genes=np.arange(len(store.genes), dtype=np.int64))
    every, some = draw(pooled, seed=0, screen=0), draw(pooled, seed=0, screen=0, kept=kept)
    assert (some.sum_RG == every.sum_RG[:, kept]).all()
    assert (some.num_cells_R == every.num_cells_R).all()
    single = [draw(pooled, seed=0, screen=0, kept=np.array([gene])).sum_squares_R for gene in kept]
    np.testing.assert_allclose(some.sum_squares_R, np.sum(single, axis=0), rtol=1e-12)


def test_the_rule_of_the_store_is_found(store: CellStore, tmp_path: Path) -> None:
    rules = selection_rules(store)
    assert max(rules, key=lambda rule: rule.share) is rules[0]
    assert rules[0].flavour == "seurat"
    assert rules[0].share == 1
    controls_and_training = (store.perturbation == 0) | (store.split[store.perturbation] == 0)
    assert rules[0].rows.tolist() == np.flatnonzero(controls_and_training).tolist()
    other = ingested(tmp_path, select_genes=20, hvg_flavour="cell_ranger", select_on="all")
    rules = selection_rules(other)
    best = max(rules, key=lambda rule: rule.share)
    assert (best.flavour, best.share, len(best.rows)) == ("cell_ranger", 1, other.num_cells)


def test_the_report_has_the_row_over_the_same_units(store: CellStore) -> None:
    found = evaluate(store, [], split="test", genes=store.training_genes("selected"), seed=3, effort=EFFORT)
    rows = {row.name: row for row in found.reproducibility}
    assert list(rows)[-2:] == ["sampling", RESELECTED]
    table = found.table.set_index("predictor")
    ours, plain = table.loc[RESELECTED], table.loc["sampling"]
    assert ours["perturbation"].tolist() == plain["perturbation"].tolist()
    assert ours["pearson_delta"].notna().all()
    assert (ours["pearson_delta"].to_numpy() != plain["pearson_delta"].to_numpy()).any()
    assert (
        abs(rows[RESELECTED].metrics["pearson_delta"].mean - rows["sampling"].metrics["pearson_delta"].mean)
        < 0.2
    )
    assert RESELECTED not in {comparison.against for comparison in found.comparisons}
    blocks = evaluate(
        store,
        [],
        split="test",
        genes=store.training_genes("selected"),
        seed=3,
        effort=EFFORT._replace(memory_bytes=1),
    )
    pd.testing.assert_frame_equal(blocks.table, found.table, rtol=1e-9, atol=1e-12)


def test_why_there_is_none_is_said(screen: DenseScreen, store: CellStore, tmp_path: Path) -> None:
    def why(store: CellStore, genes: NDArray[np.int64], effort: Effort = EFFORT) -> str:
        report = evaluate(store, [], split="test", genes=genes, effort=effort, genes_selected_on="all")
        assert RESELECTED not in {row.name for row in report.reproducibility}
        return next(
            item.why for item in report.exclusions if item.what == "resampled screens with their own genes"
        )

    selected = store.training_genes("selected")
    assert "are not those that ingest selected" in why(store, selected[:-1])
    assert "there are no resampled screens" in why(store, selected, EFFORT._replace(samplings=0))
    everything = replace(store, selected=np.arange(len(store.genes)))
    assert "no selection of genes" in why(everything, everything.selected)
    odd = replace(store, selected=np.setdiff1d(np.arange(len(store.genes)), store.selected))
    assert "unknown rule" in why(odd, odd.selected)
    without = evaluate(store, [], split="test", genes=view(store), effort=EFFORT._replace(reselect=False))
    assert "resampled screens with their own genes" not in {item.what for item in without.exclusions}
