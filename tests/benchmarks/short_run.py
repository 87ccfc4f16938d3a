"""Some steps of `txpert train`, started as a user starts it and told to stop, and what its records say."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from mlflow.tracking import MlflowClient

from tests.journey import TXPERT
from txpert_dist.train.tracking import RECORD, read_run_record

ROOT = Path(__file__).resolve().parents[2]
LOG_EVERY = 5
"""Steps between two records that the configuration must ask for."""
WARM = 2
"""First records that are left out."""
_STOPPED = (0, 75, 130, -signal.SIGTERM)  # the last two: before a run could be told to stop
_LOOK_EVERY_S = 2.0


class ShortRun(NamedTuple):
    """What a run left in MLflow."""

    metrics: dict[str, list[float]]
    """Name -> values in the order of steps, without the first records of steps."""
    worker_gib: float
    """Most memory that one worker had to itself, as looked at now and then."""


def short_run(config: Path, folder: Path, num_steps: int, *, tree: Path = ROOT) -> ShortRun:
    """Train from ``config`` in the run's ``folder`` for so many measured steps or somewhat more.

    With the code of ``tree``, which may be an earlier one.
    """
    most = 0.0
    wanted = WARM + num_steps // LOG_EVERY
    environment = {**os.environ, "PYTHONPATH": str(tree)}  # Ray's workers look in the working folder first
    command_line = [str(TXPERT), "train", str(config)]
    with subprocess.Popen(command_line, stdout=subprocess.DEVNULL, env=environment, cwd=tree) as command:
        while command.poll() is None and len(_history(folder, "train/loss")) < wanted:
            time.sleep(_LOOK_EVERY_S)
            most = max([most, *_memory_of_workers(command.pid)])
        command.send_signal(signal.SIGTERM)
    if command.returncode not in _STOPPED:
        raise SystemExit(f"{config}: `txpert train` ended with {command.returncode}")
    record = read_run_record(folder)
    names = MlflowClient(record.tracking_uri).get_run(record.run_id).data.metrics
    steps = len(_history(folder, "train/loss"))
    found = {name: _history(folder, name) for name in names}
    return ShortRun({n: v[WARM:] if len(v) == steps else v for n, v in found.items()}, most)


def _history(folder: Path, name: str) -> list[float]:
    if not (folder / RECORD).exists():
        return []
    record = read_run_record(folder)
    found = MlflowClient(record.tracking_uri).get_metric_history(record.run_id, name)
    return [metric.value for metric in sorted(found, key=lambda metric: metric.step)]


def _memory_of_workers(driver: int) -> list[float]:
    """GiB that each worker does not share with others."""
    found = []
    try:
        for process in psutil.Process(driver).children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()[:1]):
                memory = process.memory_info()
                found.append((memory.rss - memory.shared) / 2**30)
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return found
