"""Embeddings from files: every format, any order of rows, and the store they end in."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bad_inputs import good_embedding, good_screen
from tests.unit.embed.bad_files import FILE_CASES, BadFile, embedding_table
from txpert_dist.embed.commit import commit
from txpert_dist.embed.files import Added, add_file
from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.claim import claimed
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest, no_progress
from txpert_dist.store.cells import open_store, verify


def add(
    store: Path, file: Path, *, name: str = "X_new", key: str | None = None, overwrite: bool = False
) -> Added:
    return add_file(store, file, name=name, key=key, overwrite=overwrite, progress=no_progress)


def shuffled() -> pd.DataFrame:
    """Rows of all cells and of three strangers, in another order."""
    strangers = pd.DataFrame(-1.0, [f"other{i}" for i in range(3)], embedding_table().columns)
    return pd.concat([strangers, embedding_table()]).sample(frac=1, random_state=0)


def _npz(table: pd.DataFrame, path: Path) -> None:
    np.savez_compressed(path, cell=table.index.to_numpy(str), embedding=table.to_numpy(np.float64))


def _npz_bytes(table: pd.DataFrame, path: Path) -> None:
    np.savez(path, cell=table.index.to_numpy("S"), embedding=table.to_numpy(np.float32))


def _first_column(table: pd.DataFrame, path: Path) -> None:
    table.reset_index(names="barcode").to_parquet(path, index=False)


def _categories(table: pd.DataFrame, path: Path) -> None:
    table.reset_index(names="barcode").astype({"barcode": "category"}).to_parquet(path, index=False)


def _named_index(table: pd.DataFrame, path: Path) -> None:
    table.rename_axis("d1").rename(columns={"d1": "x"}).astype(np.float32).to_parquet(path)


def _small_row_groups(table: pd.DataFrame, path: Path) -> None:
    table.to_parquet(path, row_group_size=10)


def _h5ad(table: pd.DataFrame, path: Path, layout: Callable[[np.ndarray], object] = np.asarray) -> None:
    screen = anndata.AnnData(obs=pd.DataFrame(index=table.index))
    screen.obsm["X_new"] = layout(table.to_numpy())
    screen.write_h5ad(path)


FORMATS: dict[str, tuple[str, Callable[[pd.DataFrame, Path], None]]] = {
    "csv": ("a.csv", lambda table, path: table.to_csv(path)),
    "csv with a byte-order mark": ("a.csv", lambda table, path: table.to_csv(path, encoding="utf-8-sig")),
    "csv with quotes": ("a.CSV", lambda table, path: table.to_csv(path, quoting=1, lineterminator="\r\n")),
    "csv.gz": ("a.csv.gz", lambda table, path: table.to_csv(path)),
    "tsv": ("run.1.tsv", lambda table, path: table.to_csv(path, sep="\t")),
    "tsv.gz": ("a.tsv.gz", lambda table, path: table.to_csv(path, sep="\t")),
    "txt": ("a.txt", lambda table, path: table.to_csv(path, sep="\t")),
    "npz": ("a.npz", _npz),
    "npz of bytes": ("a.npz", _npz_bytes),
    "parquet": ("a.parquet", lambda table, path: table.to_parquet(path)),
    "parquet, first column": ("a.parquet", _first_column),
    "parquet, categories": ("a.parquet", _categories),
    "parquet, named index": ("a.parquet", _named_index),
    "parquet, row groups": ("a.parquet", _small_row_groups),
    "h5ad": ("a.h5ad", _h5ad),
    "h5ad, sparse": ("a.h5ad", lambda table, path: _h5ad(table.fillna(0), path, scipy.sparse.csr_matrix)),
    "h5ad, by column": ("a.h5ad", lambda table, path: _h5ad(table.fillna(0), path, scipy.sparse.csc_matrix)),
}


@pytest.mark.parametrize("case", FORMATS)
def test_every_format_ends_in_the_same_embedding(store: Path, tmp_path: Path, case: str) -> None:
    name, write = FORMATS[case]
    file = tmp_path / name
    write(shuffled(), file)
    before = open_store(store).manifest_hash
    done = add(store, file)
    opened = open_store(store)
    assert done == Added("X_new", 3, 64, 3, before, opened.manifest_hash)
    assert before != opened.manifest_hash
    assert np.array_equal(opened.take_embedding("X_new", np.arange(64)), good_embedding())
    assert np.array_equal(anndata.read_zarr(store).obsm["X_new"], good_embedding())
    origin = opened.embedding_origin("X_new")
    assert (origin["made"], origin["file"], origin.get("key")) == (
        "elsewhere",
        name,
        "X_new" if name.endswith("h5ad") else None,
    )
    verify(store)
    assert [path.name for path in store.parent.iterdir()] == ["screen.zarr"]


@given(seed=st.integers(0, 1000), width=st.integers(1, 6))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_file_makes_no_difference(
    store: Path, tmp_path: Path, seed: int, width: int
) -> None:
    table = embedding_table(width).sample(frac=1, random_state=seed)
    table.to_parquet(tmp_path / "a.parquet")
    add(store, tmp_path / "a.parquet", overwrite=True)
    assert np.array_equal(
        open_store(store).take_embedding("X_new", np.arange(64)), good_embedding(width=width)
    )


@pytest.mark.parametrize("case", FILE_CASES, ids=[case.name for case in FILE_CASES])
def test_a_bad_file_is_refused_in_one_line_and_changes_nothing(
    untouched: Path, tmp_path: Path, case: BadFile
) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / case.file
    case.write(file)
    before = {path: path.stat().st_mtime_ns for path in untouched.rglob("*")}
    key = next((option.removeprefix("--key=") for option in case.options), None)
    with pytest.raises(InputError) as caught:
        add(untouched, file, key=key)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in (str(file), *case.fragments):
        assert fragment in message
    assert {path: path.stat().st_mtime_ns for path in untouched.rglob("*")} == before
    assert [path.name for path in untouched.parent.iterdir()] == ["screen.zarr"]


def test_case_names_are_unique() -> None:
    assert len({case.name for case in FILE_CASES}) == len(FILE_CASES)


# --- the store --------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_replaced_only_when_asked(store: Path, file: Path, tmp_path: Path) -> None:
    add(store, file)
    add(store, file, name="X_other")
    wider = tmp_path / "b.csv"
    embedding_table(5).to_csv(wider)
    with pytest.raises(InputError, match=r"has an embedding 'X_new' already; .*--overwrite"):
        add(store, wider)
    add(store, wider, overwrite=True)
    opened = open_store(store)
    assert opened.embeddings == {"X_new": 5, "X_other": 3}
    assert np.array_equal(opened.take_embedding("X_new", np.arange(64)), good_embedding(width=5))
    assert np.array_equal(opened.take_embedding("X_other", np.arange(64)), good_embedding())
    verify(store)


def test_the_same_file_gives_the_same_store(store: Path, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    assert add(store, file).manifest_after == add(other, file).manifest_after


def test_the_rest_of_the_store_stays_as_it_was(store: Path, file: Path) -> None:
    before = anndata.read_zarr(store)
    inodes = {path: path.stat().st_ino for path in store.rglob("c/*") if path.is_file()}
    (store / "notes.txt").write_text("mine")
    add(store, file)
    after = anndata.read_zarr(store)
    assert (after.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(after.obs, before.obs)
    assert (store / "notes.txt").read_text() == "mine"
    assert inodes == {path: path.stat().st_ino for path in inodes}  # links, not copies
    config = IngestConfig(
        sources=(store.parent.parent / "screen.h5ad",),
        store=store,
        batch_key="batch",
        cell_line="K562",
        row_order="source",
    )
    assert ingest(config).created is False
    assert open_store(store).embeddings == {"X_new": 3}


def test_whoever_reads_the_store_meanwhile_goes_on(store: Path, file: Path) -> None:
    opened = open_store(store)
    expected = opened.read(0, 64).value.tolist()
    add(store, file)
    assert opened.read(0, 64).value.tolist() == expected
    with pytest.raises(StoreError, match="no embedding"):
        opened.take_embedding("X_new", np.array([0]))


def test_a_link_to_a_store_stays_a_link(store: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(store)
    add(tmp_path / "link.zarr", file)
    assert (tmp_path / "link.zarr").is_symlink()
    assert open_store(store).embeddings == {"X_new": 3}


def test_cells_of_one_name_cannot_be_matched(tmp_path: Path, file: Path) -> None:
    screen = good_screen()
    names = screen.obs_names.tolist()
    names[9] = "cell8"
    screen.obs.index = names
    screen.write_h5ad(tmp_path / "s.h5ad")
    ingest(IngestConfig(sources=(tmp_path / "s.h5ad",), store=tmp_path / "s.zarr", row_order="source"))
    with pytest.raises(
        InputError, match=r"1 cells have another cell's name, .*'cell8'.*obs_names_make_unique"
    ):
        add(tmp_path / "s.zarr", file)


def test_no_store_and_a_damaged_store(store: Path, file: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cell store there"):
        add(tmp_path / "nowhere.zarr", file)
    (store / "X" / "data" / "c" / "0").write_bytes(b"")
    with pytest.raises(StoreError, match="X/data/c/0"):
        add(store, file)


def test_a_strange_array_beside_ours_is_not_lost_silently(store: Path, file: Path) -> None:
    (store / "obsm" / "X_mine").mkdir(parents=True)
    (store / "obsm" / "X_mine" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match=r"obsm/X_mine/zarr\.json: was not written by txpert"):
        add(store, file)
    assert (store / "obsm" / "X_mine" / "zarr.json").read_text() == "{}"


def test_one_process_changes_a_store_at_a_time(store: Path, file: Path) -> None:
    with claimed(store), pytest.raises(InputError, match="another process is changing this store"):
        add(store, file)
    add(store, file)


def test_a_store_that_was_replaced_meanwhile_is_not_touched(store: Path, file: Path) -> None:
    with claimed(store) as claim:
        config = IngestConfig(
            sources=(store.parent.parent / "screen.h5ad",), store=store, batch_key="batch", overwrite=True
        )
        ingest(config)
        after = open_store(store).manifest_hash
        with pytest.raises(InputError, match="was replaced while the embedding was written"):
            commit(claim, "X_new", 3, [good_embedding()], origin={})
    assert open_store(store).manifest_hash == after
    verify(store)


def test_a_disk_without_space_is_said_and_the_store_stays(store: Path, file: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    before = open_store(store).manifest_hash
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(InputError, match=r"screen\.zarr: cannot be written \(File too large\)"):
            add(store, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open_store(store).manifest_hash == before
    assert [path.name for path in store.parent.iterdir()] == ["screen.zarr"]


def test_a_store_moved_away_by_a_killed_process_comes_back(store: Path, file: Path) -> None:
    left = store.parent / ".screen.zarr.abc.partial"
    left.mkdir()
    store.rename(left / "replaced")
    with pytest.raises(InputError, match="no such file"):
        add(store, file.with_name("nowhere.csv"))
    assert open_store(store).num_cells == 64
    assert [path.name for path in store.parent.iterdir()] == ["screen.zarr"]
