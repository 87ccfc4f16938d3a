"""GEARS' split of a store: Norman's labels give the published composition, by ingest and by store split."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from tests.bad_inputs import good_screen
from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.resplit import Resplit, resplit
from txpert_dist.ingest.run import ingest
from txpert_dist.store import manifest
from txpert_dist.store.cells import CellStore, open_store, read_summary
from txpert_dist.store.gears import gears_split, genes_of
from txpert_dist.store.splits import SPLITS, TEST

Run = Callable[..., CellStore]
SHARED = Path(os.environ.get("TXPERT_SHARED_DATA", "../shared/data"))
NORMAN = [
    line
    for line in (Path(__file__).parents[2] / "norman_conditions.txt").read_text().splitlines()
    if not line.startswith("#")
]


def screen_of(conditions: list[str], seed: int = 0) -> anndata.AnnData:
    """Two cells of each condition, in shuffled order."""
    rng = np.random.default_rng(seed)
    labels = np.array(conditions, object)[rng.permutation(np.arange(2 * len(conditions)) % len(conditions))]
    counts = 1 + rng.poisson(1.0, (len(labels), 6))
    obs = pd.DataFrame({"condition": labels}, index=[f"cell{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(6)])
    return anndata.AnnData(scipy.sparse.csr_matrix(counts.astype(np.float32)), obs, var)


def subgroups(store: CellStore) -> dict[str, str]:
    found: dict[str, str] = json.loads(read_summary(store.path)).get("subgroups", {})
    return found


def canonical(condition: str) -> str:
    return "+".join(sorted(genes_of(condition))) or "control"


def splits(store: CellStore) -> dict[str, int]:
    return dict(zip(store.perturbations, store.split.tolist(), strict=True))


def test_norman_is_split_as_published_from_its_labels(run: Run, tmp_path: Path) -> None:
    store = run(tmp_path, screen_of(NORMAN), preset="gears", split="gears", split_seed=1, select_genes=0)
    expected = gears_split(NORMAN, seed=1)
    assert splits(store) == {canonical(name): code for name, code in expected.split.items()}
    assert subgroups(store) == {canonical(name): group for name, group in expected.subgroup.items()}
    composition = Counter(group for name, group in subgroups(store).items() if splits(store)[name] == TEST)
    # 37 conditions are 27 genes: ctrl+A and A+ctrl are one perturbation of a store
    singles = {
        genes_of(c)
        for c, g in expected.subgroup.items()
        if g == "unseen_single" and expected.split[c] == TEST
    }
    assert composition == {
        "combo_seen0": 9,
        "combo_seen1": 52,
        "combo_seen2": 18,
        "unseen_single": len(singles),
    }


@pytest.mark.parametrize("mode", ["simulation", "combo_seen1", "combo_seen2"])
def test_a_store_split_anew_is_the_store_of_an_ingest(run: Run, tmp_path: Path, mode: str) -> None:
    settings = {"preset": "gears", "select_genes": 4}
    old = run(tmp_path / "old", screen_of(NORMAN), **settings)
    asked = run(
        tmp_path / "asked", screen_of(NORMAN), split="gears", gears_mode=mode, split_seed=3, **settings
    )
    resplit(Resplit(old.path, tmp_path / "new.zarr", seed=3, gears=mode))  # type: ignore[arg-type]
    new = open_store(tmp_path / "new.zarr")
    about = ("sources.json", "zarr.json")
    files = [
        {f.path: f.sha256 for f in manifest.read(store.path).files if not f.path.startswith(about)}
        for store in (new, asked)
    ]
    assert files[0] == files[1]
    assert new.split_hash == asked.split_hash != old.split_hash
    assert subgroups(new) == subgroups(asked)
    assert set(subgroups(new)) == {name for name, code in splits(new).items() if SPLITS[code] != "train"}
    # another split of it has none of these groups
    resplit(Resplit(new.path, tmp_path / "plain.zarr", seed=0))
    assert subgroups(open_store(tmp_path / "plain.zarr")) == {}


def test_pairs_are_drawn_as_they_are_written(run: Run, tmp_path: Path) -> None:
    """With every pair turned round GEARS draws others: the store must not draw by its canonical names."""
    turned = ["+".join(reversed(name.split("+"))) for name in NORMAN]
    found = []
    for number, conditions in enumerate((NORMAN, turned)):
        store = run(
            tmp_path / str(number), screen_of(conditions), preset="gears", split="gears", split_seed=1
        )
        expected = gears_split(conditions, seed=1)
        assert splits(store) == {canonical(name): code for name, code in expected.split.items()}
        found.append(splits(store))
    assert found[0] != found[1]


def test_a_pair_in_both_orders_has_one_split(run: Run, tmp_path: Path) -> None:
    both = [*NORMAN, "FEV+AHR", "CBL+ctrl+CNN1"]
    store = run(tmp_path, screen_of(both), preset="gears", split="gears", split_seed=1)
    assert splits(store) == {
        canonical(name): code for name, code in gears_split(NORMAN, seed=1).split.items()
    }


def test_other_separators_are_understood(run: Run, tmp_path: Path) -> None:
    bare = [name.replace("+ctrl", "").replace("ctrl+", "").replace("+", "_") for name in NORMAN]
    settings = {"perturbation_key": "condition", "separator": "_", "split": "gears", "split_seed": 1}
    store = run(tmp_path, screen_of(sorted(set(bare))), **settings)
    assert splits(store) == {
        canonical(name): code for name, code in gears_split(NORMAN, seed=1).split.items()
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gears_mode": "single"}, ["leaves", "perturbations out of every split", "choose another mode"]),
        ({"gears_mode": "simulation_single"}, ["simulation_single is for single genes"]),
    ],
)
def test_modes_that_do_not_fit_are_one_line(
    run: Run, tmp_path: Path, settings: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, screen_of(NORMAN), preset="gears", split="gears", split_seed=1, **settings)
    assert all(word in str(caught.value) for word in [*words, "file0.h5ad"])
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file0.h5ad"]


def test_three_genes_and_too_few_of_them_are_refused(run: Run, tmp_path: Path) -> None:
    three = screen_of([*NORMAN, "AHR+FEV+KLF1"])
    with pytest.raises(InputError, match=r"'AHR\+FEV\+KLF1': splits of GEARS are of one gene or two"):
        run(tmp_path / "a", three, preset="gears", split="gears")
    with pytest.raises(InputError, match=r"too few to split .*; GEARS' split leaves one empty"):
        run(tmp_path / "b", good_screen(), batch_key="batch", split="gears", gears_mode="combo_seen2")


def test_the_sub_groups_of_a_table_are_kept_and_must_agree(run: Run, tmp_path: Path) -> None:
    old = run(tmp_path / "old", good_screen(), batch_key="batch")
    names = ["STAT1", "IRF1", "JAK2", "CD86", "MYC", "SPI1+BRD4", "CUL3"]
    rows = [f"{name},{SPLITS[i % 3]},{'mine' if i % 3 == 2 else ''}" for i, name in enumerate(names)]
    table = tmp_path / "split.csv"
    table.write_text("\n".join(["perturbation,split,subgroup", *rows, "OTHER,test,mine"]))
    summary = resplit(Resplit(old.path, tmp_path / "new.zarr", table=table))
    assert subgroups(open_store(tmp_path / "new.zarr")) == summary.subgroups
    assert summary.subgroups == {"BRD4+SPI1": "mine", "JAK2": "mine"}
    table.write_text("\n".join(["perturbation,split,subgroup", *rows, "BRD4+SPI1,test,yours"]))
    with pytest.raises(InputError, match=r"line 9: .* is in another subgroup further up"):
        resplit(Resplit(old.path, tmp_path / "other.zarr", table=table))


@pytest.mark.real
def test_the_gears_slice_of_norman(tmp_path: Path) -> None:
    path = SHARED / "norman-gears-50x50" / "norman_subset.h5ad"
    if not path.exists():
        pytest.skip(f"{path.name} is not in TXPERT_SHARED_DATA")
    store = tmp_path / "s.zarr"
    settings = {"preset": "gears", "layer": "counts", "gene_name_key": "feature_name"}
    ingest(IngestConfig(sources=(path,), store=store, split="gears", split_seed=1, **settings))
    conditions = anndata.read_h5ad(path).obs["condition"].astype(str)
    expected = gears_split(list(dict.fromkeys(conditions)), seed=1)
    found = open_store(store)
    assert splits(found) == {canonical(name): code for name, code in expected.split.items()}
    assert subgroups(found) == {canonical(name): group for name, group in expected.subgroup.items()}
