"""A store split anew is the store that an ingest with that split writes, and carries everything over."""

import itertools
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_inputs import good_screen
from tests.unit.ingest.rows import source_row
from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.resplit import Resplit, resplit
from txpert_dist.ingest.split_table import read_split_table
from txpert_dist.ingest.summary import from_json
from txpert_dist.store import manifest
from txpert_dist.store.cells import CellStore, open_store, read_summary, verify
from txpert_dist.store.splits import SPLITS

Run = Callable[..., CellStore]
PERTURBED = ("BRD4+SPI1", "CD86", "CUL3", "IRF1", "JAK2", "MYC", "STAT1")


def files(store: Path) -> dict[str, str]:
    """Hash of every file but those that say where the store came from."""
    listed = manifest.read(store).files
    about = ("uns/txpert/summary/", "sources.json", "zarr.json")
    return {record.path: record.sha256 for record in listed if not record.path.startswith(about)}


def screen_with_everything() -> anndata.AnnData:
    """With so many genes that no two vary alike."""
    small, rng = good_screen(160), np.random.default_rng(5)
    counts = rng.poisson(rng.gamma(0.5, 4, 200) * rng.gamma(2, 0.5, (160, 200)))
    names = [*small.var_names, *(f"G{i}" for i in range(188))]
    screen = anndata.AnnData(
        scipy.sparse.csr_matrix(counts.astype(np.float32)), small.obs, pd.DataFrame(index=names)
    )
    screen.obs["number"] = np.arange(160)
    screen.obsm["X_pca"] = np.arange(160 * 3, dtype=np.float32).reshape(160, 3)
    return screen


@pytest.mark.parametrize("row_order", ["split", "source"])
def test_a_seed_gives_the_store_of_an_ingest_with_that_seed(run: Run, tmp_path: Path, row_order: str) -> None:
    shared = {"batch_key": "batch", "embeddings": ("X_pca",), "select_genes": 50}
    old = run(tmp_path / "old", screen_with_everything(), split_seed=0, **shared)
    asked = run(tmp_path / "asked", screen_with_everything(), split_seed=7, row_order=row_order, **shared)
    wanted = Resplit(old.path, tmp_path / "new.zarr", seed=7, row_order=row_order)  # type: ignore[arg-type]
    summary = resplit(wanted)
    assert files(tmp_path / "new.zarr") == files(asked.path)
    assert old.split_hash != asked.split_hash == open_store(tmp_path / "new.zarr").split_hash
    told = from_json(read_summary(asked.path), asked.path)
    assert summary.to_json() == told.to_json() == read_summary(tmp_path / "new.zarr")
    assert (summary.store, summary.created) == (tmp_path / "new.zarr", True)
    verify(tmp_path / "new.zarr")
    before = manifest.file_sha256(tmp_path / "new.zarr" / "manifest.json")
    again = resplit(wanted)
    assert not again.created
    assert manifest.file_sha256(tmp_path / "new.zarr" / "manifest.json") == before


def test_a_table_decides_and_each_split_is_one_range_of_rows(run: Run, tmp_path: Path) -> None:
    old = run(tmp_path, screen_with_everything(), batch_key="batch", embeddings=("X_pca",), select_genes=5)
    wanted = dict(zip(PERTURBED, itertools.cycle(("test", "train", "val")), strict=False))
    lines = [f"{'SPI1+BRD4' if name == 'BRD4+SPI1' else name},{split}" for name, split in wanted.items()]
    (tmp_path / "splits.csv").write_text("\n".join(["perturbation,split,why", *(f"{x},?" for x in lines)]))
    summary = resplit(Resplit(old.path, tmp_path / "new.zarr", table=tmp_path / "splits.csv"))
    new = open_store(tmp_path / "new.zarr")
    found = {name: SPLITS[code] for name, code in zip(new.perturbations, new.split, strict=True)}
    assert found == {**{n: s.replace("val", "validation") for n, s in wanted.items()}, "control": "train"}
    group = np.where(new.perturbation == 0, 3, new.split[new.perturbation])
    assert (np.diff(group) >= 0).all()
    assert summary.cells_per_split == {s: int((group == i).sum()) for i, s in enumerate(SPLITS)}
    # Whatever belongs to a cell came along, and the cells are those of the file.
    back = anndata.read_zarr(new.path)
    expected = screen_with_everything()[source_row(new)].copy()
    assert back.obs_names.tolist() == expected.obs_names.tolist()
    assert (back.X.toarray() == expected.X.toarray()).all()
    assert (back.obs["number"] == expected.obs["number"]).all()
    assert (back.obsm["X_pca"] == expected.obsm["X_pca"]).all()
    assert new.embedding_origin("X_pca") == old.embedding_origin("X_pca")
    assert (new.control_mean_CG == old.control_mean_CG).all()
    for code in range(len(new.contexts)):
        rows = new.controls.rows[new.controls.indptr[code] : new.controls.indptr[code + 1]]
        assert set(back.obs["perturbation"].astype(str).iloc[rows]) == {"ctrl"}
        assert set(back.obs["batch"].astype(str).iloc[rows]) == {new.contexts[code].batch}


