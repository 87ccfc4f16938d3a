"""The door to MLflow: one run folder is one MLflow run, whatever was interrupted in between.

Enters: the configuration, tags and metrics. Leaves: the run's id, kept in ``<run folder>/run.json`` so that
the same command goes on in the same MLflow run. Invariants: metrics are sent in batches from a thread of
their own; a step that MLflow already has is not sent again; losing MLflow in mid-run costs records (counted
and said once), never the training.
"""

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from txpert_dist.errors import CheckpointError, ConfigError

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RECORD = "run.json"
_INTERVAL_S = 1.0
_SYSTEM_INTERVAL_S = 5.0
_AT_ONCE = 1000  # metrics in one request: MLflow's limit
_PARAMS_AT_ONCE = 100
_LONGEST_PARAM = 6000
log = logging.getLogger(__name__)


class RunRecord(NamedTuple):
    """What a run folder knows of itself."""

    run_id: str
    """MLflow's id of the run."""
    tracking_uri: str
    config: dict[str, Any]
    """The configuration the folder was made with, as plain values."""
    status: Status


def read_run_record(run_folder: Path) -> RunRecord:
    """The record in ``run_folder``. Raises ``CheckpointError`` when there is none or it cannot be read."""
    path = run_folder / RECORD
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{run_folder}: is no run's folder; make one with `txpert train`") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error!r}); restore it or choose another name="
        ) from None


def write_run_record(run_folder: Path, record: RunRecord) -> None:
    """Put ``record`` into ``run_folder``, replacing the one that is there at once."""
    run_folder.mkdir(parents=True, exist_ok=True)
    partial = run_folder / f".{RECORD}.partial"
    partial.write_text(json.dumps(record._asdict(), indent=1), encoding="utf-8")
    partial.replace(run_folder / RECORD)


def create_run(
    tracking_uri: str, *, experiment: str, name: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> str:
    """A new MLflow run, its parameters and tags recorded; returns its id.

    Raises ``ConfigError`` when the tracking server cannot be used: before anything is lost.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table it makes
    try:
        client = MlflowClient(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else _create_experiment(client, tracking_uri, experiment)
        run_id = str(client.create_run(number, run_name=name, tags=dict(tags)).info.run_id)
        pairs = [Param(key, value[:_LONGEST_PARAM]) for key, value in params.items()]
        for start in range(0, len(pairs), _PARAMS_AT_ONCE):
            client.log_batch(run_id, params=pairs[start : start + _PARAMS_AT_ONCE])
    except Exception as error:  # noqa: BLE001  each kind of store fails in its own way
        raise ConfigError(
            f"tracking.uri={tracking_uri}: cannot be used ({_first_line(error)}); start it or correct it"
        ) from None
    return run_id


def describe_run(
    record: RunRecord, *, status: Status, tags: Mapping[str, str] | None = None, artefact: Path | None = None
) -> bool:
    """Set status, tags and an artefact of an existing run; false, with a warning, when MLflow is lost."""
    try:
        client = MlflowClient(record.tracking_uri)
        client.log_batch(record.run_id, tags=[RunTag(key, value) for key, value in (tags or {}).items()])
        if artefact is not None:
            client.log_artifact(record.run_id, str(artefact))
        if status == "RUNNING":
            client.update_run(record.run_id, status=status)
        else:
            client.set_terminated(record.run_id, status=status)
    except Exception as error:  # noqa: BLE001  see create_run
        log.warning("run %s: MLflow does not know it is %s (%s)", record.run_id, status, _first_line(error))
        return False
    return True


class MetricWriter:
    """Sends one run's metrics from a thread of its own, about once a second."""

    def __init__(self, record: RunRecord, *, system_metrics: bool = False) -> None:
        self.lost = 0
        """Metrics that MLflow did not take."""
        self._record = record
        self._queue: queue.SimpleQueue[list[Metric] | None] = queue.SimpleQueue()
        self._last_step: dict[str, int] = {}
        self._thread = threading.Thread(target=self._send_all, name="txpert-metrics", daemon=True)
        self._thread.start()
        self._monitor = _start_monitor(record) if system_metrics else None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue ``metrics`` of ``step``; returns at once. A value that is not finite is left out."""
        now = round(time.time() * 1000)
        self._queue.put([Metric(k, v, now, step) for k, v in metrics.items() if math.isfinite(v)])

    def close(self, timeout: float = 30.0) -> int:
        """Send what is queued, at most ``timeout`` seconds long; returns the number of lost metrics."""
        if self._monitor is not None:
            self._monitor.finish()
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("run %s: MLflow is too slow, its last metrics are lost", self._record.run_id)
            self.lost += 1
        return self.lost

    def _send_all(self) -> None:
        client, opened, ended = MlflowClient(self._record.tracking_uri), False, False
        while not ended:
            batch, ended = self._drain()
            try:
                if not opened:
                    self._last_step = _last_steps(client, self._record.run_id)
                    opened = True
                fresh = [m for m in batch if m.step > self._last_step.get(m.key, -1)]
                for start in range(0, len(fresh), _AT_ONCE):
                    client.log_batch(self._record.run_id, metrics=fresh[start : start + _AT_ONCE])
            except Exception as error:  # noqa: BLE001  training goes on whatever befalls the records
                if not self.lost:
                    log.warning("run %s: MLflow lost metrics (%s)", self._record.run_id, _first_line(error))
                self.lost += len(batch)

    def _drain(self) -> tuple[list[Metric], bool]:
        first = self._queue.get()
        if first is None:
            return [], True
        batch = list(first)
        until = time.monotonic() + _INTERVAL_S
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return batch, False
            if item is None:
                return batch, True
            batch += item


def _last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    names = client.get_run(run_id).data.metrics
    return {name: max(m.step for m in client.get_metric_history(run_id, name)) for name in names}


def _start_monitor(record: RunRecord) -> SystemMetricsMonitor | None:
    try:
        monitor = SystemMetricsMonitor(
            record.run_id,
            sampling_interval=_SYSTEM_INTERVAL_S,
            resume_logging=True,
            tracking_uri=record.tracking_uri,
        )
        monitor.start()
    except Exception as error:  # noqa: BLE001  a convenience; see MetricWriter
        log.warning("run %s: no system metrics (%s)", record.run_id, _first_line(error))
        return None
    return monitor


def _create_experiment(client: MlflowClient, tracking_uri: str, experiment: str) -> str:
    # A server chooses its own place for artefacts; for a SQLite file MLflow would take the working directory.
    beside = Path(tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"
    location = beside.absolute().as_uri() if tracking_uri.startswith("sqlite:///") else None
    try:
        return str(client.create_experiment(experiment, artifact_location=location))
    except MlflowException:
        found = client.get_experiment_by_name(experiment)  # another run made it in the meantime
        if found is None:
            raise
        return str(found.experiment_id)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
