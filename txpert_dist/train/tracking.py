"""The door to MLflow: one run folder is one MLflow run, whatever was interrupted in between.

Enters: the configuration, tags and metrics. Leaves: the run's id, kept in ``<run folder>/run.json`` so that
the same command goes on in the same MLflow run. Invariants: metrics are sent in batches from a thread of
their own, in their order; a step that MLflow already has is not sent again; while MLflow is away records wait
in the run's folder (``spool``), and are delivered when it is back: by this process, the next start, or
``deliver``; the training never waits for any of it.
"""

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.train.spool import Entry, Spool, left_behind, new_spool, waiting

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RECORD, LATE = "run.json", "late.json"
_METRICS, _RECORDS = "metrics", "records"
"""Kinds of spools."""

_INTERVAL_S = 1.0
_LONGEST_WAIT_S = 10.0  # between two attempts to reach a server that is away
_SYSTEM_INTERVAL_S = 5.0
_REFUSED = "INVALID_PARAMETER_VALUE"  # what would be refused for ever
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

    @property
    def run_folder(self) -> Path | None:
        """Where the run is, if it is still there."""
        folder = Path(self.config.get("output", ""), self.config.get("name", ""))
        return folder if folder.is_absolute() and (folder / RECORD).exists() else None


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
    """Set status, tags and an artefact of an existing run.

    False, with a warning, when MLflow is away: they wait in the run's folder, behind those that wait already.
    """
    entry: Entry = {"status": status, "tags": dict(tags or {})}
    if artefact is not None:
        entry["artefact"] = str(artefact)
    spool = new_spool(record.run_folder, _RECORDS)
    try:
        spool.append([entry])
        sender = _Sender(record)
        sender.send_left_behind(_RECORDS)
        sender.send(spool)
    except Exception as error:  # noqa: BLE001  see create_run
        log.warning("run %s: MLflow does not know it is %s (%s)", record.run_id, status, _first_line(error))
        return False
    finally:
        spool.close()
    return True


class Delivery(NamedTuple):
    """How a run's records came to its tracking server."""

    late: int
    """Records that were delivered after the server had been away, over all starts of the run."""
    queued: int
    """Records that still wait in the run's folder."""


def deliver(run_folder: Path) -> Delivery:
    """Try to deliver what waits in ``run_folder`` and nobody else is delivering; how it stands then.

    Raises ``CheckpointError`` when the folder is no run's.
    """
    record = read_run_record(run_folder)._replace(config={})
    if waiting(run_folder):
        try:
            _Sender(record, run_folder).send_left_behind("*")
        except Exception as error:  # noqa: BLE001  see create_run
            log.warning("run %s: MLflow is away (%s)", record.run_id, _first_line(error))
    return Delivery(_late(run_folder), waiting(run_folder))


