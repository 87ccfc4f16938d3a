"""Published screens cut in two by batch: one part ingested, the other appended, is both ingested."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

from tests.unit.ingest.append_screens import appended, ingested, written
from tests.unit.ingest.test_append import assert_same
from tests.unit.ingest.test_real_screens import need
from txpert_dist.ingest.work import Sizes
from txpert_dist.store.cells import open_store, verify
from txpert_dist.store.shard_file import ShardSizes

pytestmark = pytest.mark.real

SHARDS = Sizes(shards=ShardSizes(1 << 12, 1 << 15))
NO_KEYS = {"cell_line_key": None, "batch_key": None}


def papalexi(screen: anndata.AnnData) -> np.ndarray:
    return (screen.obs["bio_rep"] == "rep_3").to_numpy()


def norman(screen: anndata.AnnData) -> np.ndarray:
    return screen.obs["gem_group"].astype(str).isin(["2", "5", "8"]).to_numpy()


def datlinger(screen: anndata.AnnData) -> np.ndarray:
    """Every third well; most wells of both parts have no control."""
    wells = sorted(screen.obs["sample"].unique())
    return screen.obs["sample"].isin(wells[::3]).to_numpy()


def devel(screen: anndata.AnnData) -> np.ndarray:
    return (screen.obs["cell_type"] == screen.obs["cell_type"].iloc[0]).to_numpy()


CASES: dict[str, tuple[str, Callable[[anndata.AnnData], np.ndarray], dict[str, object]]] = {
    "papalexi": (
        "real_papalexi2021.h5ad",
        papalexi,
        {
            "perturbation_key": "target",
            "control_label": "non-targeting",
            "batch_key": "bio_rep",
            "cell_line": "THP-1",
        },
    ),
    "norman": (
        "real_perturbseq.h5ad",
        norman,
        {
            "perturbation_key": "condition",
            "where": ("dataset=norman19",),
            "library_size_key": "libsize_recovered",
            "batch_key": "gem_group",
            "cell_line_key": "cell_type",
        },
    ),
    "datlinger": (
        "real_datlinger2021_scifi.h5ad",
        datlinger,
        {
            "preset": "scperturb",
            "batch_key": "sample",
            "library_size_key": "ncounts",
            "cell_line": "Jurkat",
        },
    ),
    "log1p": (
        "perturbench-devel/devel.h5ad",
        devel,
        {
            "perturbation_key": "condition",
            "cell_line_key": "cell_type",
            "input_scale": "log1p",
            "empty_cells": "drop",
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_screen_in_two_parts_is_the_screen(tmp_path: Path, case: str) -> None:
    file, second, settings = CASES[case]
    screen = anndata.read_h5ad(need(file))
    later = second(screen)
    parts = [
        written(tmp_path / f"{name}.h5ad", screen[rows].copy())
        for name, rows in (("a", ~later), ("b", later))
    ]
    options = {**NO_KEYS, **settings}
    old = ingested(tmp_path / "a.zarr", parts[0], sizes=SHARDS, **options)
    done = appended(old.path, parts[1], sizes=SHARDS, **options)
    found = open_store(old.path)
    verify(found.path)
    assert done.kept_files == 2 * (int(old.matrix.indptr[-1]) // SHARDS.shards.shard)
    assert found.num_cells == old.num_cells + done.num_cells
    assert_same(found, ingested(tmp_path / "c.zarr", *parts, sizes=SHARDS, **options))
