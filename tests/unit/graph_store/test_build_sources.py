"""One recipe with every kind of source: what is read, recorded and selected, and that the bytes are the same
whatever the process, its threads and the order of the rows."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import networkx
import numpy as np
import pytest

from graph_store.build import build
from graph_store.client import open_snapshot
from graph_store.config import GraphConfig, load
from graph_store.graph import GraphError
from graph_store.record import read_record
from graph_store.snapshot import read
from graph_store.sources.screen import ScreenProfiles

GENES = [f"G{number:02d}" for number in range(40)]
OBO = (
    "format-version: 1.2\nontology: go\n\n[Term]\nid: GO:0\nname: all\nnamespace: biological_process\n\n"
    + "\n".join(
        f"[Term]\nid: GO:{number}\nname: part {number}\nnamespace: biological_process\nis_a: GO:0\n"
        for number in range(1, 9)
    )
)
RECIPE = """
seed: 7
aliases: {path: names.csv}
more_aliases: [{path: ids.tsv, alias: [id, other], approved: symbol, separator: "|"}]
nodes: nodes.txt
positional: {random_walk: 4}
graphs:
  - name: list
    source: {kind: edges, path: edges.csv}
    version: "3"
  - name: half
    source: {kind: edges, path: edges.csv}
    downsample: 0.5
    rewire: 0.5
  - name: sets
    source: {kind: gmt, path: sets.gmt}
    both_directions: true
    downsample: 0.5
  - name: string
    source: {kind: string, path: links.txt, info: info.txt, minimum_score: 200}
  - name: go
    source: {kind: go, path: gene2go.json, ontology: go.obo, propagate: true}
  - name: reactome
    source: {kind: reactome, path: Gene2Reactome.txt}
  - name: profiles
    source: {kind: embedding, path: profiles.csv}
    keep: {kind: top_percent, percent: 5}
  - name: screen
    source: {kind: perturb_seq, store: screen.zarr}
    keep: {kind: top_percent, percent: 2}
  - name: either
    source: {kind: combined, of: [list, profiles], how: union}
  - name: both
    source: {kind: combined, of: [list, sets], how: intersection}
    both_directions: true
