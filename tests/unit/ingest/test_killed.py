"""A killed ingest leaves no store, and the next one neither minds nor keeps what it left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_inputs import good_screen
from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import open_store, verify

WAITS_IN = """
import sys, time
from pathlib import Path
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest

def report(what, done, total):
    if what == sys.argv[3]:
        print("there", flush=True)
        time.sleep(600)

ingest(IngestConfig(sources=(Path(sys.argv[1]),), store=Path(sys.argv[2])), progress=report)
"""


def _start(source: Path, store: Path, phase: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WAITS_IN, str(source), str(store), phase]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.process
@pytest.mark.parametrize("phase", ["check and measure", "write"])
def test_a_killed_ingest_leaves_no_store_and_the_next_succeeds(tmp_path: Path, phase: str) -> None:
    source, store = tmp_path / "screen.h5ad", tmp_path / "screen.zarr"
    good_screen().write_h5ad(source)
    _end(_start(source, store, phase))
    assert not store.exists()
    left = [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert len(left) == 1
    ingest(IngestConfig(sources=(source,), store=store))
    verify(store)
    assert open_store(store).num_cells == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["screen.h5ad", "screen.zarr"]


@pytest.mark.process
def test_an_ingest_at_work_is_not_disturbed_by_another(tmp_path: Path) -> None:
    source, store = tmp_path / "screen.h5ad", tmp_path / "screen.zarr"
    good_screen().write_h5ad(source)
    process = _start(source, store, "write")
    try:
        (folder,) = tmp_path.glob(".screen.zarr.*.partial")
        ingest(IngestConfig(sources=(source,), store=store))
        assert (folder / "shards" / "0" / "value").is_file()
    finally:
        _end(process)
    verify(store)


def test_a_store_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    source, store = tmp_path / "screen.h5ad", tmp_path / "screen.zarr"
    good_screen().write_h5ad(source)

    def another_is_faster(what: str, done: int, total: int) -> None:
        if what == "write" and not store.exists():
            store.mkdir()
            (store / "theirs").write_text("")

    with pytest.raises(InputError, match=r"screen\.zarr: appeared while"):
        ingest(IngestConfig(sources=(source,), store=store), progress=another_is_faster)
    assert (store / "theirs").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["screen.h5ad", "screen.zarr"]
