"""The HTML page of a report: self-contained, true to the JSON, and names from data are only ever text."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.pages import Page, assert_self_contained, read
from tests.unit.evaluate.test_evaluate_run import oracle, view
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.figures import label
from txpert_dist.evaluate.node_map import NodeMap, node_map
from txpert_dist.evaluate.report import Report, with_model, with_tiers, write_report
from txpert_dist.evaluate.run import evaluate
from txpert_dist.evaluate.tasks import task_groups
from txpert_dist.evaluate.tiers import Tiers
from txpert_dist.loader.conditions import cell_lines

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>bold</b>",
    "$\\frac{1}{2}$",
    "&lt;A&amp;B",
    "{{ 7 * 7 }}",
    "' onmouseover='alert(1)",
    "Ж益🧬",
)


def nodes(names: tuple[str, ...], sets: dict[str, frozenset[str]] | None) -> NodeMap:
    rng = np.random.default_rng(0)
    return node_map(rng.normal(size=(len(names), 5)), names, (), frozenset(names[:6]), gene_sets=sets)


@pytest.fixture(scope="module")
def report(screen: DenseScreen) -> Report:
    store = screen.store
    predictors = [oracle(store, 0.8, "model"), oracle(store, -1.0, "opposite")]
    return evaluate(store, predictors, split="test", genes=view(store), effort=Effort(repeats=2))


@pytest.fixture(scope="module")
def full(report: Report) -> Report:
    """With everything that a page can show."""
    known = Tiers({name: place / 12 for place, name in enumerate("ABCDEFGHJ")})
    genes = tuple("ABCDEFGHIJKL")
    sets = {"first & <i>set</i>": frozenset("ABC"), "second": frozenset("DEXYZ")}
    configuration = {"tracking_uri": "http://me:secret@host/", "more": [{"a": "s3://u:p@bucket", "b": 3}]}
    return with_model(with_tiers(report, known), configuration, nodes(genes, sets))


@pytest.fixture(scope="module")
def folder(full: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written of it."""
    folder = tmp_path_factory.mktemp("written") / "report"
    write_report(full, folder)
    return folder


def page_of(report: Report, folder: Path) -> Page:
    write_report(report, folder)
    return read(folder / "report.html")


def test_the_page_needs_nothing_else_and_says_everything(full: Report, folder: Path) -> None:
    page = read(folder / "report.html")
    assert_self_contained(page)
    anchors = {a["id"] for a in page.of("h2")}
    shown = {"headline", "boxes", "reproducibility", "retrieval", "task", "tier", "examples", "calibration"}
    assert anchors == shown | {"map", "perturbations", "all", "excluded", "definitions", "provenance"}
    for item in full.exclusions:
        assert f"{item.what}: {item.why}" in page.text
    for value in (full.provenance.store_hash, full.provenance.split_hash, full.provenance.genes_hash):
        assert value in page.text
    examples = full.examples[["place", "perturbation", "cell_line"]].drop_duplicates()
    assert sum(a["aria-label"].startswith(("best", "median", "worst")) for a in page.of("figure")) == len(
        examples
    )
    assert full.nodes is not None
    written = pd.read_parquet(folder / "nodes.parquet")
    pd.testing.assert_frame_equal(written, full.nodes.points)


def test_tables_hold_the_numbers_of_the_json(full: Report, folder: Path) -> None:
    page = read(folder / "report.html")
    content = json.loads((folder / "report.json").read_text())
    rows = {cells[0]: cells for cells in page.cells if len(cells) == 1 + len(content["headline"])}
    for row in [*content["predictors"], *content["reproducibility"]]:
        for metric, cell in zip(content["headline"], rows[label(row["name"])][1:], strict=True):
            mean, ends = row["metrics"][metric]["mean"], row["intervals"][metric]
            expected = "\u2013" if mean is None else f"{mean:.3f}"
            if ends["low"] is not None:
                expected += f"{ends['low']:.3f} to {ends['high']:.3f}"
            assert cell.strip() == expected.replace("-", "\u2212")
    own = full.table[full.table["predictor"] == "model"]
    listed = [cells for cells in page.cells if len(cells) > 8 and cells[1] in ("K562", "RPE1")]
    assert len(listed) == len(own)
    assert {(cells[0], cells[1]) for cells in listed} == set(
        zip(own["perturbation"], own["cell_line"], strict=True)
    )
    heads = next(cells for cells in page.cells if cells and cells[0] == "Perturbation")
    column = heads.index("Pearson delta")
    table = own.set_index(["perturbation", "cell_line"])["pearson_delta"]
    for cells in listed:
        assert cells[column].replace("\u2212", "-") == f"{table[cells[0], cells[1]]:.3f}"


