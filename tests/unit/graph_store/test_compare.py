from typing import Any

import numpy as np
import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graph_store.build import build
from graph_store.client import describe, open_snapshot
from graph_store.compare import KINDS, Difference, Version, compare, edge_changes, same_content
from graph_store.config import GraphConfig
from graph_store.graph import Expander, KnowledgeGraph, PositionalEncoding, Snapshot
from graph_store.record import ExpanderReport, InputFile, Record
from tests.unit.graph_store.random_snapshots import graph, snapshots


def record(snapshot_id: str = "1" * 32, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "layout": 1,
        "id": snapshot_id,
        "recipe": {},
        "inputs": [],
        "num_genes": 0,
        "num_aliases": 0,
        "nodes": None,
        "graphs": [],
        "expander": ExpanderReport(cycles=0, edges=0, tries=0, lambda_2=0.0, gap=0.0),
        "positional": [],
        "files": {},
    }
    return Record(**(fields | changes))


def difference(first: Snapshot, second: Snapshot) -> Difference:
    return compare(Version(first, record()), Version(second, record()))


def rows(snapshot: Snapshot) -> pd.DataFrame:
    """Every edge of a snapshot by names."""
    listed = [
        (layer.name, snapshot.genes[source], snapshot.genes[target], float(weight))
        for layer in snapshot.graphs
        for (source, target), weight in zip(layer.edges_2E.T, layer.weight_E, strict=True)
    ]
    return pd.DataFrame(listed, columns=["graph", "source", "target", "weight"])


def expected_counts(first: Snapshot, second: Snapshot) -> pd.DataFrame:
    """Edges by graph and kind, with an outer join."""
    keys = ["graph", "source", "target"]
    both = rows(first).merge(
        rows(second), on=keys, how="outer", suffixes=("_first", "_second"), indicator=True
    )
    kinds = both["_merge"].map({"left_only": "removed", "right_only": "added", "both": "same"}).astype(str)
    other = (both["_merge"] == "both") & (both["weight_first"] != both["weight_second"])
    both["kind"] = kinds.mask(other, "reweighted")
    back = both.rename(columns={"source": "target", "target": "source", "kind": "kind_back"})
    both = both.merge(back[[*keys, "kind_back"]], on=keys, how="left")
    turned = both["kind"].isin(["removed", "added"]) & both["kind_back"].isin(["removed", "added"])
    turned &= both["kind"] != both["kind_back"]
    both["kind"] = both["kind"].mask(turned & (both["kind"] == "added"), "turned")
    return both[~(turned & (both["kind"] == "removed"))]


@settings(max_examples=60)
@given(snapshots(), snapshots())
def test_every_edge_is_counted_once_as_an_outer_join_counts_it(first, second):
    found = difference(first, second)
    expected = expected_counts(first, second)
    names = [layer.name for layer in first.graphs]
    names += [layer.name for layer in second.graphs if layer.name not in names]
    assert [part.name for part in found.graphs] == names
    for part in found.graphs:
        counts = expected.loc[expected["graph"] == part.name, "kind"].value_counts()
        for kind in ("same", *KINDS):
            assert getattr(part, kind) == counts.get(kind, 0), kind
        assert part.same + part.reweighted + part.turned + part.removed == part.edges_first
        assert part.same + part.reweighted + part.turned + part.added == part.edges_second
        assert (
            len(list(edge_changes(found, part)))
            == len(part.changed.kind_C)
            == counts.drop("same", errors="ignore").sum()
        )


@given(snapshots(), snapshots())
def test_the_second_can_be_made_of_the_first_and_the_listed_changes(first, second):
    found = difference(first, second)
    for part in found.graphs:
        edges = {(s, t): w for name, s, t, w in rows(first).itertuples(index=False) if name == part.name}
        for change in edge_changes(found, part):
            ends = (change.source, change.target)
            if change.kind == "added":
                assert change.first is None
                edges[ends] = change.second
                continue
            assert edges.pop(ends[::-1] if change.kind == "turned" else ends) == change.first
            if change.kind == "removed":
                assert change.second is None
            else:
                edges[ends] = change.second
        there = {(s, t): w for name, s, t, w in rows(second).itertuples(index=False) if name == part.name}
        assert edges == there


@given(snapshots(), snapshots())
def test_swapping_the_two_swaps_what_is_said(first, second):
    forth, back = difference(first, second), difference(second, first)
    reverse = {part.name: part for part in back.graphs}
    for part in forth.graphs:
        other = reverse[part.name]
        assert (part.removed, part.added, part.turned, part.reweighted, part.same) == (
            other.added, other.removed, other.turned, other.reweighted, other.same,
        )  # fmt: skip
        assert (part.genes_removed, part.genes_added) == (other.genes_added, other.genes_removed)
    assert (forth.genes_removed, forth.genes_added) == (back.genes_added, back.genes_removed)
    assert same_content(forth) == same_content(back)


