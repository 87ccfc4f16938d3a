"""However the work is cut, done, killed and taken up again: the same store."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse

from tests.bad_inputs import good_screen
from tests.unit.ingest.rows import in_source_order
from tests.unit.ingest.test_selection import variable_screen
from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.publish import clear_abandoned, work_folder
from txpert_dist.ingest.run import ingest
from txpert_dist.ingest.work import Sizes
from txpert_dist.store.cells import open_store, verify
from txpert_dist.store.manifest import read as read_manifest
from txpert_dist.store.shard_file import ShardSizes

SMALL = Sizes(block_entries=500, shards=ShardSizes(chunk=64, shard=512))
"""A few hundred cells make a dozen blocks and as many shards."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "s.h5ad"
    screen = good_screen(600)
    screen.obsm["X_pca"] = np.arange(1800, dtype=np.float32).reshape(600, 3)
    screen.write_h5ad(path)
    return path


def config(source: Path, store: Path, **settings: object) -> IngestConfig:
    given = {"batch_key": "batch", "select_genes": 6, "embeddings": ("X_pca",), **settings}
    return IngestConfig(sources=(source,), store=store, **given)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the one that says where the input lay."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "sources.json"}


def test_a_screen_of_many_blocks_and_shards_comes_out_right(source: Path, tmp_path: Path) -> None:
    summary = ingest(config(source, tmp_path / "s.zarr"), sizes=SMALL)
    screen, store = anndata.read_h5ad(source), open_store(tmp_path / "s.zarr")
    verify(store.path)
    assert len(list((store.path / "X" / "data" / "c").iterdir())) > 8
    order = in_source_order(store)
    back = anndata.read_zarr(store.path)
    assert (back.X[order].toarray() == screen.X.toarray()).all()
    assert back.obs_names[order].tolist() == screen.obs_names.tolist()
    assert np.array_equal(back.obsm["X_pca"][order], screen.obsm["X_pca"])
    assert store.library_size[order].tolist() == screen.X.sum(1).A1.tolist()
    assert summary.num_cells == 600
    group = np.where(store.perturbation == 0, 3, store.split[store.perturbation])
    assert (np.diff(group) >= 0).all()
    assert set(group) == {0, 1, 2, 3}


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("block_entries", [37, 2000, 10**6])
def test_how_a_file_is_cut_makes_no_difference(tmp_path: Path, layout: str, block_entries: int) -> None:
    screen = good_screen(200)
    screen.write_h5ad(tmp_path / "a.h5ad")
    as_read = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}[layout]
    screen.X = as_read(screen.X.toarray())
    (tmp_path / "other").mkdir()
    screen.write_h5ad(tmp_path / "other" / "a.h5ad")
    ingest(config(tmp_path / "a.h5ad", tmp_path / "a.zarr", embeddings=()), sizes=SMALL)
    cut = Sizes(block_entries, SMALL.shards)
    ingest(config(tmp_path / "other" / "a.h5ad", tmp_path / "b.zarr", embeddings=()), sizes=cut)
    first, second = contents(tmp_path / "a.zarr"), contents(tmp_path / "b.zarr")
    assert first.keys() == second.keys()
    # Sums in another order differ in their last digit; the summary has the file's hash.
    differing = {re.sub("/c(/.*)?$", "", name) for name in first if first[name] != second[name]}
    about_sums = {
        f"uns/txpert/{name}" for name in ("control_mean", "knockdown/log_ratio", "knockdown/share_left")
    }
    assert differing <= about_sums | {"uns/txpert/summary", "manifest.json"}
    one, other = open_store(tmp_path / "a.zarr"), open_store(tmp_path / "b.zarr")
    np.testing.assert_allclose(one.control_mean_CG, other.control_mean_CG, rtol=1e-6)


