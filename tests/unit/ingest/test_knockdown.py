"""The knock-down check: what pandas computes from the same cells, and what is left out on request."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import zarr

from tests.bad_inputs import GENES, good_screen
from tests.unit.ingest.rows import in_source_order
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import CellStore

Run = Callable[..., CellStore]


def screen_with_effects() -> anndata.AnnData:
    """STAT1 loses most of its expression, IRF1 gains, SPI1+BRD4 loses one of two; XYZ is not measured."""
    screen = good_screen(400, seed=3)
    labels = screen.obs["perturbation"].astype(str)
    labels[labels == "CUL3"] = "XYZ"
    screen.obs["perturbation"] = labels
    x_BG = screen.X.toarray()
    rng = np.random.default_rng(1)
    for label, gene, factor in (("STAT1", "STAT1", 0.1), ("IRF1", "IRF1", 3), ("SPI1+BRD4", "SPI1", 0.1)):
        cells = np.flatnonzero(labels == label)
        column = GENES.index(gene)
        x_BG[cells, column] = rng.poisson(x_BG[cells, column] * factor)
    screen.X = x_BG + (np.arange(12) == 11)  # no cell without counts
    # A batch whose controls are the cell line's.
    screen.obs["batch"] = np.where(np.arange(400) < 40, "3", screen.obs["batch"].astype(str))
    lost = (screen.obs["batch"] == "3") & (labels == "ctrl")
    screen.obs.loc[lost, "perturbation"] = "MYC"
    return screen


def table(store: CellStore) -> pd.DataFrame:
    group = zarr.open_group(str(store.path), mode="r")["uns/txpert/knockdown"]
    columns = {name: group[name][:] for name in group}
    return pd.DataFrame(columns).set_index(["perturbation", "gene"])


def expected(screen: anndata.AnnData) -> pd.DataFrame:
    """By the words of the definition, cell after cell."""
    normal = screen.copy()
    normal.X = normal.X.astype(np.float64)
    scanpy.pp.normalize_total(normal, target_sum=4000)
    linear = pd.DataFrame(normal.X, columns=list(GENES))
    obs = screen.obs.reset_index(drop=True)
    control = obs["perturbation"] == "ctrl"
    rows = []
    for label in sorted(set(obs["perturbation"]) - {"ctrl"}):
        cells = np.flatnonzero(obs["perturbation"] == label)
        for gene in sorted(set(label.split("+")) & set(GENES)):
            own = [control & (obs["batch"] == obs["batch"][cell]) for cell in cells]
            used = [mask if mask.any() else control for mask in own]
            logs = [
                np.log1p(linear[gene][cell]) - np.log1p(linear[gene][mask]).mean()
                for cell, mask in zip(cells, used, strict=True)
            ]
            left = linear[gene][cells].sum() / sum(linear[gene][mask].mean() for mask in used)
            name = "+".join(sorted(label.split("+")))
            rows.append((name, gene, len(cells), np.mean(logs), left))
    columns = ["perturbation", "gene", "num_cells", "log_ratio", "share_left"]
    return pd.DataFrame(rows, columns=columns).set_index(["perturbation", "gene"])


def test_the_record_is_what_pandas_computes(run: Run, tmp_path: Path) -> None:
    screen = screen_with_effects()
    found, wanted = table(run(tmp_path, screen, batch_key="batch", cell_line="K562")), expected(screen)
    assert len(found) == len(wanted) == 7
    for column in wanted.columns:
        np.testing.assert_allclose(found[column], wanted[column][found.index], rtol=1e-5, atol=1e-6)
    assert found["share_left"]["STAT1", "STAT1"] < 0.3
    assert found["share_left"]["IRF1", "IRF1"] > 2


def test_the_summary_counts_targets(tmp_path: Path) -> None:
    screen = screen_with_effects()
    screen.write_h5ad(tmp_path / "s.h5ad")
    summary = ingest(IngestConfig(sources=(tmp_path / "s.h5ad",), store=tmp_path / "s.zarr"))
    share = expected(screen.copy())["share_left"]
    assert summary.measured_targets == 7
    assert summary.unlowered_targets == (share > 0.7).sum() > 0


def test_weak_perturbations_are_left_out_when_asked(run: Run, tmp_path: Path) -> None:
    """XYZ was not measured, so it stays; SPI1+BRD4 has one target that is not lowered, so it goes."""
    screen = screen_with_effects()
    for label in ("CD86", "JAK2", "MYC"):  # so that enough perturbations for a split remain
        cells = np.flatnonzero(screen.obs["perturbation"] == label)
        screen.X[cells, GENES.index(label)] = 0
    options = {"batch_key": "batch", "cell_line": "K562"}
    store = run(tmp_path, screen, require_knockdown=0.3, **options)
    assert store.perturbations == ("control", "CD86", "JAK2", "MYC", "STAT1", "XYZ")
    kept = ~screen.obs["perturbation"].isin(["IRF1", "SPI1+BRD4"]).to_numpy()
    back = anndata.read_zarr(store.path)[in_source_order(store)]
    assert (back.X.toarray() == screen.X[kept]).all()
    summary = ingest(
        IngestConfig(sources=(tmp_path / "file0.h5ad",), store=store.path, require_knockdown=0.3, **options)
    )
    (filtered,) = summary.filters
    assert "0.3" in filtered.filter
    assert (filtered.kept, filtered.dropped) == (kept.sum(), (~kept).sum())
    # The table of labels is of all cells.
    assert {row.label: row.num_cells for row in summary.labels}["IRF1"] == 50


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5])
def test_a_share_is_between_nothing_and_all(value: float) -> None:
    with pytest.raises(ValueError, match="require_knockdown"):
        IngestConfig(sources=(), store=Path("s"), require_knockdown=value)


def test_a_target_that_controls_lack_decides_nothing(run: Run, tmp_path: Path) -> None:
    screen = good_screen()
    x_BG = screen.X.toarray()
    x_BG[:, GENES.index("CUL3")] = 0
    screen.X = x_BG
    found = table(run(tmp_path, screen, batch_key="batch"))
    assert np.isnan(found["share_left"]["CUL3", "CUL3"])
    assert found["log_ratio"]["CUL3", "CUL3"] == 0
    again = run(tmp_path / "b", screen, batch_key="batch", require_knockdown=0.001)
    assert "CUL3" in again.perturbations
