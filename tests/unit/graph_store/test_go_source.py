import csv
import gzip
import itertools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import networkx
import numpy as np
import obonet
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.genes import make_aliases
from graph_store.graph import GraphError
from graph_store.source_config import EdgesSource, GmtSource, GoSource
from graph_store.sources import go
from graph_store.sources.annotations import NO_TERM, OTHER_TAXA, recognise
from graph_store.sources.edges import read_edges
from graph_store.sources.gmt import read_gmt
from graph_store.sources.go import read_go

OBO = """\
format-version: 1.2
ontology: go

[Term]
id: GO:1
namespace: biological_process

[Term]
id: GO:2
namespace: biological_process
alt_id: GO:20
is_a: GO:1

[Term]
id: GO:3
namespace: biological_process
relationship: part_of GO:2

[Term]
id: GO:4
namespace: molecular_function
relationship: part_of GO:2

[Term]
id: GO:5
namespace: biological_process
is_obsolete: true
"""


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def gaf_line(gene, term, *, qualifier="", evidence="IDA", aspect="P", taxon="taxon:9606", columns=17):
    fields = ["UniProtKB", "P1", gene, qualifier, term, "PMID:1", evidence, "", aspect, 'A "name', ""]
    return "\t".join([*fields, "protein", taxon, "20200101", "UniProt", "", ""][:columns]) + "\n"


def read(path: Path, *, aliases=None, **options):
    return read_go(GoSource(path=path, **options), aliases)


def as_dict(graph) -> dict[tuple[str, str], float]:
    ends = graph.pairs.edges_2E.T.tolist()
    weights = graph.pairs.weight_E.tolist()
    return {(graph.genes[a], graph.genes[b]): weight for (a, b), weight in zip(ends, weights, strict=True)}


def double_loop(terms_of: dict[str, set[str]], above: float = 0.1) -> dict[tuple[str, str], float]:
    """Every ordered pair of genes, a gene with itself too, as GEARS goes about it."""
    found = {}
    for first in terms_of:
        for second in terms_of:
            both = terms_of[first] & terms_of[second]
            if both and len(both) / len(terms_of[first] | terms_of[second]) > above:
                found[first, second] = len(both) / len(terms_of[first] | terms_of[second])
    return found


