"""Services that are killed, stopped and started again while real clients wait for them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pyarrow.flight as flight
import pytest

from graph_store import remote, snapshot
from graph_store.client import Access, build_remotely, describe, list_snapshots, snapshot_folder
from graph_store.graph import GraphError
from graph_store.protocol import FileTicket
from graph_store.record import read_record, snapshot_ids
from graph_store.service.settings import Limits
from tests.unit.graph_store.services import (
    RECIPE,
    TOKEN,
    TXPERT,
    access,
    proxy,
    running,
    serving,
    write_snapshot,
    write_source,
)
from txpert_dist.cli.app import main

pytestmark = pytest.mark.process


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def until(condition, seconds=30):
    """Wait for something that will happen, however busy the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def identity(graphs):
    return write_snapshot(graphs, num_genes=2000, num_edges=200_000)


def test_a_service_killed_in_mid_transfer_is_gone_on_with(graphs, identity, tmp_path):
    with ThreadPoolExecutor(1) as pool, serving(graphs) as first, proxy(first.port, 3_000_000) as between:
        fetching = pool.submit(snapshot_folder, between.location, identity, access(tmp_path))
        assert between.held.wait(20)
        first.kill()
        assert not (tmp_path / identity).exists()
        with serving(graphs) as second:
            between.target = second.port
            between.release()
            fetched = fetching.result(timeout=60)
            total = sum(file.size for file in read_record(fetched).files.values())
            assert 0 < second.metric("txpert_graph_sent_bytes_total") < total
    assert content(fetched) == content(graphs / identity)
    assert snapshot.read(fetched).id == identity


