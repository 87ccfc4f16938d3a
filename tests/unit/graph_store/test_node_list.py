import gzip
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from graph_store.build import build
from graph_store.client import open_snapshot
from graph_store.config import (
    AliasTable,
    ExpanderOptions,
    GraphConfig,
    GraphSpec,
    PositionalOptions,
)
from graph_store.graph import GraphError
from graph_store.source_config import EdgesSource
from graph_store.sources.nodes import read_node_names

ALIASES = "Symbol,Approved.Symbol\nA,A\nOLDA,A\nB,B\nTWO,A\nTWO,B\nE,E\nOLDE,E\n"


def configure(folder, text: str | bytes | None, name: str = "genes.txt", **options) -> GraphConfig:
    (folder / "names.csv").write_text(ALIASES)
    (folder / "edges.csv").write_text("source,target,weight\nA,B,3\nB,C,2\n")
    if text is not None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return GraphConfig(
        aliases=AliasTable(path=folder / "names.csv"),
        nodes=folder / name,
        graphs=(GraphSpec(name="list", source=EdgesSource(path=folder / "edges.csv", directed=True)),),
        **options,
    )


def test_listed_genes_are_nodes_with_expander_edges_only(tmp_path):
    options = {"positional": PositionalOptions(random_walk=4, laplacian=2)}
    config = configure(tmp_path, "OLDE\nA\n\n D \nE\nTWO\nD\n", **options)
    seen = []
    summary = build(config, out=tmp_path / "out", progress=lambda *step: seen.append(step))
    opened = open_snapshot(str(tmp_path / "out"))
    assert opened.genes == ("A", "B", "C", "D", "E", "TWO")
    (graph,) = opened.graphs
    assert graph.edges_2E.tolist() == [[0, 1], [1, 2]]
    nodes = summary.nodes
    assert (nodes.names, nodes.duplicates, nodes.in_graphs, nodes.added) == (6, 2, 1, 3)
    assert (nodes.renamed, nodes.ambiguous, nodes.unmatched) == (1, 1, 1)
    assert opened.aliases == {"OLDA": "A", "OLDE": "E"}
    assert summary.unmatched.read_text().splitlines()[1:] == [
        "list,C,unmatched,",
        "(nodes),D,unmatched,",
        "(nodes),TWO,ambiguous,A B",
    ]
    assert np.bincount(opened.expander.edges_2E[1]).tolist() == [6] * 6
    walk, vectors = opened.positional
    assert (walk.graph, walk.kind, vectors.kind) == ("list", "random_walk", "laplacian")
    np.testing.assert_allclose(walk.value_PN[:3], [[0, 0.5, 0, 0.5], [0, 1, 0, 1], [0, 0.5, 0, 0.5]])
    assert not walk.value_PN[3:].any()
    assert not vectors.value_PN[3:].any()
    assert [(part.kind, part.width) for part in summary.positional] == [("random_walk", 4), ("laplacian", 2)]
    stages = {step[0] for step in seen}
    assert {"list: random_walk encoding", "list: laplacian encoding"} <= stages
    again = build(config, out=tmp_path / "out")
    assert again == summary._replace(was_there=True)


def test_every_container_gives_the_same_names(tmp_path):
    names = ("NAN", "B", "NAN", "NA")
    text = "".join(f"{name}\n" for name in names)
    table = "gene,score\r\n" + "".join(f'"{name}",1\r\n' for name in names)
    column = pa.array(names).dictionary_encode()
    pyarrow.parquet.write_table(pa.table({"gene": column, "x": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    for name, data, header in [
        ("a.txt", text.encode(), None),
        ("a.list", b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode(), None),
        ("a.txt.gz", gzip.compress(text.encode()), None),
        ("a.csv", table.encode(), "gene"),
        ("a.csv.gz", gzip.compress(table.encode()), "gene"),
        ("a.tsv", table.replace(",", "\t").encode(), "gene"),
        ("b.TSV", b"gene\n" + text.encode(), "gene"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert read_node_names(tmp_path / name) == (names, header)
    assert read_node_names(tmp_path / "a.parquet") == (names, "gene")


BAD = [
    ("genes.txt", None, "no such file; check the path in the graph configuration"),
    ("genes.txt", "", "holds no gene name"),
    ("genes.txt", " \n\n", "holds no gene name"),
    ("genes.txt", "A\nB,1\n", r"line 2: holds more than a gene name; .* \.csv or \.tsv"),
    ("genes.txt", "A\tB\n", "line 1: holds more than a gene name"),
    ("genes.txt", b"A\n\xff\xfe\n", "is not UTF-8 text"),
    ("genes.txt.gz", "A\n", "cannot be read"),
    ("genes.csv", "", "is empty"),
    ("genes.csv", "gene\n", "holds no gene name"),
    ("genes.csv", "gene,x\nA,1\n ,2\n", "row 3: 'gene' is empty"),
    ("genes.csv", ",gene\n0,A\n1,B\n", "its first column has no name"),
    ("genes.csv", "gene,gene\nA,B\n", "'gene' occurs more than once"),
    ("genes.csv", "A\nB\nC\n", "row 1: is the gene A, where a table has its header"),
    ("genes.tsv", "gene\tx\nA\t1\nB\n", "cannot be read"),
    ("genes.parquet", "gene\nA\n", "cannot be read"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_bad_lists_are_refused_in_one_line_naming_the_file(tmp_path, name, text, message):
    with pytest.raises(GraphError) as failure:
        build(configure(tmp_path, text, name), out=tmp_path / "out")
    said = str(failure.value)
    assert said.startswith(str(tmp_path / name))
    assert "\n" not in said
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_the_order_and_the_container_of_the_list_do_not_change_the_id(tmp_path):
    ids = set()
    for number, (name, text) in enumerate([("g.txt", "E\nD\nA\n"), ("g.csv", "x\nA\nD\nOLDE\n")]):
        ids.add(build(configure(tmp_path, text, name), out=tmp_path / str(number)).id)
    assert len(ids) == 1


def test_a_list_without_expander(tmp_path):
    config = configure(tmp_path, "D\n", expander=ExpanderOptions(cycles=0))
    summary = build(config, out=tmp_path / "out")
    assert (summary.num_genes, summary.expander.cycles) == (4, 0)
