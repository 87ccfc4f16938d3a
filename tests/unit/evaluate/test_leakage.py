"""Planted leaks are found, clean screens pass."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.evaluate.conftest import DenseScreen, simulate
from txpert_dist.errors import InputError
from txpert_dist.evaluate.leakage import check_baseline_training, check_gene_selection, check_training_rows
from txpert_dist.evaluate.run import evaluate
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.loader.conditions import perturbation_deltas, perturbed_rows
from txpert_dist.loader.loader import training_rows
from txpert_dist.store.cells import CellStore, open_store


def ingested(folder: Path, **choices: object) -> CellStore:
    simulate().write_h5ad(folder / "screen.h5ad")
    settings = {"sources": (folder / "screen.h5ad",), "store": folder / "screen.zarr", "preset": "scperturb"}
    ingest(IngestConfig.model_validate({**settings, "select_genes": 20, "split_seed": 179, **choices}))
    return open_store(folder / "screen.zarr")


@pytest.mark.parametrize("held_out", [[], ["RPE1"]])
def test_rows_of_the_loader_are_clean_and_one_planted_row_is_found(
    screen: DenseScreen, held_out: list[str]
) -> None:
    store = screen.store
    rows = training_rows(store, controls_as_targets=True, held_out_cell_lines=held_out)
    assert check_training_rows(store, rows, held_out).outcome == "passed"
    for split in ("validation", "test"):
        leak = perturbed_rows(store, split)[:1]
        with pytest.raises(InputError, match=rf"held-out perturbations.*of the {split} split"):
            check_training_rows(store, np.append(rows, leak), held_out)
    if held_out:
        here = screen.in_split(0) & (screen.line == "RPE1")
        with pytest.raises(InputError, match="perturbed cells of held-out cell line RPE1"):
            check_training_rows(store, np.append(rows, np.flatnonzero(here)[:1]), held_out)


def test_baselines_that_saw_too_much_are_found(screen: DenseScreen) -> None:
    store = screen.store
    names, genes = ("K562", "RPE1"), np.arange(3)
    clean = perturbation_deltas(store, perturbed_rows(store, "train"), genes=genes)
    assert check_baseline_training(store, clean, names, ()).outcome == "passed"
    with pytest.raises(InputError, match="held-out cell line RPE1"):
        check_baseline_training(store, clean, names, ("RPE1",))
    every = perturbation_deltas(store, perturbed_rows(store), genes=genes)
    with pytest.raises(InputError, match="held-out perturbation"):
        check_baseline_training(store, every, names, ())


@pytest.mark.parametrize("flavour", ["seurat", "cell_ranger"])
def test_genes_selected_on_every_cell_are_found(tmp_path: Path, flavour: str) -> None:
    store = ingested(tmp_path, select_on="all", hvg_flavour=flavour)
    genes = store.training_genes("selected")
    with pytest.raises(InputError, match="selected on held-out perturbations too"):
        check_gene_selection(store, genes)
    with pytest.raises(InputError, match="--genes-selected-on all"):
        evaluate(store, [], split="test", genes=genes)
    assert check_gene_selection(store, genes, selected_on="all").outcome == "allowed"
    report = evaluate(store, [], split="test", genes=genes, genes_selected_on="all")
    assert [check.outcome for check in report.checks] == ["passed", "passed", "allowed"]


@pytest.mark.parametrize("flavour", ["seurat", "cell_ranger"])
def test_genes_selected_on_training_cells_pass(tmp_path: Path, flavour: str) -> None:
    store = ingested(tmp_path, hvg_flavour=flavour)
    genes = store.training_genes("selected")
    assert check_gene_selection(store, genes).outcome == "passed"
    with pytest.raises(InputError, match="perturbed cells of held-out cell lines too"):
        check_gene_selection(store, genes, ["RPE1"])
    assert check_gene_selection(store, genes[:-1]).outcome == "unknown"
    other = replace(store, selected=np.arange(20, dtype=np.int64))
    assert check_gene_selection(other, other.selected).outcome == "unknown"
    every = np.arange(len(store.genes), dtype=np.int64)
    assert check_gene_selection(replace(store, selected=every), every).outcome == "passed"


def test_genes_selected_without_the_held_out_line_pass(tmp_path: Path) -> None:
    store = ingested(tmp_path, held_out_cell_lines=("RPE1",))
    genes = store.training_genes("selected")
    assert check_gene_selection(store, genes, ["RPE1"]).outcome == "passed"
    evaluate(store, [], split="test", genes=genes, held_out_cell_lines=["RPE1"])