def once(pairs: Iterable[tuple[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    return {pair: float(np.float32(value)) for pair, value in pairs if pair[0] < pair[1]}


def test_a_gaf_as_published_in_each_version(tmp_path):
    annotations = [
        gaf_line("AAA", "GO:1"),
        gaf_line("AAA", "GO:1", evidence="IEA"),
        gaf_line("AAA", "GO:2", qualifier="contributes_to"),
        gaf_line("BBB", "GO:1", qualifier="involved_in"),
        gaf_line("BBB", "GO:3", qualifier="NOT"),
        gaf_line("CCC", "GO:1", qualifier="NOT|involved_in"),
        gaf_line("CCC", "GO:2", qualifier="acts_upstream_of_NOTHING"),
        gaf_line("CCC", "GO:4", aspect="F", taxon="taxon:9606|taxon:10335"),
    ]
    text = "!gaf-version: 2.2\n!\n" + "".join(annotations[:4]) + "! in between\n\n" + "".join(annotations[4:])
    graph = read(write(tmp_path, text, "goa_human.gaf.gz"))
    assert as_dict(graph) == {("AAA", "BBB"): 0.5, ("AAA", "CCC"): float(np.float32(1 / 3))}
    assert graph.counts == (6, 0, 1, 0)
    assert graph.details == {go.NEGATED: 2}
    version_1 = "".join(line.replace("\t\t\n", "\n") for line in [*annotations])
    assert as_dict(read(write(tmp_path, version_1, "gene_association.goa"), format="gaf")) == as_dict(graph)


def test_filters_of_evidence_aspect_and_taxon(tmp_path):
    text = (
        gaf_line("A", "GO:1")
        + gaf_line("B", "GO:1", evidence="IEA")
        + gaf_line("B", "GO:4", aspect="F", evidence="IMP")
        + gaf_line("C", "GO:9", aspect="C")
        + gaf_line("M", "GO:1", taxon="taxon:10090", qualifier="NOT")
        + gaf_line("M", "GO:1", taxon="taxon:10090|taxon:9606")
    )
    path = write(tmp_path, text, "a.gaf")
    with pytest.raises(GraphError, match=r"several taxa \(10090 and 9606\); set taxon"):
        read(path)
    human = read(path, taxon=9606)
    assert human.genes == ("A", "B", "C")
    assert human.details == {OTHER_TAXA: 2}
    by_hand = read(path, taxon=9606, without_evidence=["IEA"])
    assert as_dict(by_hand) == {}
    assert by_hand.details == {OTHER_TAXA: 2, go.OTHER_EVIDENCE: 1}
    assert read(path, taxon=9606, evidence=["IMP"]).genes == ("B",)
    process = read(path, taxon=9606, aspects=["biological_process"])
    assert as_dict(process) == {("A", "B"): 1.0}
    assert process.details == {OTHER_TAXA: 2, go.OTHER_ASPECTS: 2}
    assert read(path, taxon=10090).details == {OTHER_TAXA: 4, go.NEGATED: 1}
    backwards = read(
        write(tmp_path, "\n".join(text.splitlines()[::-1]), "b.gaf"), taxon=9606, evidence=["IDA"]
    )
    forwards = read(path, taxon=9606, evidence=["IDA"])
    assert list(backwards.details.items()) == list(forwards.details.items())
    with pytest.raises(GraphError, match=r"no annotation is left \(6 annotations of other taxa\)"):
        read(path, taxon=4932)


def test_gene2go_as_published(tmp_path):
    text = (
        "#tax_id\tGeneID\tGO_ID\tEvidence\tQualifier\tGO_term\tPubMed\tCategory\n"
        "3702\t814629\tGO:0005634\tISM\t-\tnucleus\t-\tComponent\n"
        '9606\t1\tGO:0002576\tTAS\tinvolved_in\t"de novo" degranulation\t-\tProcess\n'
        "9606\t2\tGO:0002576\tTAS\tNOT involved_in\tplatelet degranulation\t-\tProcess\n"
        "9606\t2\tGO:0002576\tIDA\tinvolved_in\tplatelet degranulation\t1|2\tProcess\n"
        "9606\t2\tGO:0005634\tIDA\tNOT\tnucleus\t1\tComponent\n"
        "9606\t1\tGO:0005634\tIEA\t-\tnucleus\t-\tComponent\n"
    )
    path = write(tmp_path, text, "gene2go.gz")
    graph = read(path, taxon=9606)
    assert as_dict(graph) == {("1", "2"): 0.5}
    assert graph.details == {OTHER_TAXA: 1, go.NEGATED: 2}
    symbols = make_aliases([("1", "A1BG"), ("2", "A2M")])
    named = read(path, taxon=9606, aspects=["biological_process"], aliases=symbols)
    assert as_dict(named) == {("A1BG", "A2M"): 1.0}
    assert named.resolution.renamed == {"1": "A1BG", "2": "A2M"}
    with pytest.raises(GraphError, match=r"several taxa \(3702 and 9606\)"):
        read(path)


def test_gears_dictionary_as_json(tmp_path):
    text = '{"A": ["GO:1", "GO:2", "GO:1"], "B": ["GO:1"], "C": [], "B": ["GO:2"], "D": ["GO:5", "GO:20"]}'
    path = write(tmp_path, text, "gene2go_all.json")
    graph = read(path)
    # B stands twice: both lists count.
    assert as_dict(graph) == {("A", "B"): 1.0}
    assert graph.counts == (7, 0, 1, 0)
    assert graph.details == {NO_TERM: 1}
    assert graph.genes == ("A", "B", "D")
    ontology = write(tmp_path, OBO, "go.obo")
    known = read(path, ontology=ontology)
    assert as_dict(known) == {("A", "B"): 1.0, ("A", "D"): 0.5, ("B", "D"): 0.5}
    assert known.details == {NO_TERM: 1, go.OBSOLETE: 1, go.ALTERNATIVE: 1}


def test_a_table_of_terms(tmp_path):
    text = (
        "go_id\tgo_name\tgo_domain\ttax_id\tgene_symbols\n"
        "GO:1\tone\tbiological_process\t9606\tA|B| C \n"
        "GO:2\ttwo\tbiological_process\t9606\t\n"
        "GO:4\tfour\tmolecular_function\t9606\tA||D\n"
        "GO:4\tfour\tmolecular_function\t10090\tM\n"
    )
    path = write(tmp_path, text, "terms.tsv")
    graph = read(path, taxon=9606)
    assert as_dict(graph) == {("A", "B"): 0.5, ("A", "C"): 0.5, ("A", "D"): 0.5, ("B", "C"): 1.0}
    assert graph.details == {OTHER_TAXA: 1}
    assert as_dict(read(path, taxon=9606, aspects=["molecular_function"])) == {("A", "D"): 1.0}
    parquet = tmp_path / "terms.parquet"
    pd.read_csv(path, sep="\t", dtype=str).to_parquet(parquet)
    assert as_dict(read(parquet, taxon=9606)) == as_dict(graph)


def test_propagation_and_its_limits(tmp_path):
    path = write(tmp_path, json.dumps({"A": ["GO:3"], "B": ["GO:2"], "C": ["GO:4"], "D": ["GO:8"]}), "a.json")
    ontology = write(tmp_path, OBO, "go.obo.gz")
    plain = read(path, ontology=ontology)
    assert as_dict(plain) == {}
    assert plain.details == {go.UNKNOWN: 1}
    # A: 3 2 1, B: 2 1, C: 4 2 1, D: 8 (which has no ancestors as far as we know).
    every = read(path, ontology=ontology, propagate=True)
    assert as_dict(every) == once({("A", "B"): 2 / 3, ("A", "C"): 0.5, ("B", "C"): 2 / 3}.items())
    assert every.details == {go.UNKNOWN: 1, go.PROPAGATED: 5}
    assert every.counts == (4, 0, 0, 0)
    kinds = read(path, ontology=ontology, propagate=True, relations=["is_a"])
    assert as_dict(kinds) == {}
    assert kinds.details[go.PROPAGATED] == 1
    # Ancestors of other aspects do not come in either.
    function = read(path, ontology=ontology, propagate=True, aspects=["molecular_function"])
    assert function.genes == ("C",)
    assert function.details == {go.UNKNOWN: 1, go.OTHER_ASPECTS: 3}


ANNOTATIONS = st.dictionaries(
    st.sampled_from("ABCDEFGH"), st.lists(st.sampled_from(range(1, 9)), min_size=1, max_size=8), min_size=1
)


@settings(max_examples=40)
@given(ANNOTATIONS, st.sampled_from([0.0, 0.1, 0.5]), st.randoms())
def test_every_format_gives_gears_double_loop_in_any_order(annotations, above, random):
    lists = {gene: [f"GO:{number}" for number in numbers] for gene, numbers in annotations.items()}
    rows = [(gene, term) for gene, terms in lists.items() for term in terms]
    random.shuffle(rows)
    genes_of: dict[str, list[str]] = {}
    for gene, term in rows:
        genes_of.setdefault(term, []).append(gene)
    files = {
        "a.gaf": "".join(gaf_line(*row) for row in rows),
        "gene2go": "#tax_id\n" + "".join(f"1\t{g}\t{t}\tIDA\t-\tx\t-\tProcess\n" for g, t in rows),
        "a.json": json.dumps(lists),
        "terms.csv": "go_id,gene_symbols\n" + "".join(f"{t},{'|'.join(g)}\n" for t, g in genes_of.items()),
    }
    with tempfile.TemporaryDirectory() as folder:
        graphs = [read(write(Path(folder), text, name), jaccard_above=above) for name, text in files.items()]
        sets = write(Path(folder), "".join(f"{t}\t\t{g}\n" for g, t in rows), "sets.gmt")
        graphs.append(read_gmt(GmtSource(path=sets, jaccard_above=above), None))
    expected = once(double_loop({gene: set(terms) for gene, terms in lists.items()}, above).items())
    for graph in graphs:
        assert as_dict(graph) == expected
        assert graph.counts == graphs[0].counts
        assert graph.counts.rows == len(rows)
        assert graph.counts.duplicates == len(rows) - len(set(rows))


RELATIONS = st.sampled_from(["is_a", "part_of", "regulates"])


@settings(max_examples=30)
@given(
    ANNOTATIONS,
    st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 8), st.sampled_from(["is_a", "part_of", "regulates"]))
    ),
)
def test_propagation_against_networkx(annotations, edges):
    lists = {gene: [f"GO:{number}" for number in numbers] for gene, numbers in annotations.items()}
    above = networkx.DiGraph()
    above.add_nodes_from(f"GO:{number}" for number in range(1, 9))
    stanzas = {number: [f"[Term]\nid: GO:{number}\nname: {number}\n"] for number in range(1, 9)}
    for child, parent, relation in edges:
        if child > parent:
            line = f"is_a: GO:{parent}" if relation == "is_a" else f"relationship: {relation} GO:{parent}"
            stanzas[child].append(line + "\n")
            if relation != "regulates":
                above.add_edge(f"GO:{child}", f"GO:{parent}")
    obo = "ontology: go\n\n" + "\n".join("".join(lines) for lines in stanzas.values())
    with tempfile.TemporaryDirectory() as folder:
        graph = read(
            write(Path(folder), json.dumps(lists), "a.json"),
            ontology=write(Path(folder), obo, "go.obo"),
            propagate=True,
        )
    whole = {
        gene: set(terms).union(*(networkx.descendants(above, term) for term in terms))
        for gene, terms in lists.items()
    }
    assert as_dict(graph) == once(double_loop(whole).items())
    direct = sum(len(set(terms)) for terms in lists.values())
    assert graph.details.get(go.PROPAGATED, 0) == sum(map(len, whole.values())) - direct


