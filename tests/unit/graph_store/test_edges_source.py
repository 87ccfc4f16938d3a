import gzip
import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.genes import make_aliases
from graph_store.graph import GraphError
from graph_store.source_config import Columns, EdgesSource
from graph_store.sources.columns import BLOCK_BYTES
from graph_store.sources.edges import ENDS, WEIGHTS, read_edges

NAMES = ["A", "B", "NAN", "NA", "null", "C-1", "ENSP.1", "\u03b1"]


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path, *, aliases=None, **options):
    return read_edges(EdgesSource(path=path, **options), aliases)


def as_dict(graph) -> dict[tuple[str, str], float]:
    ends = graph.pairs.edges_2E.T.tolist()
    weights = graph.pairs.weight_E.tolist()
    return {(graph.genes[a], graph.genes[b]): weight for (a, b), weight in zip(ends, weights, strict=True)}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("weight", [*WEIGHTS, None])
@pytest.mark.parametrize("separator", [",", "\t", ";", " "])
def test_usual_columns_and_separators_are_recognised(tmp_path, ends, weight, separator):
    header = [*ends, weight] if weight else list(ends)
    rows = [["B", "A", "0.5"], ["C", "B", "2"]]
    text = "".join(separator.join(row[: len(header)]) + "\r\n" for row in [header, *rows])
    graph = read(write(tmp_path, "list.txt", text))
    assert graph.genes == ("A", "B", "C")
    assert as_dict(graph) == {("A", "B"): 0.5 if weight else 1.0, ("B", "C"): 2.0 if weight else 1.0}


def test_functional_interactions_of_reactome(tmp_path):
    header = "Gene1\tGene2\tAnnotation\tDirection\tScore\n"
    text = header + "B\tA\tcatalyzed by; complex\t->\t0.97\nA\tC\tpredicted\t-|\t1.00\n"
    graph = read(write(tmp_path, "FIsInGene_with_annotations.txt", text))
    assert as_dict(graph) == {("A", "B"): np.float32(0.97), ("A", "C"): 1.0}


def test_named_columns_quotes_byte_order_mark_and_blank_lines(tmp_path):
    text = '\ufeff"#node1",extra,node 2,s\n" A ",x,"B,C",7\n\nD,x,A,8\n'
    path = write(tmp_path, "list.csv", text)
    graph = read(path, columns=Columns(source="#node1", target="node 2", weight="s"))
    assert as_dict(graph) == {("A", "B,C"): 7.0, ("A", "D"): 8.0}


def test_gene_names_are_never_taken_for_missing_values(tmp_path):
    graph = read(write(tmp_path, "list.csv", "source,target\nNAN,NA\nnull,nan\n"))
    assert graph.genes == ("NA", "NAN", "nan", "null")


def test_every_container_gives_the_same_graph(tmp_path):
    text = "gene1\tgene2\tcombined_score\nA\tB\t700\nB\tA\t900\nC\tC\t999\nC\tA\t400\n"
    table = {"gene1": ["A", "B", "C", "C"], "gene2": ["B", "A", "C", "A"]}
    score = [700, 900, 999, 400]
    paths = [
        write(tmp_path, "a.tsv", text),
        write(tmp_path, "a.tsv.gz", gzip.compress(text.encode())),
        write(tmp_path, "a.csv", text.replace("\t", ",")),
    ]
    for number, kind in enumerate((pa.int16(), pa.int64(), pa.float32(), pa.string())):
        paths.append(tmp_path / f"{number}.parquet")
        column = pa.array(map(str, score)) if kind == pa.string() else pa.array(score).cast(kind)
        names = {key: pa.array(value).dictionary_encode() for key, value in table.items()}
        pyarrow.parquet.write_table(pa.table({**names, "combined_score": column}), paths[-1])
    for path in paths:
        graph = read(path)
        assert as_dict(graph) == {("A", "B"): 900.0, ("A", "C"): 400.0}
        assert graph.counts == (4, 1, 1, 0)


