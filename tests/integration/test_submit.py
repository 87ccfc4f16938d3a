"""A pipeline as a Ray Job on a cluster with a token: driver killed, job killed, submitted again, twice."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import requests
import yaml
from mlflow.tracking import MlflowClient

from tests.journey import TXPERT
from tests.real_screens import ALIASES, PAPALEXI, STRING, missing
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.config_file import dump, load
from txpert_dist.train.tune_study import read_trials

pytestmark = [pytest.mark.process, pytest.mark.real, pytest.mark.timeout(1500)]

PATIENCE_S = 600
RUN = {
    "name": "papalexi",
    "model": {
        "latent": 16,
        "basal": {"kind": "identity"},
        "perturbation": {"kind": "gat", "layers": 1, "hidden": 8, "heads": 1, "node_features": 8},
        "decoder": {"hidden": 32},
        "norm": "layer",
    },
    "train": {"epochs": 500, "minibatch_size": 512},
}
PIPELINE = {
    "ingest": {
        "sources": [str(PAPALEXI.file.absolute())],
        "store": "screen.zarr",
        "perturbation_key": "target",
        "control_label": "non-targeting",
        "batch_key": "bio_rep",
        "cell_line": "THP-1",
        "select_genes": 0,
    },
    "graphs": {
        "recipe": {
            "aliases": {"path": str(ALIASES.absolute())},
            "graphs": [
                {
                    "name": "string",
                    "source": {"kind": "edges", "path": str(STRING.absolute()), "minimum_weight": 900},
                }
            ],
        }
    },
    "run": RUN,
    # a model of a few seconds beats no baseline
    "registry": {"name": "submitted", "alias": "champion", "force": True},
}
STAGES = ("1/5 ingest", "2/5 graphs", "3/5 train", "4/5 evaluate", "5/5 register")


class Cluster(NamedTuple):
    """A Ray with a token, and a user's folder outside the repository."""

    address: str
    token: str
    ray: Path
    """Ray's own files."""
    home: Path
    """Where the user stands: holds the token's file, pipeline.yaml and all results."""

    @property
    def run(self) -> Path:
        return self.home / "runs" / RUN["name"]

    def txpert(self, *arguments: object, token_file: str = "token") -> subprocess.CompletedProcess[str]:
        """A verb as its user gives it: no more in the environment than a token's file."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_TOKEN_PATH": str(self.home / token_file),
        }
        return subprocess.run(
            [str(TXPERT), *map(str, arguments)],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def log(self, job: str) -> str:
        """What a job has written, without asking anybody."""
        return (self.ray / "session_latest" / "logs" / f"job-driver-{job}.log").read_text()

    def told(self) -> str:
        """All that the job server tells of its jobs to whoever holds the token."""
        header = {"Authorization": f"Bearer {self.token}"}
        return requests.get(f"{self.address}/api/jobs/", headers=header, timeout=60).text

    def processes(self, text: str) -> list[psutil.Process]:
        """Processes of this cluster's jobs with ``text`` in their command line, but for shells."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                inside = Path(process.cwd()).is_relative_to(self.ray)
                if inside and process.name() != "sh" and text in " ".join(process.cmdline()):
                    found.append(process)
        return found


def free_ports(number: int) -> list[int]:
    with ExitStack() as opened:
        listeners = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.5)