SHARED_TERMS = """\
ENO1 HMGN2 PRDX1
ENO1 HMGN2 YBX1 PRDX1
ENO1 PRDX1 TMEM59 ATP6V0B
ENO1 STMN1 PSMB2 YBX1 PRDX1 NUDC
ENO1 STMN1 YBX1 TMEM59 ATP6V0B GADD45A
HMGN2 PSMB2 PRDX1 TMEM59 ATP6V0B GADD45A
ENO1 HMGN2 MARCKSL1 YBX1 PRDX1 GADD45A CAPZA1
ENO1 STMN1 HMGN2 MARCKSL1 PSMB2 YBX1 SH3BGRL3 GADD45A
ENO1 STMN1 PSMB2 YBX1 PRDX1 NUDC GADD45A CAPZA1
STMN1 MARCKSL1 PRDX1 SH3BGRL3 NUDC TMEM59 ATP6V0B CAPZA1
ENO1 STMN1 HMGN2 PSMB2 YBX1 PRDX1 SH3BGRL3 NUDC ATP6V0B
ENO1 STMN1 MARCKSL1 PSMB2 YBX1 NUDC TMEM59 ATP6V0B CAPZA1
ENO1 MARCKSL1 PSMB2 YBX1 PRDX1 SH3BGRL3 TMEM59 GADD45A CAPZA1
"""
"""Genes that share a term, one term a line: found by integer programming so that, with the numbers of terms
below, every value of GEARS' own GO table for these 17 genes comes out."""
NUM_TERMS = {
    "ENO1": 33,
    "STMN1": 25,
    "HMGN2": 11,
    "MARCKSL1": 10,
    "PSMB2": 16,
    "YBX1": 49,
    "PRDX1": 26,
    "SH3BGRL3": 4,
    "NUDC": 17,
    "TMEM59": 19,
    "ATP6V0B": 20,
    "GADD45A": 27,
    "CAPZA1": 15,
    "CAP1": 1,
    "CDC42": 1,
    "LAPTM5": 1,
    "SRM": 1,
}


