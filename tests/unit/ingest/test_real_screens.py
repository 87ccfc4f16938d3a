"""Published screens: the store holds what the files hold, and expression is scanpy's."""

import os
from pathlib import Path

import anndata
import numpy as np
import pytest
import scanpy
import zarr

from tests.unit.ingest.rows import in_source_order, source_row
from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import CellStore, open_store, verify
from txpert_dist.store.expression import TARGET_SUM, dense, log1p_normalise

pytestmark = pytest.mark.real

DATA = Path(os.environ.get("TXPERT_SHARED_DATA", "../shared/data"))


def need(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent: set TXPERT_SHARED_DATA to the folder of real screens")
    return path


OURS = ["txpert_library_size", "txpert_detected_genes"]
"""Columns that ingest adds to obs."""


def expression(store: CellStore) -> np.ndarray:
    """In the order of the file."""
    rows = log1p_normalise(store.take(in_source_order(store)), input_scale="counts")
    return dense(rows, len(store.genes))


def test_papalexi(tmp_path: Path) -> None:
    path = need("real_papalexi2021.h5ad")
    summary = ingest(
        IngestConfig(
            sources=(path,),
            store=tmp_path / "s.zarr",
            perturbation_key="target",
            control_label="non-targeting",
            batch_key="bio_rep",
            cell_line="THP-1",
            select_genes=100,
        )
    )
    source, store = anndata.read_h5ad(path), open_store(tmp_path / "s.zarr")
    verify(store.path)
    order = in_source_order(store)
    back = anndata.read_zarr(store.path)[order].copy()
    assert (back.X != source.X).nnz == 0
    assert back.obs.drop(columns=OURS).equals(source.obs)
    assert back.obs["txpert_detected_genes"].tolist() == (source.X > 0).sum(1).A1.tolist()
    assert store.genes == tuple(source.var_names)
    assert (summary.num_cells, summary.num_perturbations, summary.num_control_cells) == (20_729, 25, 2_386)
    assert [context.batch for context in store.contexts] == ["rep_1", "rep_2", "rep_3"]
    assert np.bincount(store.context).tolist() == [9_428, 6_001, 5_300]
    source.X = source.X.astype(np.float64)
    scanpy.pp.normalize_total(source, target_sum=TARGET_SUM)
    scanpy.pp.log1p(source)
    np.testing.assert_allclose(expression(store), source.X.toarray(), rtol=1e-5)
    for code, context in enumerate(store.contexts):
        control = (source.obs["target"] == "non-targeting") & (source.obs["bio_rep"] == context.batch)
        expected = source.X[control.to_numpy()].mean(0).A1
        np.testing.assert_allclose(store.control_mean_CG[code], expected, rtol=1e-5, atol=1e-7)
    perturbation, context = store.perturbation[order], store.context[order]
    train = source[store.split[perturbation] == 0].copy()
    expected = scanpy.pp.highly_variable_genes(train, flavor="seurat", n_top_genes=100, inplace=False)
    assert store.selected.tolist() == np.flatnonzero(expected["highly_variable"]).tolist()
    # Known biology: knocking out STAT1 lowers STAT1 by some 3 log units against its batch's controls.
    gene, cells = store.genes.index("STAT1"), perturbation == store.perturbations.index("STAT1")
    delta = expression(store)[cells, gene] - store.control_mean_CG[context[cells], gene]
    assert delta.mean() == pytest.approx(-2.96, abs=0.3)
    record = zarr.open_group(str(store.path), mode="r")["uns/txpert/knockdown"]
    place = record["perturbation"][:].tolist().index("STAT1")
    assert record["gene"][place] == "STAT1"
    assert record["num_cells"][place] == cells.sum()
    assert record["log_ratio"][place] == pytest.approx(delta.mean(), rel=1e-5)
    assert summary.measured_targets == len(record["gene"][:])


@pytest.mark.parametrize("flavour", ["cell_ranger", "seurat_v3"])
def test_papalexi_variable_genes_of_other_flavours(tmp_path: Path, flavour: str) -> None:
    path = need("real_papalexi2021.h5ad")
    config = IngestConfig(
        sources=(path,),
        store=tmp_path / "s.zarr",
        perturbation_key="target",
        control_label="non-targeting",
        hvg_flavour=flavour,
        select_genes=100,
    )
    ingest(config)
    source, store = anndata.read_h5ad(path), open_store(tmp_path / "s.zarr")
    source = source[store.split[store.perturbation[in_source_order(store)]] == 0].copy()
    source.X = source.X.astype(np.float64)
    if flavour == "cell_ranger":
        scanpy.pp.normalize_total(source, target_sum=TARGET_SUM)
        scanpy.pp.log1p(source)
    expected = scanpy.pp.highly_variable_genes(source, flavor=flavour, n_top_genes=100, inplace=False)
    assert store.selected.tolist() == np.flatnonzero(expected["highly_variable"]).tolist()


def test_log_normalised_values_are_refused_unless_said_to_be(tmp_path: Path) -> None:
    path = need("perturbench-devel/devel.h5ad")
    config = IngestConfig(
        sources=(path,),
        store=tmp_path / "s.zarr",
        perturbation_key="condition",
        cell_line_key="cell_type",
    )
    with pytest.raises(
        InputError, match=r"devel\.h5ad: X: value 0\.4.*not a whole number.*--input-scale log1p"
    ):
        ingest(config)
    assert list(tmp_path.iterdir()) == []
    summary = ingest(config.model_copy(update={"input_scale": "log1p", "empty_cells": "drop"}))
    source, store = anndata.read_h5ad(path), open_store(tmp_path / "s.zarr")
    order = in_source_order(store)
    kept = np.flatnonzero(source.X.sum(1).A1 > 0)
    assert summary.num_cells == len(kept)
    back = anndata.read_zarr(store.path)[order]
    assert (source.X[kept].astype(np.float32) != back.X).nnz == 0
    assert back.obs_names.tolist() == source.obs_names[kept].tolist()
    assert store.input_scale == "log1p"


def test_norman_with_its_recovered_library_size(tmp_path: Path) -> None:
    path = need("real_perturbseq.h5ad")
    summary = ingest(
        IngestConfig(
            sources=(path,),
            store=tmp_path / "s.zarr",
            perturbation_key="condition",
            where=("dataset=norman19",),
            library_size_key="libsize_recovered",
            batch_key="gem_group",
            cell_line_key="cell_type",
        )
    )
    source = anndata.read_h5ad(path)
    source = source[source.obs["dataset"] == "norman19"].copy()
    store = open_store(tmp_path / "s.zarr")
    assert summary.num_perturbations == 33
    assert sum("+" in name for name in store.perturbations) == 15
    assert [(f.kept, f.dropped) for f in summary.filters] == [(3_375, 2_586)]
    assert [tuple(context) for context in store.contexts] == [("k562", str(gem)) for gem in range(1, 9)]
    back = anndata.read_zarr(store.path)[in_source_order(store)].copy()
    assert (back.X != source.X).nnz == 0
    assert back.obs_names.tolist() == source.obs_names.tolist()
    # The file's own log1p(CP10k) over the whole transcriptome is the oracle for the library size.
    shipped = np.expm1(source.layers["log1p_cp10k_as_shipped"].toarray()) * TARGET_SUM / 1e4
    np.testing.assert_allclose(np.expm1(expression(store)), shipped, rtol=2e-3, atol=1e-3)


def test_gears_layout(tmp_path: Path) -> None:
    path = need("norman-gears-50x50/norman_subset.h5ad")
    summary = ingest(
        IngestConfig(
            sources=(path,),
            store=tmp_path / "s.zarr",
            preset="gears",
            layer="counts",
            gene_name_key="feature_name",
        )
    )
    source, store = anndata.read_h5ad(path), open_store(tmp_path / "s.zarr")
    back = anndata.read_zarr(store.path)[in_source_order(store)]
    assert (back.X.toarray() == np.asarray(source.layers["counts"])).all()
    assert (summary.num_cells, summary.num_control_cells) == (50, 6)
    table = {row.label: row.perturbation for row in summary.labels}
    assert table["ctrl+KLF1"] == "KLF1"
    assert table["ZC3HAV1+CEBPE"] == "CEBPE+ZC3HAV1"
    assert store.genes == tuple(source.var["feature_name"])
    assert summary.cell_lines == ("A549",)


def test_wells_without_controls_borrow_the_cell_lines(tmp_path: Path) -> None:
    path = need("real_datlinger2021_scifi.h5ad")
    summary = ingest(
        IngestConfig(
            sources=(path,),
            store=tmp_path / "s.zarr",
            preset="scperturb",
            batch_key="sample",
            library_size_key="ncounts",
        )
    )
    store = open_store(tmp_path / "s.zarr")
    assert summary.num_contexts == 367
    assert summary.fallback_cells == int(store.controls.fallback[store.context].sum()) > 7_000
    controls = np.flatnonzero(store.perturbation == 0)
    code = int(np.argmax(store.controls.fallback))
    start, stop = store.controls.indptr[code : code + 2]
    assert store.controls.rows[start:stop].tolist() == controls.tolist()
    np.testing.assert_allclose(
        store.control_mean_CG[code],
        expression(store)[source_row(store)[controls]].mean(0),
        rtol=1e-4,
        atol=1e-6,
    )
