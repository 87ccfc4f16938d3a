"""MLflow records: once each, resumed, and never in the way."""

import math
import shutil
import socket

import pytest
from mlflow.tracking import MlflowClient

from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.train.tracking import (
    MetricWriter,
    RunRecord,
    create_run,
    describe_run,
    read_run_record,
    write_run_record,
)


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
    assert [text for text in caplog.messages if "lost metrics" in text]
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