"""
ROLES = [
    *("aliases", "aliases 2", "nodes", "graph list", "graph half", "graph sets", "graph string"),
    *("graph string info", "graph go", "graph go ontology", "graph reactome", "graph profiles"),
    "graph screen",
]


def write_inputs(folder: Path, *, order: int = 0) -> Path:
    """The recipe and its files; ``order`` decides that of the rows and of nothing else."""
    rng, shuffle = np.random.default_rng(0), random.Random(order)

    def table(name: str, header: str, rows: list[str]) -> None:
        shuffled = shuffle.sample(rows, len(rows)) if order else rows
        (folder / name).write_text(header + "".join(f"{row}\n" for row in shuffled))

    ends = rng.integers(0, 40, (2, 150)).T.tolist()
    weights = rng.integers(1, 1000, 150).tolist()
    folder.mkdir(exist_ok=True)
    (folder / "graphs.yaml").write_text(RECIPE)
    table("names.csv", "Symbol,Approved.Symbol\n", [f"OLD{number},G{number:02d}" for number in range(40)])
    table("ids.tsv", "id\tother\tsymbol\n", [f"{1000 + n}\tE{n}|F{n}\tG{n:02d}" for n in range(5)])
    table("nodes.txt", "", ["G00", "OLD1", "ALONE"])
    table(
        "edges.csv",
        "source,target,weight\n",
        [f"OLD{a},G{b:02d},{weight}" for (a, b), weight in zip(ends, weights, strict=True)],
    )
    memberships = {
        number: sorted(set(rng.integers(0, 40, 8).tolist())) for number in range(1, 9)
    }  # of sets, terms and pathways
    table(
        "sets.gmt",
        "",
        ["\t".join([f"S{k}", "", *(GENES[m] for m in members)]) for k, members in memberships.items()],
    )
    table(
        "links.txt",
        "protein1 protein2 combined_score\n",
        [f"9606.P{a:02d} 9606.P{b:02d} {w}" for (a, b), w in zip(ends, weights, strict=True) if a != b],
    )
    table(
        "info.txt",
        "#string_protein_id\tpreferred_name\tprotein_size\tannotation\n",
        [f"9606.P{number:02d}\tG{number:02d}\t100\t." for number in range(40)],
    )
    terms = {gene: [f"GO:{k}" for k, m in memberships.items() if n in m] for n, gene in enumerate(GENES)}
    listed = [(gene, found) for gene, found in terms.items() if found]
    (folder / "gene2go.json").write_text(
        json.dumps(dict(shuffle.sample(listed, len(listed)) if order else listed))
    )
    (folder / "go.obo").write_text(OBO)
    table(
        "Gene2Reactome.txt",
        "",
        [
            f"{GENES[m]}\tR-HSA-{k}\thttps://x\tPathway {k}\tTAS\tHomo sapiens"
            for k, members in memberships.items()
            for m in members
        ],
    )
    table(
        "profiles.csv",
        "gene,a,b,c\n",
        [f"{gene}," + ",".join(map(str, rng.normal(size=3).round(6))) for gene in GENES],
    )
    (folder / "screen.zarr").mkdir(exist_ok=True)
    (folder / "screen.zarr" / "manifest.json").write_text('{"files": []}')
    return folder / "graphs.yaml"


def read_screen(source) -> ScreenProfiles:
    """Profiles as a store would give them, in the order of its perturbations."""
    value_GD = np.random.default_rng(5).normal(size=(30, 12)).astype(np.float32)
    origin = {"store": source.store.name, "split": "abc"}
    return ScreenProfiles(tuple(GENES[:30]), value_GD, origin, {"cells": 900})


def built(folder: Path, *, order: int = 0):
    config = load(write_inputs(folder, order=order))
    return build(config, out=folder / "out", read_screen=read_screen)


def names_of(opened, number: int) -> dict[tuple[str, str], float]:
    graph = opened.graphs[number]
    return {
        (opened.genes[source], opened.genes[target]): weight
        for source, target, weight in zip(*graph.edges_2E.tolist(), graph.weight_E.tolist(), strict=True)
    }


def test_every_kind_is_read_and_accounted_for(tmp_path):
    summary = built(tmp_path)
    opened, record = read(summary.path), read_record(summary.path)
    assert [file.role for file in record.inputs] == ROLES
    assert record.inputs[-1].name == "screen.zarr"
    assert record.screens == {"screen": {"store": "screen.zarr", "split": "abc"}}
    reports = {report.name: report for report in summary.graphs}
    rows = (tmp_path / "edges.csv").read_text().splitlines()[1:]
    assert [graph.name for graph in opened.graphs] == list(reports)
    assert all(len(graph.weight_E) == reports[graph.name].edges for graph in opened.graphs)
    assert [opened.aliases[name] for name in ("OLD3", "1003", "E3", "F3")] == ["G03"] * 4
    assert "ALONE" in opened.genes
    # Sources read in one go: all pairs are there, however few were handed over.
    assert reports["profiles"].pairs == 40 * 39 // 2
    assert reports["profiles"].edges == 40 * 39 // 2 * 5 // 100
    assert reports["profiles"].not_kept == reports["profiles"].pairs - reports["profiles"].edges
    assert (reports["screen"].rows, reports["screen"].edges) == (30, 8)
    assert reports["screen"].details["cells"] == 900
    assert reports["list"].renamed == len({row.split(",")[0] for row in rows})
    for report in summary.graphs:
        assert json.loads(json.dumps(report.details)) == report.details


def test_downsampled_and_rewired_graphs_say_so(tmp_path):
    summary = built(tmp_path)
    opened, reports = read(summary.path), {report.name: report for report in summary.graphs}
    whole, half, sets = reports["list"], reports["half"], reports["sets"]
    assert half.edges == (whole.edges + 1) // 2
    assert half.not_kept == whole.not_kept
    assert half.details == {
        "edges left out by downsampling": whole.edges - half.edges,
        "edges chosen for rewiring": (half.edges + 1) // 2,
    }
    common = names_of(opened, 0).keys() & names_of(opened, 1).keys()
    assert half.edges // 2 <= len(common) < half.edges
    assert sets.edges == 2 * sets.pairs - sets.not_kept - sets.details["edges left out by downsampling"]
    assert len({frozenset(edge) for edge in names_of(opened, 2)}) == (sets.pairs + 1) // 2


def test_combined_graphs_are_networkxs_union_and_intersection_of_the_kept_edges(tmp_path):
    opened = read(built(tmp_path).path)
    one, sets, profiles, either, both = (names_of(opened, number) for number in (0, 2, 6, 8, 9))
    undirected = {
        name: networkx.Graph(list(edges))
        for name, edges in (("list", one), ("sets", sets), ("profiles", profiles), ("either", either))
    }
    union = networkx.compose(undirected["list"], undirected["profiles"])
    assert networkx.utils.edges_equal(union.edges, undirected["either"].edges)
    assert {edge for edge in either if edge in one} == set(one)
    assert max(map(abs, either.values())) == 1
    common = networkx.intersection(undirected["list"], undirected["sets"])
    assert set(both) == {edge for pair in common.edges for edge in (pair, pair[::-1])}
    assert both
    for edge, weight in both.items():
        shares = [
            max(graph.get(edge, 0), graph.get(edge[::-1], 0)) / max(graph.values()) for graph in (one, sets)
        ]
        assert weight == pytest.approx(min(shares), rel=1e-6)


def test_graphs_with_nothing_in_common_are_refused_as_an_intersection(tmp_path):
    (tmp_path / "one.csv").write_text("source,target\nA,B\n")
    (tmp_path / "other.csv").write_text("source,target\nA,C\n")
    (tmp_path / "graphs.yaml").write_text(
        "graphs:\n"
        "  - {name: one, source: {kind: edges, path: one.csv}}\n"
        "  - {name: other, source: {kind: edges, path: other.csv}}\n"
        "  - {name: both, source: {kind: combined, of: [one, other], how: intersection}}\n"
    )
    with pytest.raises(GraphError, match="graph both: one and other have no pair in common; combine other"):
        build(load(tmp_path / "graphs.yaml"), out=tmp_path / "out")


def test_further_tables_of_names_do_not_need_a_first_one(tmp_path):
    (tmp_path / "edges.csv").write_text("source,target\nOLD,B\n")
    (tmp_path / "names.csv").write_text("Symbol,Approved.Symbol\nOLD,NEW\n")
    (tmp_path / "graphs.yaml").write_text(
        "more_aliases: [{path: names.csv}]\ngraphs: [{name: g, source: {kind: edges, path: edges.csv}}]\n"
    )
    summary = build(load(tmp_path / "graphs.yaml"), out=tmp_path / "out")
    assert read(summary.path).genes == ("B", "NEW")
    assert [file.role for file in read_record(summary.path).inputs] == ["aliases", "graph g"]


def test_a_screen_needs_a_reader(tmp_path):
    config = load(write_inputs(tmp_path))
    with pytest.raises(GraphError, match="graph screen: reads a cell store, which cannot be done here"):
        build(config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_building_again_asks_for_no_screen_and_a_changed_store_is_another(tmp_path):
    first = built(tmp_path)
    config = load(tmp_path / "graphs.yaml")
    # The hash of the store's manifest says that nothing changed, so nobody needs to read it.
    again = build(config, out=tmp_path / "out")
    assert again == first._replace(was_there=True)
    (tmp_path / "screen.zarr" / "manifest.json").write_text('{"files": [1]}')
    with pytest.raises(GraphError, match="graph screen: reads a cell store"):
        build(config, out=tmp_path / "out")
    shutil.rmtree(tmp_path / "screen.zarr")
    with pytest.raises(GraphError, match=r"screen.zarr/manifest.json: no such file"):
        build(config, out=tmp_path / "out")


@pytest.mark.parametrize("file", ["info.txt", "go.obo", "ids.tsv"])
def test_a_file_beside_the_main_one_matters(tmp_path, file):
    first = built(tmp_path)
    path = tmp_path / file
    path.write_text(path.read_text() + {"ids.tsv": "9999\tE9\tG09\n"}.get(file, "\n"))
    config = load(tmp_path / "graphs.yaml")
    again = build(config, out=tmp_path / "other", read_screen=read_screen)
    assert not again.was_there
    with pytest.raises(GraphError, match="graph screen: reads a cell store"):
        build(config, out=tmp_path / "out")  # what is there was built from another file
    assert (again.id == first.id) == (file != "ids.tsv")


def test_a_foreign_snapshot_is_no_obstacle_and_is_not_read(tmp_path):
    first = built(tmp_path)
    other = GraphConfig(graphs=load(tmp_path / "graphs.yaml").graphs[:1])
    foreign = build(other, out=tmp_path / "out")
    for path in foreign.path.glob("*.arrow"):
        path.unlink()
    before = sorted(foreign.path.iterdir())
    again = build(load(tmp_path / "graphs.yaml"), out=tmp_path / "out")
    assert again == first._replace(was_there=True)
    (foreign.path / "snapshot.json").write_text("{}")
    assert build(load(tmp_path / "graphs.yaml"), out=tmp_path / "out").was_there
    assert sorted(foreign.path.iterdir()) == before
    mended = build(other, out=tmp_path / "out")
    assert (mended.id, mended.was_there) == (foreign.id, False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_order_of_rows_changes_no_byte_but_the_hashes_of_the_inputs(tmp_path):
    first = built(tmp_path / "first")
    for order in (1, 2):
        other = built(tmp_path / str(order), order=order)
        assert other.id == first.id
        here, there = contents(first.path), contents(other.path)
        assert {name for name in here if here[name] != there[name]} == {"snapshot.json"}
        records = [read_record(summary.path) for summary in (first, other)]
        assert records[0].model_copy(update={"inputs": []}) == records[1].model_copy(update={"inputs": []})


BUILD_ELSEWHERE = """
import sys
from pathlib import Path
import numpy as np
from graph_store.build import build
from graph_store.config import load
from graph_store.sources.screen import ScreenProfiles
def read_screen(source):
    values = np.random.default_rng(5).normal(size=(30, 12)).astype(np.float32)
    genes = tuple(f"G{number:02d}" for number in range(30))
    return ScreenProfiles(genes, values, {"store": source.store.name, "split": "abc"}, {"cells": 900})
