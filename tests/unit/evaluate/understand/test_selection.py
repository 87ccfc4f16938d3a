"""The test of the test metrics: ranks by SciPy's own similarities, and screens where the answer is known."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from scipy.spatial.distance import cosine
from scipy.stats import pearsonr, spearmanr

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.evaluate.understand import selection
from txpert_dist.evaluate.understand.selection import COLUMNS, Effort, metric_ranks, summarise
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.splits import TRAIN

BY_SCIPY = {
    "pearson": lambda x, y: pearsonr(x, y).statistic,
    "spearman": lambda x, y: spearmanr(x, y).statistic,
    "cosine": lambda x, y: 1 - cosine(x, y),
    "mse": lambda x, y: -((x - y) ** 2).mean(),
    "mae": lambda x, y: -np.abs(x - y).mean(),
}


@pytest.mark.parametrize("name", BY_SCIPY)
def test_similarities_are_scipys(name: str) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.poisson(1.0, (7, 60)).astype(float), rng.poisson(1.0, (9, 60)).astype(float)
    found = selection.SIMILARITIES[name](first, second)
    expected = np.array([[BY_SCIPY[name](x, y) for y in second] for x in first])
    if name in ("mse", "mae"):
        expected *= 60  # a sum ranks like the mean
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_cell_that_does_not_vary_has_no_correlation() -> None:
    first, second = np.ones((2, 5)), np.arange(10.0).reshape(2, 5)
    assert np.isnan(selection.SIMILARITIES["pearson"](first, second)).all()
    assert np.isnan(selection.SIMILARITIES["cosine"](0 * first, second)).all()


def test_the_table_holds_every_shared_training_perturbation(screen: DenseScreen) -> None:
    genes = np.arange(len(screen.store.genes), dtype=np.int64)
    kind, table = metric_ranks(screen.store, genes=genes, effort=Effort(repeats=3))
    assert kind == "cell_line"
    assert tuple(table.columns) == COLUMNS
    chosen = screen.in_split(TRAIN)
    shared = set(screen.name[chosen & (screen.line == "K562")]) & set(
        screen.name[chosen & (screen.line == "RPE1")]
    )
    assert set(table["perturbation"]) == shared
    assert len(table) == len(shared) * 3 * 10
    assert table["rank"].dropna().between(0, 1).all()
    again = metric_ranks(screen.store, genes=genes, effort=Effort(repeats=3))[1]
    pd.testing.assert_frame_equal(table, again)
    other = metric_ranks(screen.store, genes=genes, effort=Effort(repeats=3), seed=1)[1]
    assert not table["rank"].equals(other["rank"])
    everything = metric_ranks(screen.store, genes=genes, which="all", effort=Effort(repeats=1))[1]
    assert shared < set(everything["perturbation"])


def one_cell_each(folder: Path, num_lines: int, *, same: bool, batches: bool = False) -> CellStore:
    """A screen with a single cell of each perturbation and context, so that what is drawn is known."""
    rng = np.random.default_rng(3)
    names = [f"P{i}" for i in range(24)]
    base = rng.gamma(1.0, 2.0, 50) + 0.2
    own = {name: np.exp(rng.normal(0, 1.2, 50)) for name in names}
    counts, labels = [], []
    for line in range(num_lines):
        for _ in range(20):
            counts.append(rng.poisson(base))
            labels.append(("control", line))
        for name in names:
            effect = own[name] if same else np.exp(rng.normal(0, 1.2, 50))
            counts.append(rng.poisson(10 * base * effect))
            labels.append((name, line))
    obs = pd.DataFrame(labels, columns=["perturbation", "line"])
    obs["line"] = obs["line"].map(lambda line: f"L{line}")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"gene{i}" for i in range(50)])
    path = folder / "screen.h5ad"
    matrix = scipy.sparse.csr_matrix(np.array(counts).astype(np.float32))
    anndata.AnnData(matrix, obs, var).write_h5ad(path)
    keys = {"batch_key": "line", "cell_line": "K562"} if batches else {"cell_line_key": "line"}
    ingest(IngestConfig(sources=(path,), store=folder / "s.zarr", select_genes=0, **keys))
    return open_store(folder / "s.zarr")


def test_ranks_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    store = one_cell_each(tmp_path, 2, same=True)
    genes = np.arange(50, dtype=np.int64)
    _, table = metric_ranks(store, genes=genes, which="all", effort=Effort(repeats=1))
    counts = anndata.read_zarr(store.path).X.toarray().astype(np.float64)
    y_BG = np.log1p(4000 * counts / counts.sum(1, keepdims=True))
    delta_BG = y_BG - store.control_mean_CG[store.context]
    cells = {
        (store.perturbations[code], store.contexts[context].cell_line): row
        for row, (code, context) in enumerate(zip(store.perturbation, store.context, strict=True))
        if code
    }
    names = sorted({name for name, _ in cells})
    for (representation, similarity), part in table.groupby(["representation", "similarity"]):
        x_BG = delta_BG if representation == "delta" else y_BG
        score = BY_SCIPY[similarity]
        s = np.array([[score(x_BG[cells[p, "L0"]], x_BG[cells[q, "L1"]]) for q in names] for p in names])
        for number, name in enumerate(names):
            others = [other for other in range(len(names)) if other != number]
            forward = np.mean([s[number, number] >= s[number, other] for other in others])
            back = np.mean([s[number, number] >= s[other, number] for other in others])
            (found,) = part[part["perturbation"] == name]["rank"]
            assert found == pytest.approx((forward + back) / 2, abs=1e-12)


def test_shared_effects_are_found_again_and_unshared_ones_are_not(tmp_path: Path) -> None:
    summaries = []
    for same in (True, False):
        folder = tmp_path / str(same)
        folder.mkdir()
        store = one_cell_each(folder, 3, same=same)
        _, table = metric_ranks(store, genes=np.arange(50, dtype=np.int64), which="all")
        assert len(table[["first", "second"]].drop_duplicates()) == 3
        summaries.append(summarise(table).set_index(["representation", "similarity"]))
    shared, unshared = summaries
    assert shared.loc[("delta", "pearson"), "quantile"] > 0.97
    assert (abs(unshared["mean"] - 0.5) < 0.12).all()
    for summary in summaries:  # chance knows nothing of what is shared
        assert (summary["chance_quantile"] < 0.8).all()
    assert (unshared["quantile"] - unshared["chance_quantile"] < 0.2).all()


def test_a_store_of_one_line_is_tested_across_batches_of_which_some_pairs_are_drawn(tmp_path: Path) -> None:
    store = one_cell_each(tmp_path, 4, same=True, batches=True)
    genes = np.arange(50, dtype=np.int64)
    kind, table = metric_ranks(store, genes=genes, which="all", effort=Effort(repeats=1))
    assert kind == "batch"
    assert len(table[["first", "second"]].drop_duplicates()) == 6
    _, some = metric_ranks(store, genes=genes, which="all", effort=Effort(1, 5, 2))
    assert len(some[["first", "second"]].drop_duplicates()) == 2
    assert (some.groupby(["first", "second", "representation", "similarity"]).size() == 5).all()


def test_one_context_alone_has_nothing_to_find(tmp_path: Path) -> None:
    store = one_cell_each(tmp_path, 1, same=True)
    _, table = metric_ranks(store, genes=np.arange(50, dtype=np.int64), which="all")
    assert not len(table)
    assert not len(summarise(table))


def test_the_summary_is_a_quantile_of_means() -> None:
    rng = np.random.default_rng(0)
    rows = [
        ("delta", "mae", "A", "B", repeat, f"P{i}", rng.random(), rng.random())
        for i in range(30)
        for repeat in range(3)
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.loc[5, "rank"] = np.nan
    (row,) = summarise(table).itertuples()
    means = table.groupby("perturbation")[["rank", "rank_shuffled"]].mean()
    assert row.quantile == pytest.approx(np.quantile(means["rank"], 0.9))
    assert row.chance_quantile == pytest.approx(np.quantile(means["rank_shuffled"], 0.9))
    assert row.mean == pytest.approx(means["rank"].mean())
    assert (row.num_perturbations, row.num_nan) == (30, 1)
