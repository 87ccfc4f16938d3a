import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from graph_store.client import describe
from graph_store.graph import GraphError
from tests.unit.store.small_store import write_store
from txpert_dist.cli.graph import graph
from txpert_dist.errors import InputError


def run(*arguments: object) -> str:
    result = CliRunner().invoke(graph, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.exception
    return " ".join(result.stdout.split())


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "edges.csv").write_text("source,target\n" + "".join(f"G{i},G{i + 1}\n" for i in range(9)))
    (tmp_path / "genes.txt").write_text("G1\nX\nX\n")
    path = tmp_path / "graphs.yaml"
    path.write_text("graphs: [{name: chain, source: {kind: edges, path: edges.csv}}]\n")
    return path


def test_build_and_info_show_expander_encodings_and_further_nodes(recipe, tmp_path):
    text = recipe.read_text()
    recipe.write_text("nodes: genes.txt\npositional: {random_walk: 4, laplacian: 2}\n" + text)
    shown = [run("build", recipe, "--out", tmp_path / "out"), run("info", tmp_path / "out")]
    for said in shown:
        assert ": 11 genes" in said
        assert "nodes listed: 3; 1 repeat another, 1 are in a graph too, 1 are added; 0 are renamed" in said
        assert "expander: 3 cycles, 66 edges, spectral gap " in said
        assert " in draw 1 " in said
        assert "positional encodings: chain random_walk 4, chain laplacian 2" in said


def test_what_is_not_there_is_said(recipe, tmp_path):
    recipe.write_text("expander: {cycles: 0}\n" + recipe.read_text())
    said = run("build", recipe, "--out", tmp_path / "out")
    assert "expander: none" in said
    assert "positional encodings: none" in said
    assert "nodes listed" not in said


@pytest.fixture
def two(recipe, tmp_path) -> tuple[str, str]:
    """Ids of two snapshots: a chain, and a chain that lacks a link and has another."""
    run("build", recipe, "--out", tmp_path / "out")
    first = only(tmp_path / "out")
    edges = tmp_path / "edges.csv"
    edges.write_text(edges.read_text().replace("G3,G4\n", "G0,G9\n"))
    run("build", recipe, "--out", tmp_path / "out")
    (second,) = {path.name for path in (tmp_path / "out").iterdir()} - {first}
    return first, second


def only(folder: Path) -> str:
    (found,) = folder.iterdir()
    return found.name


def test_info_shows_sizes_degrees_and_isolated_genes(recipe, tmp_path):
    recipe.write_text("nodes: genes.txt\n" + recipe.read_text())
    run("build", recipe, "--out", tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "out" / only(tmp_path / "out")):
        said = run("info", place)
        # genes, without edge, edges, pairs, components, largest, median neighbours, most, largest in-degree
        assert "│ chain │ 10 │ 1 │ 9 │ 9 │ 1 │ 10 │ 2 │ 2 │ " in said
        assert "│ 0 │ 1 │ │ 1 │ 2 │ │ 2 to 3 │ 8 │" in said
        assert "genes without an edge in any graph: 1 (X)" in said
        assert "(together)" not in said


def test_info_shows_overlap_of_several_graphs(recipe, tmp_path):
    (tmp_path / "more.csv").write_text("source,target\nG1,G0\nG0,G5\nG0,G6\nG0,G7\n")
    recipe.write_text(
        recipe.read_text().rstrip("]\n") + ", {name: star, source: {kind: edges, path: more.csv}}]\n"
    )
    said = run("build", recipe, "--out", tmp_path / "out")
    assert "│ chain │ │ 11.1% │ │ star │ 25.0% │ │" in said
    assert "pairs by the number of graphs that have them: 11 in 1; 1 in 2" in said
    assert "│ (together) │ 10 │ 0 │ " in said
    assert "│ 0 │ 0 │ 5 │ 0 │ │ 1 │ 2 │ 4 │ 1 │" in said
    assert "│ 4 to 7 │ 0 │ 1 │ 1 │" in said


def test_info_writes_a_page_and_json(recipe, tmp_path):
    store, edges = tmp_path / "screen.zarr", tmp_path / "edges.csv"
    write_store(store, np.ones((40, 10), np.uint32))  # of the perturbations A, B, C and D
    edges.write_text(edges.read_text().replace("G1", "A").replace("G2", "B"))
    run("build", recipe, "--out", tmp_path / "out")
    page, told = tmp_path / "page.html", tmp_path / "info.json"
    said = run("info", tmp_path / "out", "--store", store, "--html", page, "--json", told)
    assert f"written: {page}" in said.replace("\n", "")
    assert "│ by name │ 2 │" in said
    assert "│ in no graph: isolated nodes │ 2 │ C, D │" in said
    assert "│ chain │ 2 │ 50.0% │ 2 │ 1 │" in said
    assert only(tmp_path / "out") in page.read_text()
    assert str(store) in page.read_text()
    content = json.loads(told.read_text())
    assert content["record"]["id"] == only(tmp_path / "out")
    assert content["statistics"]["graphs"][0]["neighbours"]["counts"] == [[1, 2], [2, 8]]
    assert content["coverage"]["absent"] == ["C", "D"]
    assert content["coverage"]["together"]["pairs"] == 1