print(build(load(Path(sys.argv[1])), out=Path(sys.argv[2]), read_screen=read_screen).path)
"""


@pytest.mark.process
def test_other_processes_with_other_hash_seeds_and_threads_write_the_same_bytes(tmp_path):
    first = built(tmp_path)
    for hash_seed, threads in (("0", "1"), ("5", "2")):
        environment = dict(os.environ) | {"PYTHONHASHSEED": hash_seed, "TZ": "Asia/Tokyo"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        arguments = [str(tmp_path / "graphs.yaml"), str(tmp_path / hash_seed)]
        said = subprocess.run(
            [sys.executable, "-c", BUILD_ELSEWHERE, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert contents(Path(said.stdout.strip())) == contents(first.path)


def test_one_changed_edge_is_another_snapshot(tmp_path):
    first = built(tmp_path)
    path = tmp_path / "edges.csv"
    header, row, *rest = path.read_text().splitlines()
    source, target, weight = row.split(",")
    path.write_text("\n".join([header, f"{source},{target},{int(weight) + 1}", *rest]) + "\n")
    config = load(tmp_path / "graphs.yaml")
    assert build(config, out=tmp_path / "out", read_screen=read_screen).id != first.id
    assert len(list((tmp_path / "out").iterdir())) == 2
    with pytest.raises(GraphError, match="holds several snapshots"):
        open_snapshot(str(tmp_path / "out"))
