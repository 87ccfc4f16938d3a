"""An exported h5ad holds what the store holds: anndata reads both and finds no difference."""

from collections.abc import Callable, Mapping
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy

from tests.bad_inputs import good_screen
from tests.unit.store.small_store import (
    NUM_CELLS,
    self_describing_embedding,
    self_describing_matrix,
    write_store,
)
from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.export import Exported, export
from txpert_dist.ingest.run import ingest, no_progress
from txpert_dist.store.cells import CellStore, open_store

OURS = ["txpert_perturbation", "txpert_cell_line", "txpert_batch", "txpert_split"]


def exported(store: Path, out: Path, **settings: object) -> Exported:
    chosen = {"compression": "none", "overwrite": False, "progress": no_progress} | settings
    return export(store, out, **chosen)  # type: ignore[arg-type]


def rich_screen() -> anndata.AnnData:
    """Every kind of column that anndata writes, and an embedding."""
    screen = good_screen(200)
    number = np.arange(200)
    screen.obs["flag"] = number % 3 == 0
    screen.obs["text"] = [f"é {i}" for i in number]
    screen.obs["grade"] = pd.Categorical(number % 4, ordered=True)
    screen.obs["maybe"] = pd.array([1, None] * 100, "Int64")
    screen.obs["missing"] = pd.Categorical(["a", None] * 100)
    screen.var["length"] = np.linspace(0, 1, screen.n_vars)
    screen.obsm["X_pca"] = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    return screen


def _assert_same_tree(found: object, expected: object) -> None:
    if not isinstance(expected, Mapping):
        np.testing.assert_array_equal(found, expected)
        return
    assert isinstance(found, Mapping)
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        _assert_same_tree(found[key], value)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_file_is_the_store_and_says_how_each_cell_was_read(
    run: Callable[..., CellStore], tmp_path: Path, compression: str
) -> None:
    store = run(
        tmp_path, rich_screen(), batch_key="batch", cell_line_key="line", embeddings=("X_pca",), split_seed=3
    )
    done = exported(store.path, tmp_path / "back.h5ad", compression=compression)
    back, expected = anndata.read_h5ad(tmp_path / "back.h5ad"), anndata.read_zarr(store.path)
    told = back.obs[OURS].astype(str)
    pd.testing.assert_frame_equal(back.obs.drop(columns=OURS), expected.obs)
    pd.testing.assert_frame_equal(back.var, expected.var)
    assert back.X.dtype == expected.X.dtype == np.uint8
    assert (back.X != expected.X).nnz == 0
    assert back.obsm["X_pca"].dtype == np.float32
    assert (back.obsm["X_pca"] == expected.obsm["X_pca"]).all()
    _assert_same_tree(back.uns, expected.uns)
    assert told["txpert_perturbation"].tolist() == [store.perturbations[c] for c in store.perturbation]
    assert list(zip(told["txpert_cell_line"], told["txpert_batch"], strict=True)) == [
        store.contexts[code] for code in store.context
    ]
    splits = np.array(["train", "validation", "test"])[store.split[store.perturbation]]
    assert told["txpert_split"].tolist() == np.where(store.perturbation == 0, "control", splits).tolist()
    assert done.num_entries == expected.X.nnz
    assert done.size == (tmp_path / "back.h5ad").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.h5ad", "file0.h5ad", "screen.zarr"]


def test_every_value_stays_at_its_cell_over_many_shards(tmp_path: Path) -> None:
    x_BG = self_describing_matrix()
    write_store(tmp_path / "s.zarr", x_BG, X_two=self_describing_embedding(5))
    seen: list[tuple[str, int, int]] = []
    exported(tmp_path / "s.zarr", tmp_path / "s.h5ad", progress=lambda *args: seen.append(args))
    back = anndata.read_h5ad(tmp_path / "s.h5ad")
    assert (back.X.toarray() == x_BG).all()
    assert (back.obsm["X_two"] == self_describing_embedding(5)).all()
    assert back.obs_names.tolist() == [f"c{i}" for i in range(NUM_CELLS)]
    assert [args for args in seen if args[1] == args[2]] == [
        ("export cells", NUM_CELLS, NUM_CELLS),
        ("export X_two", NUM_CELLS, NUM_CELLS),
    ]


def test_scanpy_works_on_the_file_and_ingest_reads_it_back(
    run: Callable[..., CellStore], tmp_path: Path
) -> None:
    store = run(tmp_path, good_screen(), batch_key="batch", cell_line="K562")
    exported(store.path, tmp_path / "back.h5ad")
    screen = scanpy.read_h5ad(tmp_path / "back.h5ad")
    scanpy.pp.normalize_total(screen, target_sum=4000)
    scanpy.pp.log1p(screen)
    control = (screen.obs["txpert_perturbation"] == "control") & (screen.obs["txpert_batch"] == "1")
    np.testing.assert_allclose(store.control_mean_CG[0], screen.X[control.to_numpy()].mean(0).A1, rtol=1e-5)
    again = IngestConfig(
        sources=(tmp_path / "back.h5ad",),
        store=tmp_path / "again.zarr",
        perturbation_key="txpert_perturbation",
        batch_key="txpert_batch",
        cell_line_key="txpert_cell_line",
        row_order="source",
    )
    ingest(again)
    back = open_store(again.store)
    assert (back.read(0, 64).value == store.read(0, 64).value).all()
    assert back.split_hash == store.split_hash
    assert (back.control_mean_CG == store.control_mean_CG).all()
    # What the file of a store says of it gives way to what the store it came to says.
    assert exported(again.store, tmp_path / "twice.h5ad").replaced == tuple(sorted(OURS))
    assert anndata.read_h5ad(tmp_path / "twice.h5ad").obs.columns.tolist().count("txpert_split") == 1


def test_what_cannot_be_exported_leaves_nothing(run: Callable[..., CellStore], tmp_path: Path) -> None:
    store = run(tmp_path, good_screen())
    out = tmp_path / "out" / "back.h5ad"
    with pytest.raises(InputError, match=r"back\.zarr: exports are h5ad files"):
        exported(store.path, out.with_suffix(".zarr"))
    shard = next((store.path / "X" / "data").glob("c/*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(StoreError, match="X/data"):
        exported(store.path, out)
    assert list(out.parent.iterdir()) == []
    shard.write_bytes(content)
    exported(store.path, out)
    before = out.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        exported(store.path, out)
    assert out.read_bytes() == before
    exported(store.path, out, overwrite=True)
    assert [path.name for path in out.parent.iterdir()] == ["back.h5ad"]