def test_directed_minimum_and_signed(tmp_path):
    path = write(tmp_path, "a.csv", "source,target,weight\nA,B,-3\nB,A,2\nA,B,3\nC,A,-0.1\n")
    with pytest.raises(GraphError, match=r"row 2: weight -3.0 is negative; .* signed: true"):
        read(path)
    signed = read(path, signed=True, minimum_weight=1)
    assert as_dict(signed) == {("A", "B"): 3.0}
    assert signed.counts == (4, 0, 2, 1)
    assert signed.genes == ("A", "B", "C")
    directed = read(path, signed=True, directed=True)
    assert as_dict(directed) == {("A", "B"): 3.0, ("B", "A"): 2.0, ("C", "A"): np.float32(-0.1)}


def test_aliases_are_resolved_before_duplicates_are_merged(tmp_path):
    table = make_aliases([("OLD", "NEW"), ("NEW", "NEW"), ("B", "B"), ("TWO", "B"), ("TWO", "NEW")])
    path = write(tmp_path, "a.csv", "source,target,weight\nOLD,B,1\nB,NEW,5\nOLD,NEW,2\nTWO,B,1\nX,B,1\n")
    graph = read(path, aliases=table)
    assert as_dict(graph) == {("B", "NEW"): 5.0, ("B", "TWO"): 1.0, ("B", "X"): 1.0}
    assert graph.counts == (5, 1, 1, 0)
    assert graph.resolution.renamed == {"OLD": "NEW"}
    assert (graph.resolution.ambiguous, graph.resolution.unmatched) == (("TWO",), ("X",))


ROWS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 5)), min_size=1, max_size=40
)


@settings(max_examples=40)
@given(ROWS, st.booleans(), st.sampled_from([None, 2.0]), st.randoms())
def test_counts_add_up_and_row_order_does_not_matter(rows, directed, minimum, random):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        graphs = []
        for order in (rows, random.sample(rows, len(rows))):
            body = "".join(f"{source},{target},{weight}\n" for source, target, weight in order)
            path.write_text("source,target,weight\n" + body, encoding="utf-8")
            graphs.append(read(path, directed=directed, minimum_weight=minimum))
    first, second = graphs
    assert as_dict(first) == as_dict(second)
    assert (first.genes, first.counts) == (second.genes, second.counts)
    expected = {}
    for source, target, weight in rows:
        key = (source, target) if directed else tuple(sorted((source, target)))
        if source != target and weight >= (minimum or 0):
            expected[key] = max(expected.get(key, 0), weight)
    assert as_dict(first) == expected
    counts = first.counts
    assert counts.rows == len(rows)
    assert counts.rows == counts.self_loops + counts.below_minimum + counts.duplicates + len(expected)