def end(ray: subprocess.Popen[bytes]) -> None:
    """Let Ray end its processes; it waits half a minute for some, we do not."""
    everybody = psutil.Process(ray.pid).children(recursive=True)
    ray.terminate()
    with suppress(subprocess.TimeoutExpired):
        ray.wait(5)
    for process in everybody:
        with suppress(psutil.Error):
            process.kill()
    ray.kill()
    ray.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    absent = missing(PAPALEXI)
    if absent:
        pytest.skip(f"TXPERT_SHARED_DATA lacks {', '.join(absent)}")
    home = tmp_path_factory.mktemp("home")
    token = os.urandom(16).hex()
    (home / "token").write_text(token)
    (home / "wrong").write_text("0" * 32)
    (home / "pipeline.yaml").write_text(yaml.safe_dump(PIPELINE))
    port, dashboard, agent, client = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home / "token"),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        }
        environment.pop("PYTHONPATH", None)
        command = [
            *("ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        ]
        with (home / "ray.log").open("w") as log:
            ray = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home)
        made = Cluster(f"http://127.0.0.1:{dashboard}", token, Path(folder), home)
        try:
            wait_for(lambda: made.txpert("jobs", "list").returncode == 0 or ray.poll() is not None, "Ray")
            assert ray.poll() is None, (home / "ray.log").read_text()
            yield made
        finally:
            end(ray)
            left = Path("/tmp/ray/ray_current_cluster")  # Ray would attach to it, dead as it is
            if left.exists() and left.read_text().strip().endswith(f":{port}"):
                left.unlink()


def test_a_wrong_token_and_none_are_one_line(cluster: Cluster) -> None:
    for file, verb in (("wrong", ("submit", "pipeline", "pipeline.yaml")), ("absent", ("jobs", "list"))):
        done = cluster.txpert(*verb, token_file=file)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith(f"error: {cluster.address}: ")
        assert "token" in line
        assert "RAY_AUTH_TOKEN_PATH" in line
        assert done.stdout == ""


def test_a_job_is_listed_and_stopped(cluster: Cluster) -> None:
    (cluster.home / "run.yaml").write_text("name: stopped\ndata: {store: s.zarr}\ngraph: {location: g}\n")
    job = cluster.txpert("submit", "train", "run.yaml", "--detach").stdout.strip()
    assert job == "train-stopped"
    stopped = cluster.txpert("jobs", "stop", job)
    assert stopped.returncode == 0, stopped.stderr
    ended = cluster.txpert("jobs", "logs", job, "--follow")
    assert ended.returncode in (1, 2)  # stopped, or it found out before that there is no store
    (line,) = [row for row in cluster.txpert("jobs", "list").stdout.splitlines() if job in row]
    assert ("STOPPED" if ended.returncode == 1 else "FAILED") in line
    unknown = cluster.txpert("jobs", "logs", "train-nobody")
    assert unknown.returncode == 2
    assert len(unknown.stderr.strip().splitlines()) == 1


def checkpoints(cluster: Cluster) -> list[str]:
    return sorted(path.name for path in (cluster.run / "checkpoints").glob("epoch-*"))


def a_newer_checkpoint(cluster: Cluster) -> str:
    """Wait until training has come further than it is, and say how far."""
    before = checkpoints(cluster)[-1:]
    wait_for(lambda: checkpoints(cluster)[-1:] > before, "a checkpoint")
    return checkpoints(cluster)[-1]


def registry(cluster: Cluster) -> MlflowClient:
    return MlflowClient(f"sqlite:///{cluster.home / 'runs' / 'mlflow.db'}")


def results(cluster: Cluster) -> list[Path]:
    """What the stages made, but for what merely records that they were looked at."""
    parts = (cluster.home / "screen.zarr", cluster.home / "graphs", *cluster.run.glob("[!.]*/"))
    return [path for part in parts for path in part.rglob("*") if path.is_file() and path.name[0] != "."]


@pytest.fixture(scope="module")
def killed(cluster: Cluster) -> str:
    """The log of a pipeline whose driver was killed, and then its whole job, in the midst of training."""
    submit_twice_at_once(cluster)
    a_newer_checkpoint(cluster)
    other = cluster.txpert("submit", "pipeline", "pipeline.yaml", "run.seed=7", "--detach")
    assert other.returncode == 2
    assert "another configuration" in other.stderr.strip().splitlines()[-1]

    (driver,) = cluster.processes("-m txpert_dist.cli.app")
    driver.kill()
    wait_for(lambda: cluster.log("pipeline-papalexi").count("start workers: 3 of 3") == 2, "new workers")
    a_newer_checkpoint(cluster)
    (supervisor,) = cluster.processes("-m txpert_dist.cli.attempts")
    supervisor.kill()
    dead = cluster.txpert("jobs", "logs", "pipeline-papalexi", "--follow")
    assert dead.returncode not in (0, 2)
    assert "job pipeline-papalexi failed" in dead.stderr.strip().splitlines()[-1]
    return dead.stdout


@pytest.fixture(scope="module")
def last(cluster: Cluster, killed: str) -> tuple[int, int]:
    """Epoch and step of the killed pipeline's last checkpoint, once nothing of it goes on any more."""
    for text in ("-m txpert_dist.cli.app", "RayTrainWorker"):
        wait_for(lambda text=text: not cluster.processes(text), f"end of {text}")
    epoch, step = map(int, re.findall(r"\d+", checkpoints(cluster)[-1]))
    return epoch, step


@pytest.fixture(scope="module")
def done(cluster: Cluster, last: tuple[int, int]) -> subprocess.CompletedProcess[str]:
    """The same pipeline submitted again, to end one epoch later."""
    return cluster.txpert("submit", "pipeline", "pipeline.yaml", one_more(last))


def one_more(last: tuple[int, int]) -> str:
    return f"run.train.epochs={last[0] + 1}"


def submit_twice_at_once(cluster: Cluster) -> None:
    """One run has one job, whoever is faster."""
    verb = ("submit", "pipeline", "pipeline.yaml", "--detach", "--attempts", 2)
    with ThreadPoolExecutor() as users:
        both = [user.result() for user in [users.submit(cluster.txpert, *verb) for _ in range(2)]]
    assert [user.stdout.strip() for user in both] == ["pipeline-papalexi"] * 2, both
    told = sorted(user.stderr.strip().removeprefix("job pipeline-papalexi ") for user in both)
    assert told == ["is under way already", "submitted"]


def test_a_driver_that_dies_is_started_again(killed: str) -> None:
    assert "attempt 1 of 2 ended with exit code 137" in killed
    for stage in STAGES[:2]:
        assert killed.count(f"{stage}: done") == 1
        assert killed.count(f"{stage}: complete before, nothing to do") == 1


def test_a_dead_job_submitted_again_ends_with_a_registered_model(
    cluster: Cluster, last: tuple[int, int], done: subprocess.CompletedProcess[str]
) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "job pipeline-papalexi-2 submitted" in done.stderr
    assert f"went on from step {last[1]:,}" in done.stdout
    for stage in STAGES[:2]:
        assert f"{stage}: complete before, nothing to do" in done.stdout
    for stage in STAGES[2:]:
        assert f"{stage}: done" in done.stdout
    model = registry(cluster).get_model_version_by_alias("submitted", "champion")
    assert model.tags["smoke_tested"] == "true"


def test_submitted_once_more_it_does_nothing_but_say_so(
    cluster: Cluster, last: tuple[int, int], done: subprocess.CompletedProcess[str]
) -> None:
    assert done.returncode == 0
    files = {path: path.stat().st_mtime_ns for path in results(cluster)}
    again = cluster.txpert("submit", "pipeline", "pipeline.yaml", one_more(last))
    assert again.returncode == 0, again.stdout + again.stderr
    for stage in STAGES:
        assert f"{stage}: complete before, nothing to do" in again.stdout
    assert "every stage was complete before, nothing to do" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in results(cluster)} == files
    assert len(registry(cluster).search_model_versions("name = 'submitted'")) == 1


