"""The other metrics of a report, from dense cells with SciPy, scikit-learn and scanpy."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error, r2_score

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.test_evaluate_run import oracle, view
from tests.unit.evaluate.test_scores import expand, noisy_truth, scores_of
from txpert_dist.evaluate.blocks import Effort, Work, join_scored, score_groups
from txpert_dist.evaluate.run import evaluate
from txpert_dist.evaluate.scores import METRICS, background_of, own_genes
from txpert_dist.evaluate.survey import differential_genes
from txpert_dist.loader.conditions import (
    cell_lines,
    condition_moments,
    perturbation_deltas,
    perturbed_rows,
    quiet,
)

TOLERANCE = 2e-5
"""The store's control means and the oracle's cells are float32."""


def top_genes_of_scanpy(screen: DenseScreen, line: str) -> dict[str, NDArray[np.int64]]:
    here = screen.line == line
    obs = pd.DataFrame({"p": screen.name[here]}, index=[str(i) for i in range(here.sum())])
    data = anndata.AnnData(screen.y_BG[here], obs=obs)
    times = pd.Series(screen.name[here]).value_counts()
    groups = [name for name in times.index if name != "control" and times[name] > 1]
    scanpy.tl.rank_genes_groups(
        data, "p", groups=groups, reference="control", method="t-test", rankby_abs=True
    )
    return {name: data.uns["rank_genes_groups"]["names"][name].astype(int) for name in groups}


def test_every_metric_is_its_definition_over_the_dense_cells(screen: DenseScreen) -> None:
    store, rows = screen.store, perturbed_rows(screen.store, "test")
    predict = noisy_truth(store.control_mean_CG)
    index, values = scores_of(store, rows, predict)
    assert list(values) == list(METRICS)
    moments = condition_moments(store, rows, genes=np.arange(len(store.genes), dtype=np.int64))
    predicted_BG = expand(moments, predict(moments), store, rows) - screen.control_BG[rows]
    change_BG = screen.y_BG - screen.control_BG
    truth = {
        (name, line): change_BG[(screen.name == name) & (screen.line == line)].mean(0)
        for name, line in set(zip(screen.name[screen.perturbed], screen.line[screen.perturbed], strict=True))
    }
    ranked = {line: top_genes_of_scanpy(screen, line) for line in ("K562", "RPE1")}
    checked = 0
    for row, (name, line) in enumerate(zip(index["perturbation"], index["cell_line"], strict=True)):
        own = (screen.name[rows] == name) & (screen.line[rows] == line)
        p_G, o_G = predicted_BG[own].mean(0), truth[name, line]
        shared_G = np.mean([delta for key, delta in truth.items() if key[1] == line], axis=0)
        other = "RPE1" if line == "K562" else "K562"
        expected = {
            "pearson_delta_shifted": pearsonr(p_G - shared_G, o_G - shared_G)[0],
            "pearson_delta_other_genes": pearsonr(p_G, o_G)[0],  # no perturbed gene was measured
            "spearman_delta": spearmanr(p_G, o_G)[0],
            "r2_delta": r2_score(o_G, p_G),
            "pseudobulk_rmse": np.sqrt(mean_squared_error(o_G, p_G)),
            "retrieval_across_lines": np.nan,
        }
        if (name, other) in truth:
            similar = {q: pearsonr(p_G, d)[0] for (q, where), d in truth.items() if where == other}
            beaten = [similar[name] >= s for q, s in similar.items() if q != name]
            expected["retrieval_across_lines"] = np.mean(beaten)
        if name in ranked[line]:
            top20, every = ranked[line][name][:20], ranked[line][name]
            expected["pearson_delta_de20"] = pearsonr(p_G[top20], o_G[top20])[0]
            expected["pearson_delta_de100"] = pearsonr(p_G[every], o_G[every])[0]  # 40 genes in all
            expected["direction_accuracy"] = np.mean(np.sign(p_G) == np.sign(o_G))
            checked += 1
        else:
            expected |= dict.fromkeys(("pearson_delta_de20", "direction_accuracy"), np.nan)
        for metric, value in expected.items():
            slack = 1e-12 if metric in ("retrieval_across_lines", "direction_accuracy") else 50 * TOLERANCE
            assert values[metric][row] == pytest.approx(value, abs=slack, nan_ok=True), metric
    assert checked > 5
    assert np.isnan(values["energy_distance"]).all()


def test_positions_of_the_perturbed_genes_are_found_in_the_view(screen: DenseScreen) -> None:
    names = {"gene3": 1, "gene5": 0, "gene39": -1}
    from dataclasses import replace

    store = replace(screen.store, perturbations=("control", "gene3", "gene39", "gene5+gene3"))
    own_QM = own_genes(store, np.array([5, 3]))
    assert own_QM.tolist() == [[-1, -1], [names["gene3"], -1], [names["gene39"], -1], [0, 1]]


def test_scores_of_shares_of_the_perturbations_join_to_those_of_one_worker(screen: DenseScreen) -> None:
    store, genes = screen.store, view(screen.store)
    rows = perturbed_rows(store, "test")
    lines = cell_lines(store)
    everything = perturbation_deltas(store, perturbed_rows(store), genes=genes)

    def work(some: NDArray[np.int64]) -> Work:
        differential = differential_genes(store, some, genes=genes, max_groups=7)
        background = background_of(
            store, everything, lines.cell_line_C, genes=genes, differential=differential, seed=3
        )
        return Work(store, some, genes, background, Effort(), quiet)

    predictors = [oracle(store, 0.3, "model")]
    whole = score_groups(work(rows), predictors)
    codes = np.unique(store.perturbation[rows])
    shares = [rows[np.isin(store.perturbation[rows], codes[rank::3])] for rank in range(3)]
    joined = join_scored([score_groups(work(some), predictors) for some in shares])
    assert (joined.perturbation == whole.perturbation).all()
    assert (joined.place == whole.place).all()
    for name, values in whole.values.items():
        for metric, value_P in values.items():
            np.testing.assert_allclose(joined.values[name][metric], value_P, rtol=0, atol=1e-12)
    np.testing.assert_allclose(joined.predicted_size["model"], whole.predicted_size["model"], atol=1e-12)


def test_report_compares_the_model_with_everything_else_and_shows_examples(screen: DenseScreen) -> None:
    store, genes = screen.store, view(screen.store)
    model = oracle(store, 1.0, "model")
    report = evaluate(store, [model], split="test", genes=genes, effort=Effort(energy_cells=20))
    against = [comparison.against for comparison in report.comparisons]
    assert against == [
        *(row.name for row in report.predictors[1:]),
        "split_half_pooled",
        "sampling",
    ]
    table = report.table.set_index(["perturbation", "cell_line"])
    for comparison in report.comparisons:
        ours, theirs = (table[table["predictor"] == name]["pearson_delta"] for name in comparison[:2])
        difference = (ours - theirs).dropna()
        gain = comparison.metrics["pearson_delta"]
        assert gain.num_values == len(difference)
        if len(difference):
            assert gain.mean == pytest.approx(difference.mean())
            assert gain.num_better == (difference > 0).sum()
            assert gain.low <= gain.mean <= gain.high
    rows = {row.name: row for row in (*report.predictors, *report.reproducibility)}
    for row in rows.values():
        for metric, mean in row.metrics.items():
            low, high = row.intervals[metric]
            assert (low is None) == (mean.num_values < 2)
            assert low is None or low - 1e-9 <= mean.mean <= high + 1e-9
    assert rows["no_change"].kind == "baseline"
    assert rows["sampling"].kind == "reproducibility"
    halves = rows["split_half_pooled"].metrics["pearson_delta"].mean
    assert report.spearman_brown["split_half_pooled"]["pearson_delta"] == pytest.approx(
        2 * halves / (1 + halves)
    )
    energy = {name: row.metrics["energy_distance"].mean for name, row in rows.items()}
    assert 0 < energy["model"] < energy["no_change"]
    examples = report.examples
    assert set(examples["place"]) == {"best", "median", "worst"}
    assert (examples.groupby(["place", "perturbation", "cell_line"]).size() == len(genes)).all()
    assert np.abs(examples["observed_delta"] - examples["predicted_delta"]).max() < 1e-5
    shown = table[table["predictor"] == "model"]
    np.testing.assert_allclose(shown["observed_size"], shown["predicted_size"], atol=1e-5)
    assert {item.what for item in report.exclusions} >= {
        "baseline knn_graph",
        "cells of batches without controls",
    }
    assert [check.outcome for check in report.checks] == ["passed"] * 3


@given(seed=st.integers(0, 500), scale=st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_pearson_metrics_ignore_the_order_of_genes_and_the_size_of_the_prediction(
    seed: int, scale: float
) -> None:
    from txpert_dist.evaluate.scores import Pairs, pearson_metrics
    from txpert_dist.metrics.differential import top_genes

    rng = np.random.default_rng(seed)
    observed_PG, predicted_PG = rng.normal(size=(2, 5, 60))
    shared_PG, own_PM = np.zeros((5, 60)), rng.integers(0, 60, (5, 1)).astype(np.int32)
    before = pearson_metrics(Pairs(predicted_PG, observed_PG, shared_PG, own_PM, top_genes(observed_PG, 30)))
    order = rng.permutation(60)
    moved = Pairs(
        scale * predicted_PG[:, order],
        observed_PG[:, order],
        shared_PG,
        np.argsort(order)[own_PM].astype(np.int32),
        top_genes(observed_PG[:, order], 30),
    )
    for name, value_P in pearson_metrics(moved).items():
        assert np.abs(value_P - before[name]).max() < 1e-9
