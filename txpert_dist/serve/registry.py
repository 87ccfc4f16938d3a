"""The MLflow model registry: put a run's best model in, promote it when it earned it, get it out again.

Enters: a run folder with an evaluation report. Leaves: a registered version that carries weights
(safetensors), knowledge graphs, gene list, vocabulary, report and this package's own code. Invariant: an
alias is only moved to a version that loaded and predicted in a fresh process and whose report beats the
baselines, unless forced.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import DataType
from mlflow.types.schema import Array, ColSpec, Schema

from txpert_dist.errors import CheckpointError
from txpert_dist.serve.registered import CHECKPOINT, REPORT, SNAPSHOTS, Registered, open_registered
from txpert_dist.train.checkpoint import LoadedModel, best_checkpoint, load_model, run_folder_of
from txpert_dist.train.graphs import graphs_folder
from txpert_dist.train.tracking import read_run_record

PACKAGE = Path(__file__).resolve().parents[1]
SMOKE_TESTED = "smoke_tested"
"""Tag of versions that loaded and predicted in a fresh process."""
PINNED = (
    "torch",
    "numpy",
    "pandas",
    "scipy",
    "safetensors",
    "pydantic",
    "pyyaml",
    "pyarrow",
    "anndata",
    "zarr",
    "mlflow",
)


class RegisteredVersion(NamedTuple):
    """A version in the registry and what became of the alias."""

    name: str
    version: str
    alias: str | None
    new: bool
    """False when this very checkpoint and report were registered before."""
    reason: str
    """Why the alias was or was not moved."""


def register(
    run_folder: Path, *, report: Path, name: str, alias: str | None, force: bool = False
) -> RegisteredVersion:
    """Register the best checkpoint of a run together with its evaluation report.

    ``alias`` moves to the new version only when its mean Pearson delta is above every baseline's in the
    report, or when ``force`` is set. Registering the same checkpoint again returns the version that is there.
    Raises ``CheckpointError`` when the run, its report or the tracking server cannot be used.
    """
    record = read_run_record(run_folder)
    checkpoint = best_checkpoint(run_folder)
    loaded = load_model(checkpoint)
    verdict = _verdict(_read_report(report, loaded), force=force)
    mlflow.set_tracking_uri(record.tracking_uri)
    client = MlflowClient(tracking_uri=record.tracking_uri, registry_uri=record.tracking_uri)
    try:
        number, new = _version(client, record.run_id, checkpoint, report, loaded, name)
        if SMOKE_TESTED not in client.get_model_version(name, number).tags:
            _smoke_test(record.tracking_uri, name, number)
            client.set_model_version_tag(name, number, SMOKE_TESTED, "true")
        moved = alias if alias and verdict.promote else None
        if moved:
            client.set_registered_model_alias(name, moved, number)
    except MlflowException as error:
        raise CheckpointError(f"{record.tracking_uri}: the registry refused: {error.message}") from None
    return RegisteredVersion(name, number, moved, new, verdict.reason)


def open_model(reference: str, *, tracking_uri: str) -> Registered:
    """A ready model from ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises ``CheckpointError`` when the registry has no such version or a file of it is damaged.
    """
    mlflow.set_tracking_uri(tracking_uri)
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=reference, tracking_uri=tracking_uri)
    except (MlflowException, OSError) as error:
        reason = error.message if isinstance(error, MlflowException) else str(error)
        raise CheckpointError(
            f"{reference}: not in the registry at {tracking_uri} ({reason}); see `txpert register`"
        ) from None
    return open_registered(Path(folder) / "artifacts" / "model")


class _Verdict(NamedTuple):
    promote: bool
    reason: str


def _read_report(report: Path, loaded: LoadedModel) -> dict[str, Any]:
    file = report / "report.json"
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise CheckpointError(
            f"{file}: no evaluation report of this run; make it with `txpert evaluate` before registering"
        ) from None
    if content["provenance"].get("model_hash") != loaded.state.model_hash:
        raise CheckpointError(
            f"{file}: reports on another checkpoint than the run's best; run `txpert evaluate` again"
        )
    return content


def _verdict(report: dict[str, Any], *, force: bool) -> _Verdict:
    scores = {row["name"]: row["metrics"]["pearson_delta"]["mean"] for row in report["predictors"]}
    model = scores.pop("model")
    best, score = max(scores.items(), key=lambda item: -np.inf if item[1] is None else item[1])
    beats = model is not None and (score is None or model > score)
    reason = f"Pearson delta {_text(model)} against {_text(score)} of the best baseline ({best})"
    return _Verdict(beats or force, reason + ("" if beats or not force else "; forced"))


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _version(
    client: MlflowClient, run_id: str, checkpoint: Path, report: Path, loaded: LoadedModel, name: str
) -> tuple[str, bool]:
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get("model_hash") == loaded.state.model_hash:
            return str(known.version), False
    with tempfile.TemporaryDirectory() as scratch:
        folder = _stage(Path(scratch) / "model", checkpoint, report, loaded)
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(PACKAGE / "serve" / "pyfunc_model.py"),
                artifacts={"model": str(folder)},
                code_paths=[str(PACKAGE), str(PACKAGE.parent / "graph_store")],
                signature=_signature(),
                input_example=_example(loaded),
                pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in PINNED],
                registered_model_name=name,
            )
    number = str(info.registered_model_version)
    for key, value in _tags(loaded).items():
        client.set_model_version_tag(name, number, key, value)
    return number, True


def _stage(folder: Path, checkpoint: Path, report: Path, loaded: LoadedModel) -> Path:
    folder.mkdir()
    shutil.copytree(checkpoint, folder / CHECKPOINT, ignore=shutil.ignore_patterns("optimizer*"))
    graphs = Path(graphs_folder(loaded.config.graph, run_folder_of(checkpoint)))
    shutil.copytree(graphs / loaded.snapshot.id, folder / SNAPSHOTS / loaded.snapshot.id)
    shutil.copytree(report, folder / REPORT)
    return folder


def _signature() -> ModelSignature:
    inputs = Schema([ColSpec(Array(DataType.double), "control"), ColSpec(DataType.string, "perturbation")])
    return ModelSignature(inputs=inputs, outputs=Schema([ColSpec(Array(DataType.double), "prediction")]))


def _example(loaded: LoadedModel) -> pd.DataFrame:
    control = [np.zeros(loaded.state.basal_width).tolist()]
    return pd.DataFrame({"control": control, "perturbation": [loaded.vocabulary.genes[0]]})


def _tags(loaded: LoadedModel) -> dict[str, str]:
    return {
        "model_hash": loaded.state.model_hash,
        "store_hash": loaded.state.store_hash,
        "snapshot_id": loaded.snapshot.id,
        "split_hash": loaded.state.split_hash,
        "git_commit": loaded.state.git_commit,
    }


def _smoke_test(tracking_uri: str, name: str, number: str) -> None:
    """Load the version and predict with its own example in a process that has seen nothing of this one."""
    done = subprocess.run(
        [sys.executable, "-m", "txpert_dist.serve.smoke", tracking_uri, f"models:/{name}/{number}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"models:/{name}/{number}: does not predict in a fresh process ({last}); not promoted"
        )