def test_many_blocks_give_one_graph_and_errors_name_the_right_row(tmp_path):
    pairs = [tuple(sorted(pair)) for pair in itertools.combinations(map("GENE{}".format, range(60)), 2)]
    # A column nobody reads makes the file larger than two blocks.
    filling = "x" * (2 * BLOCK_BYTES // len(pairs) + 100)
    lines = [f"{source},{target},{number},{filling}\n" for number, (source, target) in enumerate(pairs)]
    header = "source,target,weight,filling\n"
    path = write(tmp_path, "a.csv", header + "".join(lines))
    assert as_dict(read(path)) == {pair: float(number) for number, pair in enumerate(pairs)}
    lines[1700] = f"A,B,oops,{filling}\n"
    write(tmp_path, "a.csv", header + "".join(lines))
    with pytest.raises(GraphError, match="row 1702: weight 'oops' is not a finite number"):
        read(path)


BAD = [
    ("a.csv", "", "is empty"),
    ("a.csv", "\n\n", "first line"),
    ("a.csv", "source,target\n", "holds no edge"),
    ("a.csv", "A,B\nC,D\n", "its columns are A, B and none of the usual pairs"),
    ("a.csv", "source,target,source\nA,B,C\n", "'source' occurs more than once"),
    ("a.csv", "source,target,weight\nA,B,1\nA,C,nan\n", "row 3: weight 'nan' is not a finite number"),
    ("a.csv", "source,target,weight\nA,B,1\nA,C,\n", "row 3: weight '' is not"),
    ("a.csv", "source,target,weight\nA,B,inf\n", "row 2: weight 'inf'"),
    ("a.csv", "source,target,weight\nA,B,1e300\n", "row 2: weight '1e300'"),
    ("a.csv", "source,target,weight\nA,B,1_0 x\n", "row 2: weight '1_0 x'"),
    ("a.csv", "source,target,weight\nA,B,-1\n", "row 2: weight -1.0 is negative"),
    ("a.csv", "source,target,weight\nA,B,1\n ,C,1\n", "row 3: 'source' is empty"),
    ("a.csv", "source,target\nA,B\nA,B,C\n", "cannot be read .*Row #3"),
    ("a.csv", b"source,target\nA,\xff\xfe\n", "cannot be read .*UTF8"),
    ("a.csv", "source,target\nA,B\n".encode("utf-16"), "cannot be read"),
    ("a.csv.gz", "source,target\nA,B\n", "cannot be read"),
    ("a.csv.gz", gzip.compress(b"source,target\n" + b"A,B\n" * 90000)[:-20], "cannot be read"),
    ("a.parquet", "source,target\nA,B\n", "cannot be read"),
    ("a.parquet", "", "cannot be read"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD)
def test_bad_files_are_refused_in_one_line_naming_file_and_row(tmp_path, name, data, message):
    path = write(tmp_path, name, data)
    with pytest.raises(GraphError) as failure:
        read(path)
    said = str(failure.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert re.search(message, said), said


def test_bad_parquet_values(tmp_path):
    path = tmp_path / "a.parquet"
    for table, message in [
        ({"source": ["A", None], "target": ["B", "C"]}, "row 2: 'source' is empty"),
        ({"source": ["A", "A"], "target": ["B", "C"], "weight": [1.0, None]}, "row 2: weight None"),
        ({"source": ["A", "A"], "target": ["B", "C"], "weight": [[1.0], [2.0]]}, "row 1: weight"),
        ({"a": [1]}, "its columns are a and none"),
    ]:
        pyarrow.parquet.write_table(pa.table(table), path)
        with pytest.raises(GraphError, match=message):
            read(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(GraphError, match="cannot be read"):
        read(path)


def test_missing_files_and_columns(tmp_path):
    for name in ("a.csv", "a.csv.gz", "a.parquet"):
        with pytest.raises(GraphError, match=f"{name}: no such file"):
            read(tmp_path / name)
    path = write(tmp_path, "b.csv", "a,b\nA,B\n")
    with pytest.raises(GraphError, match="has no column 'c'; its columns are a, b"):
        read(path, columns=Columns(source="a", target="c"))
    with pytest.raises(GraphError, match="has no column 'w'"):
        read(path, columns=Columns(source="a", target="b", weight="w"))


@pytest.mark.real
def test_string_v12(shared_file):
    path = shared_file("string-v12-dmfind/string_v12_ntm_edges.parquet")
    graph = read(path, minimum_weight=900)
    scores = pyarrow.parquet.read_table(path)["combined_score"].to_numpy()
    assert graph.counts.rows == len(scores) == 174962
    assert graph.counts.below_minimum == (scores < 900).sum()
    assert graph.pairs.num_edges + graph.counts.duplicates == (scores >= 900).sum()
    assert graph.pairs.weight_E.min() >= 900
    assert len(graph.genes) == 17288


@pytest.mark.real
@pytest.mark.parametrize(("name", "rows"), [("StringDB", 116118), ("Reactome", 22865), ("HuMAP", 117076)])
def test_efaar_lists_against_plain_sets(shared_file, name, rows):
    path = shared_file(f"efaar-annotations/{name}.txt")
    graph = read(path)
    lines = [tuple(line.split(",")) for line in path.read_text().split()[1:]]
    assert graph.counts.rows == len(lines) == rows
    assert {frozenset(pair) for pair in as_dict(graph)} == {frozenset(pair) for pair in lines}
    assert set(graph.pairs.weight_E.tolist()) == {1.0}


@pytest.mark.real
def test_gears_go_list_loses_its_self_pairs(shared_file):
    graph = read(shared_file("gears-go-fixture/gears_go_17genes_transcribed.csv"))
    assert graph.counts.self_loops == 17
    assert graph.counts.duplicates == graph.pairs.num_edges == (77 - 17) // 2
    assert graph.pairs.weight_E.min() > 0.1
