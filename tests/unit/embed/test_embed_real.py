"""A PCA of a published screen by scanpy, through the h5ad and through a file: the same embedding."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy

from tests.real_screens import PAPALEXI
from txpert_dist.embed.files import add_file
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest, no_progress
from txpert_dist.store.cells import open_store, verify

pytestmark = pytest.mark.real


def test_papalexi_pca(tmp_path: Path) -> None:
    if not PAPALEXI.file.exists():
        pytest.skip(f"{PAPALEXI.file} is absent: set TXPERT_SHARED_DATA to the folder of real screens")
    screen = anndata.read_h5ad(PAPALEXI.file)
    logged = screen.copy()
    scanpy.pp.normalize_total(logged, target_sum=4000)
    scanpy.pp.log1p(logged)
    scanpy.pp.highly_variable_genes(logged, n_top_genes=500)
    scanpy.pp.pca(logged, n_comps=20)
    screen.obsm["X_pca"] = logged.obsm["X_pca"]
    screen.write_h5ad(tmp_path / "screen.h5ad")
    table = pd.DataFrame(logged.obsm["X_pca"], screen.obs_names, [f"PC{i}" for i in range(20)])
    table.sample(frac=1, random_state=0).to_parquet(tmp_path / "pca.parquet")
    config = IngestConfig(
        sources=(tmp_path / "screen.h5ad",),
        store=tmp_path / "s.zarr",
        row_order="source",
        perturbation_key="target",
        control_label="non-targeting",
        batch_key="bio_rep",
        cell_line="THP-1",
        embeddings=("X_pca",),
    )
    ingest(config)
    done = add_file(
        config.store,
        tmp_path / "pca.parquet",
        name="X_added",
        key=None,
        overwrite=False,
        progress=no_progress,
    )
    assert (done.width, done.num_cells, done.extra_cells) == (20, 20_729, 0)
    verify(config.store)
    store = open_store(config.store)
    rows = np.random.default_rng(0).integers(0, store.num_cells, 500)
    expected = logged.obsm["X_pca"][rows].astype(np.float32)
    assert np.array_equal(store.take_embedding("X_pca", rows), expected)
    assert np.array_equal(store.take_embedding("X_added", rows), expected)
    back = anndata.read_zarr(config.store)
    assert np.array_equal(back.obsm["X_added"], logged.obsm["X_pca"].astype(np.float32))
    assert back.obs_names.tolist() == screen.obs_names.tolist()