@given(snapshots())
def test_a_snapshot_is_the_same_as_itself(snapshot):
    found = difference(snapshot, snapshot)
    assert same_content(found)
    assert found.recipe + found.inputs + found.counted + found.genes_added + found.genes_removed == ()


@given(snapshots())
def test_other_node_numbers_are_no_difference_of_edges(snapshot):
    more = tuple(sorted((*snapshot.genes, "0", "CC", "Z")))
    number = np.array([more.index(gene) for gene in snapshot.genes], np.int32)
    moved = tuple(layer._replace(edges_2E=number[layer.edges_2E]) for layer in snapshot.graphs)
    found = difference(snapshot, snapshot._replace(genes=more, graphs=moved))
    assert all(part.same == part.edges_first == part.edges_second for part in found.graphs)
    assert found.genes_added == ("0", "CC", "Z")
    assert not same_content(found)


def test_changes_are_listed_by_size_then_name_and_graphs_by_who_has_them():
    genes = ("A", "B", "C", "D")
    old = {("A", "B"): 1.0, ("B", "C"): 1.0, ("C", "D"): 0.5, ("D", "A"): 9.0, ("D", "B"): 2.0}
    new = {("A", "B"): 1.5, ("B", "C"): 4.0, ("D", "C"): 0.5, ("A", "C"): 1.0}
    first = Snapshot("", genes, (graph("g", old, genes), graph("gone", {("A", "B"): 1.0}, genes)), {})
    second = Snapshot("", genes, (graph("new", {("C", "A"): 3.0}, genes), graph("g", new, genes)), {})
    found = difference(first, second)
    g, gone, come = found.graphs
    assert [tuple(change) for change in edge_changes(found, g)] == [
        ("removed", "D", "A", 9.0, None),
        ("removed", "D", "B", 2.0, None),
        ("added", "A", "C", None, 1.0),
        ("reweighted", "B", "C", 1.0, 4.0),
        ("reweighted", "A", "B", 1.0, 1.5),
        ("turned", "D", "C", 0.5, 0.5),
    ]
    assert (g.only_in, gone.only_in, come.only_in) == (None, "first", "second")
    assert (gone.removed, gone.genes_removed) == (1, ("A", "B"))
    assert (come.added, come.genes_added) == (1, ("A", "C"))


def test_recipe_keys_are_named_and_graphs_go_by_name():
    string = {"name": "string", "keep": {"kind": "top_in_edges", "count": 20}, "version": None}
    go = {"name": "go", "keep": {"kind": "none"}, "rewire": 0.0}
    first = record(recipe={"seed": 0, "nodes": True, "graphs": [string, go]})
    changed = {**string, "keep": {"kind": "top_in_edges", "count": 10}, "version": "v12"}
    second = record(recipe={"seed": 1, "nodes": True, "graphs": [{**go, "rewire": 1.0}, changed]})
    empty = Snapshot("", (), (), {})
    said = {key: values for key, *values in compare(Version(empty, first), Version(empty, second)).recipe}
    assert said == {
        "seed": ["0", "1"],
        "graphs (order)": ['["string", "go"]', '["go", "string"]'],
        "graphs[string].keep.count": ["20", "10"],
        "graphs[string].version": ["null", '"v12"'],
        "graphs[go].rewire": ["0.0", "1.0"],
    }
    alone = record(recipe={"seed": 0, "nodes": True, "graphs": [string]})
    (gone,) = compare(Version(empty, first), Version(empty, alone)).recipe
    assert gone == ("graphs[go]", '{"keep": {"kind": "none"}, "name": "go", "rewire": 0.0}', None)


LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", 0.5])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)
RECIPES = st.dictionaries(st.sampled_from("xyz"), TREES)


@example({"x": {"y": True}}, {"x": {"y": 1}})
@example({"x": 1}, {"x": 1.0})
@given(RECIPES, RECIPES)
def test_recipes_differ_when_a_key_is_said_to_and_only_then(first, second):
    empty = Snapshot("", (), (), {})
    found = compare(Version(empty, record(recipe=first)), Version(empty, record(recipe=second)))
    # repr tells True from 1, which are equal for Python but not in JSON.
    assert bool(found.recipe) == (repr(sorted_tree(first)) != repr(sorted_tree(second)))
    assert len({change.key for change in found.recipe}) == len(found.recipe)


def sorted_tree(value: object) -> object:
    if isinstance(value, dict):
        return dict, [(key, sorted_tree(value[key])) for key in sorted(value)]
    return [sorted_tree(item) for item in value] if isinstance(value, list) else value


def test_input_files_differ_by_their_bytes_not_their_names():
    def file(role: str, name: str, sha256: str) -> InputFile:
        return InputFile(role=role, name=name, sha256=sha256 * 64, size=1)

    old = [file("aliases", "a.csv", "a"), file("graph go", "go.gmt", "b"), file("graph x", "x.csv", "c")]
    new = [file("graph go", "go2.gmt", "b"), file("aliases", "a.csv", "d"), file("nodes", "n.txt", "e")]
    empty = Snapshot("", (), (), {})
    found = compare(Version(empty, record(inputs=old)), Version(empty, record(inputs=new)))
    assert found.inputs == (("aliases", old[0], new[1]), ("graph x", old[2], None), ("nodes", None, new[2]))
    assert same_content(found)


