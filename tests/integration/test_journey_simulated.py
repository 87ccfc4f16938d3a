"""The main job on a small simulated screen: registry, promotion, damage, predictions in a fresh process."""

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import anndata
import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest

from tests.journey import TXPERT, Journey, attempt, scores, txpert

CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.yaml"
SIZES = ("--cells=3000", "--genes=200", "--perturbations=40", "--cell-lines=1", "--batches=3", "--seed=5")

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    made = Journey(tmp_path_factory.mktemp("simulated"))
    screen = made.folder / "screen.h5ad"
    txpert("simulate", screen, *SIZES)
    txpert("ingest", screen, "--store", made.store, "--preset", "scperturb")
    txpert("graph", "build", made.folder / "graphs.yaml", "--out", made.graphs)
    made.train(CONFIG, "train.epochs=3")
    txpert("evaluate", made.run)
    return made


@pytest.fixture(scope="module")
def champion(journey: Journey) -> str:
    txpert("register", journey.run, "--alias", "champion", "--force")
    return "models:/txpert@champion"


def written(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name != ".lock"}


def test_the_same_command_on_a_finished_run_does_nothing(journey: Journey) -> None:
    before = written(journey.run / "checkpoints")
    journey.train(CONFIG, "train.epochs=3")
    assert written(journey.run / "checkpoints") == before


def test_a_killed_run_goes_on_by_the_same_command_and_ends_with_the_same_weights(journey: Journey) -> None:
    """kill -9 of the whole run after the first checkpoint; the finished run of the fixture is the reference.

    All its processes at once, as when a machine fails: workers that outlive their driver may end the run.
    """
    killed = journey.run.with_name("killed")
    paths = (f"data.store={journey.store}", f"graph.location={journey.graphs}", f"output={killed.parent}")
    command = [str(TXPERT), "train", str(CONFIG), "name=killed", *paths, "train.epochs=3"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while not list(killed.glob("checkpoints/epoch-*/manifest.json")) and driver.poll() is None:
            time.sleep(0.02)
        for process in [*psutil.Process(driver.pid).children(recursive=True), driver]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert driver.returncode == -signal.SIGKILL
    assert len(list(killed.glob("checkpoints/epoch-*"))) < 3
    resumed = txpert(*command[1:])
    assert "went on from step" in resumed
    last = [sorted(run.glob("checkpoints/epoch-*"))[-1] for run in (journey.run, killed)]
    assert last[0].name == last[1].name
    assert (last[0] / "model.safetensors").read_bytes() == (last[1] / "model.safetensors").read_bytes()


def test_another_configuration_under_the_same_name_is_refused(journey: Journey) -> None:
    paths = (
        f"data.store={journey.store}",
        f"graph.location={journey.graphs}",
        f"output={journey.run.parent}",
    )
    done = attempt("train", CONFIG, "name=run", *paths, "train.epochs=3", "model.latent=16")
    assert done.returncode == 2
    assert "model.latent" in done.stderr.strip().splitlines()[-1]


def test_alias_moves_only_to_a_model_that_beats_the_baselines(journey: Journey) -> None:
    found = scores(journey.report())
    beaten = journey.folder / "beaten-report"
    shutil.copytree(journey.run / "report", beaten)
    content = json.loads((beaten / "report.json").read_text())
    for row in content["predictors"]:
        if row["name"] == "model":
            row["metrics"]["pearson_delta"]["mean"] = found["general"] - 0.01
    (beaten / "report.json").write_text(json.dumps(content))
    refused = attempt("register", journey.run, "--name", "gate", "--alias", "champion", "--report", beaten)
    assert refused.returncode == 2
    assert "not moved" in refused.stdout
    missing = attempt(
        *("predict", "models:/gate@champion", "--tracking-uri", journey.registry, "--store", journey.store),
        *("--perturbations", "GENE0001", "--out", journey.folder / "gate.h5ad"),
    )
    assert missing.returncode == 2
    forced = txpert(
        "register", journey.run, "--name", "gate", "--alias", "champion", "--report", beaten, "--force"
    )
    assert "forced" in forced
    assert "registered before" in forced


def test_registered_model_predicts_in_a_process_that_has_only_mlflow(
    journey: Journey, champion: str, tmp_path: Path
) -> None:
    script = (
        "import mlflow, numpy, pandas, sys\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model(sys.argv[2])\n"
        "control = numpy.load(sys.argv[3])\n"
        "names = ['GENE0001', 'GENE0003+GENE0002']\n"
        "rows = pandas.DataFrame({'control': list(control), 'perturbation': names})\n"
        "numpy.save(sys.argv[4], numpy.stack(model.predict(rows)['prediction'].to_numpy()))\n"
    )
    store = anndata.read_zarr(journey.store)
    control = np.random.default_rng(0).random((2, store.n_vars))
    np.save(tmp_path / "control.npy", control)
    arguments = (journey.registry, champion, tmp_path / "control.npy", tmp_path / "out.npy")
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True, cwd=tmp_path)
    predicted = np.load(tmp_path / "out.npy")
    assert predicted.shape == control.shape
    assert np.isfinite(predicted).all()
    # the identity basal model adds one shift to whatever control it is given
    mlflow.set_tracking_uri(journey.registry)
    again = mlflow.pyfunc.load_model(champion).predict(
        pd.DataFrame({"control": list(control + 1.0), "perturbation": ["GENE0001", "GENE0002+GENE0003"]})
    )
    np.testing.assert_allclose(np.stack(again["prediction"].to_numpy()), predicted + 1.0, atol=1e-5)


