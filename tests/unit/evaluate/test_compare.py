"""Models side by side: paired differences by pandas, what is shared stated once, other splits refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap
from typer.testing import CliRunner

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.pages import assert_self_contained, read
from tests.unit.evaluate.test_evaluate_run import oracle, view
from txpert_dist.cli.app import app
from txpert_dist.errors import InputError
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.compare import compare
from txpert_dist.evaluate.comparison_files import to_json, write_comparison
from txpert_dist.evaluate.report import write_report
from txpert_dist.evaluate.run import evaluate
from txpert_dist.evaluate.scores import METRICS

UNIT = ["perturbation", "cell_line"]


@pytest.fixture(scope="module")
def folder(screen: DenseScreen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of two noisy models, in the folders of their runs, one of them a screen without a graph."""
    folder, store = tmp_path_factory.mktemp("reports"), screen.store
    rng = np.random.default_rng(0)
    for name, spread in (("good", 0.2), ("bad", 0.8)):
        model = oracle(store, 0.7, "model")
        noise = model.moments.num_cells_R[:, None] * rng.normal(0, spread, model.moments.sum_RG.shape)
        noisy = model._replace(moments=model.moments._replace(sum_RG=model.moments.sum_RG + noise))
        report = evaluate(store, [noisy], split="test", genes=view(store), effort=Effort(repeats=1))
        write_report(report, folder / name / "report")
    return folder


def reports(folder: Path) -> list[Path]:
    return [folder / "good" / "report", folder / "bad" / "report"]


def scores(folder: Path, predictor: str = "model") -> pd.DataFrame:
    table = pd.read_parquet(folder / "per_perturbation.parquet")
    return table[table["predictor"] == predictor].set_index(UNIT)


def test_differences_are_paired_means_over_the_same_units(folder: Path) -> None:
    found = compare(reports(folder))
    good, bad = (scores(path) for path in reports(folder))
    assert found.models == ["good", "bad"]
    first = found.differences[0]
    assert first[:2] == ("good", "bad")
    for metric, definition in METRICS.items():
        difference = (good[metric] - bad[metric]).dropna()
        gain = first.metrics[metric]
        assert gain.num_values == len(difference)
        if len(difference):
            assert gain.mean == pytest.approx(difference.mean(), abs=1e-12)
            better = difference > 0 if definition.higher_is_better else difference < 0
            assert gain.num_better == better.sum()
    assert first.metrics["pearson_delta"].low > 0
    turned = compare(reports(folder)[::-1]).differences[0]
    for metric, gain in first.metrics.items():
        if gain.num_values:
            assert turned.metrics[metric].mean == pytest.approx(-gain.mean, abs=1e-12)
            assert turned.metrics[metric].low == pytest.approx(-gain.high, abs=1e-12)
    against = [(row.name, row.against) for row in found.differences[1:]]
    assert against == [(m, o) for o in ("general", "split_half_pooled") for m in ("good", "bad")]


