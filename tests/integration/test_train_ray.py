"""A training run on a local Ray cluster whose worker is killed: it recovers, ends, and is on record."""

import os
import signal

import psutil
import pytest
from mlflow.tracking import MlflowClient

from tests.integration.test_train_numerics import largest_difference, last_weights, train
from tests.processes import run
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.errors import ConfigError, StoreError
from txpert_dist.train import checkpoint
from txpert_dist.train.tracking import read_run_record
from txpert_dist.train.worker import STARTING
from txpert_dist.train.worker import train as train_on_ray

pytestmark = pytest.mark.process

EPOCHS, STEPS_PER_EPOCH, KILL_AT = 15, 11, 40
TRAIN = {"epochs": EPOCHS, "log_every": 5}


class KillOneWorker:
    """A progress callback that kills one worker (SIGKILL) at step ``KILL_AT`` and remembers all it heard."""

    def __init__(self):
        self.heard = []
        self.killed = None

    def __call__(self, what, done, total):
        self.heard.append((what, done, total))
        if what == "train" and done >= KILL_AT and self.killed is None:
            workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in name(p)]
            self.killed = workers[-1].pid
            os.kill(self.killed, signal.SIGKILL)


def name(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_killed_worker_costs_time_and_nothing_else(tmp_path):
    inputs = write_inputs(tmp_path / "inputs")
    config = configuration(inputs, tmp_path / "runs", train=TRAIN, cluster={"num_workers": 2})
    watcher = KillOneWorker()
    result = train_on_ray(config, progress=watcher)

    assert watcher.killed is not None
    assert watcher.heard[0] == (STARTING, 0, 3)
    assert ("train", EPOCHS * STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH) in watcher.heard
    score = f"{result.validation_pearson_delta:.4f}"
    news = [what for what, _, total in watcher.heard if total == 0]
    assert any(what.startswith(f"epoch {EPOCHS} of {EPOCHS}: ") for what in news)
    assert any(what.endswith(score) for what in news)
    assert (result.epochs, result.steps) == (EPOCHS, EPOCHS * STEPS_PER_EPOCH)
    assert 0 < result.started_at < result.steps
    assert result.damaged == ()
    assert result.last == checkpoint.checkpoints(config.run_folder)[-1]
    assert (
        checkpoint.load_model(result.best).state.metrics[checkpoint.SCORE] == result.validation_pearson_delta
    )

    # the same as a run that nobody disturbed
    run(train, 2, inputs, tmp_path / "calm", {"train": TRAIN, "seed": config.seed})
    assert largest_difference(last_weights(config.output), last_weights(tmp_path / "calm")) == 0

    check_records(config, result)
    check_the_same_command_again(config, result)


def check_records(config, result):
    record = read_run_record(config.run_folder)
    assert (record.run_id, record.status) == (result.run_id, "FINISHED")
    client = MlflowClient(config.tracking_uri)
    run_ = client.get_run(result.run_id)
    assert run_.info.status == "FINISHED"
    assert run_.data.params["model.latent"] == "8"
    state = checkpoint.read_state(result.last)
    for tag in ("store_hash", "snapshot_id", "split_hash", "git_commit"):
        assert run_.data.tags[tag] == getattr(state, tag)
    assert any(artefact.path == "config.yaml" for artefact in client.list_artifacts(result.run_id))
    assert any(key.startswith("system/") for key in run_.data.metrics)
    for metric, last in (("train/loss", 5 * (result.steps // 5)), (checkpoint.SCORE, result.steps)):
        steps = [point.step for point in client.get_metric_history(result.run_id, metric)]
        assert len(steps) == len(set(steps)), "a step was logged twice"
        assert max(steps) == last
    assert {"train/cells_per_s", "time/data_wait_s", "time/optimiser_s"} <= run_.data.metrics.keys()


def check_the_same_command_again(config, result):
    heard = []
    again = train_on_ray(config, progress=lambda *line: heard.append(line))
    assert heard == []
    assert again == result._replace(started_at=result.steps)
    changed = config.model_copy(update={"seed": 7, "train": config.train.model_copy(update={"epochs": 1})})
    with pytest.raises(ConfigError, match=r"made with other values of seed \(0 -> 7\); choose another name="):
        train_on_ray(changed)
    (config.data.store / "manifest.json").unlink()
    with pytest.raises(StoreError):
        train_on_ray(config)
