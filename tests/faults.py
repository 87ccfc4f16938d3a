"""A run of `txpert train` to do harm to: its driver, its workers and the services it uses are real processes.

Enters: a folder. Leaves: a run, and ways to hurt it while it goes on, each of which says at what step it did.
Only processes that were started here are ever touched.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
from mlflow.tracking import MlflowClient

from tests.processes import run
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.config import Config
from txpert_dist.config_file import dump
from txpert_dist.train import checkpoint
from txpert_dist.train.tracking import read_run_record
from txpert_dist.train.worker import STARTING

TXPERT = [sys.executable, "-c", "from txpert_dist.cli.app import main; main()"]
TOKEN = "a-token-for-tests-0123456789"
PATIENCE_S = 600.0
RUN: dict[str, Any] = {
    # so that to write a checkpoint takes a while
    "model": {"basal": {"kind": "mlp", "hidden": 16384}},
    "optimiser": {"learning_rate": 1e-3},
    "train": {"log_every": 1, "checkpoint_every_epochs": 4, "checkpoint_every_steps": 30},
    "cluster": {"num_workers": 2, "max_failures": 100},
}
"""Sections of a run that is worth to be hurt."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "TXPERT_GRAPH_TOKEN": TOKEN,
}


def wait_for(condition: Callable[[], Any], what: str, every_s: float = 0.05) -> Any:
    """What ``condition`` says once it is true."""
    until = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < until, f"in vain: {what}"
        time.sleep(every_s)
    return found


class Service:
    """A server in a process group of its own, which can be killed and started again."""

    def __init__(self, command: list[str], log: Path, health: str) -> None:
        self._command, self._log, self._health = command, log, health
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; ``wait`` for it."""
        with self._log.open("a") as log:
            environment = os.environ | ENVIRONMENT | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        wait_for(self._answers, f"{self._health}; see {self._log}")

    def _answers(self) -> bool:
        try:
            with urlopen(self._health, timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> str:
        """kill -9 of all its processes."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        return "killed"


