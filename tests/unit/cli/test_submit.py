"""Submitting without a cluster: what is sent, what is refused before, and how a driver is started again."""

import http.server
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from txpert_dist.cli import attempts
from txpert_dist.cli.app import main
from txpert_dist.cli.job_package import CONFIG, write_package
from txpert_dist.cli.pipeline_config import Pipeline, load_pipeline
from txpert_dist.cli.submit import Search, _order
from txpert_dist.cli.tune_config import load_tuning
from txpert_dist.config_file import dump
from txpert_dist.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
RUN = {"name": "one", "data": {"store": "s.zarr"}, "graph": {"location": "graphs"}}


def test_the_package_runs_elsewhere_and_holds_nothing_but_code_and_configuration(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_package(tmp_path / name, "name: one\n", "c0ffee")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    write_package(tmp_path / "c.zip", "name: other\n", "c0ffee")
    assert (tmp_path / "a.zip").read_bytes() != (tmp_path / "c.zip").read_bytes()

    job = tmp_path / "job"
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        package.extractall(job)
    files = {path.relative_to(job) for path in job.rglob("*") if path.is_file()}
    expected = {
        path.relative_to(ROOT)
        for folder in ("txpert_dist", "graph_store")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    beside = {path for path in files - expected if path.parts[0] not in ("txpert_dist", "graph_store")}
    assert expected == files - beside
    assert {path.name for path in beside} == {CONFIG, "METADATA", "direct_url.json"}
    assert (job / CONFIG).read_text() == "name: one\n"

    shown = subprocess.run(
        [sys.executable, "-m", "txpert_dist.cli.app", "--version"],
        cwd=job,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(job)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith("txpert-dist ")
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import txpert_dist, graph_store, importlib.metadata as m; d = m.distribution('txpert-dist'); "
            "print(txpert_dist.__file__, graph_store.__file__, d.version, d.read_text('direct_url.json'))",
        ],
        cwd=job,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.count(str(job)) == 2
    assert "c0ffee" in told.stdout


def supervisor(driver: list[str], number: int) -> list[str]:
    """The command of a process that starts ``driver`` at most so often."""
    program = (
        f"from txpert_dist.cli.attempts import supervise; raise SystemExit(supervise({driver}, {number}))"
    )
    return [sys.executable, "-c", program]


def drive(folder: Path, codes: list[int], number: int) -> tuple[int, int, str]:
    """Supervise a driver that ends with these codes in turn: last code, number of starts, what was said."""
    count = folder / "count"
    count.write_text("")
    (folder / "driver.py").write_text(
        textwrap.dedent(f"""
        import os, signal
        count = {str(count)!r}
        with open(count, "a") as file:
            file.write("x")
        code = {codes}[len(open(count).read()) - 1]
        if code < 0:
            os.kill(os.getpid(), -code)
        raise SystemExit(code)
        """)
    )
    command = supervisor([sys.executable, str(folder / "driver.py")], number)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, len(count.read_text()), done.stderr


@pytest.mark.parametrize(
    ("codes", "number", "last", "starts"),
    [
        ([0], 3, 0, 1),
        ([1, -9, 0], 3, 0, 3),
        ([1, -9, 0], 2, 137, 2),
        ([2, 0], 3, 2, 1),
        ([1, 2, 0], 3, 2, 2),
        ([-11], 1, 139, 1),
    ],
)
def test_a_driver_is_started_again_unless_the_user_is_asked(
    tmp_path: Path, codes: list[int], number: int, last: int, starts: int
) -> None:
    code, started, said = drive(tmp_path, codes, number)
    assert (code, started) == (last, starts)
    assert said.count("starting again") == starts - 1


@contextmanager
def supervised(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A supervisor whose driver notes its process id and waits."""
    noted = folder / "drivers"
    noted.write_text("")
    driver = f"import os, time; open({str(noted)!r}, 'a').write(str(os.getpid()) + chr(10)); time.sleep(600)"
    with subprocess.Popen(supervisor([sys.executable, "-c", driver], 5)) as process:
        try:
            wait_for(lambda: noted.read_text().endswith("\n"))
            yield process, noted
        finally:
            process.kill()


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_job_that_is_told_to_stop_is_not_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path) as (process, noted):
        (driver,) = map(int, noted.read_text().split())
        for pid in (process.pid, driver):  # as Ray does it: every process of the job
            os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert noted.read_text().split() == [str(driver)]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_a_driver_ends_with_its_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path) as (process, noted):
        (driver,) = map(int, noted.read_text().split())
        assert alive(driver)
        process.kill()
        process.wait()
        wait_for(lambda: not alive(driver))


def test_a_variable_that_the_cluster_lacks_is_named(tmp_path: Path) -> None:
    command = attempts.command(3, ["TXPERT_THERE", "TXPERT_ABSENT"], ["config", "--keys"])
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]],
        env={**os.environ, "TXPERT_THERE": "the value"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: TXPERT_ABSENT: not set on the cluster")
    assert "the value" not in done.stderr + done.stdout


class NoRay(http.server.BaseHTTPRequestHandler):
    """A web server that is no Ray, and one that lets nobody in."""

    def do_GET(self) -> None:
        forbidden = self.server.server_port == getattr(self.server, "forbidden", None)
        self.send_response(403 if forbidden else 200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def web_server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoRay) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user stands, with no cluster in the environment."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    # what the verb sets in its own process must not stay in this one
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    return tmp_path


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a verb ends with."""
    monkeypatch.setattr(sys, "argv", ["txpert", *arguments])
    with pytest.raises(SystemExit) as ending:
        main()
    shown = capsys.readouterr()
    assert ending.value.code == 2, shown.err
    (line,) = shown.err.strip().splitlines()
    assert shown.out == ""
    return line


NOBODY = "--address=http://127.0.0.1:1"
REFUSED = [
    (["submit", "train", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
    (["submit", "train", "run.yaml", "train.epoch=3"], ["train.epoch", "did you mean train.epochs?"]),
    (["submit", "pipeline", "run.yaml"], ["run.yaml", "ingest"]),
    (["submit", "train", "run.yaml", "--trials=3"], ["--trials", "for tune, not train"]),
    (["submit", "tune", "run.yaml", "--space=nowhere"], ["nowhere", "a preset: default,"]),
    (["submit", "tune", "run.yaml", "train.epoch=3"], ["train.epoch", "did you mean train.epochs?"]),
    (
        ["submit", "train", "run.yaml", "tracking.uri=https://me:hunter2@mlflow.example"],
        ["run.yaml", "password", "--env"],
    ),
    (["submit", "train", "run.yaml", "--env", "MLFLOW_TRACKING_PASSWORD=hunter2"], ["--env NAME"]),
    (["submit", "train", "run.yaml", NOBODY], ["http://127.0.0.1:1", "no Ray cluster", "--address"]),
    (["jobs", "list", NOBODY], ["http://127.0.0.1:1", "no Ray cluster"]),
    (["jobs", "list", "--address=http://"], ["is no address"]),
    (["jobs", "stop", "x", "--address=127.0.0.1:99999"], ["is no address"]),
]


@pytest.mark.parametrize(("arguments", "expected"), REFUSED)
def test_what_cannot_be_submitted_is_one_line(
    folder: Path,
    arguments: list[str],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(folder.iterdir())
    line = refused(arguments, monkeypatch, capsys)
    for fragment in expected:
        assert fragment in line
    assert "hunter2" not in line
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("forbidden", [False, True])
def test_what_is_no_ray_or_lets_nobody_in_is_one_line(
    folder: Path,
    web_server: http.server.ThreadingHTTPServer,
    forbidden: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = f"http://127.0.0.1:{web_server.server_port}"
    if forbidden:
        web_server.forbidden = web_server.server_port
    line = refused(["jobs", "list", f"--address={address}"], monkeypatch, capsys)
    assert line.startswith(f"error: {address}: ")
    assert ("RAY_AUTH_TOKEN_PATH" if forbidden else "does not answer as one") in line


def test_a_resolved_study_means_the_same_in_another_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "space.yaml").write_text("model.latent: {choice: [8, 16]}")
    search = Search(trials=3, space="space.yaml")
    order = _order("tune", Path("run.yaml"), ["train.epochs=7"], search)
    assert order.arguments == ("tune", CONFIG)
    assert order.folder == folder / "runs" / "one-tune"
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / CONFIG).write_text(order.config)
    monkeypatch.chdir(folder / "elsewhere")
    study = load_tuning(Path(CONFIG))
    assert (study.trials, study.parallel) == (3, None)
    assert study.space == {"model.latent": {"choice": [8, 16]}}
    assert study.run.data.store == folder / "s.zarr"
    assert study.run.train.epochs == 7
    changed = load_tuning(Path(CONFIG), ["train.epochs=9"], trials=5, space="gat")
    assert (changed.trials, changed.run.train.epochs) == (5, 9)
    assert "model.perturbation.heads" in changed.space


PIPELINE = {
    "ingest": {"sources": ["screen.h5ad"], "store": "s.zarr"},
    "graphs": {"recipe": {"graphs": [{"name": "kg", "source": {"kind": "edges", "path": "kg.csv"}}]}},
    "run": {"name": "one", "train": {"epochs": 3}},
}


def write(folder: Path, **sections: object) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({**PIPELINE, **sections}))
    return file


def test_a_resolved_pipeline_means_the_same_in_another_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = load_pipeline(write(folder))
    assert here.run.data.store == here.ingest.store == folder / "s.zarr"
    assert here.run.graph.location == str(here.graphs.out) == str(folder / "graphs")
    assert here.graphs.recipe.graphs[0].source.path == folder / "kg.csv"
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "job.yaml").write_text(dump(here))
    monkeypatch.chdir(folder / "elsewhere")
    assert load_pipeline(Path("job.yaml")) == here


def test_a_recipe_s_file_goes_with_the_pipeline(folder: Path) -> None:
    (folder / "recipes").mkdir()
    recipe = folder / "recipes" / "graphs.yaml"
    recipe.write_text(yaml.safe_dump(PIPELINE["graphs"]["recipe"]))
    found = load_pipeline(write(folder, graphs={"recipe": "recipes/graphs.yaml", "out": "other"}))
    assert found.graphs.recipe.graphs[0].source.path == folder / "recipes" / "kg.csv"
    assert found.run.graph.location == str(folder / "other")


@pytest.mark.parametrize(
    ("overrides", "fragment"),
    [
        (["run.data.store=other.zarr"], "run.data.store=other.zarr is not what ingest.store=s.zarr makes"),
        (["run.graph.location=elsewhere"], "run.graph"),
        (["run.graph.snapshot=0123"], "run.graph"),
        (["run.train.epoch=3"], "did you mean run.train.epochs?"),
        (["ingest.perturbation_ky=x"], "did you mean ingest.perturbation_key?"),
        (["registry.alis=x"], "did you mean registry.alias?"),
        (["evaluate.split=all"], "evaluate.split"),
        (["ingest=7"], "ingest"),
    ],
)
def test_a_pipeline_that_contradicts_itself_is_refused(
    folder: Path, overrides: list[str], fragment: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_pipeline(write(folder), overrides)
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_sections_that_are_left_out_have_defaults(folder: Path) -> None:
    found: Pipeline = load_pipeline(write(folder))
    assert (found.evaluate.split, found.registry.name, found.registry.alias) == ("test", "txpert", None)