def test_what_was_counted_differs_by_name():
    empty = Snapshot("", (), (), {})
    other = ExpanderReport(cycles=0, edges=0, tries=2, lambda_2=0.0, gap=0.5)
    found = compare(
        Version(empty, record(screens={"kd": {"split": "s1"}})),
        Version(empty, record(screens={"kd": {"split": "s2"}}, expander=other, num_aliases=3)),
    )
    assert [tuple(change) for change in found.counted] == [
        ("num_aliases", "0", "3"),
        ("expander.tries", "0", "2"),
        ("expander.gap", "0.0", "0.5"),
        ("screens.kd.split", '"s1"', '"s2"'),
    ]


def test_names_expander_and_encodings():
    genes = ("A", "B", "C")
    cycle = Expander(np.array([[1, 0], [0, 1]], np.int32), np.zeros(2, np.int32), 1)
    walk = PositionalEncoding("g", "random_walk", np.array([[0, 1], [0, 0.5], [0, 0]], np.float32))
    first = Snapshot("", genes, (), {"a": "A", "b": "B", "c": "C"}, cycle, (walk,))
    ends = np.array([[2, 0], [0, 2]], np.int32)
    off = walk._replace(value_PN=walk.value_PN[1:] + np.float32([[0, 0], [0, 0.25]]))
    vectors = PositionalEncoding("g", "laplacian", np.zeros((2, 3), np.float32))
    second = Snapshot("", ("B", "C"), (), {"a": "B", "b": "B", "d": "C"}, positional=(off, vectors))
    found = difference(first, second)
    assert found.aliases == (1, 1, 1)
    assert found.expander == (2, 0, 0)
    assert found.encodings == (
        ("g", "random_walk", 2, 2, 0.25),
        ("g", "laplacian", None, 3, None),
    )
    for alone in ({"expander": second.expander}, {"positional": (vectors,)}, {"aliases": {"a": "A"}}):
        assert not same_content(difference(first, first._replace(**alone)))
    # By names: C - B in both, although their numbers differ.
    moved = Expander(np.array([[1, 0], [0, 1]], np.int32), np.zeros(2, np.int32), 1)
    whole = first._replace(expander=Expander(ends, np.zeros(2, np.int32), 1))
    assert difference(whole, second._replace(genes=("A", "C"), expander=moved)).expander == (2, 2, 2)


def test_one_changed_line_of_a_real_file_is_one_changed_edge(tmp_path, shared_file):
    table = pd.read_csv(shared_file("efaar-annotations/Reactome.txt"))
    once = table[
        ~pd.DataFrame(np.sort(table.to_numpy().astype(str), axis=1)).duplicated(keep=False).to_numpy()
    ]
    gone = once.iloc[7]
    without = table.drop(index=gone.name)
    shuffled = table.sample(frac=1, random_state=0)
    versions = []
    for name, content in (("all", table), ("shuffled", shuffled), ("without", without)):
        path = tmp_path / f"{name}.csv"
        content.to_csv(path, index=False)
        source = {"kind": "edges", "path": path}
        spec = {"name": "reactome", "keep": "none", "source": source}
        config = GraphConfig.model_validate({"expander": {"cycles": 0}, "graphs": [spec]})
        out = str(tmp_path / name)
        identity = build(config, out=tmp_path / name).id
        versions.append(Version(open_snapshot(out, identity), describe(out, identity)))
    same = compare(versions[0], versions[1])
    assert same.first == same.second
    assert same_content(same)
    assert [change.role for change in same.inputs] == ["graph reactome"]
    assert same.counted + same.recipe == ()
    found = compare(versions[0], versions[2])
    assert found.first != found.second
    assert not found.recipe
    (part,) = found.graphs
    (change,) = edge_changes(found, part)
    assert (change.kind, {change.source, change.target}) == ("removed", {gone["entity1"], gone["entity2"]})
    assert (part.same, part.removed, part.added) == (part.edges_second, 1, 0)
    assert {"graphs[reactome].rows", "graphs[reactome].edges"} <= {change.key for change in found.counted}


def test_no_graphs_and_no_genes():
    found = difference(Snapshot("", (), (), {}), Snapshot("", (), (), {}))
    assert found.graphs == ()
    assert same_content(found)


def test_graphs_without_edges():
    none = KnowledgeGraph("g", np.zeros((2, 0), np.int32), np.zeros(0, np.float32))
    found = difference(Snapshot("", (), (none,), {}), Snapshot("", (), (none,), {}))
    assert list(edge_changes(found, found.graphs[0])) == []
    assert same_content(found)
