"""What a run leaves behind for its user and for the next start: the record, and the result.

Enters: configuration, inputs, the folder. Leaves: an MLflow run with a record of it in the folder, and
``TrainResult``. Invariant: one folder is one MLflow run, unless the tracking server was changed or its file
is gone.
"""

import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from txpert_dist import config_file
from txpert_dist.config import Config
from txpert_dist.config_file import flatten
from txpert_dist.train import checkpoint
from txpert_dist.train.checkpoint import SCORE
from txpert_dist.train.inputs import Inputs
from txpert_dist.train.tracking import RunRecord, create_run, describe_run, write_run_record

CONFIG = "config.yaml"
"""The resolved configuration, in the run's folder and among the MLflow run's artefacts."""


class TrainResult(NamedTuple):
    """What a run came to."""

    run_id: str
    """MLflow's id of the run."""
    best: Path
    """Checkpoint with the highest validation Pearson delta."""
    last: Path
    epochs: int
    validation_pearson_delta: float
    """Of the best checkpoint; NaN when it is not defined."""
    steps: int
    """Optimiser steps done."""
    started_at: int
    """The step the last start began from; equal to ``steps`` when there was nothing left to do."""
    damaged: tuple[str, ...]
    """Damaged checkpoints that were passed over, one line each."""
    lost_metrics: int
    """Metrics that MLflow did not take."""


class Ended(NamedTuple):
    """What rank 0 says when the last start has ended."""

    started_at: int
    damaged: tuple[str, ...]
    lost_metrics: int


def finished(config: Config) -> Ended | None:
    """Not None when the folder holds as many epochs as are asked for, and no checkpoint is damaged."""
    found = checkpoint.newest_sound(config.run_folder)
    if found.folder is None or found.damaged:
        return None
    state = checkpoint.read_state(found.folder)
    return Ended(state.step, (), 0) if state.epoch >= config.train.epochs else None


def record_run(config: Config, inputs: Inputs, record: RunRecord | None, commit: str) -> RunRecord:
    """Make the MLflow run, or go on in the one of ``record``, and write it down in the folder.

    Raises ``ConfigError`` when a new run cannot be made at the tracking server.
    """
    tags = _tags(inputs, commit)
    if record is None or record.tracking_uri != config.tracking_uri or _is_gone(record.tracking_uri):
        run_id = create_run(
            config.tracking_uri,
            experiment=config.tracking.experiment,
            name=config.name,
            params=flatten(config),
            tags=tags,
        )
    else:
        run_id = record.run_id
    record = RunRecord(run_id, config.tracking_uri, config.model_dump(mode="json"), "RUNNING")
    write_run_record(config.run_folder, record)
    path = config.run_folder / CONFIG
    path.write_text(config_file.dump(config), encoding="utf-8")
    describe_run(record, status="RUNNING", tags=tags, artefact=path)
    return record


def result(config: Config, record: RunRecord, ended: Ended) -> TrainResult:
    """The result as the folder shows it. Raises ``CheckpointError`` when it has no readable checkpoint."""
    best = checkpoint.best_checkpoint(config.run_folder)
    last = checkpoint.checkpoints(config.run_folder)[-1]
    state = checkpoint.read_state(last)
    return TrainResult(
        run_id=record.run_id,
        best=best,
        last=last,
        epochs=state.epoch,
        validation_pearson_delta=checkpoint.read_state(best).metrics.get(SCORE, math.nan),
        steps=state.step,
        started_at=ended.started_at,
        damaged=ended.damaged,
        lost_metrics=ended.lost_metrics,
    )


def _is_gone(tracking_uri: str) -> bool:
    """Whether records were in a file that is not there: a run brought back on another machine, say."""
    path = tracking_uri.removeprefix("sqlite:///")
    return path != tracking_uri and not Path(path).exists()


def _tags(inputs: Inputs, commit: str) -> Mapping[str, str]:
    try:
        package = version("txpert-dist")
    except PackageNotFoundError:
        package = "unknown"
    return {
        "store_hash": inputs.store.manifest_hash,
        "snapshot_id": inputs.snapshot.id,
        "split_hash": inputs.store.split_hash,
        "git_commit": commit,
        "txpert_version": package,
    }
