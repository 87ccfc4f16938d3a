"""One control table a node: built once, mapped by all, complete or absent, checked when it is mapped."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.unit.loader.exactness import Shape, faults, loader, write
from txpert_dist.errors import InputError
from txpert_dist.loader.pairing import ControlTable, control_table
from txpert_dist.loader.shared import PREFIX, shared_control_table
from txpert_dist.store.cells import CellStore, open_store

FORK = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    return write(tmp_path_factory.mktemp("shared") / "screen.zarr", Shape(900, num_genes=40, chunk=512))


def tables_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def assert_same(found: ControlTable, expected: ControlTable) -> None:
    assert found.input_scale == expected.input_scale
    assert (found.dense_RN is None) == (expected.dense_RN is None)
    for name in ("group_of_context", "indptr", "members"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    if expected.cells is not None:
        assert found.cells is not None
        for one, other in zip(found.cells, expected.cells, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("matching", ["random", "matched", "mean", "matched_mean"])
def test_a_shared_table_is_the_table(tmp_path: Path, store: CellStore, matching: str) -> None:
    expected = control_table(store, matching, store.selected)  # type: ignore[arg-type]
    for _ in range(2):
        found = shared_control_table(store, matching, store.selected, folder=tmp_path / "run")  # type: ignore[arg-type]
        assert_same(found, expected)
    assert len(tables_in(tmp_path / "run")) == (matching in ("random", "matched"))


def test_a_loader_serves_the_same_from_a_shared_table(tmp_path: Path, store: CellStore) -> None:
    table = shared_control_table(store, "matched", store.selected, folder=tmp_path)
    one = loader(store, rank=0, world=1, minibatch_size=30, table=table)
    assert faults(one.epoch(0), one)[1] == []


def test_every_recipe_has_a_table_of_its_own(tmp_path: Path, store: CellStore) -> None:
    everything = np.arange(len(store.genes))
    for matching, genes in (("matched", store.selected), ("random", store.selected), ("matched", everything)):
        shared_control_table(store, matching, genes, folder=tmp_path)  # type: ignore[arg-type]
    other = write(tmp_path / "other.zarr", Shape(900, num_genes=40, chunk=512, order_seed=5))
    found = shared_control_table(other, "matched", other.selected, folder=tmp_path)
    assert_same(found, control_table(other, "matched", other.selected))
    assert len(tables_in(tmp_path)) == 4


def worker(
    store_path: Path, folder: Path, answer: "multiprocessing.SimpleQueue[tuple[str, int, float]]"
) -> None:
    store = open_store(store_path)
    table = shared_control_table(store, "matched", store.selected, folder=folder)
    assert table.cells is not None
    with Path("/proc/self/maps").open() as maps:
        mapped = [line.split() for line in maps if line.strip().endswith("cells.value.npy")]
    answer.put((mapped[0][5], int(mapped[0][4]), float(table.cells.value.astype(np.float64).sum())))


def test_workers_that_start_together_map_one_file(tmp_path: Path, store: CellStore) -> None:
    answer = FORK.SimpleQueue()
    workers = [FORK.Process(target=worker, args=(store.path, tmp_path, answer)) for _ in range(3)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(120)
        assert one.exitcode == 0
    answers = {answer.get() for _ in workers}
    assert len(answers) == 1  # the same file, the same inode, the same values
    assert len(tables_in(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "record"])
def test_a_damaged_table_is_built_again(tmp_path: Path, store: CellStore, damage: str) -> None:
    shared_control_table(store, "matched", store.selected, folder=tmp_path)
    (home,) = tables_in(tmp_path)
    for path in sorted(home.glob("*.json" if damage == "record" else "*.npy")):
        content = bytearray(path.read_bytes())
        if damage == "delete":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(content[:-1])
        else:
            content[-1 if damage == "flip" else 0] ^= 0x08
            path.write_bytes(content)
        damaged = path.read_bytes() if path.exists() else b""
        found = shared_control_table(store, "matched", store.selected, folder=tmp_path)
        assert_same(found, control_table(store, "matched", store.selected))
        assert path.read_bytes() != damaged


def hold(folder: Path, ready: "multiprocessing.SimpleQueue[int]") -> None:
    """A builder that dies while it builds."""
    import fcntl

    with (folder / f".{PREFIX}lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / f".{PREFIX}abandoned.1.partial").mkdir()
        ready.put(os.getpid())
        time.sleep(600)


def test_a_killed_builder_holds_nobody_up_and_leaves_nothing(tmp_path: Path, store: CellStore) -> None:
    ready = FORK.SimpleQueue()
    builder = FORK.Process(target=hold, args=(tmp_path, ready), daemon=True)
    builder.start()
    pid = ready.get()
    answer = FORK.SimpleQueue()
    waiting = FORK.Process(target=worker, args=(store.path, tmp_path, answer))
    waiting.start()
    os.kill(pid, signal.SIGKILL)
    waiting.join(120)
    assert waiting.exitcode == 0
    answer.get()
    assert [path.suffix for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, store: CellStore) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"controls-.*cannot be written .*free space"):
        shared_control_table(store, "matched", store.selected, folder=tmp_path / "file" / "run")


def test_controls_without_any_entry_in_the_view(tmp_path: Path, store: CellStore) -> None:
    """Arrays of no entry cannot be mapped by every system; they come back all the same."""
    genes = np.zeros(0, np.int64)
    found = shared_control_table(store, "matched", genes, folder=tmp_path)
    assert_same(found, control_table(store, "matched", genes))
    shutil.rmtree(tmp_path)