def test_memory_makes_no_difference(source: Path, tmp_path: Path) -> None:
    for number, memory in enumerate((1.0, 64.0)):
        ingest(config(source, tmp_path / f"{number}.zarr", memory_gib=memory), sizes=SMALL)
    assert contents(tmp_path / "0.zarr") == contents(tmp_path / "1.zarr")
    again = ingest(config(source, tmp_path / "0.zarr", memory_gib=3.0, workers=2))
    assert again.created is False


def with_knockdown() -> anndata.AnnData:
    """Stored by gene; every perturbation empties its target."""
    screen = good_screen(600)
    x_BG = screen.X.toarray()
    for label in set(screen.obs["perturbation"]) - {"ctrl"}:
        own = np.flatnonzero(screen.obs["perturbation"] == label)
        x_BG[np.ix_(own, screen.var_names.get_indexer(label.split("+")))] = 0
    screen.X = scipy.sparse.csc_matrix(x_BG)
    return screen


@pytest.mark.process
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (with_knockdown, {"require_knockdown": 0.9, "empty_cells": "drop", "select_genes": 8}),
        (variable_screen, {"hvg_flavour": "seurat_v3", "select_genes": 30}),
    ],
)
def test_processes_of_ray_write_the_same_bytes(
    tmp_path: Path, make: Callable[[], anndata.AnnData], settings: dict[str, object]
) -> None:
    make().write_h5ad(tmp_path / "s.h5ad")
    for name, workers in (("one.zarr", 1), ("two.zarr", 2)):
        asked = IngestConfig(
            sources=(tmp_path / "s.h5ad",), store=tmp_path / name, workers=workers, **settings
        )
        ingest(asked, sizes=SMALL)
    assert contents(tmp_path / "one.zarr") == contents(tmp_path / "two.zarr")


