"""A whole evaluation: known predictors get known scores, blocks do not matter, the report is complete."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.errors import InputError
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.report import Origin, Report, to_json, with_origin, write_report
from txpert_dist.evaluate.run import evaluate
from txpert_dist.evaluate.scores import METRICS
from txpert_dist.loader.conditions import condition_moments, perturbation_deltas, perturbed_rows
from txpert_dist.metrics.moments import ConditionMoments
from txpert_dist.store.cells import CellStore

PNG = b"\x89PNG"


class Oracle(NamedTuple):
    """Predicts what was measured, its change from the control times ``factor``."""

    name: str
    factor: float
    moments: ConditionMoments
    control_CG: NDArray[np.float32]

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        known = zip(self.moments.perturbation_R, self.moments.context_R, strict=True)
        row = {key: i for i, key in enumerate(known)}
        rows = [row[key] for key in zip(perturbation_R, context_R, strict=True)]
        mean_RG = self.moments.sum_RG[rows] / self.moments.num_cells_R[rows, None]
        control_RG = self.control_CG[context_R]
        return control_RG + self.factor * (mean_RG - control_RG)


def view(store: CellStore) -> NDArray[np.int64]:
    return store.training_genes("selected")


def oracle(store: CellStore, factor: float, name: str) -> Oracle:
    moments = condition_moments(store, perturbed_rows(store, "test"), genes=view(store))
    return Oracle(name, factor, moments, store.control_mean_CG[:, view(store)])


@pytest.fixture(scope="module")
def report(screen: DenseScreen) -> Report:
    store = screen.store
    predictors = [oracle(store, 1.0, "model"), oracle(store, -1.0, "opposite")]
    origin = Origin(run="runs/one", model_hash="abc", snapshot_id="s1")
    return with_origin(evaluate(store, predictors, split="test", genes=view(store), seed=3), origin)


def rows_of(report: Report) -> dict[str, Any]:
    return {row.name: row for row in (*report.predictors, *report.reproducibility)}


def test_known_predictors_get_their_scores(report: Report, screen: DenseScreen) -> None:
    rows = rows_of(report)
    assert list(rows) == [
        "model",
        "opposite",
        "no_change",
        "general",
        "train_mean",
        "batch_mean",
        "nearest_line",
        "additive",
        "split_half_pooled",
        "split_half_per_batch",
        "sampling",
    ]
    assert rows["model"].metrics["pearson_delta"].mean == pytest.approx(1.0, abs=1e-9)
    assert rows["model"].metrics["retrieval"].mean == 1.0
    assert rows["model"].metrics["pseudobulk_mse"].mean == pytest.approx(0.0, abs=1e-12)
    assert rows["opposite"].metrics["pearson_delta"].mean == pytest.approx(-1.0, abs=1e-9)
    assert rows["opposite"].metrics["retrieval"].mean < 0.1
    num_groups = report.counts.groups
    assert rows["no_change"].metrics["pearson_delta"] == (None, 0, num_groups)
    assert rows["no_change"].metrics["retrieval"] == (None, 0, num_groups)
    cells = screen.in_split(2)
    genes = view(screen.store)
    change_BG = (screen.y_BG - screen.control_BG)[cells][:, genes]
    table = report.table[report.table["predictor"] == "no_change"].set_index(["perturbation", "cell_line"])
    for (name, line), found in table.iterrows():
        own_BG = change_BG[(screen.name[cells] == name) & (screen.line[cells] == line)]
        assert found["num_cells"] == len(own_BG)
        assert found["per_cell_mse"] == pytest.approx((own_BG**2).mean(), abs=1e-4)
        assert found["pseudobulk_mse"] == pytest.approx((own_BG.mean(0) ** 2).mean(), abs=1e-4)


def test_general_scores_on_unseen_perturbations_come_from_training_cells_only(
    report: Report, screen: DenseScreen
) -> None:
    genes = view(screen.store)
    change_BG = (screen.y_BG - screen.control_BG)[:, genes]
    overall = change_BG[screen.in_split(0)].mean(0)
    table = report.table[report.table["predictor"] == "general"].set_index(["perturbation", "cell_line"])
    found = table.loc[("J", "K562"), "pearson_delta"]
    observed = change_BG[(screen.name == "J") & (screen.line == "K562")].mean(0)
    assert found == pytest.approx(np.corrcoef(overall, observed)[0, 1], abs=1e-5)


def test_counts_say_what_was_evaluated(report: Report, screen: DenseScreen) -> None:
    cells = screen.in_split(2)
    groups = set(zip(screen.name[cells], screen.line[cells], strict=True))
    conditions = pd.Series(list(zip(*(c[cells] for c in screen[3:]), strict=True))).value_counts()
    counts = report.counts
    assert counts.perturbations == len(set(screen.name[cells]))
    assert counts.groups == len(groups)
    assert counts.cells == cells.sum()
    assert counts.conditions == len(conditions)
    assert counts.conditions_without_halves == (conditions == 1).sum() > 0
    borrowed = cells & (screen.line == "RPE1") & (screen.batch == "3")
    assert counts.cells_with_fallback_controls == borrowed.sum() > 0
    assert counts.training_cells == screen.in_split(0).sum()
    assert counts.perturbations_with_training_cells == 0
    everything = set(zip(screen.name[screen.perturbed], screen.line[screen.perturbed], strict=True))
    assert counts.reference_perturbations == len(everything)


def test_the_table_averages_to_the_summary(report: Report) -> None:
    for row in (*report.predictors, *report.reproducibility[:1]):
        shown = report.table[report.table["predictor"] == row.name]
        for metric, mean in row.metrics.items():
            assert shown[metric].isna().sum() == mean.num_nan
            expected = math.nan if mean.mean is None else mean.mean
            assert shown[metric].mean() == pytest.approx(expected, nan_ok=True, abs=1e-12)
    per_batch = report.reproducibility[1]
    assert per_batch.unit == "perturbation, cell line, batch"
    assert per_batch.metrics["pearson_delta"].num_nan == report.counts.conditions_without_halves
    values = sum(per_batch.metrics["pearson_delta"][1:])
    assert values == report.counts.conditions


def test_blocks_of_any_size_give_the_same_report(report: Report, screen: DenseScreen) -> None:
    store = screen.store
    seen: list[tuple[str, int, int]] = []
    again = evaluate(
        store,
        [oracle(store, 1.0, "model"), oracle(store, -1.0, "opposite")],
        split="test",
        genes=view(store),
        seed=3,
        effort=Effort(memory_bytes=1),
        progress=lambda *step: seen.append(step),
    )
    pd.testing.assert_frame_equal(again.table, report.table, rtol=1e-9, atol=1e-12)
    blocks = [step for step in seen if step[0] == "scoring predictions"]
    assert len(blocks) == report.counts.perturbations
    assert blocks[-1] == ("scoring predictions", report.counts.cells, report.counts.cells)


def test_another_seed_draws_other_halves_and_nothing_else(report: Report, screen: DenseScreen) -> None:
    again = evaluate(screen.store, [], split="test", genes=view(screen.store), seed=4)
    ours, theirs = rows_of(report), rows_of(again)
    assert theirs["general"] == ours["general"]
    assert theirs["split_half_pooled"] != ours["split_half_pooled"]


def test_a_split_without_cells_and_shared_names_are_refused(screen: DenseScreen) -> None:
    store = screen.store
    twice = oracle(store, 1.0, "general")
    with pytest.raises(ValueError, match="share a name"):
        evaluate(store, [twice], split="test", genes=view(store))
    everything_trains = replace(store, split=np.zeros_like(store.split))
    with pytest.raises(InputError, match="no perturbed cell is in the test split"):
        evaluate(everything_trains, [], split="test", genes=view(store))
    nothing_trains = replace(store, split=np.full_like(store.split, 2))
    with pytest.raises(InputError, match="training split"):
        evaluate(nothing_trains, [], split="test", genes=view(store))


def test_the_report_on_disk_is_complete_and_strict_json(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    write_report(report, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "examples.parquet",
        "pearson_delta_per_perturbation.png",
        "per_perturbation.parquet",
        "report.html",
        "report.json",
        "report.md",
        "scores.png",
    ]

    def refuse(token: str) -> None:
        raise AssertionError(token)

    content = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert content == json.loads(json.dumps(to_json(report)))
    assert list(content) == [
        *("schema", "provenance", "counts", "metrics", "predictors", "reproducibility", "headline"),
        *("comparisons", "spearman_brown", "bootstrap", "checks", "excluded", "groups", "configuration"),
    ]
    for row in content["predictors"] + content["reproducibility"]:
        assert list(row["metrics"]) == list(METRICS)
        assert all(list(mean) == ["mean", "num_values", "num_nan"] for mean in row["metrics"].values())
    assert content["predictors"][2]["metrics"]["pearson_delta"]["mean"] is None
    assert content["provenance"]["model_hash"] == "abc"
    assert content["provenance"]["held_out_cell_lines"] == []
    table = pd.read_parquet(folder / "per_perturbation.parquet")
    pd.testing.assert_frame_equal(table, report.table)
    text = (folder / "report.md").read_text()
    for part in ("| `model` | 1.0000 |", "`no_change`: pearson_delta", "abc", report.provenance.store_hash):
        assert part in text
    for name in ("scores.png", "pearson_delta_per_perturbation.png"):
        assert (folder / name).read_bytes().startswith(PNG)
        assert f"({name})" in text


def test_a_report_replaces_a_report_and_nothing_else(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(report, folder)
    (folder / "left over").touch()
    write_report(report, folder)
    assert not (folder / "left over").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.md").write_text("mine")
    with pytest.raises(InputError, match="not a report"):
        write_report(report, other)
    assert (other / "chapter.md").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "thesis"]


def test_a_failure_leaves_the_earlier_report(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(report, folder)
    before = (folder / "report.json").read_bytes()
    broken = Report(
        report.provenance,
        report.counts,
        report.predictors,
        report.reproducibility,
        report.table.drop(columns="pearson_delta"),
    )
    with pytest.raises(KeyError):
        write_report(broken, folder)
    assert (folder / "report.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_deltas_of_training_cells_do_not_hold_other_cells(screen: DenseScreen) -> None:
    store = screen.store
    deltas = perturbation_deltas(store, perturbed_rows(store, "train"), genes=view(store))
    assert (store.split[deltas.perturbation_P] == 0).all()
