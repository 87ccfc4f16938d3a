"""Which cells and genes go into a store: filters, variable genes, several files, presets."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse

from tests.bad_inputs import GENES, LABELS, good_screen
from tests.unit.ingest.rows import in_source_order
from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.controls import Context
from txpert_dist.store.expression import dense
from txpert_dist.store.splits import TRAIN

Run = Callable[..., CellStore]


# --- choosing cells and genes -----------------------------------------------------------------------------


def counts(store: CellStore) -> np.ndarray:
    """In the order of the files."""
    return dense(store.take(in_source_order(store)), len(store.genes))


def test_filters_keep_their_cells_in_order_and_are_counted(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    screen.obs["donor"] = pd.Categorical(np.array(["a", "b", "c"])[np.arange(64) % 3])
    settings = {"where": ("donor=a", "batch=1", "donor=c")}
    store = run(tmp_path, screen, **settings)
    kept = np.flatnonzero(screen.obs["donor"].isin(["a", "c"]) & (screen.obs["batch"] == "1"))
    assert (counts(store) == screen.X.toarray()[kept]).all()
    back = anndata.read_zarr(store.path)[in_source_order(store)]
    assert back.obs_names.tolist() == screen.obs_names[kept].tolist()
    summary = ingest(IngestConfig(sources=(tmp_path / "file0.h5ad",), store=store.path, **settings))
    assert [(f.filter, f.kept, f.dropped) for f in summary.filters] == [
        ("donor=a|c", 43, 21),
        ("batch=1", 21, 22),
    ]


def test_rare_perturbations_are_kept_and_counted_or_left_out_when_asked(tmp_path: Path) -> None:
    screen = good_screen()
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    labels[5] = "KLF1"
    screen.obs["perturbation"] = pd.Categorical(labels)
    path = tmp_path / "s.h5ad"
    screen.write_h5ad(path)
    every = ingest(IngestConfig(sources=(path,), store=tmp_path / "a.zarr"))
    assert (every.num_cells, every.single_cell_perturbations, every.dropped_cells) == (64, 1, 0)
    some = ingest(IngestConfig(sources=(path,), store=tmp_path / "b.zarr", min_cells=2))
    assert (some.num_cells, some.dropped_perturbations, some.dropped_cells) == (63, 1, 1)
    store = open_store(tmp_path / "b.zarr")
    assert "KLF1" not in store.perturbations
    assert (counts(store) == np.delete(screen.X.toarray(), 5, axis=0)).all()


def test_cells_without_counts_are_dropped_when_asked(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    x_BG = screen.X.toarray()
    x_BG[[3, 40]] = 0
    screen.X = scipy.sparse.csc_matrix(x_BG)
    store = run(tmp_path, screen, empty_cells="drop")
    assert (counts(store) == np.delete(x_BG, [3, 40], axis=0)).all()
    assert (store.library_size > 0).all()


def variable_screen() -> anndata.AnnData:
    rng = np.random.default_rng(5)
    num_cells, num_genes = 400, 120
    counts = rng.negative_binomial(1, 0.4, (num_cells, num_genes)) * rng.integers(0, 4, num_genes)
    counts[:, 0] += 1
    obs = pd.DataFrame({"perturbation": np.array(LABELS)[np.arange(num_cells) % len(LABELS)]})
    obs.index = obs.index.map(str)
    # Test perturbations differ wildly in the last genes: they must not make those genes look variable.
    screen = anndata.AnnData(counts.astype(np.float32), obs)
    screen.var_names = [f"G{i}" for i in range(num_genes)]
    return screen


def trained(store: CellStore) -> np.ndarray:
    """Which cells of the file are training cells or controls."""
    return (store.split[store.perturbation] == TRAIN)[in_source_order(store)]


@pytest.mark.parametrize("select_on", ["train", "all"])
@pytest.mark.parametrize("flavour", ["seurat", "cell_ranger", "seurat_v3"])
def test_variable_genes_are_scanpys_on_the_same_cells(
    run: Run, tmp_path: Path, select_on: str, flavour: str
) -> None:
    screen = variable_screen()
    if flavour == "cell_ranger":  # which cannot have many genes of the same mean: of no count at all
        screen = screen[:, screen.X.any(0)].copy()
    store = run(tmp_path, screen, select_genes=30, select_on=select_on, hvg_flavour=flavour)
    used = screen.copy()
    used.X = used.X.astype(np.float64)
    if flavour != "seurat_v3":
        scanpy.pp.normalize_total(used, target_sum=4000)
        scanpy.pp.log1p(used)
    if select_on == "train":
        used = used[trained(store)].copy()
    expected = scanpy.pp.highly_variable_genes(used, flavor=flavour, n_top_genes=30, inplace=False)
    assert store.selected.tolist() == np.flatnonzero(expected["highly_variable"]).tolist()


def test_seurat_v3_is_refused_for_values_that_are_no_counts(run: Run, tmp_path: Path) -> None:
    screen = variable_screen()
    screen.X = np.log1p(screen.X)
    with pytest.raises(InputError, match="seurat_v3 needs counts"):
        run(tmp_path, screen, input_scale="log1p", hvg_flavour="seurat_v3")


def test_test_cells_do_not_choose_the_genes(run: Run, tmp_path: Path) -> None:
    screen = variable_screen()
    plain = run(tmp_path / "a", screen, select_genes=30)
    held_out = ~trained(plain)
    changed = screen.copy()
    changed.X[held_out] = changed.X[held_out][:, ::-1] * 7 + 1
    assert run(tmp_path / "b", changed, select_genes=30).selected.tolist() == plain.selected.tolist()


def test_perturbed_cells_of_a_held_out_line_do_not_choose_the_genes(run: Run, tmp_path: Path) -> None:
    screen = variable_screen()
    screen.obs["line"] = np.where(np.arange(screen.n_obs) % 3, "K562", "RPE1")
    options = {"select_genes": 30, "cell_line_key": "line"}
    plain = run(tmp_path / "a", screen, held_out_cell_lines=("RPE1",), **options)
    hidden = (screen.obs["perturbation"] != "ctrl").to_numpy() & (screen.obs["line"] == "RPE1").to_numpy()
    changed = screen.copy()
    changed.X[hidden] = changed.X[hidden][:, ::-1] * 7 + 1
    again = run(tmp_path / "b", changed, held_out_cell_lines=("RPE1",), **options)
    assert again.selected.tolist() == plain.selected.tolist()
    assert run(tmp_path / "c", changed, **options).selected.tolist() != plain.selected.tolist()
    with pytest.raises(InputError, match="no cell line 'RPE' to hold out; the screen has K562, RPE1"):
        run(tmp_path / "d", screen, held_out_cell_lines=("RPE",), **options)


# --- several files, presets -------------------------------------------------------------------------------


def two_lines() -> tuple[anndata.AnnData, anndata.AnnData]:
    first, second = good_screen(), good_screen(40, seed=9)
    second = second[:, [7, 2, 9, 0, 5, 1, 11]].copy()
    second.X = scipy.sparse.csr_matrix(second.X.toarray() + (np.arange(7) == 3))
    second.obs["line"] = "RPE1"
    second.obs["only_here"] = np.arange(40)
    second.obs["flag"] = np.arange(40) % 2 == 0
    return first, second


def test_cell_lines_join_on_the_genes_they_share(run: Run, tmp_path: Path) -> None:
    first, second = two_lines()
    store = run(tmp_path, first, second, cell_line_key="line", batch_key="batch")
    shared = [gene for gene in GENES if gene in set(second.var_names)]
    assert list(store.genes) == shared
    joined = np.concatenate([first[:, shared].X.toarray(), second[:, shared].X.toarray()])
    assert (counts(store) == joined).all()
    # The library size is of all genes of a cell's file, before the join.
    totals = [*first.X.sum(1).A1, *second.X.sum(1).A1]
    assert store.library_size[in_source_order(store)].tolist() == totals
    assert {context.cell_line for context in store.contexts} == {"K562", "RPE1"}
    back = anndata.read_zarr(store.path)[in_source_order(store)].copy()
    assert (back.X.toarray() == joined).all()
    assert back.obs["only_here"].isna().tolist() == [True] * 64 + [False] * 40
    assert back.obs["only_here"].dropna().tolist() == list(range(40))
    assert str(back.obs["flag"].dtype) == "boolean"
    assert back.obs["batch"].tolist() == [*first.obs["batch"], *second.obs["batch"]]
    assert isinstance(back.obs["batch"].dtype, pd.CategoricalDtype)
    assert back.obs_names.is_unique


def test_cell_lines_join_on_any_gene(run: Run, tmp_path: Path) -> None:
    first, second = two_lines()
    second.var_names = [f"NEW{i}" if gene == "STAT1" else gene for i, gene in enumerate(second.var_names)]
    second.var["only_there"] = np.arange(7)
    store = run(tmp_path, first, second, cell_line_key="line", batch_key="batch", genes_join="union")
    assert list(store.genes) == [*GENES, "NEW3"]
    x_BG = counts(store)
    assert (x_BG[:64, :12] == first.X.toarray()).all()
    assert (x_BG[64:][:, [store.genes.index(g) for g in second.var_names]] == second.X.toarray()).all()
    assert x_BG[:64, 12].sum() == 0
    assert anndata.read_zarr(store.path).var["only_there"].dropna().tolist() == [3]


def test_the_replogle_preset_and_symbols_that_two_genes_share(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    screen.var["gene_name"] = [*GENES[:10], "TBCE", "TBCE"]
    screen.var_names = pd.Index([f"ENSG{i:011d}" for i in range(12)], name="gene_id")
    screen.obs = screen.obs.rename(columns={"perturbation": "gene"})
    screen.obs["gene"] = screen.obs["gene"].astype(str).replace("ctrl", "non-targeting")
    screen.obs["gem_group"] = 1 + np.arange(64) % 2
    store = run(tmp_path, screen, preset="replogle", cell_line="K562")
    assert store.genes == (*GENES[:10], "ENSG00000000010", "ENSG00000000011")
    assert store.contexts == (Context("K562", "1"), Context("K562", "2"))
    back = anndata.read_zarr(store.path)
    assert back.var["gene_id"].tolist() == screen.var_names.tolist()
    assert back.var["gene_name"].tolist() == screen.var["gene_name"].tolist()
    summary = ingest(
        IngestConfig(
            sources=(tmp_path / "file0.h5ad",), store=store.path, preset="replogle", cell_line="K562"
        )
    )
    assert "2 genes go by their var index" in summary.notes[0]
    assert "'TBCE'" in summary.notes[0]


def test_the_scperturb_preset(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    screen.obs["perturbation"] = screen.obs["perturbation"].astype(str).replace("ctrl", "control")
    store = run(tmp_path, screen.copy(), preset="scperturb", cell_line_key="line")
    assert store.contexts == (Context("K562", "1"), Context("K562", "2"))
