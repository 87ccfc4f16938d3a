from pathlib import Path

import pytest
from typer.testing import CliRunner

from txpert_dist.cli.graph import graph


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
