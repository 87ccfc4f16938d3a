"""MLflow records: once each, resumed, late if need be, and never in the way."""

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from mlflow.tracking import MlflowClient

from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.train.spool import FOLDER, waiting
from txpert_dist.train.tracking import (
    Delivery,
    MetricWriter,
    RunRecord,
    create_run,
    deliver,
    describe_run,
    read_run_record,
    write_run_record,
)

LONGEST_S = 120


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to make one, so it is made once."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_run(f"sqlite:///{path}", experiment="first", name="first", params={}, tags={})
    return path


@pytest.fixture
def record(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    params = {f"section.key{number}": str(number) for number in range(130)} | {"long": "x" * 7000}
    run_id = create_run(uri, experiment="txpert", name="small", params=params, tags={"store_hash": "abc"})
    return RunRecord(run_id, uri, {"name": "small"}, "RUNNING")


def points(record, metric):
    history = MlflowClient(record.tracking_uri).get_metric_history(record.run_id, metric)
    return [(point.step, point.value) for point in sorted(history, key=lambda point: point.step)]


def test_parameters_tags_status_and_artefacts(record, tmp_path):
    client = MlflowClient(record.tracking_uri)
    run = client.get_run(record.run_id)
    assert run.info.run_name == "small"
    assert len(run.data.params) == 131
    assert run.data.params["section.key7"] == "7"
    assert run.data.tags["store_hash"] == "abc"
    (tmp_path / "config.yaml").write_text("name: small")
    assert describe_run(record, status="RUNNING", tags={"again": "1"}, artefact=tmp_path / "config.yaml")
    assert [a.path for a in client.list_artifacts(record.run_id)] == ["config.yaml"]
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/artifacts/")
    for status in ("FAILED", "RUNNING", "FINISHED"):
        assert describe_run(record, status=status)
        assert client.get_run(record.run_id).info.status == status


def test_a_resumed_run_logs_no_step_twice(record):
    first = MetricWriter(record)
    for step in range(1, 31):
        first.log({"train/loss": float(step), "odd": math.nan}, step)
    first.log({"validation": 0.5}, 30)
    assert first.close() == 0
    second = MetricWriter(record)
    for step in range(21, 41):
        second.log({"train/loss": -float(step)}, step)
    second.log({"validation": 0.6}, 40)
    assert second.close() == 0
    expected = [(step, float(step)) for step in range(1, 31)] + [(s, -float(s)) for s in range(31, 41)]
    assert points(record, "train/loss") == expected
    assert points(record, "validation") == [(30, 0.5), (40, 0.6)]
    assert points(record, "odd") == []


def test_more_metrics_than_one_request_takes(record):
    writer = MetricWriter(record)
    for step in range(700):
        writer.log({"a": 1.0, "b": 2.0}, step)
    assert writer.close() == 0
    assert len(points(record, "a")) == len(points(record, "b")) == 700


def test_a_lost_server_is_counted_not_raised(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        lost = RunRecord("0" * 32, uri, {}, "RUNNING")
        writer = MetricWriter(lost)
        writer.log({"a": 1.0, "b": 1.0}, 1)
        assert writer.close() == 2
        assert not describe_run(lost, status="FINISHED")
        with pytest.raises(ConfigError, match=rf"tracking\.uri={uri}: cannot be used"):
            create_run(uri, experiment="x", name="x", params={}, tags={})
    assert len([text for text in caplog.messages if "MLflow is away" in text]) == 1
    assert all("\n" not in text for text in caplog.messages)


def test_record_in_the_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is no run's folder"):
        read_run_record(tmp_path)
    record = RunRecord("id", "sqlite:///x", {"seed": 1}, "KILLED")
    write_run_record(tmp_path / "run", record)
    assert read_run_record(tmp_path / "run") == record
    (tmp_path / "run" / "run.json").write_text('{"run_id": 1')
    with pytest.raises(CheckpointError, match=r"run\.json: cannot be read"):
        read_run_record(tmp_path / "run")


@pytest.fixture
def away(record, tmp_path, monkeypatch):
    """The run of ``record``, whose server is away; put ``record`` into the folder and it is back."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        lost = record._replace(tracking_uri=uri, config={"name": "run", "output": str(tmp_path)})
        write_run_record(tmp_path / "run", lost)
        yield lost


def test_what_waits_is_delivered_by_the_next_start(record, away, tmp_path):
    folder = tmp_path / "run"
    first = MetricWriter(away)
    for step in range(1, 31):
        first.log({"a": float(step)}, step)
        if step % 10 == 0:
            first.keep()
            assert waiting(folder) == step
    assert first.close() == 0  # none is lost
    first.keep(timeout=0.0)  # after the end it does nothing
    assert waiting(folder) == 30
    (tmp_path / "config.yaml").write_text("name: run")
    assert not describe_run(away, status="RUNNING", tags={"b": "1"}, artefact=tmp_path / "config.yaml")
    assert not describe_run(away, status="FAILED", tags={"b": "2"})
    assert deliver(folder) == Delivery(0, 32)

    MlflowClient(record.tracking_uri).log_metric(record.run_id, "a", 1.0, step=1)  # its answer was lost
    back = away._replace(tracking_uri=record.tracking_uri)
    write_run_record(folder, back)
    second = MetricWriter(back)  # goes on from a checkpoint at step 20
    for step in range(21, 41):
        second.log({"a": float(step)}, step)
    assert second.close() == 0
    assert points(record, "a") == [(step, float(step)) for step in range(1, 41)]
    assert waiting(folder) == 2
    assert deliver(folder) == Delivery(32, 0)
    run = MlflowClient(record.tracking_uri).get_run(record.run_id)
    assert (run.info.status, run.data.tags["b"]) == ("FAILED", "2")
    assert [a.path for a in MlflowClient(record.tracking_uri).list_artifacts(record.run_id)] == [
        "config.yaml"
    ]


def test_what_waits_is_delivered_from_a_folder_that_was_moved(record, away, tmp_path):
    writer = MetricWriter(away)
    writer.log({"a": 1.0}, 1)
    assert writer.close() == 0
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "run", moved)
    write_run_record(moved, away._replace(tracking_uri=record.tracking_uri))
    assert deliver(moved) == Delivery(1, 0)
    assert points(record, "a") == [(1, 1.0)]
    assert not (moved / FOLDER).exists()
    assert not (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match="is no run's folder"):
        deliver(tmp_path)


def test_a_record_that_is_refused_costs_no_other(record, caplog):
    writer = MetricWriter(record)
    for step in range(1, 6):
        writer.log({"a": float(step), **({"not allowed!;": 2.0} if step == 3 else {})}, step)
    assert writer.close() == 1
    assert points(record, "a") == [(step, float(step)) for step in range(1, 6)]
    assert len([text for text in caplog.messages if "refuses a record" in text]) == 1


@pytest.mark.process
def test_a_server_that_does_not_answer_keeps_nothing_in_memory(server, tmp_path):
    """Stopped, it takes connections and says nothing: metrics are on disk while a request hangs."""
    folder = tmp_path / "run"
    record = new_run(server, tmp_path)
    os.killpg(server.process.pid, signal.SIGSTOP)
    writer = MetricWriter(record)
    for step in range(1, 201):
        writer.log({"a": float(step)}, step)
        if step % 100 == 0:
            wait_for(lambda number=step: waiting(folder) == number)
    os.killpg(server.process.pid, signal.SIGCONT)
    assert writer.close() == 0
    assert points(record, "a") == [(step, float(step)) for step in range(1, 201)]
    assert not (folder / FOLDER).exists()


class Server:
    """A real `mlflow server` on one port, over one database."""

    def __init__(self, folder, database):
        self.folder = folder
        shutil.copy(database, folder / "mlflow.db")
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = taken.getsockname()[1]
        self.process = None

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        self._wait_until_it_answers()

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _wait_until_it_answers(self):
        until = time.monotonic() + LONGEST_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < until, (self.folder / "server.log").read_text()
                time.sleep(0.2)


def wait_for(condition):
    until = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def started(empty_database, tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"), empty_database)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def server(started, monkeypatch):
    """A server that runs, and fails at once where it does not."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert started.process is not None
    return started


def new_run(server, tmp_path):
    run_id = create_run(server.uri, experiment="x", name="run", params={}, tags={})
    record = RunRecord(run_id, server.uri, {"name": "run", "output": str(tmp_path)}, "RUNNING")
    write_run_record(tmp_path / "run", record)
    return record


@pytest.mark.process
def test_a_server_that_is_killed_and_comes_back(server, tmp_path):
    """In mid-run: nothing is lost, nothing doubled."""
    folder = tmp_path / "run"
    record = new_run(server, tmp_path)
    writer = MetricWriter(record, system_metrics=True)
    for step in range(1, 101):
        writer.log({"train/loss": float(step), "b": -float(step)}, step)
    wait_for(lambda: len(points(record, "b")) == 100)

    server.kill()
    for step in range(101, 401):
        writer.log({"train/loss": float(step), "b": -float(step)}, step)
    (tmp_path / "config.yaml").write_text("name: run")
    assert not describe_run(record, status="RUNNING", tags={"a": "1"}, artefact=tmp_path / "config.yaml")
    wait_for(lambda: waiting(folder) >= 601)
    assert deliver(folder).queued >= 601

    server.start()
    wait_for(lambda: len(points(record, "b")) == 400)
    writer.log({"b": -401.0}, 401)
    assert writer.close() == 0
    assert describe_run(record, status="FINISHED", tags={"b": "2"})
    assert points(record, "train/loss") == [(step, float(step)) for step in range(1, 401)]
    assert points(record, "b") == [(step, -float(step)) for step in range(1, 402)]
    run = MlflowClient(record.tracking_uri).get_run(record.run_id)
    assert (run.info.status, run.data.tags["a"], run.data.tags["b"]) == ("FINISHED", "1", "2")
    assert [a.path for a in MlflowClient(server.uri).list_artifacts(record.run_id)] == ["config.yaml"]
    late, queued = deliver(folder)
    assert late >= 601
    assert queued == 0
    assert not (folder / FOLDER).exists()
