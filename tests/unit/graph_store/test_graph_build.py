import csv
import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.build import build
from graph_store.client import open_snapshot
from graph_store.config import (
    AliasTable,
    ExpanderOptions,
    GraphConfig,
    GraphSpec,
    KeepAll,
    PositionalOptions,
    TopInEdges,
    load,
)
from graph_store.graph import GraphError
from graph_store.source_config import EdgesSource, GmtSource

ALIASES = "Symbol,Approved.Symbol\nA,A\nOLDA,A\nB,B\nTWO,A\nTWO,B\nHIDDEN,C\n"
EDGES = "source,target,weight\nOLDA,B,3\nB,C,2\nTWO,C,1\nc,C,1\nA,B,9\nB,B,1\n"
SETS = "one\t\tA\tB\ntwo\t\tB\tD\n"


def write_inputs(folder: Path, *, edges: str = EDGES) -> GraphConfig:
    (folder / "names.csv").write_text(ALIASES)
    (folder / "edges.csv").write_text(edges)
    (folder / "sets.gmt").write_text(SETS)
    return GraphConfig(
        aliases=AliasTable(path=folder / "names.csv"),
        graphs=(
            GraphSpec(
                name="list", source=EdgesSource(path=folder / "edges.csv", directed=True), licence="CC0"
            ),
            GraphSpec(name="sets", source=GmtSource(path=folder / "sets.gmt"), both_directions=True),
        ),
    )


def test_everything_together(tmp_path):
    seen = []
    summary = build(write_inputs(tmp_path), out=tmp_path / "out", progress=lambda *step: seen.append(step))
    opened = open_snapshot(str(tmp_path / "out"), summary.id)
    assert opened.genes == ("A", "B", "C", "D", "TWO", "c")
    listed, sets = opened.graphs
    named = [
        [(opened.genes[source], opened.genes[target]) for source, target in graph.edges_2E.T.tolist()]
        for graph in opened.graphs
    ]
    assert named[0] == [("A", "B"), ("B", "C"), ("TWO", "C"), ("c", "C")]
    assert listed.weight_E.tolist() == [9.0, 2.0, 1.0, 1.0]
    assert named[1] == [("B", "A"), ("A", "B"), ("D", "B"), ("B", "D")]
    assert sets.weight_E.tolist() == [0.5] * 4
    assert opened.aliases == {"HIDDEN": "C", "OLDA": "A"}
    first, second = summary.graphs
    assert (first.rows, first.self_loops, first.duplicates, first.pairs, first.edges) == (6, 1, 1, 4, 4)
    assert (first.renamed, first.ambiguous, first.unmatched, first.nodes) == (1, 1, 1, 5)
    assert (second.pairs, second.edges, second.not_kept, second.unmatched) == (2, 4, 0, 1)
    with summary.unmatched.open() as stream:
        assert list(csv.reader(stream))[1:] == [
            ["list", "TWO", "ambiguous", "A B"],
            ["list", "c", "unmatched", "C"],
            ["sets", "D", "unmatched", ""],
        ]
    assert [step[1] for step in seen] == list(range(7))
    assert {step[2] for step in seen} == {6}
    assert (summary.expander.cycles, summary.expander.edges) == (3, 3 * 2 * 6)
    assert opened.expander.num_cycles == 3
    assert (summary.nodes, summary.positional, opened.positional) == (None, (), ())
    assert not summary.was_there


