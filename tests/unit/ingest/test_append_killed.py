"""A killed append leaves the store as it was or complete, and the next one clears up."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.ingest.append_screens import FIRST, Batch, appended, ingested, screen_of, written
from txpert_dist.errors import InputError
from txpert_dist.store.cells import open_store, verify

WAITS_IN = """
import sys, time
from pathlib import Path
from tests.unit.ingest.append_screens import KEYS, SMALL
from txpert_dist.ingest.append import append
from txpert_dist.ingest.config import AppendConfig

def report(what, done, total):
    if what == sys.argv[3]:
        print("there", flush=True)
        time.sleep(600)

config = AppendConfig(store=Path(sys.argv[1]), sources=(Path(sys.argv[2]),), **KEYS)
append(config, progress=report, sizes=SMALL)
"""

ONE_AFTER_THE_OTHER = """
import sys
from pathlib import Path
from tests.unit.ingest.append_screens import appended

print("there", flush=True)
for source in sys.argv[2:]:
    appended(Path(sys.argv[1]), Path(source))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and files of one new batch each."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "store").mkdir()
    ingested(folder / "store" / "a.zarr", written(folder / "a.h5ad", screen_of(FIRST)))
    for number in range(6):
        batch = Batch("K562", f"new{number}", 30, True, ("STAT1", "IRF1", f"X{number}"))
        written(folder / f"{number}.h5ad", screen_of([batch], number + 1))
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "store", tmp_path / "store")
    return tmp_path / "store" / "a.zarr"


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def beside(store: Path) -> list[str]:
    return sorted(path.name for path in store.parent.iterdir() if path != store)


def batches(store: Path) -> list[str]:
    return [context.batch for context in open_store(store).contexts]


@pytest.mark.process
@pytest.mark.parametrize("phase", ["check and measure", "write"])
def test_a_killed_append_leaves_the_store_as_it_was(made: Path, store: Path, phase: str) -> None:
    before = open_store(store).manifest_hash
    end(start(WAITS_IN, store, made / "0.h5ad", phase))
    assert len(beside(store)) == 1
    assert open_store(store).manifest_hash == before
    verify(store)
    appended(store, made / "0.h5ad")
    assert batches(store) == ["1", "2", "new0"]
    verify(store)
    assert beside(store) == []


@pytest.mark.process
def test_killed_at_any_moment_the_store_is_whole_and_goes_on_from_there(made: Path, store: Path) -> None:
    rng, files = random.Random(0), [made / f"{number}.h5ad" for number in range(6)]
    while (done := len(batches(store)) - 2) < 6:
        process = start(ONE_AFTER_THE_OTHER, store, *files[done:])
        time.sleep(rng.uniform(0.1, 1.5))
        end(process)
        verify(store)
        now = len(batches(store)) - 2
        assert batches(store) == ["1", "2", *(f"new{number}" for number in range(now))]
        assert open_store(store).num_cells == 90 + 30 * now
        if now == done:  # a slow machine gets on nevertheless
            appended(store, files[done])
    verify(store)
    with pytest.raises(InputError, match="already"):
        appended(store, files[0])
    assert beside(store) == []


@pytest.mark.process
def test_an_append_at_work_holds_the_store_and_is_not_disturbed(made: Path, store: Path) -> None:
    process = start(WAITS_IN, store, made / "0.h5ad", "write")
    try:
        with pytest.raises(InputError, match="another process is changing this store"):
            appended(store, made / "1.h5ad")
        (folder,) = store.parent.glob(".a.zarr.*.partial")
        assert (folder / "tail").is_dir()
    finally:
        end(process)
    verify(store)
