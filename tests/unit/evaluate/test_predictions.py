"""Predictions from a file score as the same predictions in memory, and what does not fit is said."""

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.test_evaluate_run import oracle, view
from txpert_dist.cli.app import app
from txpert_dist.errors import InputError
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.predictions import genes_in_file, read_predictions
from txpert_dist.evaluate.run import evaluate
from txpert_dist.loader.conditions import condition_moments, perturbed_rows
from txpert_dist.store.cells import CellStore

EFFORT = Effort(repeats=1, samplings=0)


def profiles(store: CellStore, factor: float = 0.5) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """One predicted profile a condition of the test split, over all genes, and its labels."""
    every = np.arange(len(store.genes), dtype=np.int64)
    moments = condition_moments(store, perturbed_rows(store, "test"), genes=every)
    mean_RG = moments.sum_RG / moments.num_cells_R[:, None]
    control_RG = store.control_mean_CG[moments.context_R]
    obs = pd.DataFrame(
        {
            "perturbation": [store.perturbations[code] for code in moments.perturbation_R],
            "cell_line": [store.contexts[code].cell_line for code in moments.context_R],
            "batch": [store.contexts[code].batch for code in moments.context_R],
        }
    )
    return obs, control_RG + factor * (mean_RG - control_RG)


def write(path: Path, obs: pd.DataFrame, x_BG: Any, names: list[str]) -> Path:
    obs = obs.set_index(pd.Index([f"r{i}" for i in range(len(obs))]))
    anndata.AnnData(x_BG, obs, pd.DataFrame(index=names)).write_h5ad(path)
    return path


def read(path: Path, store: CellStore, **choices: Any):
    return read_predictions(path, store, split="test", genes=view(store), **choices)


@pytest.mark.parametrize("form", ["means", "cells", "sparse"])
def test_a_file_scores_as_the_same_predictions_in_memory(
    screen: DenseScreen, tmp_path: Path, form: str
) -> None:
    store = screen.store
    obs, x_RG = profiles(store)
    names, rng = list(store.genes), np.random.default_rng(0)
    if form == "cells":  # five cells around each mean, in any order, genes in another order
        noise = rng.normal(0, 0.05, (5, *x_RG.shape))
        x_RG = (x_RG + noise - noise.mean(0)).reshape(-1, x_RG.shape[1])
        obs = pd.concat([obs] * 5, ignore_index=True)
        order, columns = rng.permutation(len(obs)), rng.permutation(len(names))
        obs, x_RG = obs.iloc[order].reset_index(drop=True), x_RG[order][:, columns]
        names = [names[i] for i in columns]
    matrix = scipy.sparse.csr_matrix(x_RG) if form == "sparse" else x_RG
    found = read(write(tmp_path / "p.h5ad", obs, matrix, names), store)
    assert found.exclusions == ()
    report = evaluate(store, [found.predictor], split="test", genes=view(store), effort=EFFORT)
    expected = evaluate(
        store, [oracle(store, 0.5, "predictions")], split="test", genes=view(store), effort=EFFORT
    )
    ours, theirs = (
        table[table["predictor"] == "predictions"].drop(columns=["energy_distance"])
        for table in (report.table, expected.table)
    )
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_batches_a_prediction_is_a_change_from_its_own_controls(
    screen: DenseScreen, tmp_path: Path
) -> None:
    store, genes = screen.store, view(screen.store)
    rng = np.random.default_rng(1)
    lines, names = ("K562", "RPE1"), [store.perturbations[c] for c in np.flatnonzero(store.split == 2)]
    obs = pd.DataFrame(
        [(name, line) for line in lines for name in ("control", *names)],
        columns=["perturbation", "cell_line"],
    )
    x_RG = store.control_mean_CG.mean(0) + 0.1 * rng.random((len(obs), len(store.genes)))
    with_controls = read(write(tmp_path / "c.h5ad", obs, x_RG, list(store.genes)), store).predictor
    code = store.perturbations.index(names[0])
    for context, place in enumerate(store.contexts):
        found = with_controls.predict(np.array([code], np.int32), np.array([context], np.int32))[0]
        row = {
            name: x_RG[((obs == (name, place.cell_line)).all(axis=1)).to_numpy()][0]
            for name in ("control", names[0])
        }
        change = (row[names[0]] - row["control"])[genes]
        assert np.abs(found - store.control_mean_CG[context, genes] - change).max() < 1e-6
    bare = obs["perturbation"] != "control"
    path = write(tmp_path / "b.h5ad", obs[bare].reset_index(drop=True), x_RG[bare], list(store.genes))
    without = read(path, store).predictor
    for context, place in enumerate(store.contexts):
        found = without.predict(np.array([code], np.int32), np.array([context], np.int32))[0]
        row = x_RG[((obs == (names[0], place.cell_line)).all(axis=1)).to_numpy()][0]
        assert np.abs(found - row[genes]).max() < 1e-6