def test_building_again_is_at_once_and_changes_nothing(tmp_path):
    config = write_inputs(tmp_path)
    first = build(config, out=tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    seen = []
    again = build(config, out=tmp_path / "out", progress=lambda *step: seen.append(step[0]))
    assert again == first._replace(was_there=True)
    assert seen == ["hash inputs", "already built"]
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == before


def test_a_damaged_snapshot_is_built_again(tmp_path):
    config = write_inputs(tmp_path)
    first = build(config, out=tmp_path / "out")
    (first.path / "edges-list.arrow").write_bytes(b"")
    again = build(config, out=tmp_path / "out")
    assert again.id == first.id
    assert not again.was_there
    open_snapshot(str(tmp_path / "out"))


def test_the_id_does_not_know_paths_nor_compression(tmp_path):
    first = build(write_inputs(tmp_path), out=tmp_path / "out")
    other = tmp_path / "elsewhere"
    other.mkdir()
    config = write_inputs(other)
    moved = build(config, out=tmp_path / "out2")
    packed = other / "renamed.csv.gz"
    packed.write_bytes(gzip.compress(EDGES.encode()))
    source = config.graphs[0].source.model_copy(update={"path": packed})
    zipped = config.model_copy(
        update={"graphs": (config.graphs[0].model_copy(update={"source": source}), config.graphs[1])}
    )
    assert first.id == moved.id == build(zipped, out=tmp_path / "out3").id
    for folder in ("out", "out2"):
        assert str(tmp_path) not in (tmp_path / folder / first.id / "snapshot.json").read_text()
    assert (first.path / "snapshot.json").read_bytes() == (moved.path / "snapshot.json").read_bytes()


def test_the_id_is_the_same_in_another_process_with_other_hash_seeds(tmp_path):
    config = write_inputs(tmp_path)
    first = build(config, out=tmp_path / "out")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from graph_store.build import build; "
        "from graph_store.config import GraphConfig; "
        "config = GraphConfig.model_validate_json(Path(sys.argv[1]).read_text()); "
        "assert 'torch' not in sys.modules and 'txpert_dist' not in sys.modules; "
        "print(build(config, out=Path(sys.argv[2])).id)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.json"), str(tmp_path / "out2")],
        env={"PYTHONHASHSEED": "5", "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == first.id


def test_the_id_changes_with_content_and_recipe(tmp_path):
    config = write_inputs(tmp_path)
    known, further = tmp_path / "known.txt", tmp_path / "further.txt"
    known.write_text("A\n")
    further.write_text("E\n")
    ids = {build(config, out=tmp_path / "out").id}
    list_graph, sets_graph = config.graphs
    for changed in (
        config.model_copy(update={"seed": 1}),
        config.model_copy(update={"aliases": None}),
        config.model_copy(update={"graphs": (list_graph,)}),
        config.model_copy(update={"graphs": (sets_graph, list_graph)}),
        config.model_copy(
            update={"graphs": (list_graph.model_copy(update={"keep": TopInEdges(count=19)}), sets_graph)}
        ),
        config.model_copy(update={"graphs": (list_graph.model_copy(update={"rewire": True}), sets_graph)}),
        config.model_copy(update={"expander": ExpanderOptions(cycles=0)}),
        config.model_copy(update={"expander": ExpanderOptions(cycles=2)}),
        config.model_copy(update={"expander": ExpanderOptions(seed=1)}),
        config.model_copy(update={"positional": PositionalOptions(random_walk=2)}),
        config.model_copy(update={"positional": PositionalOptions(random_walk=3)}),
        config.model_copy(update={"positional": PositionalOptions(laplacian=2)}),
        config.model_copy(update={"nodes": known}),
        config.model_copy(update={"nodes": further}),
    ):
        ids.add(build(changed, out=tmp_path / "out").id)
    ids.add(build(write_inputs(tmp_path, edges=EDGES.replace("A,B,9", "A,B,8")), out=tmp_path / "out").id)
    assert len(ids) == 16


ROWS = st.lists(
    st.tuples(st.sampled_from("ABCDEFG"), st.sampled_from("ABCDEFG"), st.integers(0, 3)).filter(
        lambda row: row[0] != row[1]
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25)
@given(ROWS, st.booleans(), st.sampled_from([KeepAll(), TopInEdges(count=2)]), st.booleans(), st.randoms())
def test_the_order_of_rows_does_not_change_the_id(rows, directed, keep, rewired, random):
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "a.csv", Path(folder) / "out"
        source = EdgesSource(path=path, directed=directed)
        config = GraphConfig(graphs=(GraphSpec(name="a", source=source, keep=keep, rewire=rewired),))
        ids = set()
        for order in (rows, random.sample(rows, len(rows))):
            path.write_text("source,target,weight\n" + "".join(f"{a},{b},{w}\n" for a, b, w in order))
            ids.add(build(config, out=out).id)
        (graph,) = open_snapshot(str(out)).graphs
    assert len(ids) == 1
    if isinstance(keep, TopInEdges):
        assert np.bincount(graph.edges_2E[1]).max() <= keep.count


def test_a_graph_without_edges_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("source,target,weight\nA,A,1\n")
    config = GraphConfig(graphs=(GraphSpec(name="lonely", source=EdgesSource(path=tmp_path / "a.csv")),))
    with pytest.raises(GraphError, match=r"graph lonely: no edge is left of the 1 rows"):
        build(config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_input_is_named(tmp_path):
    config = GraphConfig(graphs=(GraphSpec(name="a", source=EdgesSource(path=tmp_path / "a.csv")),))
    with pytest.raises(GraphError, match=r"a.csv: no such file"):
        build(config, out=tmp_path / "out")


def test_rewired_graphs_keep_the_degrees(tmp_path):
    rng = np.random.default_rng(0)
    rows = "".join(f"G{a},G{b},1\n" for a, b in rng.integers(0, 60, (300, 2)).tolist())
    (tmp_path / "a.csv").write_text("source,target,weight\n" + rows)
    source = EdgesSource(path=tmp_path / "a.csv")
    plain, rewired = (
        build(GraphConfig(graphs=(GraphSpec(name="a", source=source, rewire=rewire),)), out=tmp_path / "out")
        for rewire in (False, True)
    )
    before, after = (open_snapshot(str(tmp_path / "out"), summary.id) for summary in (plain, rewired))
    assert before.genes == after.genes
    for row in (0, 1):
        counts = [np.bincount(opened.graphs[0].edges_2E[row], minlength=60) for opened in (before, after)]
        assert np.array_equal(*counts)
    assert not np.array_equal(before.graphs[0].edges_2E, after.graphs[0].edges_2E)


@pytest.mark.real
def test_real_sources(shared_file, tmp_path):
    path = tmp_path / "graphs.yaml"
    scores = shared_file("string-v12-dmfind/string_v12_ntm_edges.parquet")
    path.write_text(
        f"aliases: {{path: {shared_file('gene-ids/hgnc_table.csv')}}}\n"
        "graphs:\n"
        "  - name: string\n"
        f"    source: {{kind: edges, path: {scores}}}\n"
        "  - name: hallmark\n"
        f"    source: {{kind: gmt, path: {shared_file('gmt-gseapy/h.all.v7.0.symbols.gmt')}}}\n"
        "    keep: {kind: top_percent, percent: 0.5}\n"
    )
    summary = build(load(path), out=tmp_path / "out")
    opened = open_snapshot(str(tmp_path / "out"))
    string, hallmark = opened.graphs
    assert opened.aliases["MARCH8"] == "MARCHF8"
    assert {"MARCHF8", "JAK2", "STAT1", "KLF1"} <= set(opened.genes)
    assert np.bincount(string.edges_2E[1]).max() == 20
    assert summary.expander.tries == 1
    assert summary.expander.gap > 1.5
    genes = summary.graphs[1].genes
    assert hallmark.edges_2E.shape[1] == int(0.005 * genes * (genes - 1) / 2)
    # Golden: the same files and recipe have this id on every machine.
    assert summary.id == "a1e25307204a2930dae92950d5cbfa94"