class MetricWriter:
    """Sends one run's metrics from a thread of its own, about once a second."""

    def __init__(self, record: RunRecord, *, system_metrics: bool = False) -> None:
        self.lost = 0
        """Metrics that will never be at MLflow: there was no room to keep them, or it refused them."""
        self._run_id = record.run_id
        self._queue: queue.SimpleQueue[list[Entry] | threading.Event | None] = queue.SimpleQueue()
        self._spool = new_spool(record.run_folder, _METRICS)
        self._sender = _Sender(record)
        self._wait, self._next_try = 0.0, 0.0  # the first is 0 while the server answers
        self._left = 0  # in the spool when all threads have ended
        self._news, self._ended = threading.Event(), threading.Event()
        # two of them: what waits for a server that does not answer is on disk all the same
        names = {"txpert-metrics": self._keep_all, "txpert-mlflow": self._send_all}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in names.items()]
        for thread in self._threads:
            thread.start()
        self._monitor = _start_monitor(record, self.log) if system_metrics else None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue ``metrics`` of ``step``; returns at once. A value that is not finite is left out."""
        now = round(time.time() * 1000)
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        self._queue.put([{"metric": [key, value, now, step]} for key, value in finite.items()])

    def artefact(self, path: Path) -> None:
        """Queue a file or folder, which must stay where it is; returns at once."""
        self._queue.put([{"artefact": str(path)}])

    def keep(self, timeout: float = 10.0) -> None:
        """Return when all that was logged before is on disk, where a kill does not reach it."""
        kept = threading.Event()
        self._queue.put(kept)
        kept.wait(timeout)

    def close(self, timeout: float = 30.0) -> int:
        """Send what is queued, at most ``timeout`` seconds long; how many metrics are lost.

        Those that wait in the run's folder are not lost: see ``deliver``.
        """
        if self._monitor is not None:
            self._monitor.finish()
        self._queue.put(None)
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if self._threads[-1].is_alive():
            log.warning("run %s: MLflow is too slow, its last metrics are not sent", self._run_id)
            self._left = max(1, self._left)
        return self.lost + self._sender.lost + (0 if self._spool.survives else self._left)

    def _keep_all(self) -> None:
        """From the queue to the spool, about once a second, or when somebody waits for it."""
        ending: list[Entry] | threading.Event | None = []
        while ending is not None:
            batch, ending = self._drain()
            somebody_waits = isinstance(ending, threading.Event)
            try:
                self.lost += self._spool.append(batch)
                if somebody_waits:
                    self._spool.to_disk()
            except OSError as error:
                log.warning("run %s: metrics cannot be kept (%s)", self._run_id, _first_line(error))
                self.lost += len(batch)
            if isinstance(ending, threading.Event):
                ending.set()
            elif ending is None:
                self._ended.set()
            self._news.set()

    def _drain(self) -> tuple[list[Entry], list[Entry] | threading.Event | None]:
        """What is logged within a second; and who waits for it, or None when it is the last."""
        batch: list[Entry] = []
        item = self._queue.get()
        until = time.monotonic() + _INTERVAL_S
        while isinstance(item, list):
            batch += item
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
        return batch, item

    def _send_all(self) -> None:
        """From the spool to MLflow, as soon as it has news, or its server had time to come back."""
        ended = False
        while not ended:
            self._news.wait(max(0.0, self._next_try - time.monotonic()) if self._wait else None)
            self._news.clear()
            ended = self._ended.is_set()
            if ended or time.monotonic() >= self._next_try:
                self._try()
        self._left = len(self._spool)
        self._spool.close()

    def _try(self) -> None:
        if self._wait:
            self._sender.overdue = len(self._spool)
        try:
            self._sender.send_left_behind(_METRICS)
            self._sender.send(self._spool)
        except Exception as error:  # noqa: BLE001  training goes on whatever befalls the records
            if not self._wait:
                log.warning("run %s: MLflow is away, metrics wait (%s)", self._run_id, _first_line(error))
            self._left = len(self._spool)
            self._wait = min(2 * self._wait or _INTERVAL_S, _LONGEST_WAIT_S)
            self._next_try = time.monotonic() + self._wait
        else:
            self._wait, self._next_try = 0.0, 0.0


class _Sender:
    """Delivers spools of one run, for one thread at a time; raises what MLflow raises when it is away."""

    def __init__(self, record: RunRecord, run_folder: Path | None = None) -> None:
        self.lost = 0
        """Metrics that MLflow refused."""
        self.overdue = 0
        """Of the entries to send next, how many have been waiting for a server that was away."""
        self._uri, self._run_id = record.tracking_uri, record.run_id
        self._folder = run_folder or record.run_folder
        self._client: MlflowClient | None = None
        self._last_step: dict[str, int] | None = None  # of each metric at MLflow; None before we asked

    def send_left_behind(self, kind: str) -> None:
        """Deliver what writers that have ended left in the run's folder."""
        for spool in left_behind(self._folder, kind):
            overdue, self.overdue = self.overdue, len(spool)
            try:
                self.send(spool)
            finally:
                self.overdue = overdue
                spool.close()

    def send(self, spool: Spool) -> None:
        """Deliver all that is in ``spool``."""
        late = 0
        try:
            while entries := spool.next(_AT_ONCE):
                number = self._send_first(entries)
                spool.delivered(number)
                late += min(number, self.overdue)
                self.overdue -= min(number, self.overdue)
        except Exception:
            self._last_step = None  # what was on its way may have arrived
            raise
        finally:
            _add_late(self._folder, late)

    def _send_first(self, entries: list[Entry]) -> int:
        """Deliver the first entries, those of one request; how many they were."""
        self._client = self._client or MlflowClient(self._uri)
        metrics = [entry["metric"] for entry in takewhile(lambda entry: "metric" in entry, entries)]
        try:
            if metrics:
                self._send_metrics(self._client, metrics)
            else:
                self._send_record(self._client, entries[0])
        except MlflowException as error:
            if error.error_code != _REFUSED:
                raise
            if len(metrics) > 1:  # one of them; the others shall not be lost with it
                return self._send_first(entries[:1])
            log.warning("run %s: MLflow refuses a record (%s)", self._run_id, _first_line(error))
            self.lost += len(metrics)
        return max(1, len(metrics))

    def _send_metrics(self, client: MlflowClient, metrics: list[list[Any]]) -> None:
        if self._last_step is None:
            self._last_step = _last_steps(client, self._run_id)
        last, fresh = dict(self._last_step), []
        for key, value, timestamp, step in metrics:
            if step > last.get(key, -1):
                fresh.append(Metric(key, value, timestamp, step))
                last[key] = step
        if fresh:
            client.log_batch(self._run_id, metrics=fresh)
        self._last_step = last

    def _send_record(self, client: MlflowClient, entry: Entry) -> None:
        if entry.get("tags"):
            tags = [RunTag(key, value) for key, value in entry["tags"].items()]
            client.log_batch(self._run_id, tags=tags)
        if "artefact" in entry and Path(entry["artefact"]).exists():
            client.log_artifact(self._run_id, entry["artefact"])
        status = entry.get("status")
        if status == "RUNNING":
            client.update_run(self._run_id, status=status)
        elif status is not None:
            client.set_terminated(self._run_id, status=status)