@pytest.mark.real
def test_the_values_of_gears_own_table_come_out_of_annotations(tmp_path, shared_file):
    table = shared_file("gears-go-fixture/gears_go_17genes_transcribed.csv")
    terms_of: dict[str, list[str]] = {gene: [] for gene in NUM_TERMS}
    for number, line in enumerate(SHARED_TERMS.splitlines()):
        for gene in line.split():
            terms_of[gene].append(f"GO:{number:07d}")
    for gene, terms in terms_of.items():
        terms += [f"GO:{gene}-{number}" for number in range(NUM_TERMS[gene] - len(terms))]
    with table.open() as stream:
        published = {(r["source"], r["target"]): float(r["importance"]) for r in csv.DictReader(stream)}
    assert len(published) == 77
    looped = double_loop({gene: set(terms) for gene, terms in terms_of.items()})
    # Symmetric, and each gene with itself, as the table has it.
    assert looped == pytest.approx(published, rel=1e-12)
    graph = read(write(tmp_path, json.dumps(terms_of), "gene2go.json"))
    assert as_dict(graph) == once(published.items())
    listed = read_edges(EdgesSource(path=table), None)
    assert as_dict(listed) == as_dict(graph)
    assert listed.genes == graph.genes


def test_recognition(tmp_path):
    for name, text, expected in [
        ("goa.GAF.gz", "x", "gaf"),
        ("gene_association.mgi", "!gaf-version: 2.0\n", "gaf"),
        ("gene2go.gz", "#tax_id\tGeneID\n", "gene2go"),
        ("gene2go.json", "[]", "json"),
        ("export.txt.gz", '\n\n {"A": []}', "json"),
        ("terms.txt", "go_id\tgene_symbols\n", "terms"),
        ("terms.pq", "x", "terms"),
    ]:
        assert recognise(write(tmp_path, text, name)) == expected
    for text in ("", "A\tB\n"):
        with pytest.raises(GraphError, match="is not recognised as annotations; set format"):
            recognise(write(tmp_path, text, "odd.txt"))


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.gaf", gaf_line("A", "GO:1") + "A\tB\n", {}, r"line 2: is no GAF annotation \(2 tab"),
        ("a.gaf", "!x\n\n" + gaf_line("A", "term"), {}, "line 3: is no GAF annotation"),
        ("a.gaf", gaf_line("", "GO:1"), {}, "line 1: is no GAF annotation"),
        ("a.gaf", gaf_line("A", "GO:1", columns=16), {}, "line 1: is no GAF annotation .16 tab"),
        ("a.gaf", "!gaf-version: 2.2\n", {}, "no annotation is left .the file holds none"),
        ("gene2go", "#tax_id\n9606\t1\tGO:1\n", {}, "line 2: is no line of gene2go"),
        ("a.json", "{", {}, "is not JSON"),
        ("a.json", "[1]", {}, "holds no JSON object"),
        ("a.json", '{"A": "GO:1"}', {}, "gene 'A' has no list of terms"),
        ("a.json", '{"A": [1]}', {}, "gene 'A' has no list of terms"),
        ("a.json", '{"A": {"GO:1": 1}}', {}, "gene 'A' has no list of terms"),
        ("a.json", '{"A": []}', {}, "no annotation is left .1 genes without a term"),
        ("a.json", '{"A": ["GO:1"]}', {"evidence": ["IDA"]}, "json does not say evidence codes"),
        ("a.json", '{"A": ["GO:1"]}', {"taxon": 9606}, "json does not say taxa"),
        ("a.json", '{"A": ["GO:1"]}', {"aspects": ["molecular_function"]}, "json does not say aspects"),
        ("t.tsv", "go_id\tgene_symbols\nGO:1\tA\n", {"taxon": 1}, "terms does not say taxa"),
        ("t.tsv", "go_id\tgene_symbols\n\tA\n", {}, "row 2: 'go_id' is empty"),
        ("t.tsv", "go_id\tgenes\nGO:1\tA\n", {}, "has no column 'gene_symbols'"),
    ],
)
def test_bad_files_are_refused_in_one_line_naming_file_and_place(tmp_path, name, text, options, message):
    path = write(tmp_path, text, name)
    with pytest.raises(GraphError, match=message) as failure:
        read(path, **options)
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)


