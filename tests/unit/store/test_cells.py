"""Reading a store: order, damage, and what anndata makes of it."""

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.store.small_store import NUM_CELLS, NUM_GENES, self_describing_matrix, write_store
from txpert_dist.errors import StoreError
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import CellStore, open_store, verify
from txpert_dist.store.controls import Context
from txpert_dist.store.expression import dense
from txpert_dist.store.splits import SPLITS
from txpert_dist.store.write import StoreWriter


@pytest.fixture(scope="module", name="x_BG")
def counts() -> NDArray[np.uint32]:
    return self_describing_matrix()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, x_BG: NDArray[np.uint32]) -> CellStore:
    folder = tmp_path_factory.mktemp("store") / "screen.zarr"
    write_store(folder, x_BG)
    assert len(list((folder / "X" / "data" / "c").iterdir())) > 3
    return open_store(folder)


def test_labels_come_back(store: CellStore) -> None:
    assert store.num_cells == NUM_CELLS
    assert store.genes == tuple(f"g{i}" for i in range(NUM_GENES))
    assert store.perturbations == ("control", "A", "B", "C", "D")
    assert store.contexts == (Context("K562", "1"), Context("K562", "2"))
    assert store.perturbation.dtype == np.int32
    assert store.split.tolist()[0] == SPLITS.index("train")
    assert store.training_genes("selected").tolist() == [1, 3, 8]
    assert store.training_genes("all").tolist() == list(range(NUM_GENES))
    assert (store.perturbation[store.controls.rows] == 0).all()


def test_anndata_reads_the_store_without_us(store: CellStore, x_BG: NDArray[np.uint32]) -> None:
    screen = anndata.read_zarr(store.path)
    assert (screen.X.toarray() == x_BG).all()
    assert screen.X.dtype == np.uint32
    assert screen.obs["n"].tolist() == list(range(NUM_CELLS))
    assert screen.uns["txpert"]["perturbations"].tolist() == list(store.perturbations)


@given(rows=st.lists(st.integers(0, NUM_CELLS - 1), max_size=60))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_take_returns_the_rows_asked_for_in_their_order(
    store: CellStore, x_BG: NDArray[np.uint32], rows: list[int]
) -> None:
    taken = store.take(np.array(rows, np.int64))
    wanted = scipy.sparse.csr_matrix(x_BG[rows]) if rows else scipy.sparse.csr_matrix((0, NUM_GENES))
    assert taken.indptr.tolist() == wanted.indptr.tolist()
    assert taken.gene.tolist() == wanted.indices.tolist()
    assert taken.value.tolist() == wanted.data.tolist()
    assert taken.gene.dtype == np.int32
    assert taken.library_size.tolist() == store.library_size[rows].tolist()


@given(start=st.integers(0, NUM_CELLS), length=st.integers(0, 500))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_is_take_of_a_range(store: CellStore, x_BG: NDArray[np.uint32], start: int, length: int) -> None:
    stop = min(start + length, NUM_CELLS)
    read = store.read(start, stop)
    assert (dense(read, NUM_GENES) == x_BG[start:stop]).all()


@pytest.mark.parametrize("rows", [[-1], [NUM_CELLS], [0, NUM_CELLS + 5]])
def test_rows_outside_the_store_are_refused(store: CellStore, rows: list[int]) -> None:
    with pytest.raises(IndexError, match=str(NUM_CELLS)):
        store.take(np.array(rows))


# --- damage -----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(store: CellStore, tmp_path: Path) -> Path:
    folder = tmp_path / "copy.zarr"
    shutil.copytree(store.path, folder)
    return folder


CHUNK_FILES = ["X/data/c/1", "X/indices/c/2", "X/indptr/c/0", "uns/txpert/perturbation/c/0", "obs/n/c/0"]