def test_no_pickle_anywhere_in_what_is_registered_or_kept(journey: Journey, champion: str) -> None:
    files = [file for file in journey.run.parent.rglob("*") if file.is_file()]
    suspicious = [file for file in files if file.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin"}]
    assert not suspicious
    assert any(file.name == "model.safetensors" for file in files)


def test_damaged_registered_weights_are_refused_by_name(journey: Journey, champion: str) -> None:
    weights = max(
        (journey.run.parent / "artifacts").rglob("model.safetensors"), key=lambda file: file.stat().st_mtime
    )
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        for model in weights.parents[4].parent.rglob("model.safetensors"):
            if model.read_bytes() == original:
                model.write_bytes(weights.read_bytes())
        done = attempt(
            *("predict", champion, "--tracking-uri", journey.registry, "--store", journey.store),
            *("--perturbations", "GENE0001", "--out", journey.folder / "damaged.h5ad"),
        )
    finally:
        for model in (journey.run.parent / "artifacts").rglob("model.safetensors"):
            model.write_bytes(original)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr
    assert not (journey.folder / "damaged.h5ad").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--perturbations=GENE9999",), ["GENE9999", "did you mean"]),
        (("--perturbations=GENE0001+GENE0001",), ["GENE0001", "twice"]),
        (("--perturbations=GENE0001", "--cell-line=HELA"), ["HELA", "LINE1"]),
        (("--perturbations=GENE0001", "--batch=b9"), ["b9", "batch1"]),
    ],
)
def test_bad_prediction_requests_are_one_line(
    journey: Journey, champion: str, options: tuple[str, ...], expected: list[str]
) -> None:
    out = journey.folder / "bad.h5ad"
    done = attempt(
        *("predict", champion, "--tracking-uri", journey.registry, "--store", journey.store, "--out", out),
        *options,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    for fragment in expected:
        assert fragment in last
    assert not out.exists()


def test_lineage_is_in_the_tracking_database(journey: Journey, champion: str) -> None:
    with sqlite3.connect(journey.folder / "runs" / "mlflow.db") as database:
        keys = {row[0] for row in database.execute("select key from latest_metrics")}
    assert {"train/loss", "validation/pearson_delta", "time/data_wait_s"} <= keys
    assert {"test/model/pearson_delta", "test/general/retrieval", "test/split_half_pooled/retrieval"} <= keys
