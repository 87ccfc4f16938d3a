import base64
import os
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from graph_store.build import build
from graph_store.client import describe, open_snapshot
from graph_store.config import GraphConfig
from graph_store.drawing.page import NAMES_SHOWN, page
from graph_store.graph import Snapshot
from graph_store.record import ExpanderReport, GraphReport, InputFile, Record
from graph_store.statistics import coverage, summarise
from tests.unit.graph_store.random_snapshots import graph

GENES = ("<script>alert(1)</script>", "A&B", "C", "D", "<b>E'\"")
SVG = "{http://www.w3.org/2000/svg}"


class Reader(HTMLParser):
    """What a browser would find in a page: tags, tables as rows of texts, pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.cell: str | None = None
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.cell = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in {"td", "th"} and self.cell is not None:
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell is not None:
            self.cell += data

    def table(self, *columns: str) -> dict[str, list[str]]:
        """Rows by their first cell of the table whose first columns are these."""
        (found,) = [rows for rows in self.tables if rows[0][: len(columns)] == list(columns)]
        return {row[0]: row[1:] for row in found[1:]}

    def pictures(self) -> list[ElementTree.Element]:
        sources = [dict(attributes)["src"] or "" for tag, attributes in self.tags if tag == "img"]
        heads, bodies = zip(*(source.split(",") for source in sources), strict=True)
        assert set(heads) == {"data:image/svg+xml;base64"}
        return [ElementTree.fromstring(base64.b64decode(body)) for body in bodies]


def report(name: str, **details: int) -> GraphReport:
    fields = dict.fromkeys(set(GraphReport.model_fields) - {"name", "details"}, 7)
    return GraphReport(name=name, details=details, **fields)


def record(**changes: Any) -> Record:
    source = {"name": "one", "version": "v<1>", "licence": None, "source": {"kind": "gmt"}}
    fields: dict[str, Any] = {
        "layout": 1,
        "id": "f" * 32,
        "recipe": {"graphs": [source]},
        "inputs": [InputFile(role="graph one", name="<b>.gmt", sha256="a" * 64, size=1234)],
        "num_genes": 5,
        "num_aliases": 0,
        "nodes": None,
        "graphs": [report("one", negated=12), report("two")],
        "expander": ExpanderReport(cycles=0, edges=0, tries=0, lambda_2=0.0, gap=0.0),
        "positional": [],
        "files": {},
    }
    return Record(**(fields | changes))


def snapshot() -> Snapshot:
    first = graph("one", {(GENES[0], "C"): 1.0, ("C", "A&B"): 0.5}, GENES)
    second = graph("two", {("C", GENES[0]): 1.0, ("D", "C"): 2.0}, GENES)
    return Snapshot("f" * 32, GENES, (first, second), {"OLD": "D"})


def test_the_tables_hold_the_statistics():
    found = Reader(page(record(), summarise(snapshot())))
    assert found.table("graph", "genes") == {
        "one": ["3", "2", "2", "2", "1", "3", "0.5 / 0.75 / 1"],
        "two": ["3", "2", "2", "2", "1", "3", "1 / 1.5 / 2"],
        "(together)": ["4", "1", "4", "3", "1", "4", ""],
    }
    assert found.table("graph", "mean neighbours")["one"] == ["1.3", "1", "2", "2", "1", "1"]
    assert found.table("two graphs") == {"one, two": ["2", "1", "50.00%", "50.00%", "33.33%"]}
    assert found.table("graph", "genes with the most neighbours")["one"] == [
        f"C (2), {GENES[0]} (1), A&B (1)"
    ]
    assert found.table("graph", "counted") == {"one": ["negated", "12"]}
    assert found.table("graph", "kind")["one"] == ["gmt", "v<1>", "not stated", "7", "7", "7", "7"]
    assert found.table("role") == {"graph one": ["<b>.gmt", "1,234", "a" * 64]}
    assert f"1 gene in no graph: {GENES[4]}" in found.text
    assert "Perturbed genes" not in found.text


def test_coverage_names_genes_and_their_graphs():
    perturbed = ["C", "OLD", "X<Y", GENES[4]]
    found = Reader(page(record(), summarise(snapshot()), coverage(snapshot(), perturbed), "screen<1>.zarr"))
    assert "Perturbed genes of screen<1>.zarr" in found.text
    assert found.table("graph", "perturbed genes with an edge") == {
        "one": ["1", "25.0%", "2", "0"],
        "two": ["2", "50.0%", "2", "1"],
        "(together)": ["2", "50.0%", "2", "1"],
    }
    assert found.table("found") == {
        "by name": ["2", ""],
        "by another name": ["1", "OLD = D"],
        "of both, without an edge": ["1", GENES[4]],
        "no node: trained as isolated ones": ["1", "X<Y"],
    }


def test_the_page_runs_and_fetches_nothing_whatever_the_names():
    found = Reader(page(record(), summarise(snapshot()), coverage(snapshot(), ["C"]), "<script>x</script>"))
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "form", "b"})
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") or name in {"href", "style"} for name in attributes), tag
    policy = [attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert found.open == []


def test_pictures_are_whole_svg_that_refers_to_itself_only():
    found = Reader(page(record(), summarise(snapshot()), coverage(snapshot(), ["C"]), "s"))
    pictures = found.pictures()
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.tag == f"{SVG}svg"
        assert len(picture.findall(f".//{SVG}path")) > 10
        links = [value for part in picture.iter() for key, value in part.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert all(attributes["alt"] for tag, attributes in found.tags if tag == "img")


def test_one_graph_has_no_overlap_and_one_without_edges_can_be_drawn():
    alone = Snapshot("", ("A", "B"), (graph("one", {}, ("A", "B")),), {})
    found = Reader(page(record(), summarise(alone), coverage(alone, []), "s"))
    assert "Overlap" not in found.text
    assert list(found.table("graph", "genes")) == ["one"]
    assert "2 genes in no graph: A, B" in found.text
    assert len(found.pictures()) == 2


def test_long_lists_say_how_much_is_left_out():
    genes = tuple(f"G{number:04d}" for number in range(NAMES_SHOWN + 12))
    many = Snapshot("", genes, (graph("one", {}, genes),), {})
    text = Reader(page(record(), summarise(many))).text
    assert f"{genes[NAMES_SHOWN - 1]}, and 12 more" in text
    assert genes[NAMES_SHOWN] not in text


def test_same_bytes_in_another_process_and_no_settings_left_behind(tmp_path):
    before = dict(mpl.rcParams)
    first = page(record(), summarise(snapshot()), coverage(snapshot(), ["C"]), "s")
    assert dict(mpl.rcParams) == before
    code = (
        "import sys; sys.stdout.reconfigure(encoding='utf-8')\n"
        "from tests.unit.graph_store.test_drawing import *\n"
        "sys.stdout.write(page(record(), summarise(snapshot()), coverage(snapshot(), ['C']), 's'))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MPLCONFIGDIR": str(tmp_path), "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout.decode() == first


@pytest.mark.real
def test_a_page_of_real_graphs(tmp_path, shared_file):
    pairs = [
        {"name": name, "source": {"kind": "edges", "path": shared_file(f"efaar-annotations/{name}.txt")}}
        for name in ("HuMAP", "StringDB", "Reactome")
    ]
    recipe = GraphConfig.model_validate({"positional": {"random_walk": 2}, "graphs": pairs})
    identity = build(recipe, out=tmp_path).id
    statistics = summarise(open_snapshot(str(tmp_path), identity))
    found = Reader(page(describe(str(tmp_path), identity), statistics))
    sizes = found.table("graph", "genes")
    assert [sizes[part.name][2] for part in statistics.graphs] == [f"{p.edges:,}" for p in statistics.graphs]
    assert "3 cycles" in found.text
    assert "StringDB random_walk 2" in found.text