def _flip(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", CHUNK_FILES)
@pytest.mark.parametrize("damage", ["missing", "emptied", "truncated"])
def test_opening_names_the_file_that_is_not_whole(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "emptied" else path.stat().st_size // 2])
    with pytest.raises(StoreError, match=name):
        open_store(copy)
    with pytest.raises(StoreError, match=name):
        verify(copy)


@pytest.mark.parametrize("name", [*CHUNK_FILES, "X/data/zarr.json", "zarr.json"])
def test_verify_names_a_flipped_file(copy: Path, name: str) -> None:
    verify(copy)
    _flip(copy / name)
    with pytest.raises(StoreError, match=name):
        verify(copy)


@pytest.mark.parametrize("name", ["X/data/c/1", "X/indices/c/2"])
@pytest.mark.parametrize("position", [0.0, 0.11, 0.35, 0.62, 0.87, 1.0])
def test_a_flipped_shard_never_becomes_data(
    copy: Path, x_BG: NDArray[np.uint32], name: str, position: float
) -> None:
    _flip(copy / name, position)
    damaged = open_store(copy)
    with pytest.raises(StoreError, match=r"X/(data|indices)"):
        damaged.take(np.arange(NUM_CELLS))


@pytest.mark.parametrize("name", ["X/data/c/1", "X/indices/c/2"])
@pytest.mark.parametrize("emptied", [True, False])
def test_a_shard_lost_after_opening_never_becomes_zeros(copy: Path, name: str, emptied: bool) -> None:
    opened = open_store(copy)
    if emptied:
        (copy / name).write_bytes(b"")
    else:
        (copy / name).unlink()
    with pytest.raises(StoreError, match=name.split("/c/")[0]):
        opened.read(0, NUM_CELLS)


@pytest.mark.parametrize("name", ["perturbation", "library_size", "control_mean", "split"])
def test_a_flipped_label_array_is_refused_at_open(copy: Path, name: str) -> None:
    _flip(copy / "uns" / "txpert" / name / "c" / ("0/0" if name == "control_mean" else "0"))
    with pytest.raises(StoreError, match=name):
        open_store(copy)


def test_flipped_metadata_is_refused_at_open(copy: Path) -> None:
    path = copy / "X" / "data" / "zarr.json"
    path.write_text(path.read_text().replace('"endian": "little"', '"endian": "bigend"'))
    with pytest.raises(StoreError, match=r"X/data/zarr\.json"):
        open_store(copy)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("{", "damaged"),
        ("[]", "not the manifest of a cell store"),
        (json.dumps({"format": layout.FORMAT, "version": 999}), "version 999"),
        (json.dumps({"format": layout.FORMAT, "version": layout.VERSION}), "incomplete"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_explained(copy: Path, content: str, fragment: str) -> None:
    (copy / layout.MANIFEST).write_text(content)
    with pytest.raises(StoreError, match=fragment):
        open_store(copy)


def test_no_store_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no cell store there.*txpert ingest"):
        open_store(tmp_path / "nowhere.zarr")


def test_the_manifest_lists_every_file_but_itself(store: CellStore) -> None:
    listed = {record.path for record in manifest.read(store.path).files}
    found = {p.relative_to(store.path).as_posix() for p in store.path.rglob("*") if p.is_file()}
    assert listed == found - {layout.MANIFEST}
    assert store.manifest_hash == manifest.file_sha256(store.path / layout.MANIFEST)


def test_a_writer_that_got_too_few_cells_refuses_to_finish(tmp_path: Path, x_BG: NDArray[np.uint32]) -> None:
    writer = StoreWriter(tmp_path / "s.zarr", num_cells=3, num_genes=2, num_entries=2, dtype=np.uint8)
    writer.append(np.array([0, 1]), np.array([1], np.int32), np.array([7], np.uint8))
    with pytest.raises(StoreError, match="1 cells"):
        writer.finish(obs=pd.DataFrame(), var=pd.DataFrame(), labels=None, fingerprint="")  # type: ignore[arg-type]