class _Monitor(SystemMetricsMonitor):  # type: ignore[misc]  # mlflow ships no types
    """MLflow's own measurements, sent with the other metrics: its own way ends at the first failure."""

    def __init__(self, record: RunRecord, send: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__(
            record.run_id, sampling_interval=_SYSTEM_INTERVAL_S, tracking_uri=record.tracking_uri
        )
        self._send = send

    def monitor(self) -> None:
        """Measure until told to end; the step is the time, so that it goes on over every start."""
        while not self._shutdown_event.wait(self.sampling_interval):
            self.collect_metrics()
            values = {self._metrics_prefix + name: value for name, value in self.aggregate_metrics().items()}
            self._send(values, int(time.time() / _SYSTEM_INTERVAL_S))
            for monitor in self.monitors:
                monitor.clear_metrics()


def _last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    # MLflow keeps of every metric the value of the largest step with the run: no history need travel
    return {metric.key: metric.step for metric in client.get_run(run_id).data._metric_objs}


def _late(run_folder: Path) -> int:
    try:
        return int(json.loads((run_folder / LATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return 0


def _add_late(run_folder: Path | None, number: int) -> None:
    if run_folder is None or not number:
        return
    partial = run_folder / f".{LATE}.partial"
    try:
        partial.write_text(json.dumps(_late(run_folder) + number), encoding="utf-8")
        partial.replace(run_folder / LATE)
    except OSError as error:
        log.warning("%s: cannot be written (%s)", run_folder / LATE, error.strerror)


def _start_monitor(record: RunRecord, send: Callable[[Mapping[str, float], int], None]) -> _Monitor | None:
    try:
        monitor = _Monitor(record, send)
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
