"""Embeddings of a store: order, damage, and what anndata makes of them."""

import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.store.small_store import (
    NUM_CELLS,
    self_describing_embedding,
    self_describing_matrix,
    write_store,
)
from txpert_dist.errors import InputError, StoreError
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import CellStore, cell_names, open_store, verify
from txpert_dist.store.write import StoreWriter, add_embedding, check_embedding_name

WIDE, NARROW = 1500, 3
"""1,500 values a cell make chunks of 43 cells and two shards."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    folder = tmp_path_factory.mktemp("store") / "screen.zarr"
    wide, narrow = self_describing_embedding(WIDE), self_describing_embedding(NARROW, -1)
    write_store(folder, self_describing_matrix(), X_wide=wide, X_narrow=narrow)
    assert len(list((folder / "obsm" / "X_wide" / "c").rglob("*"))) > 3
    return open_store(folder)


@pytest.fixture
def copy(store: CellStore, tmp_path: Path) -> Path:
    folder = tmp_path / "copy.zarr"
    shutil.copytree(store.path, folder)
    return folder


def test_anndata_reads_the_embeddings_without_us(store: CellStore) -> None:
    screen = anndata.read_zarr(store.path)
    assert set(screen.obsm) == {"X_wide", "X_narrow"}
    assert screen.obsm["X_wide"].dtype == np.float32
    assert np.array_equal(screen.obsm["X_wide"], self_describing_embedding(WIDE))
    assert np.array_equal(screen.obsm["X_narrow"], self_describing_embedding(NARROW, -1))
    assert cell_names(store.path).tolist() == screen.obs_names.tolist()


def test_the_store_lists_its_embeddings(store: CellStore) -> None:
    assert store.embeddings == {"X_narrow": NARROW, "X_wide": WIDE}
    assert store.embedding_origin("X_wide") == {"made": "by a test"}
    listed = {record.path for record in manifest.read(store.path).files}
    found = {p.relative_to(store.path).as_posix() for p in store.path.rglob("*") if p.is_file()}
    assert listed == found - {layout.MANIFEST}


@given(rows=st.lists(st.integers(0, NUM_CELLS - 1), max_size=60))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_take_embedding_returns_the_rows_asked_for_in_their_order(store: CellStore, rows: list[int]) -> None:
    for name, width, sign in (("X_wide", WIDE, 1), ("X_narrow", NARROW, -1)):
        taken = store.take_embedding(name, np.array(rows, np.int64))
        assert taken.dtype == np.float32
        assert taken.shape == (len(rows), width)
        assert np.array_equal(taken, self_describing_embedding(width, sign)[rows])


@pytest.mark.parametrize("rows", [[-1], [NUM_CELLS], [0, NUM_CELLS + 5]])
def test_rows_outside_the_store_are_refused(store: CellStore, rows: list[int]) -> None:
    with pytest.raises(IndexError, match=str(NUM_CELLS)):
        store.take_embedding("X_wide", np.array(rows))


def test_an_unknown_embedding_is_refused_with_those_there_are(store: CellStore) -> None:
    with pytest.raises(StoreError, match=r"no embedding 'X_pca', there is X_narrow, X_wide; .*txpert embed"):
        store.take_embedding("X_pca", np.array([0]))


def test_a_store_without_embeddings_has_none(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", self_describing_matrix())
    opened = open_store(tmp_path / "s.zarr")
    assert opened.embeddings == {}
    assert not (tmp_path / "s.zarr" / "obsm").exists()
    with pytest.raises(StoreError, match="there is none"):
        opened.take_embedding("X", np.array([0]))


# --- names and values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X_pca", "scGPT-v1.0", "x", "0", "a" * 100])
def test_harmless_names_are_taken(name: str) -> None:
    check_embedding_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "zarr.json", ".hidden", "a b", "a\n", "a" * 101, "ü"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="letters, digits"):
        check_embedding_name(name)


def _add(folder: Path, name: str, value_RN: NDArray[np.float32]) -> None:
    add_embedding(
        folder, name, value_RN.shape[1], [value_RN], origin={"seed": 3}, before=manifest.read(folder)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_never_written(copy: Path, value: float) -> None:
    wrong = self_describing_embedding(4)
    wrong[17, 2] = value
    with pytest.raises(StoreError, match="embedding X_new: a value is not finite"):
        _add(copy, "X_new", wrong)


def test_missing_cells_are_refused(copy: Path) -> None:
    with pytest.raises(StoreError, match="3999 entries written, 4000 announced"):
        _add(copy, "X_new", self_describing_embedding(4)[:-1])


def test_the_writer_refuses_an_unsafe_name(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s.zarr", num_cells=1, num_genes=2, num_entries=2, dtype=np.uint8)
    with pytest.raises(InputError, match="letters, digits"):
        writer.write_embedding("../up", 1, [np.ones((1, 1), np.float32)], origin={})
    assert not (tmp_path / "up").exists()


# --- adding -----------------------------------------------------------------------------------------------


def test_an_added_embedding_is_read_and_verified_and_changes_the_hash(store: CellStore, copy: Path) -> None:
    _add(copy, "X_new", self_describing_embedding(7))
    verify(copy)
    opened = open_store(copy)
    assert opened.embeddings == {"X_narrow": NARROW, "X_new": 7, "X_wide": WIDE}
    assert opened.embedding_origin("X_new") == {"seed": 3}
    assert np.array_equal(
        opened.take_embedding("X_new", np.array([5, 3])), self_describing_embedding(7)[[5, 3]]
    )
    assert opened.manifest_hash != store.manifest_hash
    assert manifest.read(copy).fingerprint == manifest.read(store.path).fingerprint
    assert np.array_equal(anndata.read_zarr(copy).obsm["X_new"], self_describing_embedding(7))


def test_adding_never_lists_damage_as_whole(copy: Path) -> None:
    path = copy / "X" / "data" / "c" / "1"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    _add(copy, "X_new", self_describing_embedding(2))
    with pytest.raises(StoreError, match="X/data/c/1"):
        verify(copy)


# --- damage -----------------------------------------------------------------------------------------------

SHARD = "obsm/X_wide/c/1/0"


@pytest.mark.parametrize("damage", ["missing", "emptied", "truncated"])
def test_opening_names_the_shard_that_is_not_whole(copy: Path, damage: str) -> None:
    path = copy / SHARD
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "emptied" else path.stat().st_size // 2])
    with pytest.raises(StoreError, match=SHARD):
        open_store(copy)
    with pytest.raises(StoreError, match=SHARD):
        verify(copy)


@pytest.mark.parametrize("damage", ["missing", "emptied", "truncated"])
def test_a_shard_lost_after_opening_never_becomes_values(copy: Path, damage: str) -> None:
    opened, path = open_store(copy), copy / SHARD
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: 0 if damage == "emptied" else len(content) // 2])
    with pytest.raises(StoreError, match="obsm/X_wide"):
        opened.take_embedding("X_wide", np.array([0, NUM_CELLS - 1]))
    assert opened.take_embedding("X_wide", np.array([0])).shape == (1, WIDE)


@pytest.mark.parametrize("position", [0.0, 0.13, 0.38, 0.61, 0.86, 1.0])
def test_a_flipped_shard_never_becomes_values(copy: Path, position: float) -> None:
    path = copy / SHARD
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)
    opened = open_store(copy)
    with pytest.raises(StoreError, match="obsm/X_wide"):
        opened.take_embedding("X_wide", np.arange(2700, NUM_CELLS))
    with pytest.raises(StoreError, match=SHARD):
        verify(copy)


def test_only_the_chunks_of_the_rows_are_read(copy: Path) -> None:
    opened = open_store(copy)
    (copy / SHARD).write_bytes(b"")
    in_first_shard = np.arange(0, 2700, 13)
    assert np.array_equal(
        opened.take_embedding("X_wide", in_first_shard), self_describing_embedding(WIDE)[in_first_shard]
    )