def test_genes_are_selected_on_the_new_training_cells(run: Run, tmp_path: Path) -> None:
    """A gene that varies in one perturbation's cells only is selected when that one is for training."""
    screen = good_screen(320)
    counts = screen.X.toarray()
    loud = (screen.obs["perturbation"] == "MYC").to_numpy()
    counts[loud, 9] = np.random.default_rng(1).integers(0, 400, loud.sum())
    screen.X = type(screen.X)(counts)
    old = run(tmp_path, screen, select_genes=2)
    for split in ("train", "test"):
        table = tmp_path / f"{split}.csv"
        others = dict(zip([n for n in PERTURBED if n != "MYC"], itertools.cycle(SPLITS), strict=False))
        rows = [f"{name},{where}" for name, where in {**others, "MYC": split}.items()]
        table.write_text("\n".join(["perturbation,split", *rows]))
        resplit(Resplit(old.path, tmp_path / f"{split}.zarr", table=table))
        assert (9 in open_store(tmp_path / f"{split}.zarr").selected) == (split == "train")


@settings(max_examples=60, deadline=None)
@given(st.permutations(PERTURBED), st.lists(st.sampled_from(SPLITS), min_size=7, max_size=7), st.booleans())
def test_a_table_in_any_order_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], codes: list[str], control: bool
) -> None:
    path = tmp_path_factory.mktemp("t") / "splits.tsv"
    frame = pd.DataFrame({"split": codes, "perturbation": names})
    if control:
        frame.loc[len(frame)] = ["train", "non-targeting"]
    frame.to_csv(path, sep="\t", index=False)
    told = dict(zip(names, codes, strict=True))
    found = read_split_table(path, ("control", *PERTURBED))
    assert [SPLITS[code] for code in found.split] == ["train", *(told[name] for name in PERTURBED)]
    assert read_split_table(path, ("control", *PERTURBED[2:])).unknown == PERTURBED[:2]


ALL = [f"{name},{split}" for name, split in zip(PERTURBED, itertools.cycle(SPLITS), strict=False)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["perturbation,fold", *ALL], ["no column 'split'"]),
        (["perturbation,split", *ALL[1:]], ["1 of the store's 7", "BRD4+SPI1"]),
        (["perturbation,split", *ALL, "MYC,dev"], ["line 9", "'dev' is no split", "validation"]),
        (["perturbation,split", *ALL, "SPI1+BRD4,test"], ["line 9", "another split further up"]),
        (["perturbation,split", *ALL, "ctrl,test"], ["line 9", "controls are for training"]),
        (["perturbation,split", *ALL, "MYC++,test"], ["line 9", "a gene is missing"]),
        (["perturbation,split", *(x.split(",")[0] + ",train" for x in ALL)], ["is for validation"]),
        (None, ["no such file"]),
    ],
)
def test_a_bad_table_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, lines: list[str] | None, words: list[str]
) -> None:
    old, table = run(tmp_path, good_screen()), tmp_path / "splits.csv"
    if lines is not None:
        table.write_text("\n".join(lines))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        resplit(Resplit(old.path, tmp_path / "new.zarr", table=table))
    for word in ("splits.csv", *words):
        assert word in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_replaced_unasked_and_nothing_damaged_is_copied(run: Run, tmp_path: Path) -> None:
    old = run(tmp_path, good_screen())
    with pytest.raises(InputError, match="is the store itself"):
        resplit(Resplit(old.path, old.path, seed=1))
    resplit(Resplit(old.path, tmp_path / "new.zarr", seed=1))
    with pytest.raises(InputError, match="give --overwrite"):
        resplit(Resplit(old.path, tmp_path / "new.zarr", seed=2))
    assert resplit(Resplit(old.path, tmp_path / "new.zarr", seed=2, overwrite=True)).created
    shard = next((old.path / "X" / "data").glob("c/*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(StoreError, match="X/data"):
        resplit(Resplit(old.path, tmp_path / "other.zarr", seed=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file0.h5ad", "new.zarr", "screen.zarr"]
