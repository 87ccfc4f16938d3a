"""A study on real processes: it finds, records, survives kill -9, and leaves the test split to the winner."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.journey import TXPERT, txpert
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.config_file import dump, load
from txpert_dist.train import checkpoint
from txpert_dist.train.tracking import read_run_record
from txpert_dist.train.tune_study import read_scores, read_trials

pytestmark = pytest.mark.process

TRIALS, EPOCHS, STEPS_PER_EPOCH = 8, 9, 11
SPACE = {
    "optimiser.learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "model.perturbation": {"choice": [{"kind": "gat", "layers": 1, "hidden": 4}, {"kind": "embedding"}]},
    "model.perturbation.heads": {"choice": [1, 2]},
}
LONGEST_S = 300


def write_files(folder: Path, inputs: Path) -> tuple[Path, Path]:
    folder.mkdir()
    config = configuration(inputs, folder / "runs", train={"epochs": EPOCHS})
    (folder / "run.yaml").write_text(dump(config))
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return folder / "run.yaml", folder / "space.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """The folder of a study of 8 trials, and what was said."""
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    run, space = write_files(folder, inputs)
    out = folder / "best.yaml"
    said = txpert("tune", run, "--trials", TRIALS, "--space", space, "--parallel", 2, "--out", out)
    return folder, said


def test_it_is_at_least_as_good_as_the_default_and_scores_test_once(undisturbed):
    folder, said = undisturbed
    study = folder / "runs" / "small-tune"
    trials = read_trials(study)
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert all(trial.ending in ("complete", "stopped") for trial in trials)
    assert trials[0].ending == "complete"  # the default is never stopped early
    assert trials[0].epoch == EPOCHS
    assert any(trial.ending == "stopped" and trial.epoch < EPOCHS for trial in trials)
    winner = max((trial for trial in trials if trial.ending == "complete"), key=lambda trial: trial.best)
    assert winner.best >= trials[0].best
    assert f"{winner.best:.4f}" in said
    reports = [trial.number for trial in trials if (study / f"trial-{trial.number:03d}" / "report").exists()]
    assert reports == [winner.number]

    best = load(folder / "best.yaml")
    assert best.name == "small-best"
    assert best.output == folder / "runs"
    for key, value in winner.values.items():
        node = best.model_dump(mode="json")
        for part in key.split("."):
            node = node[part]
        assert node == value or winner.number == 0 or value.items() <= node.items()
    kept = checkpoint.read_state(checkpoint.best_checkpoint(study / f"trial-{winner.number:03d}"))
    assert kept.metrics[checkpoint.SCORE] == winner.best


def test_mlflow_holds_one_run_with_the_trials_below_it(undisturbed):
    folder, _ = undisturbed
    study = folder / "runs" / "small-tune"
    record = read_run_record(study)
    client = MlflowClient(record.tracking_uri)
    parent = client.get_run(record.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space.optimiser.learning_rate"] == "{log_uniform: [0.0001, 0.1]}"
    trials = read_trials(study)
    complete = max(trial.best for trial in trials if trial.ending == "complete")
    assert parent.data.metrics["best/pearson_delta"] == complete
    assert [artefact.path for artefact in client.list_artifacts(record.run_id)] == ["best.yaml"]
    query = f"tags.mlflow.parentRunId = '{record.run_id}'"
    runs = client.search_runs([parent.info.experiment_id], query)
    assert sorted(run.info.run_name for run in runs) == [f"trial-{number:03d}" for number in range(TRIALS)]
    for run in runs:
        trial = trials[int(run.info.run_name[-3:])]
        assert run.info.status == ("FINISHED" if trial.ending == "complete" else "KILLED")
        history = client.get_metric_history(run.info.run_id, checkpoint.SCORE)
        found = {point.step // STEPS_PER_EPOCH: point.value for point in history}
        assert len(found) == len(history), "an epoch was logged twice"
        assert found == trial.scores


def test_the_same_command_again_does_nothing(undisturbed):
    folder, _ = undisturbed
    study = folder / "runs" / "small-tune"
    before = {path: path.stat().st_mtime_ns for path in study.glob("trial-*/**/*.json")}
    space = folder / "space.yaml"
    said = txpert("tune", folder / "run.yaml", "--trials", TRIALS, "--space", space, "--parallel", 2)
    assert "every trial had ended before: nothing to do" in said
    assert {path: path.stat().st_mtime_ns for path in study.glob("trial-*/**/*.json")} == before


def test_interruptions_cost_time_and_nothing_else(undisturbed, inputs, tmp_path):
    """SIGTERM to the driver; then SIGKILL to a trial, and to the driver."""
    folder = tmp_path / "study"
    run, space = write_files(folder, inputs)
    study = folder / "runs" / "small-tune"
    command = [str(TXPERT), "tune", str(run), "--trials=4", f"--space={space}", "--parallel=1"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as driver:
        wait_for(lambda: scores(study) >= 1)
        driver.send_signal(signal.SIGTERM)
        said = driver.stderr.read()
    assert driver.returncode == 75
    assert "told to stop; the same command goes on" in said
    assert [read_run_record(path).status for path in (study, study / "trial-000")] == ["KILLED", "KILLED"]
    seen = scores(study)
    assert seen < EPOCHS
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as driver:
        try:
            wait_for(lambda: scores(study) > seen)
            kill_trial(driver.pid)
            wait_for(lambda: scores(study) >= EPOCHS + 1)
        finally:
            driver.kill()
    assert driver.returncode == -signal.SIGKILL
    trials = read_trials(study)
    assert trials[0].ending == "complete"
    assert sum(trial.ending != "running" for trial in trials) < 4  # there is something left to do
    finished = [checkpoint.checkpoints(study / "trial-000")[-1] / "manifest.json"]
    before = [path.stat().st_mtime_ns for path in finished]

    txpert("tune", run, "--trials", 4, "--space", space, "--parallel", 1)
    assert [path.stat().st_mtime_ns for path in finished] == before
    check_it_is_the_same(study, undisturbed[0] / "runs" / "small-tune")


def check_it_is_the_same(study: Path, undisturbed: Path) -> None:
    """Same values, same scores, every step recorded once."""
    again, first = read_trials(study), read_trials(undisturbed)
    assert len(again) == 4
    assert all(trial.ending in ("complete", "stopped") for trial in again)
    for one, other in zip(again, first, strict=False):
        assert one.values == other.values
        both = one.scores.keys() & other.scores.keys()
        assert both
        assert {epoch: one.scores[epoch] for epoch in both} == {epoch: other.scores[epoch] for epoch in both}
    client = MlflowClient(read_run_record(study).tracking_uri)
    for trial in again:
        run_id = read_run_record(study / f"trial-{trial.number:03d}").run_id
        steps = [point.step for point in client.get_metric_history(run_id, "train/loss")]
        assert len(steps) == len(set(steps))
        assert max(steps) == trial.epoch * STEPS_PER_EPOCH


def scores(study: Path) -> int:
    return sum(len(read_scores(folder)) for folder in study.glob("trial-*"))


def wait_for(condition) -> None:
    until = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_trial(driver: int) -> None:
    """SIGKILL to the process that trains."""
    trials = [
        process
        for process in psutil.Process(driver).children(recursive=True)
        if "ImplicitFunc" in " ".join(process.cmdline())  # Tune's name for a function in an actor
    ]
    assert trials
    os.kill(trials[0].pid, signal.SIGKILL)