def test_a_client_killed_in_mid_transfer_goes_on_where_it_was(graphs, identity, tmp_path):
    command = [*TXPERT, "graph", "fetch", identity, f"--out={tmp_path / 'out'}"]
    with serving(graphs) as service:
        with proxy(service.port, 3_000_000) as between:
            client = subprocess.Popen([*command, f"--location={between.location}"])
            assert between.held.wait(60)
            while not any(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file()):
                assert client.poll() is None  # what it was sent is on its way to the disk
                time.sleep(0.02)
            client.kill()
            client.wait()
        assert snapshot_ids(tmp_path / "out") == ()
        before = service.metric("txpert_graph_sent_bytes_total")
        done = subprocess.run(
            [*command, f"--location={service.location}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        total = sum(file.size for file in read_record(graphs / identity).files.values())
        assert service.metric("txpert_graph_sent_bytes_total") - before < total
    assert content(tmp_path / "out" / identity) == content(graphs / identity)


def test_processes_of_a_node_fetch_a_snapshot_once(graphs, identity, tmp_path):
    code = (
        "import sys; from pathlib import Path; from graph_store.client import Access, open_snapshot;"
        "print(open_snapshot(sys.argv[1], sys.argv[2], Access(cache=Path(sys.argv[3]))).id)"
    )
    with serving(graphs) as service:
        arguments = [sys.executable, "-c", code, service.location, identity, str(tmp_path)]
        clients = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [client.communicate()[0].strip() for client in clients] == [identity] * 3
        total = sum(file.size for file in read_record(graphs / identity).files.values())
        assert service.metric("txpert_graph_sent_bytes_total") == total


def held_source(folder):
    """Sources whose file nobody can read to the end, until it is replaced: a build of it waits."""
    write_source(folder)
    (folder / "a.csv").rename(folder / "kept")
    os.mkfifo(folder / "a.csv")


def release_source(folder):
    (folder / "kept").replace(folder / "a.csv")


def test_a_service_killed_in_mid_build_builds_again(tmp_path):
    held_source(tmp_path / "sources")
    recipe = tmp_path / "graphs.yaml"
    recipe.write_text(json.dumps(RECIPE))
    options = (f"--sources={tmp_path / 'sources'}",)
    started = threading.Event()
    with (
        ThreadPoolExecutor(1) as pool,
        serving(tmp_path / "graphs", *options) as first,
        proxy(first.port, 1 << 40) as between,
    ):
        building = pool.submit(
            build_remotely, between.location, recipe, lambda *_: started.set(), access(None)
        )
        assert started.wait(30)
        until(lambda: psutil.Process(first.process.pid).children())
        (worker,) = psutil.Process(first.process.pid).children()
        first.kill()
        until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        assert snapshot_ids(tmp_path / "graphs") == ()
        release_source(tmp_path / "sources")
        with serving(tmp_path / "graphs", *options) as second:
            between.target = second.port
            done = building.result(timeout=60)
            assert [entry.id for entry in list_snapshots(second.location)] == [done.id]
            fetched = snapshot_folder(second.location, done.id, access(tmp_path / "cache"))
    assert snapshot.read(fetched).id == done.id


COUNTING_WORKER = """
import sys, time
from pathlib import Path
log, gate = Path(sys.argv[1]), Path(sys.argv[2])
with log.open("a") as stream:
    stream.write("started\\n")
while not gate.exists():
    time.sleep(0.02)
from graph_store.service.build_worker import main
main()
"""


def test_two_callers_one_build(tmp_path):
    log, gate = tmp_path / "log", tmp_path / "gate"
    command = (sys.executable, "-c", COUNTING_WORKER, str(log), str(gate))
    sources = write_source(tmp_path / "sources")
    other = {"graphs": [RECIPE["graphs"][0] | {"name": "b"}]}
    with running(tmp_path / "graphs", sources=sources, build_command=command) as service:
        asked = remote.Service(service.location)
        with ThreadPoolExecutor(9) as pool:
            same = [pool.submit(remote.build, asked, RECIPE, lambda *_: None) for _ in range(8)]
            until(log.exists)
            waits = pool.submit(remote.build, asked, other, lambda *_: None)
            until(lambda: remote.health(asked).builds == 2)
            active = "txpert_graph_active_requests"
            until(lambda: service.metrics.registry.get_sample_value(active) == 9)
            assert log.read_text() == "started\n"
            gate.touch()
            assert len({future.result(60) for future in same}) == 1
            assert waits.result(60).id != same[0].result().id
        assert log.read_text() == "started\n" * 2
        assert remote.health(asked).builds == 0


FAILING = {
    "killed": "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)",
    "silent": "import sys; sys.stdin.readline()",
    "deaf": "import os; os.close(0)",
    "traceback": "raise ValueError('/srv/secret')",
}


@pytest.mark.parametrize("how", FAILING)
def test_a_build_that_dies_does_not_take_the_service_along(tmp_path, how):
    command = (sys.executable, "-c", FAILING[how])
    sources = write_source(tmp_path / "sources")
    with running(tmp_path / "graphs", sources=sources, build_command=command) as service:
        asked = remote.Service(service.location)
        with pytest.raises(GraphError, match="the build ended without a result"):
            remote.build(asked, RECIPE, lambda *_: None)
        assert remote.health(asked).builds == 0
        assert remote.list_snapshots(asked) == ()


def test_a_build_has_the_memory_it_is_given_and_no_more(tmp_path):
    sources = write_source(tmp_path / "sources")
    limits = Limits(build_memory_bytes=1 << 20)
    with (
        running(tmp_path / "graphs", sources=sources, limits=limits) as service,
        pytest.raises(GraphError, match="more memory"),
    ):
        remote.build(remote.Service(service.location), RECIPE, lambda *_: None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_answers_end_and_takes_no_new_ones(graphs, identity, tmp_path, number):
    with (
        ThreadPoolExecutor(2) as pool,
        serving(graphs, "--drain-seconds=20") as service,
        proxy(service.port, 300_000) as between,
    ):
        fetching = pool.submit(fetch_largest, between.location, graphs / identity)
        assert between.held.wait(20)
        assert service.page("healthz") == "serving\n"
        stopping = pool.submit(service.stop, number)
        until(lambda: is_stopping(service))
        with pytest.raises(GraphError, match="does not answer"):
            describe(service.location, identity, access(None, patience_s=0.2))
        between.release()
        assert fetching.result(60)
        code, log = stopping.result(60)
    assert code == 0, log
    assert "Traceback" not in log


def fetch_largest(location, folder) -> bool:
    """Whether the largest file of the snapshot arrives whole, in one stream."""
    files = read_record(folder).files
    name = max(files, key=lambda name: files[name].size)
    with flight.FlightClient(location) as client:
        ticket = flight.Ticket(FileTicket(snapshot=folder.name, file=name).to_bytes())
        return client.do_get(ticket).read_all()["data"].to_numpy().tobytes() == (folder / name).read_bytes()


def is_stopping(service) -> bool:
    try:
        service.page("healthz")
    except OSError:
        return True
    return False


def test_answers_that_take_too_long_are_cut_off(graphs, identity):
    with (
        ThreadPoolExecutor(1) as pool,
        serving(graphs, "--drain-seconds=0.2") as service,
        proxy(service.port, 300_000) as between,
    ):
        fetching = pool.submit(fetch_largest, between.location, graphs / identity)
        assert between.held.wait(20)
        assert service.stop()[0] == 0
        between.release()
        assert isinstance(fetching.exception(60), flight.FlightUnavailableError)


def test_a_stop_ends_builds(tmp_path):
    held_source(tmp_path / "sources")
    with (
        ThreadPoolExecutor(1) as pool,
        serving(tmp_path / "graphs", f"--sources={tmp_path / 'sources'}") as service,
    ):
        started = threading.Event()
        asked = remote.Service(service.location, patience_s=0.2)
        building = pool.submit(remote.build, asked, RECIPE, lambda *_: started.set())
        assert started.wait(30)
        until(lambda: psutil.Process(service.process.pid).children())
        (worker,) = psutil.Process(service.process.pid).children()
        assert service.stop()[0] == 0
        until(lambda: not worker.is_running())
        assert isinstance(building.exception(60), GraphError)


@pytest.fixture
def txpert(monkeypatch, capsys):
    """Runs a verb of `txpert graph`: exit code, what it printed, its errors."""

    def run(*arguments: object, token: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["txpert", "graph", *map(str, arguments)])
        monkeypatch.delenv("TXPERT_GRAPH_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("TXPERT_GRAPH_TOKEN", token)
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code or 0, *capsys.readouterr()

    return run


def test_the_verbs_serve_build_list_and_fetch(tmp_path, txpert):
    source = write_source(tmp_path / "sources")
    recipe = tmp_path / "graphs.yaml"
    recipe.write_text(json.dumps(RECIPE))
    (tmp_path / "token").write_text(TOKEN + "\n")
    file = ("--token-file", tmp_path / "token")
    with serving(tmp_path / "graphs", f"--sources={source}", *map(str, file)) as service:
        there = ("--location", service.location)
        code, _, errors = txpert("build", recipe, *there)
        assert code == 2
        assert errors.splitlines()[-1].endswith(
            "asks for a token; set TXPERT_GRAPH_TOKEN or give --token-file"
        )
        code, built, errors = txpert("build", recipe, *there, *file)
        assert code == 0, errors
        (identity,) = snapshot_ids(tmp_path / "graphs")
        assert f"snapshot {identity} built at {service.location}" in built
        for place in (service.location, tmp_path / "graphs"):
            assert identity in txpert("list", place, token=TOKEN)[1]
        code, fetched, errors = txpert("fetch", *there, "--out", tmp_path / "out", token=TOKEN)
        assert code == 0, errors
        assert str(tmp_path / "out" / identity) in fetched
        assert content(tmp_path / "out" / identity) == content(tmp_path / "graphs" / identity)
        code, log = service.stop()
    assert code == 0
    assert TOKEN not in log + built + fetched
    code, _, errors = txpert("fetch", *there, "--out", tmp_path / "lost", "--patience=0.2")
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "does not answer" in errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--host=0.0.0.0"], "host 0.0.0.0 needs a token"),
        (["--token-file=nowhere"], "nowhere cannot be read"),
        (["--token-file=EMPTY"], "holds no token"),
        (["--tls-certificate=nowhere"], "nowhere cannot be read"),
        (["--sources=nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_options_of_serve_are_one_line(tmp_path, txpert, options, expected):
    (tmp_path / "empty").write_text("\n")
    options = [option.replace("EMPTY", str(tmp_path / "empty")) for option in options]
    code, _, errors = txpert("serve", tmp_path / "graphs", "--port=0", *options)
    assert code == 2
    assert expected in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    code, _, errors = txpert("fetch", "--location", tmp_path, "--out", tmp_path)
    assert (code, "is no address of a service" in errors) == (2, True)


def test_metrics_count_what_happened(graphs, identity, tmp_path):
    with serving(graphs) as service:
        snapshot_folder(service.location, identity, access(tmp_path))
        with pytest.raises(GraphError):
            describe(service.location, "0" * 32, Access(patience_s=1))
        files = read_record(graphs / identity).files
        until(lambda: service.metric("txpert_graph_active_requests") == 0)
        assert service.metric("txpert_graph_sent_bytes_total") == sum(file.size for file in files.values())
        assert service.metric("txpert_graph_snapshots") <= 1
        assert service.page("healthz") == "serving\n"
        assert service.metric("txpert_graph_snapshots") == 1
        # One describe, one stream of all files, and the describe that was refused.
        assert service.metric("txpert_graph_requests_total") == 3
        assert 'outcome="refused"' in service.page("metrics")
        with pytest.raises(OSError, match="404"):
            service.page("etc/passwd")
