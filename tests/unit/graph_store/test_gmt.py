import gzip
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.genes import make_aliases
from graph_store.graph import GraphError
from graph_store.source_config import GmtSource
from graph_store.sources.gmt import read_gmt


def read(path: Path, *, aliases=None, above: float = 0.1):
    return read_gmt(GmtSource(path=path, jaccard_above=above), aliases)


def as_dict(graph) -> dict[tuple[str, str], float]:
    ends = graph.pairs.edges_2E.T.tolist()
    weights = graph.pairs.weight_E.tolist()
    return {(graph.genes[a], graph.genes[b]): weight for (a, b), weight in zip(ends, weights, strict=True)}


def write(folder: Path, data: bytes | str, name: str = "sets.gmt") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_small_file(tmp_path):
    text = "one\thttp://x\tA\tB\tC\t\t\ntwo\t\tB\tA\n\nthree\tx\tC\tA\tC\r\n"
    for path in (write(tmp_path, text), write(tmp_path, gzip.compress(text.encode()), "sets.gmt.gz")):
        graph = read(path)
        assert as_dict(graph) == {
            ("A", "B"): np.float32(2 / 3),
            ("A", "C"): np.float32(2 / 3),
            ("B", "C"): np.float32(1 / 3),
        }
        assert graph.counts == (8, 0, 1, 0)
    strict = read(path, above=0.5)
    assert set(as_dict(strict)) == {("A", "B"), ("A", "C")}
    assert strict.counts.below_minimum == 1


def test_spellings_of_a_gene_are_one_member_and_lines_of_a_name_one_set(tmp_path):
    table = make_aliases([("OLD", "NEW"), ("NEW", "NEW"), ("B", "B")])
    graph = read(write(tmp_path, "s\t\tOLD\tNEW\tB\ns\t\tB\nt\t\tNEW\tX\n"), aliases=table)
    assert as_dict(graph) == {("B", "NEW"): 0.5, ("NEW", "X"): 0.5}
    assert graph.counts == (6, 0, 2, 0)
    assert graph.resolution.unmatched == ("X",)


SETS = st.dictionaries(
    st.sampled_from("stuvw"), st.lists(st.sampled_from("ABCDEF"), min_size=1, max_size=6), min_size=1
)


@settings(max_examples=40)
@given(SETS, st.randoms())
def test_against_plain_sets_in_any_order(sets, random):
    with tempfile.TemporaryDirectory() as folder:
        lines = ["\t".join([name, "", *genes]) + "\n" for name, genes in sets.items()]
        graph = read(write(Path(folder), "".join(lines)))
        again = read(write(Path(folder), "".join(random.sample(lines, len(lines)))))
    of_gene = {gene: {name for name, genes in sets.items() if gene in genes} for gene in "ABCDEF"}
    expected = {}
    for first, second in itertools.combinations("ABCDEF", 2):
        either = of_gene[first] | of_gene[second]
        if either and len(of_gene[first] & of_gene[second]) / len(either) > 0.1:
            expected[first, second] = np.float32(len(of_gene[first] & of_gene[second]) / len(either))
    assert as_dict(graph) == as_dict(again) == expected
    assert graph.counts == again.counts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("s\td\tA\ns\td\n", r"line 2: has 2 tab-separated field\(s\) and 0 gene\(s\)"),
        ("s\td\tA\n\ns,d,A\n", r"line 3: has 1 tab-separated"),
        ("s\td\t\t \n", "line 1: has 4 .* and 0 gene"),
        ("\td\tA\n", "line 1"),
        (b"s\td\tA\xff\n", "is not UTF-8"),
    ],
)
def test_bad_files_are_refused_naming_file_and_line(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(GraphError, match=message) as failure:
        read(path)
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(GraphError, match="no such file"):
        read(tmp_path / "absent.gmt")
    with pytest.raises(GraphError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(GraphError, match="cannot be read"):
        read(write(tmp_path, gzip.compress(b"s\td\tA\n")[:-5], "sets.gmt.gz"))


@pytest.mark.real
def test_hallmarks_against_plain_sets(shared_file):
    path = shared_file("gmt-gseapy/h.all.v7.0.symbols.gmt")
    graph = read(path)
    of_gene: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        name, _, *genes = line.split("\t")
        for gene in genes:
            of_gene.setdefault(gene, set()).add(name)
    assert graph.genes == tuple(sorted(of_gene))
    edges = as_dict(graph)
    rng = np.random.default_rng(0)
    for first, second in rng.choice(len(graph.genes), (3000, 2)).tolist():
        if first < second:
            a, b = graph.genes[first], graph.genes[second]
            index = len(of_gene[a] & of_gene[b]) / len(of_gene[a] | of_gene[b])
            assert edges.get((a, b), 0.0) == (np.float32(index) if index > 0.1 else 0.0)


@pytest.mark.real
def test_reactome(shared_file):
    graph = read(shared_file("reactome-gmt/ReactomePathways.gmt"))
    assert len(graph.genes) == 11194
    assert graph.counts.rows == 113746
    assert graph.pairs.weight_E.min() > 0.1
    assert graph.pairs.weight_E.max() == 1.0