def test_intervals_are_those_of_scipy_where_every_perturbation_is_one_unit(
    folder: Path, tmp_path: Path
) -> None:
    """Cut to one cell line, a unit is a perturbation, as SciPy resamples them."""
    for path in reports(folder):
        shutil.copytree(path, tmp_path / path.parent.name)
        file = tmp_path / path.parent.name / "per_perturbation.parquet"
        table = pd.read_parquet(file)
        table[table["cell_line"] == "K562"].to_parquet(file, index=False)
    places = [tmp_path / "good", tmp_path / "bad"]
    gain = compare(places).differences[0].metrics["pseudobulk_rmse"]
    difference = (scores(places[0]) - scores(places[1]).loc[:, ["pseudobulk_rmse"]])["pseudobulk_rmse"]
    expected = bootstrap(
        (difference.to_numpy(),),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    spread = expected.high - expected.low
    assert gain.low == pytest.approx(expected.low, abs=0.05 * spread)
    assert gain.high == pytest.approx(expected.high, abs=0.05 * spread)


def test_what_reports_share_is_there_once_and_what_they_do_not_for_each(folder: Path, tmp_path: Path) -> None:
    found = compare(reports(folder))
    names = [row.name for row in found.rows]
    assert names[:2] == ["good", "bad"]
    assert len(set(names)) == len(names)
    assert {"general", "split_half_pooled", "sampling"} <= set(names)
    assert "split_half_per_batch" not in names
    general = scores(reports(folder)[0], "general")
    row = next(row for row in found.rows if row.name == "general")
    assert row.metrics["retrieval"].mean == pytest.approx(general["retrieval"].mean())
    shutil.copytree(folder / "bad", tmp_path / "bad")
    file = tmp_path / "bad" / "report" / "per_perturbation.parquet"
    table = pd.read_parquet(file)
    table.loc[table["predictor"] == "general", "retrieval"] += 1e-3
    table.to_parquet(file, index=False)
    apart = compare([reports(folder)[0], tmp_path / "bad" / "report"])
    assert {"general (good)", "general (bad)"} <= {row.name for row in apart.rows}
    assert "general" not in {row.name for row in apart.rows}


def test_the_folder_holds_the_same_in_every_form(folder: Path, tmp_path: Path) -> None:
    found, out = compare(reports(folder)), tmp_path / "out"
    write_comparison(found, out)
    assert sorted(path.name for path in out.iterdir()) == [
        *("compare.html", "compare.json", "compare.md", "per_perturbation.parquet")
    ]
    content = json.loads((out / "compare.json").read_text())
    assert content == json.loads(json.dumps(to_json(found)))
    assert [report["label"] for report in content["reports"]] == ["good", "bad"]
    page, text = read(out / "compare.html"), (out / "compare.md").read_text()
    assert_self_contained(page)
    table = pd.read_parquet(out / "per_perturbation.parquet")
    pd.testing.assert_frame_equal(table, found.table)
    for row in content["rows"]:
        mean = table[table["predictor"] == row["name"]]["pearson_delta"].mean()
        assert row["metrics"]["pearson_delta"]["mean"] == (None if np.isnan(mean) else pytest.approx(mean))
        assert f"| `{row['name']}` |" in text
    heads = next(cells for cells in page.cells if cells and cells[0] == "Perturbation")
    column = heads.index("Pearson delta, bad")
    bad = scores(reports(folder)[1])["pearson_delta"]
    listed = [cells for cells in page.cells if len(cells) == len(heads) and (cells[0], cells[1]) in bad.index]
    assert len(listed) == len(bad)
    for cells in listed:
        assert cells[column] == f"{bad[cells[0], cells[1]]:.3f}".replace("-", "\u2212")
    (out / "left over").touch()
    write_comparison(found, out)
    assert not (out / "left over").exists()
    with pytest.raises(InputError, match="is not a comparison"):
        write_comparison(found, folder / "good")


def changed(folder: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a report whose JSON was changed."""
    shutil.copytree(folder / "bad" / "report", out)
    content = json.loads((out / "report.json").read_text())
    change(content)
    (out / "report.json").write_text(json.dumps(content))
    return out


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("split", "validation", "another split"),
        ("split_hash", "f" * 64, "another division into splits"),
        ("store_hash", "f" * 64, "another store"),
        ("held_out_cell_lines", ["RPE1"], "other held-out cell lines"),
        ("genes_hash", "f" * 64, "other genes"),
        ("seed", 7, "another seed"),
    ],
)
def test_reports_on_something_else_are_refused(
    folder: Path, tmp_path: Path, key: str, value: object, said: str
) -> None:
    other = changed(folder, tmp_path / "other", lambda content: content["provenance"].update({key: value}))
    with pytest.raises(InputError, match=said) as caught:
        compare([reports(folder)[0], other])
    assert str(other) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_what_is_no_report_is_refused(folder: Path, tmp_path: Path) -> None:
    first = reports(folder)[0]
    old = changed(folder, tmp_path / "old", lambda content: content.update(schema=2))
    fewer = changed(folder, tmp_path / "fewer", lambda content: None)
    table = pd.read_parquet(fewer / "per_perturbation.parquet")
    table[table["perturbation"] != table["perturbation"].iloc[0]].to_parquet(
        fewer / "per_perturbation.parquet", index=False
    )
    cut = changed(folder, tmp_path / "cut", lambda content: None)
    (cut / "report.json").write_text((cut / "report.json").read_text()[:100])
    damaged = changed(folder, tmp_path / "damaged", lambda content: None)
    (damaged / "per_perturbation.parquet").write_bytes(b"PAR1")
    for given, said in (
        ([first], "give two or more"),
        ([first, first], "given twice"),
        ([first, old], r"another version \(schema 2, not 3\)"),
        ([first, fewer], "has other perturbations"),
        ([first, cut], "is no report"),
        ([first, damaged], "is no report"),
        ([first, tmp_path / "absent"], "is no report"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            compare(given)
        assert "\n" not in str(caught.value)


def test_labels_that_collide_are_paths(folder: Path, tmp_path: Path) -> None:
    for name in ("one/run", "two/run", "general"):
        shutil.copytree(folder / "bad" / "report", tmp_path / name)
    places = [tmp_path / name for name in ("one/run", "two/run", "general")]
    assert compare(places).models == [str(place) for place in places]


def test_the_command_line_compares(folder: Path, tmp_path: Path) -> None:
    given = [str(path) for path in reports(folder)]
    done = CliRunner().invoke(app, ["compare", *given, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "compare.html").exists()
    assert "good" in done.output
    done = CliRunner().invoke(app, ["compare", given[0], "--out", str(tmp_path / "again")])
    assert isinstance(done.exception, InputError)
    assert not (tmp_path / "again").exists()