def test_missing_and_damaged_files(tmp_path):
    for name in ("absent.gaf", "absent.json", "absent", "absent.parquet"):
        with pytest.raises(GraphError, match=f"{name}: no such file"):
            read(tmp_path / name)
    path = write(tmp_path, gaf_line("A", "GO:1") * 100, "a.gaf.gz")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(GraphError, match="cannot be read"):
        read(path)


@pytest.mark.real
def test_human_experimental_annotations_against_pandas(shared_file):
    path = shared_file("go-human-dhimmel/GO_annotations-9606-direct-expev.tsv")
    graph = read(path, aspects=["biological_process"])
    frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    every = frame.assign(gene=frame.gene_symbols.str.split("|")).explode("gene")
    assert (len(every), every.gene.nunique()) == (95411, 13997)
    rows = every[every.go_domain == "biological_process"][["gene", "go_id"]]
    assert not rows.duplicated().any()
    assert graph.counts.rows == len(rows)
    assert graph.details == {go.OTHER_ASPECTS: len(every) - len(rows)}
    assert graph.genes == tuple(sorted(rows.gene.unique()))
    # All pairs of some genes, and a sample of the edges.
    terms_of = rows.groupby("gene").go_id.agg(set).to_dict()
    edges = as_dict(graph)
    rng = np.random.default_rng(0)
    some = sorted(rng.choice(graph.genes, 300, replace=False))
    expected = once(double_loop({gene: terms_of[gene] for gene in some}).items())
    assert len(expected) > 50
    assert {pair: edges[pair] for pair in itertools.combinations(some, 2) if pair in edges} == expected
    for place in rng.choice(len(graph.pairs.weight_E), 500):
        first, second = (graph.genes[end] for end in graph.pairs.edges_2E[:, place])
        index = len(terms_of[first] & terms_of[second]) / len(terms_of[first] | terms_of[second])
        assert graph.pairs.weight_E[place] == np.float32(index) > 0.1
    # How many pairs there are, from a join of the table with itself.
    shared = rows.merge(rows, on="go_id").query("gene_x < gene_y").groupby(["gene_x", "gene_y"]).size()
    size = rows.gene.value_counts()
    first, second = (size.loc[shared.index.get_level_values(level)].to_numpy() for level in (0, 1))
    close = shared.to_numpy() / (first + second - shared.to_numpy()) > 0.1
    assert graph.pairs.num_edges == close.sum() == 289795
    assert graph.counts.below_minimum == (~close).sum()