@pytest.mark.parametrize("spelling", ["ids", "folders", "one and one"])
def test_diff_takes_ids_and_folders(two, tmp_path, spelling):
    out = tmp_path / "out"
    if spelling == "ids":
        said = run("diff", *two, "--location", out)
    elif spelling == "folders":
        said = run("diff", *(out / identity for identity in two))
    else:
        shutil.move(out / two[1], tmp_path / "other" / two[1])
        said = run("diff", out, tmp_path / "other")
    assert f"first: {two[0]} second: {two[1]} different" in said
    assert "│ chain │ 9 │ 9 │ 8 │ 0 │ 0 │ 1 │ 1 │" in said
    assert "chain added: G0 -> G9 (1)" in said or "chain added: G9 -> G0 (1)" in said
    assert "graph chain │ edges.csv, " in said
    assert "genes removed: 0 genes added: 0" in said
    assert " recipe " not in said


def test_diff_of_the_same_says_so(two, tmp_path):
    said = run("diff", two[0], two[0], "--location", tmp_path / "out")
    assert said == f"first: {two[0]} second: {two[0]} same: the two are one snapshot"


def test_diff_of_recipes_alone_says_so(recipe, tmp_path):
    run("build", recipe, "--out", tmp_path / "out")
    first = only(tmp_path / "out")
    recipe.write_text(recipe.read_text().replace("{name: chain,", "{name: chain, version: v2,"))
    run("build", recipe, "--out", tmp_path / "more")
    said = run("diff", tmp_path / "out", tmp_path / "more")
    assert f"first: {first}" in said
    assert "same genes, edges, weights and expander; the ids differ because the recipes do" in said
    assert '│ graphs[chain].version │ null │ "v2" │' in said


def test_diff_writes_every_edge_and_json_and_spells_out_no_more_than_asked(two, tmp_path):
    edges, told = tmp_path / "edges.out.csv", tmp_path / "diff.json"
    said = run("diff", *two, "--location", tmp_path / "out", "--edges", edges, "--json", told, "--limit", "0")
    assert "chain added" not in said
    table = pd.read_csv(edges)
    assert list(table.columns) == ["graph", "kind", "source", "target", "first", "second"]
    assert sorted(table["kind"]) == ["added", "removed"]
    assert set(table.loc[table["kind"] == "removed", ["source", "target"]].to_numpy()[0]) == {"G3", "G4"}
    content = json.loads(told.read_text())
    assert (content["first"], content["second"]) == two
    assert content["graphs"][0]["same"] == 8
    assert content["inputs"][0]["second"]["name"] == "edges.csv"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("diff", "{first}", "0" * 32, "--location", "{out}"), "has no snapshot 0000"),
        (("diff", "{first}", "../other", "--location", "{out}"), "no such folder"),
        (("diff", "{out}", "{out}"), "holds several snapshots; give one of"),
        (("diff", "grpc://127.0.0.1:1", "{out}"), "is a service; bring the snapshot here"),
        (("info", "grpc+tls://host:1"), "is a service; bring the snapshot here"),
        (("info", "{out}", "--snapshot", "../../etc"), "is no snapshot id"),
        (("info", "{out}", "--snapshot", "{first}", "--json", "{out}"), "cannot be written"),
        (("info", "{out}", "--snapshot", "{first}", "--html", "/absent/page.html"), "cannot be written"),
    ],
)
def test_failures_are_one_line_that_says_what_to_do(two, tmp_path, arguments, message):
    given = [text.format(first=two[0], out=tmp_path / "out") for text in arguments]
    result = CliRunner().invoke(graph, given)
    assert isinstance(result.exception, GraphError | InputError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_damaged_snapshot_is_neither_shown_nor_compared(two, tmp_path):
    path = tmp_path / "out" / two[0] / "edges-chain.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for arguments in (("info", tmp_path / "out" / two[0]), ("diff", *two, "--location", tmp_path / "out")):
        result = CliRunner().invoke(graph, [str(argument) for argument in arguments])
        assert isinstance(result.exception, GraphError)
        assert "edges-chain.arrow: is damaged" in str(result.exception)


def test_build_reads_cell_stores_and_says_where_a_screen_comes_from(recipe, tmp_path):
    x_BG = np.random.default_rng(0).integers(0, 9, (400, 30)).astype(np.uint32)
    write_store(tmp_path / "screen.zarr", x_BG)
    recipe.write_text(
        "graphs: [{name: kd, keep: {kind: top_percent, percent: 100}, "
        "source: {kind: perturb_seq, store: screen.zarr, minimum_cells: 1}}]\n"
    )
    said = run("build", recipe, "--out", tmp_path / "out")
    assert "screen of kd: " in said
    record = describe(str(tmp_path / "out"))
    for key, value in record.screens["kd"].items():
        assert f"{key} {value}" in said
    for what, number in record.graphs[0].details.items():
        assert f"{number:,} {what}" in said