def test_names_are_canonical_and_what_is_not_asked_for_is_counted(
    screen: DenseScreen, tmp_path: Path
) -> None:
    store = screen.store
    obs, x_RG = profiles(store)
    obs["perturbation"] = [
        "+".join(reversed(name.split("+"))) if "+" in name else f"{name}+ctrl" for name in obs["perturbation"]
    ]
    extra = obs.iloc[[0]].assign(perturbation="NOVEL")
    path = write(
        tmp_path / "p.h5ad",
        pd.concat([obs, extra], ignore_index=True),
        np.vstack([x_RG, x_RG[:1]]),
        list(store.genes),
    )
    found = read(path, store)
    assert [(item.what, item.number) for item in found.exclusions] == [("predicted rows", 1)]
    assert "NOVEL" in found.exclusions[0].why


def test_missing_predictions_are_refused_or_undefined_and_counted(
    screen: DenseScreen, tmp_path: Path
) -> None:
    store = screen.store
    obs, x_RG = profiles(store)
    gone = obs["perturbation"] == obs["perturbation"].iloc[0]
    path = write(tmp_path / "p.h5ad", obs[~gone].reset_index(drop=True), x_RG[~gone], list(store.genes))
    with pytest.raises(InputError, match=r"it lacks '.*--allow-missing"):
        read(path, store)
    found = read(path, store, allow_missing=True)
    assert found.exclusions[0].number == gone.sum()
    report = evaluate(
        store, [found.predictor], split="test", genes=view(store), exclusions=found.exclusions, effort=EFFORT
    )
    groups = len(set(map(tuple, obs[gone][["perturbation", "cell_line"]].to_numpy())))
    model = report.predictors[0]
    for metric in ("pearson_delta", "retrieval", "pseudobulk_mse", "per_cell_mse"):
        assert model.metrics[metric].num_nan == groups
    assert found.exclusions[0] in report.exclusions


def test_what_does_not_fit_the_store_is_said(screen: DenseScreen, tmp_path: Path) -> None:
    store = screen.store
    obs, x_RG = profiles(store)
    names = list(store.genes)

    def refused(match: str, obs: pd.DataFrame = obs, x: Any = x_RG, names: list[str] = names) -> None:
        path = write(tmp_path / "p.h5ad", obs, x, names)
        with pytest.raises(InputError, match=match):
            read(path, store)

    refused("no column 'perturbation'", obs.rename(columns={"perturbation": "gene"}))
    refused("no column 'cell_line', and the store has K562, RPE1", obs.drop(columns="cell_line"))
    refused("cell line 'HeLa' is not the store's", obs.assign(cell_line="HeLa"))
    refused("batches that the store does not have", obs.assign(batch="9"))
    refused(r"lacks \d+ of the 30 genes.*--genes file", x=x_RG[:, :20], names=names[:20])
    refused("more than once in var_names", names=[names[0], *names[:-1]])
    refused("another scale", x=np.expm1(x_RG))
    refused("another scale", x=np.log1p(np.expm1(x_RG) * 10))
    broken = x_RG.copy()
    broken[3, store.selected[0]] = np.nan
    refused(r"not finite \(row 3 first\)", x=broken)
    refused("a gene is missing in it", obs.assign(perturbation="A++B"))
    text = tmp_path / "no.h5ad"
    text.write_text("no h5ad")
    with pytest.raises(InputError, match="cannot be read as h5ad"):
        read(text, store)
    path = write(tmp_path / "p.h5ad", obs, x_RG[:, :7], names[:7])
    assert genes_in_file(path, store).tolist() == list(range(7))
    path = write(tmp_path / "p.h5ad", obs, x_RG[:, :2], ["ENSG1", "ENSG2"])
    with pytest.raises(InputError, match="none of its 2 genes"):
        genes_in_file(path, store)


def test_the_command_line_scores_a_file(screen: DenseScreen, tmp_path: Path) -> None:
    store = screen.store
    obs, x_RG = profiles(store, factor=0.9)
    path = write(tmp_path / "p.h5ad", obs, x_RG[:, :25], list(store.genes)[:25])
    arguments = ["evaluate", "--predictions", str(path), "--store", str(store.path)]
    report = ["--report", str(tmp_path / "report"), "--genes", "file"]
    done = CliRunner().invoke(app, [*arguments, *report])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["predictors"][0]["name"] == "predictions"
    assert content["predictors"][0]["metrics"]["pearson_delta"]["mean"] == pytest.approx(1.0, abs=1e-4)
    assert content["provenance"]["num_genes"] == 25
    assert content["provenance"]["run"] == str(path)
    for wrong, said in (
        (["evaluate"], "either a model"),
        (["evaluate", "runs/x", "--predictions", str(path)], "either a model"),
        (["evaluate", "--predictions", str(path)], "--store, --report"),
    ):
        done = CliRunner().invoke(app, wrong)
        assert isinstance(done.exception, InputError)
        assert said in str(done.exception)