@pytest.mark.real
def test_mouse_annotations_with_their_ontology_against_networkx(shared_file):
    path, obo = shared_file("go-obo/mgi-exttest.gaf"), shared_file("go-obo/mgi-exttest-go-subset.obo")
    frame = pd.read_csv(path, sep="\t", comment="!", header=None, dtype=str, keep_default_na=False)
    kept = frame[~frame[3].str.contains("NOT")]
    direct = read(path, ontology=obo)
    assert direct.details == {go.NEGATED: 10}
    assert direct.counts.rows == len(kept) == 1993
    assert direct.counts.duplicates == kept[[2, 4]].duplicated().sum()
    terms_of = kept.groupby(2)[4].agg(set).to_dict()
    assert as_dict(direct) == once(double_loop(terms_of).items())
    ontology = obonet.read_obo(obo)
    above = networkx.DiGraph()
    above.add_nodes_from(ontology)
    above.add_edges_from(
        (a, b) for a, b, relation in ontology.edges(keys=True) if relation in ("is_a", "part_of")
    )
    ancestors = {term: networkx.descendants(above, term) for term in set().union(*terms_of.values())}
    whole = {gene: set(terms).union(*(ancestors[term] for term in terms)) for gene, terms in terms_of.items()}
    graph = read(path, ontology=obo, propagate=True)
    assert as_dict(graph) == once(double_loop(whole).items())
    assert graph.details[go.PROPAGATED] == sum(map(len, whole.values())) - sum(map(len, terms_of.values()))
    process = read(path, aspects=["biological_process"], without_evidence=["IPI"])
    aspect_rows = kept[kept[8] == "P"]
    assert process.counts.rows == (aspect_rows[6] != "IPI").sum()
    assert process.details[go.OTHER_EVIDENCE] == (kept[6] == "IPI").sum()