def test_what_is_not_there_has_no_section(report: Report, tmp_path: Path) -> None:
    page = page_of(report, tmp_path / "report")
    assert_self_contained(page)
    anchors = {a["id"] for a in page.of("h2")}
    assert not anchors & {"tier", "map"}
    assert not (tmp_path / "report" / "nodes.parquet").exists()
    assert "Configuration of the run" not in page.text


def test_baselines_alone_have_a_page(screen: DenseScreen, tmp_path: Path) -> None:
    effort = Effort(repeats=1, samplings=0)
    report = evaluate(screen.store, [], split="test", genes=view(screen.store), effort=effort)
    page = page_of(report, tmp_path / "report")
    assert_self_contained(page)
    assert "Models" not in page.text.split()


def test_names_from_data_are_only_ever_text(full: Report, tmp_path: Path) -> None:
    """Each perturbation has a hostile name, and so has everything else that comes from outside."""
    own = dict.fromkeys(full.table["perturbation"])
    names = {name: "".join(HOSTILE[i :: len(own)]) + name for i, name in enumerate(own)}
    everything = "".join(HOSTILE)
    table = full.table.assign(
        perturbation=full.table["perturbation"].map(names), cell_line=full.table["cell_line"] + everything
    )
    genes = [HOSTILE[i % len(HOSTILE)] + gene for i, gene in enumerate(full.examples["gene"])]
    examples = full.examples.assign(perturbation=full.examples["perturbation"].map(names), gene=genes)
    provenance = full.provenance._replace(run=everything, store=everything)
    mapped = nodes(tuple(name + "A" for name in HOSTILE), {everything: frozenset(n + "A" for n in HOSTILE)})
    configuration = {"name": everything}
    report = replace(
        full,
        table=table,
        examples=examples,
        provenance=provenance,
        nodes=mapped,
        configuration=configuration,
    )
    page = page_of(report, tmp_path / "report")
    assert_self_contained(page)
    listed = {cells[0] for cells in page.cells if cells}
    assert listed >= set(names.values())
    titles = {a["aria-label"] for a in page.of("figure")}
    for name in set(examples["perturbation"]):
        assert any(name in (title or "") for title in titles)
    assert f"predictions of {everything}" in " ".join(page.text.split("\n"))


def test_the_same_report_gives_the_same_page(full: Report, folder: Path, tmp_path: Path) -> None:
    write_report(full, tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_passwords_are_not_in_the_report(folder: Path) -> None:
    for name in ("report.html", "report.json", "report.md"):
        text = (folder / name).read_text()
        assert "secret" not in text
        assert "u:p@" not in text
    assert json.loads((folder / "report.json").read_text())["configuration"] == {
        "tracking_uri": "http://host/",
        "more": [{"a": "s3://bucket", "b": 3}],
    }


def test_groups_are_tasks_of_the_store_and_tiers_of_the_table(folder: Path, screen: DenseScreen) -> None:
    content = json.loads((folder / "report.json").read_text())
    table = pd.read_parquet(folder / "per_perturbation.parquet")
    store = screen.store
    codes = [store.perturbations.index(name) for name in table["perturbation"]]
    lines = [cell_lines(store).names.index(name) for name in table["cell_line"]]
    assert table["task"].tolist() == task_groups(store, np.array(codes), np.array(lines)).tolist()
    for by in ("task", "tier"):
        assert {row["group"] for row in content["groups"][by]} == set(table[by])
        for row in content["groups"][by]:
            own = table[(table[by] == row["group"]) & (table["predictor"] == row["predictor"])][row["metric"]]
            expected = None if own.isna().all() else pytest.approx(own.mean(), abs=1e-12)
            assert row["mean"] == expected
            assert row["num_values"] + row["num_nan"] == len(own)
    assert set(table["tier"]) > {"none"}


def test_many_points_become_an_image_and_the_page_stays_small(full: Report, tmp_path: Path) -> None:
    """A thousand perturbations: an image for a scatter plot, a row of the table for each."""
    shown = full.table["predictor"].isin(["model", "general", "split_half_pooled"])
    one = full.table[shown & (full.table["perturbation"] == full.table["perturbation"].iloc[0])]
    rng = np.random.default_rng(0)
    table = pd.concat([one.assign(perturbation=f"P{i}") for i in range(1000)], ignore_index=True)
    table["pearson_delta"] = rng.uniform(-1, 1, len(table))
    some = tuple(row for row in full.predictors if row.name in ("model", "general"))
    many = replace(full, table=table, predictors=some, reproducibility=full.reproducibility[:1])
    page = page_of(many, tmp_path / "report")
    assert_self_contained(page)
    assert len(page.of("image")) > 2
    assert all((a["href"] or "").startswith("data:image/png;base64,") for a in page.of("image"))
    assert (tmp_path / "report" / "report.html").stat().st_size < 4_000_000
