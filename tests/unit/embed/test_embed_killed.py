"""A killed `embed add` leaves the store as it was or complete, and the next one clears up."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.bad_inputs import good_embedding
from txpert_dist.embed.files import add_file
from txpert_dist.ingest.run import no_progress
from txpert_dist.store.cells import open_store, verify

WAITS_IN = """
import sys, time
from pathlib import Path
from txpert_dist.embed.files import add_file

def report(what, done, total):
    if what == sys.argv[3]:
        print("there", flush=True)
        time.sleep(600)

add_file(Path(sys.argv[1]), Path(sys.argv[2]), name="X_new", key=None, overwrite=True, progress=report)
"""

ADDS_FOREVER = """
import sys
from pathlib import Path
from txpert_dist.embed.files import add_file

print("there", flush=True)
while True:
    add_file(
        Path(sys.argv[1]), Path(sys.argv[2]), name="X_new", key=None, overwrite=True, progress=lambda *_: None
    )
"""


def _start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def _add(store: Path, file: Path) -> None:
    add_file(store, file, name="X_new", key=None, overwrite=True, progress=no_progress)


def _left(store: Path) -> list[str]:
    return sorted(path.name for path in store.parent.iterdir() if path != store)


@pytest.mark.process
@pytest.mark.parametrize("phase", ["match cells", "write X_new"])
def test_a_killed_add_leaves_the_store_as_it_was(store: Path, file: Path, phase: str) -> None:
    before = open_store(store).manifest_hash
    _end(_start(WAITS_IN, store, file, phase))
    assert len(_left(store)) == 1
    assert open_store(store).manifest_hash == before
    verify(store)
    _add(store, file)
    assert np.array_equal(open_store(store).take_embedding("X_new", np.arange(64)), good_embedding())
    verify(store)
    assert _left(store) == []


@pytest.mark.process
def test_killed_at_any_moment_the_store_is_whole(store: Path, file: Path) -> None:
    """Every add replaces the embedding, so folders change places all the time."""
    rng = random.Random(0)
    for _ in range(4):
        process = _start(ADDS_FOREVER, store, file)
        time.sleep(rng.uniform(0.05, 0.6))
        _end(process)
        verify(store)
        opened = open_store(store)
        if opened.embeddings:
            assert np.array_equal(opened.take_embedding("X_new", np.arange(64)), good_embedding())
    _add(store, file)
    verify(store)
    assert _left(store) == []


@pytest.mark.process
def test_an_add_at_work_is_not_disturbed_and_holds_the_store(store: Path, file: Path) -> None:
    process = _start(WAITS_IN, store, file, "write X_new")
    try:
        (folder,) = store.parent.glob(".screen.zarr.*.partial")
        with pytest.raises(Exception, match="another process is changing this store"):
            _add(store, file)
        assert (folder / "rows").is_file()
    finally:
        _end(process)
    verify(store)
