import re
from pathlib import Path

import pytest

from graph_store.config import KeepAll, TopInEdges, TopPercent, load, recipe
from graph_store.graph import GraphError
from graph_store.source_config import EdgesSource, GmtSource

FULL = """\
seed: 5
aliases: {path: names.csv, alias: old, approved: new}
nodes: lists/genes.txt
expander: {cycles: 4, seed: 7}
positional: {random_walk: 16, laplacian: 8}
graphs:
  - name: string
    source: {kind: edges, path: /data/string.csv, minimum_weight: 400}
    version: 12.0
    licence: CC BY 4.0
  - name: screen
    source: {kind: edges, path: sub/screen.tsv, signed: true, columns: {source: a, target: b, weight: c}}
    keep: {kind: top_percent, percent: 1}
  - name: sets
    source: {kind: gmt, path: sets.gmt}
    keep: none
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "graphs.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_full_file_with_paths_relative_to_it(tmp_path):
    config = load(write(tmp_path, FULL))
    string, screen, sets = config.graphs
    assert config.aliases.path == tmp_path / "names.csv"
    assert string.source == EdgesSource(path=Path("/data/string.csv"), minimum_weight=400)
    assert string.keep == TopInEdges(count=20)
    assert string.version == "12.0"
    assert screen.source.path == tmp_path / "sub/screen.tsv"
    assert screen.keep == TopPercent(percent=1)
    assert sets.source == GmtSource(path=tmp_path / "sets.gmt", jaccard_above=0.1)
    assert sets.keep == KeepAll()
    assert config.nodes == tmp_path / "lists/genes.txt"
    assert (config.expander.cycles, config.expander.seed) == (4, 7)
    assert (config.positional.random_walk, config.positional.laplacian) == (16, 8)


def test_defaults_of_what_comes_beside_the_graphs(tmp_path):
    config = load(write(tmp_path, GRAPH))
    assert (config.expander.cycles, config.expander.seed, config.nodes) == (3, None, None)
    assert (config.positional.random_walk, config.positional.laplacian) == (0, 0)
    assert recipe(config)["nodes"] is False


def test_recipe_holds_no_path_and_everything_else(tmp_path):
    text = str(recipe(load(write(tmp_path, FULL))))
    assert str(tmp_path) not in text
    assert "path" not in text
    for value in (
        "400",
        "CC BY 4.0",
        "top_percent",
        "'seed': 5",
        "'alias': 'old'",
        "jaccard_above",
        "'nodes': True",
        "'cycles': 4",
    ):
        assert value in text


GRAPH = "graphs:\n  - name: a\n    source: {kind: edges, path: a.csv}\n"
BAD = [
    ("", r"graphs: is needed"),
    ("[1, 2]", r"must hold keys .* not a list"),
    ("graphs: []", r"line 1: graphs: .*at least 1 item"),
    ("graphs: {", r"is not plain YAML"),
    ("graphs: !!python/name:os.system x", r"is not plain YAML"),
    ("seed: 0\nsead: 1\n" + GRAPH, r"line 2: sead: no such key; did you mean seed\?"),
    ("seed: 0\nseed: 1\n" + GRAPH, r"line 2: seed is given twice"),
    ("seed: -1\n" + GRAPH, r"line 1: seed: .*greater than or equal to 0 \(got -1\)"),
    (GRAPH + "    kep: none\n", r"line 4: graphs\.0\.kep: no such key; did you mean keep\?"),
    (GRAPH + "    keep: some\n", r"line 4: graphs\.0\.keep"),
    (GRAPH + "    keep: {kind: top}\n", r"line 4: graphs\.0\.keep: needs a kind, one of top_in_edges, top_p"),
    (GRAPH + "    keep: {kind: top_in_edges, cuont: 2}\n", r"graphs\.0\.keep\.cuont: .*did you mean count\?"),
    (GRAPH + "    keep: {kind: top_in_edges, count: 0}\n", r"graphs\.0\.keep\.count: .*greater than 0"),
    (GRAPH + "    keep: {kind: top_percent, percent: 101}\n", r"graphs\.0\.keep\.percent: .*100"),
    ("graphs:\n  - name: a\n", r"line 2: graphs\.0\.source: is needed"),
    (
        "graphs:\n  - name: a\n    source: {path: x}\n",
        r"line 3: graphs\.0\.source: needs a kind, one of edges",
    ),
    ("graphs:\n  - name: ../a\n    source: {kind: gmt, path: x}\n", r"graphs\.0\.name: .*pattern"),
    (
        "graphs:\n  - name: a\n    source:\n      kind: edges\n      path: x\n      minimum_wieght: 3\n",
        r"line 6: graphs\.0\.source\.minimum_wieght: no such key; did you mean minimum_weight\?",
    ),
    ("graphs:\n  - name: a\n    source: {kind: gmt, path: x, minimum_weight: .nan}\n", r"no such key"),
    ("graphs:\n  - name: a\n    source: {kind: edges, path: x, minimum_weight: .inf}\n", r"finite"),
    (
        "graphs:\n  - name: a\n    source: {kind: edges, path: x, columns: {source: s}}\n",
        r"graphs\.0\.source\.columns: source and target columns must be named together",
    ),
    (GRAPH + GRAPH.removeprefix("graphs:\n").replace("name: a", "name: A"), r"two graphs are named A"),
    (GRAPH.replace("a.csv", "a.csv, directed: true") + "    both_directions: true\n", r"is directed"),
    (GRAPH + "    both_directions: true\n    rewire: true\n", r"rewire would tear"),
    ("expander: {cylces: 3}\n" + GRAPH, r"line 1: expander\.cylces: no such key; did you mean cycles\?"),
    (
        "expander: {cycles: -1}\n" + GRAPH,
        r"line 1: expander\.cycles: .*greater than or equal to 0 \(got -1\)",
    ),
    ("expander: {cycles: 65}\n" + GRAPH, r"line 1: expander\.cycles: .*less than or equal to 64"),
    ("expander: {seed: -1}\n" + GRAPH, r"line 1: expander\.seed: .*greater than or equal to 0"),
    ("positional: {randomwalk: 3}\n" + GRAPH, r"positional\.randomwalk: .*did you mean random_walk\?"),
    ("positional: {laplacian: 2.5}\n" + GRAPH, r"line 1: positional\.laplacian: .*integer"),
    ("nodes: [a, b]\n" + GRAPH, r"line 1: nodes: .*path"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_files_are_refused_in_one_line_naming_file_and_place(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(GraphError) as failure:
        load(path)
    said = str(failure.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert re.search(message, said), said


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(GraphError, match="no such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(GraphError, match="cannot be read"):
        load(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"seed: \xff")
    with pytest.raises(GraphError, match="cannot be read"):
        load(path)


def test_yaml_anchors_work_and_endless_ones_do_not_hang(tmp_path):
    text = "graphs:\n  - {name: a, source: &s {kind: gmt, path: x}}\n  - {name: b, source: *s}\n"
    first, second = load(write(tmp_path, text)).graphs
    assert first.source == second.source
    with pytest.raises(GraphError):
        load(write(tmp_path, "graphs: &a [*a]\n"))