class Training:
    """One run, its driver started as often as need be."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder = folder
        self.inputs = folder / "inputs" if (folder / "inputs").exists() else write_inputs(folder / "inputs")
        self.config: Config = configuration(self.inputs, folder / "runs", **sections)
        (folder / "run.yaml").write_text(dump(self.config))
        self.driver: subprocess.Popen[str] | None = None
        self.starts = 0
        self._writer = 0  # which worker the writer is thought to be
        self._groups = 0  # before the last harm

    @property
    def run_folder(self) -> Path:
        return self.config.run_folder

    def start(self) -> None:
        """The same command as ever."""
        self.starts += 1
        with (self.folder / f"driver-{self.starts}.log").open("w") as log:
            self.driver = subprocess.Popen(
                [*TXPERT, "train", "run.yaml"],
                cwd=self.folder,
                env=os.environ | ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def log(self) -> str:
        """What the last start has told."""
        return (self.folder / f"driver-{self.starts}.log").read_text()

    def ended(self) -> int:
        """Exit code of the driver, waited for."""
        assert self.driver is not None
        return self.driver.wait(PATIENCE_S)

    def step(self) -> int:
        """The last step that this start has told of; 0 before the first."""
        with suppress(OSError, ValueError):
            for line in reversed((self.run_folder / "progress.jsonl").read_text().splitlines()):
                what, done, total = json.loads(line)
                if what == "train":
                    return int(done)
                if (what, done) == (STARTING, total):  # of another group are the steps before
                    return 0
        return 0

    def reached(self, step: int) -> int:
        """Wait until this start of the driver takes steps, beyond ``step``; the step it is at."""

        def there() -> int:
            assert self.driver is not None
            assert self.driver.poll() is None, f"exit code {self.driver.returncode}: {self.log()}"
            return self.step() if self.step() > step and self.workers() else 0

        return int(wait_for(there, f"step {step}"))

    def end(self) -> None:
        """Whatever it is at."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()

    def groups(self) -> int:
        """Groups of workers that this start of the driver has had."""
        with suppress(OSError):
            return (self.run_folder / "progress.jsonl").read_text().count(f'["{STARTING}", 3, 3]')
        return 0

    def replaced(self) -> None:
        """Wait for the group of workers that follows the one of the last harm."""
        wait_for(lambda: self.groups() > self._groups and self.step(), "workers started again")

    def workers(self) -> list[psutil.Process]:
        """The workers of this start's current group."""
        return self._processes("RayTrainWorker")

    def kill_worker(self, number: int) -> str:
        """kill -9 of one worker, and wait until it is replaced."""
        victims = wait_for(self._all_workers, "workers")
        self._groups = self.groups()
        victims[number % len(victims)].kill()
        return f"step {self.step()}"

    def kill_writer(self) -> str:
        """kill -9 of the worker that writes a checkpoint, while it does.

        Which one it is, shows: when it is halted, the checkpoint it is at stays unfinished.
        """
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            workers = wait_for(self._all_workers, "workers")
            partial = self._begun_checkpoint(left={path.name for path in self._partial()})
            if partial is None:
                continue
            writer = workers[self._writer % len(workers)]
            writer.suspend()
            time.sleep(0.5)
            if partial.exists():
                left = sorted(file.name for file in partial.iterdir())
                self._groups = self.groups()
                writer.kill()
                return f"step {self.step()}, with {', '.join(left) or 'nothing'} written"
            writer.resume()
            self._writer += 1
        raise AssertionError("no checkpoint was under way")

    def _partial(self) -> list[Path]:
        folder = self.run_folder / checkpoint.FOLDER
        with suppress(OSError), os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if entry.name.startswith(".partial-")]
        return []

    def _begun_checkpoint(self, *, left: set[str]) -> Path | None:
        """The next one but for what killed writers left, as soon as it has a file; None after a while."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for path in self._partial():
                with suppress(OSError):
                    if path.name not in left and os.listdir(path):
                        return path
            time.sleep(0.0005)
        return None

    def kill_driver(self) -> str:
        """kill -9 of the command itself; whatever it leaves is left."""
        assert self.driver is not None
        at = self.step()
        self.driver.kill()
        self.driver.wait()
        return f"step {at}"

    def kill_raylet(self) -> str:
        """kill -9 of Ray's daemon on the node, with which its workers die."""
        (raylet,) = self._processes("raylet/raylet")
        raylet.kill()
        return f"step {self.step()}"

    def tell_worker(self, number: int) -> str:
        """SIGTERM to one worker."""
        victims = wait_for(self._all_workers, "workers")
        victims[number % len(victims)].terminate()
        return f"step {self.step()}"

    def tell_driver(self) -> str:
        """SIGTERM to the command."""
        assert self.driver is not None
        self.driver.terminate()
        return f"step {self.step()}"

    def _all_workers(self) -> list[psutil.Process] | None:
        found = self.workers()
        return found if len(found) >= self.config.cluster.possible_workers[0] else None

    def _processes(self, text: str) -> list[psutil.Process]:
        assert self.driver is not None
        found = []
        with suppress(psutil.Error):
            for process in psutil.Process(self.driver.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if text in " ".join(process.cmdline()):
                        found.append(process)
        return found


@contextmanager
def with_services(folder: Path, *, epochs: int, workers: int) -> Iterator[tuple[Training, Service, Service]]:
    """A run whose graphs and records are services': the run, the graph service and the MLflow server."""
    mlflow_port, graph_port, health = _free_port(), _free_port(), _free_port()
    training = Training(
        folder,
        **RUN
        | {"train": RUN["train"] | {"epochs": epochs}, "cluster": RUN["cluster"] | {"num_workers": workers}},
        graph={"location": f"grpc://127.0.0.1:{graph_port}"},
        tracking={"uri": f"http://127.0.0.1:{mlflow_port}"},
    )
    mlflow = Service(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow_port)),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ],
        folder / "mlflow.log",
        f"http://127.0.0.1:{mlflow_port}/health",
    )
    graphs = Service(
        [
            *(*TXPERT, "graph", "serve", str(training.inputs / "graphs")),
            *(f"--port={graph_port}", f"--metrics-port={health}"),
        ],
        folder / "graphs.log",
        f"http://127.0.0.1:{health}/healthz",
    )
    try:
        for service in (graphs, mlflow):
            service.start()
        for service in (graphs, mlflow):
            service.wait()
        yield training, graphs, mlflow
    finally:
        training.end()
        for service in (graphs, mlflow):
            service.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def losses_of(run_folder: Path) -> dict[int, float]:
    """A run's loss curve as MLflow has it; every step at most once."""
    record = read_run_record(run_folder)
    history = MlflowClient(record.tracking_uri).get_metric_history(record.run_id, "train/loss")
    assert len({point.step for point in history}) == len(history), "a step was recorded twice"
    return {point.step: point.value for point in history}


def undisturbed(
    config: Config, folder: Path, *, workers: int, max_steps: int | None = None
) -> tuple[dict[int, float], Path]:
    """The same run without Ray, MLflow or any fault: its loss curve and last checkpoint."""
    losses = run(_fit, workers, config, folder, max_steps, timeout=PATIENCE_S)[0]
    return losses, checkpoint.checkpoints(folder / config.name)[-1]


def same_files(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights and the same optimiser, bit for bit."""
    files = (checkpoint.WEIGHTS, checkpoint.OPTIMISER)
    return all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


def _fit(_rank: int, _world: int, config: Config, folder: Path, max_steps: int | None) -> dict[int, float]:
    import torch

    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    graph = config.graph.model_copy(update={"location": str(config.data.store.parent / "graphs")})
    train = config.train.model_copy(update={"checkpoint_mirror": None})
    config = config.model_copy(update={"output": folder, "graph": graph, "train": train})
    losses: dict[int, float] = {}

    def note(values: Mapping[str, float], step: int) -> None:
        if "train/loss" in values:
            losses[step] = values["train/loss"]

    hooks = Hooks(progress=lambda *_: None, metrics=note, epoch=lambda *_: None)
    fit(config, open_inputs(config), device=torch.device("cpu"), hooks=hooks, max_steps=max_steps)
    return losses