def test_a_study_is_a_job_too(cluster: Cluster) -> None:
    config = configuration(
        write_inputs(cluster.home / "small"), cluster.home / "studies", train={"epochs": 2}
    )
    (cluster.home / "small.yaml").write_text(dump(config))
    space = {"optimiser.learning_rate": {"log_uniform": [1e-4, 1e-1]}}
    (cluster.home / "space.yaml").write_text(yaml.safe_dump(space))
    order = ("submit", "tune", "small.yaml", "--trials", 2, "--parallel", 1, "--space", "space.yaml")
    done = cluster.txpert(*order)
    assert done.returncode == 0, done.stdout + done.stderr
    study = cluster.home / "studies" / "small-tune"
    trials = read_trials(study)
    assert [trial.ending for trial in trials] == ["complete", "complete"]
    winner = max(trials, key=lambda trial: trial.best)
    assert f"{winner.best:.4f}" in done.stdout
    assert load(study / "best.yaml").name == "small-best"
    again = cluster.txpert(*order)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "every trial had ended before: nothing to do" in again.stdout


def test_the_token_is_nowhere(cluster: Cluster, killed: str, done: subprocess.CompletedProcess[str]) -> None:
    assert cluster.token not in killed + done.stdout + done.stderr
    assert cluster.token not in cluster.told()
    assert "pipeline-papalexi-2" in cluster.told()
    secret = cluster.token.encode()
    files = [path for path in cluster.home.rglob("*") if path.is_file() and path.name != "token"]
    logs = [path for path in cluster.ray.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in (*files, *logs) if secret in path.read_bytes()] == []
