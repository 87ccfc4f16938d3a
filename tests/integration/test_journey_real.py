"""The main job on two real screens, by the user's commands: h5ad and graphs in, predictions out."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from mlflow.tracking import MlflowClient

from tests.journey import Journey, scores, txpert
from tests.real_screens import NORMAN, PAPALEXI, RealScreen, missing, write_recipe

CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "small_screen.yaml"
EPOCHS = {PAPALEXI.name: 2, NORMAN.name: 8}
"""Enough to see an effect and a sample of the system metrics, not to be good."""
PREDICTED = {PAPALEXI.name: ("JAK2", "STAT1+IRF1", "TYK2"), NORMAN.name: ("KLF1", "KLF1+TGFBR2", "GATA1")}
"""A measured gene, a pair, and a gene that the screen never perturbed but the graph knows."""


def make(screen: RealScreen, folder: Path) -> Journey:
    journey = Journey(folder)
    txpert("ingest", screen.file, "--store", journey.store, *screen.ingest)
    txpert("graph", "build", write_recipe(folder), "--out", journey.graphs, "--store", journey.store)
    journey.train(CONFIG, f"train.epochs={EPOCHS[screen.name]}", "train.minibatch_size=512")
    txpert("evaluate", journey.run)
    txpert("register", journey.run, "--name", "real", "--alias", "champion", "--force")
    txpert(
        *("predict", "models:/real@champion", "--tracking-uri", journey.registry, "--store", journey.store),
        *("--perturbations", ",".join(PREDICTED[screen.name]), "--out", folder / "predicted.h5ad"),
    )
    return journey


@pytest.fixture(scope="module", params=[PAPALEXI, NORMAN], ids=["papalexi", "norman"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RealScreen, Journey]:
    screen: RealScreen = request.param
    absent = missing(screen)
    if absent:
        pytest.skip(f"TXPERT_SHARED_DATA lacks {', '.join(absent)}")
    return screen, make(screen, tmp_path_factory.mktemp("real"))


pytestmark = [pytest.mark.real, pytest.mark.process]


def test_report_has_model_baselines_and_reproducibility_on_the_same_cells(
    made: tuple[RealScreen, Journey],
) -> None:
    screen, journey = made
    found = scores(journey.report())
    assert {"model", "no_change", "general", "split_half_pooled", "split_half_per_batch"} <= set(found)
    table = pd.read_parquet(journey.run / "report" / "per_perturbation.parquet")
    cells = table.groupby("predictor")["num_cells"].sum()
    assert cells.nunique() == 1
    print(screen.name, found)
    assert -1 <= found["model"] <= 1
    assert found["no_change"] is None


def test_mlflow_has_the_run_with_its_lineage(made: tuple[RealScreen, Journey]) -> None:
    screen, journey = made
    client = MlflowClient(journey.registry)
    version = client.get_model_version_by_alias("real", "champion")
    run = client.get_run(version.run_id)
    state = json.loads(next(journey.run.glob("checkpoints/*/state.json")).read_text())
    assert run.info.status == "FINISHED"
    assert run.data.params["model.basal.kind"] == "identity"
    assert version.tags["snapshot_id"] == state["snapshot_id"]
    assert state["store_hash"] in run.data.tags.values()
    history = client.get_metric_history(version.run_id, "validation/pearson_delta")
    assert len(history) == EPOCHS[screen.name]
    assert any(key.startswith("system/cpu") for key in run.data.metrics)


def test_predictions_open_in_scanpy_and_hold_the_controls(made: tuple[RealScreen, Journey]) -> None:
    screen, journey = made
    predicted = scanpy.read_h5ad(journey.folder / "predicted.h5ad")
    store = anndata.read_zarr(journey.store)
    names = PREDICTED[screen.name]
    canonical = {"+".join(sorted(name.split("+"))) for name in names}
    assert {"+".join(sorted(name.split("+"))) for name in predicted.obs["perturbation"]} == {
        *canonical,
        "control",
    }
    assert predicted.var_names.tolist() == store.var_names.tolist()
    values = predicted.X.toarray()
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert values.min() >= 0
    per_batch = predicted.obs[predicted.obs["predicted"]].groupby("perturbation", observed=True).size()
    assert per_batch.nunique() == 1


def test_cell_eval_accepts_the_predictions(made: tuple[RealScreen, Journey], tmp_path: Path) -> None:
    screen, journey = made
    from cell_eval import MetricsEvaluator

    predicted = anndata.read_h5ad(journey.folder / "predicted.h5ad")
    seen = PREDICTED[screen.name][0]
    kept = predicted[predicted.obs["perturbation"].isin([seen, "control"])].copy()
    real = kept.copy()
    evaluator = MetricsEvaluator(
        adata_pred=kept,
        adata_real=real,
        control_pert="control",
        pert_col="perturbation",
        outdir=str(tmp_path),
        skip_de=True,
    )
    results, _ = evaluator.compute(profile="anndata", write_csv=False)
    assert results.filter(results["perturbation"] == seen)["mse"].item() == 0


def test_predicted_effect_is_not_nothing(made: tuple[RealScreen, Journey]) -> None:
    screen, journey = made
    predicted = anndata.read_h5ad(journey.folder / "predicted.h5ad")
    seen, _, unseen = PREDICTED[screen.name]
    means = {
        name: predicted[predicted.obs["perturbation"] == name].X.toarray().mean(0)
        for name in (seen, unseen, "control")
    }
    assert np.abs(means[seen] - means["control"]).max() > 0.01
    assert not np.allclose(means[seen], means[unseen])
