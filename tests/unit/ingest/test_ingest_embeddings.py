"""Embeddings in obsm: the store holds what the files hold, whatever their layout."""

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse

from tests.bad_inputs import good_embedding, good_screen
from tests.unit.ingest.rows import in_source_order
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.embeddings import embedding_blocks, open_embeddings
from txpert_dist.ingest.existing import read_inputs
from txpert_dist.ingest.publish import exchange, partial_folder
from txpert_dist.ingest.run import ingest
from txpert_dist.ingest.source import open_source
from txpert_dist.store.cells import CellStore, open_store, verify

Run = Callable[..., CellStore]


def with_pca(start: int = 0) -> anndata.AnnData:
    screen = good_screen()
    screen.obsm["X_pca"] = good_embedding() + np.float32(start)
    return screen


@pytest.mark.parametrize("layout", ["float32", "float64", "int", "csr", "csc"])
def test_an_embedding_comes_through_in_every_layout(run: Run, tmp_path: Path, layout: str) -> None:
    screen, expected = with_pca(), good_embedding()
    if layout == "int":
        expected = np.floor(expected)
        screen.obsm["X_pca"] = expected.astype(np.int64)
    elif layout in ("csr", "csc"):
        expected = expected * (np.arange(64)[:, None] % 3 > 0)
        screen.obsm["X_pca"] = getattr(scipy.sparse, f"{layout}_matrix")(expected)
    else:
        screen.obsm["X_pca"] = expected.astype(layout)
    store = run(tmp_path, screen, batch_key="batch", embeddings=("X_pca",))
    assert store.embeddings == {"X_pca": 3}
    order = in_source_order(store)
    assert np.array_equal(store.take_embedding("X_pca", order), expected)
    assert np.array_equal(anndata.read_zarr(store.path).obsm["X_pca"][order], expected)
    assert store.embedding_origin("X_pca") == {"made": "elsewhere", "key": "X_pca", "file": "file0.h5ad"}
    verify(store.path)


def test_only_the_embeddings_asked_for_are_kept(run: Run, tmp_path: Path) -> None:
    screen = with_pca()
    screen.obsm["X_umap"] = good_embedding(width=2)
    screen.obsm["X_scvi"] = good_embedding(width=5)
    assert run(tmp_path / "a", screen).embeddings == {}
    assert run(tmp_path / "b", screen, embeddings=("X_scvi", "X_pca")).embeddings == {"X_pca": 3, "X_scvi": 5}


def test_cells_left_out_leave_their_embedding_out(run: Run, tmp_path: Path) -> None:
    first, second = with_pca(), with_pca(100)
    store = run(
        tmp_path, first, second, where=("batch=2",), batch_key="batch", cell_line="K", embeddings=("X_pca",)
    )
    kept = np.flatnonzero((first.obs["batch"] == "2").to_numpy())
    expected = np.concatenate([good_embedding()[kept], good_embedding()[kept] + 100])
    assert np.array_equal(store.take_embedding("X_pca", in_source_order(store)), expected)


def test_the_size_of_blocks_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "s.h5ad"
    screen = with_pca()
    screen.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["obsm/X_pca"]
        file.create_dataset("obsm/X_pca", data=good_embedding(), chunks=(4, 3))
    source = open_source(path, "X")
    (embedding,) = open_embeddings([source], ["X_pca"])
    rows = np.array([0, 3, 4, 40, 63])
    seen: list[tuple[str, int, int]] = []
    blocks = embedding_blocks(embedding, [rows], tmp_path, lambda *report: seen.append(report))
    assert np.array_equal(np.concatenate(list(blocks)), good_embedding()[rows])
    assert seen[-1] == ("write X_pca", 5, 5)


def test_a_store_made_before_there_were_embeddings_is_still_known(tmp_path: Path) -> None:
    path = tmp_path / "s.h5ad"
    with_pca().write_h5ad(path)
    config = IngestConfig(sources=(path,), store=tmp_path / "s.zarr")
    summary = ingest(config)
    assert "embeddings" not in summary.to_json()
    assert ingest(config).created is False
    other = config.model_copy(update={"embeddings": ("X_pca",)})
    assert read_inputs(other).fingerprint != read_inputs(config).fingerprint
    assert ingest(other.model_copy(update={"overwrite": True})).embeddings == {"X_pca": 3}
    assert ingest(other).embeddings == {"X_pca": 3}


# --- replacing a store ------------------------------------------------------------------------------------


def test_two_folders_change_places_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two folders in one step")
    assert (tmp_path / "a" / "who").read_text() == "b"
    assert (tmp_path / "b" / "who").read_text() == "a"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


def test_a_store_moved_away_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    """What a kill leaves between two renames, where the system cannot exchange folders."""
    source, target = tmp_path / "s.h5ad", tmp_path / "s.zarr"
    good_screen().write_h5ad(source)
    ingest(IngestConfig(sources=(source,), store=target))
    before = open_store(target).manifest_hash
    left = tmp_path / ".s.zarr.abc.partial"
    left.mkdir()
    target.rename(left / "replaced")
    with partial_folder(target):
        assert open_store(target).manifest_hash == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.h5ad", "s.zarr"]