@pytest.mark.process
def test_what_a_process_of_ray_refuses_names_the_cell(source: Path, tmp_path: Path) -> None:
    screen = good_screen(600)
    screen.X[555, 0] = 1.5
    screen.write_h5ad(source)
    with pytest.raises(
        InputError, match=r"s\.h5ad: X: value 1\.5 of cell 'cell555' \(row 555\), gene 'STAT1'"
    ):
        ingest(config(source, tmp_path / "s.zarr", embeddings=(), workers=2), sizes=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5ad"]


# --- killed -----------------------------------------------------------------------------------------------

INGEST = """
import sys
from pathlib import Path
from tests.unit.ingest.test_tasks import SMALL, config
from txpert_dist.ingest.run import ingest

seen = 0

def report(what, done, total):
    global seen
    seen += 1
    print(seen, what, flush=True)

ingest(config(Path(sys.argv[1]), Path(sys.argv[2])), progress=report, sizes=SMALL)
"""


def start(source: Path, store: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", INGEST, str(source), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])


@pytest.mark.process
def test_killed_anywhere_and_started_again_it_ends_with_the_same_store(source: Path, tmp_path: Path) -> None:
    ingest(config(source, tmp_path / "expected.zarr"), sizes=SMALL)
    expected, store = contents(tmp_path / "expected.zarr"), tmp_path / "s.zarr"
    pick = random.Random(0)
    first_reports = []
    while not store.exists():
        process = start(source, store)
        assert process.stdout is not None
        # Some tasks on, and then at no particular moment of the next one.
        for _line in range(pick.randint(2, 7)):
            if line := process.stdout.readline():
                first_reports.append(line)
        time.sleep(pick.random() * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert len({line.split()[1] for line in first_reports}) > 1, "both passes were interrupted"
    ingest(config(source, store), sizes=SMALL)
    verify(store)
    assert contents(store) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.zarr", "s.h5ad", "s.zarr"]


class Interrupted(BaseException):
    """Like Ctrl-C."""


def interrupted_after(tasks: int) -> Iterator[None]:
    yield from (None for _ in range(tasks))
    raise Interrupted


def test_finished_tasks_are_not_done_again(source: Path, tmp_path: Path) -> None:
    limit = interrupted_after(5)
    with pytest.raises(Interrupted):
        ingest(config(source, tmp_path / "s.zarr"), progress=lambda *_: next(limit), sizes=SMALL)
    (folder,) = tmp_path.glob(".s.zarr.*.partial")
    done = {path: path.stat().st_mtime_ns for path in (folder / "buckets").iterdir()}
    assert len(done) == 6
    limit = interrupted_after(2)
    with pytest.raises(Interrupted):
        ingest(config(source, tmp_path / "s.zarr"), progress=lambda *_: next(limit), sizes=SMALL)
    after = {path: path.stat().st_mtime_ns for path in (folder / "buckets").iterdir()}
    assert len(after) == 9
    assert after.items() >= done.items()


@pytest.mark.parametrize("name", ["row.npy", "value.npy", "moments.npy", "checks.json"])
def test_a_damaged_result_of_a_killed_process_is_made_anew(source: Path, tmp_path: Path, name: str) -> None:
    ingest(config(source, tmp_path / "expected.zarr"), sizes=SMALL)
    limit = interrupted_after(8)
    with pytest.raises(Interrupted):
        ingest(config(source, tmp_path / "s.zarr"), progress=lambda *_: next(limit), sizes=SMALL)
    (folder,) = tmp_path.glob(".s.zarr.*.partial")
    path = folder / "buckets" / "3" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x10
    path.write_bytes(content)
    ingest(config(source, tmp_path / "s.zarr"), sizes=SMALL)
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "expected.zarr")


@pytest.mark.parametrize("changed", ["settings", "file"])
def test_what_was_begun_with_other_inputs_is_never_used(source: Path, tmp_path: Path, changed: str) -> None:
    limit = interrupted_after(8)
    with pytest.raises(Interrupted):
        ingest(config(source, tmp_path / "s.zarr"), progress=lambda *_: next(limit), sizes=SMALL)
    settings = {"split_seed": 1} if changed == "settings" else {}
    if changed == "file":
        other = anndata.read_h5ad(source)
        other.X = other.X * 2
        other.write_h5ad(source)
    ingest(config(source, tmp_path / "s.zarr", **settings), sizes=SMALL)
    assert not list(tmp_path.glob(".s.zarr.*"))
    ingest(config(source, tmp_path / "t.zarr", **settings), sizes=SMALL)
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "t.zarr")


# --- the folder of the work -------------------------------------------------------------------------------


def test_a_work_folder_stays_only_when_interrupted(tmp_path: Path) -> None:
    def end(error: BaseException) -> Path:
        with work_folder(tmp_path / "s", "ab12") as folder:
            (folder / "done").write_text("x")
            raise error

    with pytest.raises(Interrupted):
        end(Interrupted())
    with work_folder(tmp_path / "s", "ab12") as folder:
        assert (folder / "done").read_text() == "x"
    assert not folder.exists()
    with pytest.raises(InputError):
        end(InputError())
    assert not folder.exists()


def test_work_of_another_kind_and_only_of_this_store_is_cleared(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in (".s.ab12.partial", ".s.cd34.partial", ".s.zarr.ab12.partial")]
    for folder in folders:
        folder.mkdir()
    with work_folder(tmp_path / "s", "ab12"):
        assert [folder.exists() for folder in folders] == [True, False, True]
    clear_abandoned(tmp_path / "s.zarr")
    assert not any(folder.exists() for folder in folders)


def test_two_at_the_same_work_do_not_share_a_folder(tmp_path: Path) -> None:
    with work_folder(tmp_path / "s", "ab12") as one, work_folder(tmp_path / "s", "ab12") as other:
        assert one != other
        assert one.exists()
        assert other.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_the_same_wherever_the_store_is_written(source: Path, tmp_path: Path) -> None:
    for name in ("a.zarr", "deeper/b.zarr"):
        ingest(config(source, tmp_path / name), sizes=SMALL)
    assert read_manifest(tmp_path / "a.zarr") == read_manifest(tmp_path / "deeper" / "b.zarr")
