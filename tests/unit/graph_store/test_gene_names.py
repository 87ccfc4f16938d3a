import gzip
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.config import AliasTable
from graph_store.genes import candidates, make_aliases, node_aliases, resolve
from graph_store.graph import GraphError
from graph_store.source_config import GoSource
from graph_store.sources.aliases import read_aliases
from graph_store.sources.go import read_go

NAMES = st.sampled_from(["A", "B", "C", "D", "a", "b", "X", "Y", "Z"])
PAIRS = st.lists(st.tuples(NAMES, NAMES), max_size=20)

TABLE = make_aliases(
    [
        ("MARCHF8", "MARCHF8"),
        ("MARCH8", "MARCHF8"),
        ("AMN", "ABCD1"),
        ("AMN", "AMN"),
        ("ASP", "A1CF"),
        ("ASP", "ASIP"),
        ("", "LONE"),
    ]
)


def test_the_four_fates_of_a_name():
    result = resolve(["MARCH8", "MARCHF8", "AMN", "ASP", "march8", "LONE"], TABLE)
    assert result.names == ("MARCHF8", "MARCHF8", "AMN", "ASP", "march8", "LONE")
    assert result.renamed == {"MARCH8": "MARCHF8"}
    assert result.ambiguous == ("ASP",)
    assert result.unmatched == ("march8",)


def test_without_a_table_names_stay():
    assert resolve(["x", "y"], None) == (("x", "y"), {}, (), ())
    assert node_aliases(None, ["x"]) == {}


def test_candidates_are_shown_not_used():
    assert candidates(TABLE, ["ASP", "marchf8", "nothing"]) == {
        "ASP": ("A1CF", "ASIP"),
        "marchf8": ("MARCHF8",),
        "nothing": (),
    }


def test_aliases_of_nodes():
    assert node_aliases(TABLE, ["ABCD1", "MARCHF8", "AMN"]) == {"MARCH8": "MARCHF8"}


@given(PAIRS, st.lists(NAMES, max_size=12))
def test_a_name_moves_only_to_its_one_approved_symbol(pairs, names):
    table = make_aliases(pairs)
    approved = {symbol for _, symbol in pairs}
    result = resolve(names, table)
    for name, resolved in zip(names, result.names, strict=True):
        meanings = {symbol for alias, symbol in pairs if alias == name}
        moves = name not in approved and len(meanings) == 1
        assert resolved == (next(iter(meanings)) if moves else name)
    assert set(result.ambiguous) == {
        name
        for name in names
        if name not in approved and len({symbol for alias, symbol in pairs if alias == name}) > 1
    }
    known = approved | {alias for alias, _ in pairs}
    assert set(result.unmatched) == set(names) - known


@given(PAIRS, st.lists(NAMES, max_size=12))
def test_aliases_never_merge_ambiguous_names_nor_shadow_a_node(pairs, genes):
    aliases = node_aliases(make_aliases(pairs), genes)
    assert not set(aliases) & set(genes)
    assert set(aliases.values()) <= set(genes)
    for alias, gene in aliases.items():
        assert {symbol for other, symbol in pairs if other == alias} == {gene}
    assert list(aliases) == sorted(aliases)


@given(PAIRS, st.randoms())
def test_the_order_of_the_table_does_not_matter(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert make_aliases(shuffled) == make_aliases(pairs)


def test_reading_a_table(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_text('Approved symbol\tAlias symbol\nNAN1\tNA\nX1\t\n" Y1 "\tnan\n')
    spec = AliasTable(path=path, alias="Alias symbol", approved="Approved symbol")
    table = read_aliases([spec])
    assert table.by_alias == {"NA": "NAN1", "nan": "Y1"}
    assert table.approved == {"NAN1", "X1", "Y1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Symbol,Other\nA,B\n", "has no column 'Approved.Symbol'; its columns are Symbol, Other"),
        ("Symbol,Approved.Symbol\nA,B\nC,\n", "row 3: 'Approved.Symbol' is empty"),
        ("Symbol,Approved.Symbol\n", "holds no row"),
        ("", "is empty"),
        ("Symbol,Symbol,Approved.Symbol\nA,B,C\n", "column 'Symbol' occurs more than once"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    path = tmp_path / "names.csv"
    path.write_text(text)
    with pytest.raises(GraphError, match=message) as failure:
        read_aliases([AliasTable(path=path)])
    assert str(path) in str(failure.value)


@pytest.mark.real
def test_hgnc_table(shared_file):
    table = read_aliases([AliasTable(path=shared_file("gene-ids/hgnc_table.csv"))])
    assert len(table.approved) == 43135
    assert resolve(["MARCH8", "8-MAR", "MARCHF8", "TP53", "p53"], table).names == (
        "MARCHF8",
        "MARCHF8",
        "MARCHF8",
        "TP53",
        "p53" if "p53" not in table.by_alias else "TP53",
    )
    # MARC1 and MARCH1 were both written 1-MAR once.
    assert set(table.ambiguous["03-01"]) == {"MARCHF1", "MTARC1"}


HGNC = """\
hgnc_id\tsymbol\tname\talias_symbol\tprev_symbol\tentrez_id\tensembl_gene_id\tuniprot_ids
HGNC:1\tAAA\t"first, ""so-called"" gene"\t"AA1|SHARED"\t\t101\tENSG01\tP1
HGNC:2\tBBB\tsecond\tSHARED\t"OLDB|AAA"\t102\tENSG02\t"P1|P2"
HGNC:3\tCCC\tthird\t\t\t\t\t
"""
IDS = ("alias_symbol", "prev_symbol", "entrez_id", "ensembl_gene_id", "uniprot_ids")


def test_hgnc_complete_set_by_naming_its_columns(tmp_path):
    path = tmp_path / "hgnc_complete_set.txt"
    path.write_text(HGNC)
    table = read_aliases([AliasTable(path=path, alias=IDS, approved="symbol", separator="|")])
    assert table.approved == {"AAA", "BBB", "CCC"}
    assert table.by_alias == {
        "AA1": "AAA",
        "OLDB": "BBB",
        "101": "AAA",
        "102": "BBB",
        "ENSG01": "AAA",
        "ENSG02": "BBB",
        "P2": "BBB",
    }
    # Two genes have them; and AAA, once a name of BBB, is approved.
    assert table.ambiguous == {"SHARED": ("AAA", "BBB"), "P1": ("AAA", "BBB")}
    # A version is part of a name: nothing is cut off.
    assert resolve(["ENSG01", "ENSG01.5"], table).unmatched == ("ENSG01.5",)
    fields = read_aliases([AliasTable(path=path, alias="prev_symbol", approved="symbol")])
    assert fields.by_alias == {"OLDB|AAA": "BBB"}


def test_several_tables_are_one(tmp_path):
    symbols, ids = tmp_path / "symbols.tsv", tmp_path / "ids.csv.gz"
    symbols.write_text("symbol\told\nAAA\tA1\nBBB\tB1\n")
    ids.write_bytes(gzip.compress(b"entrez,symbol\n7,AAA\n8,BBB\n9,CCC\nA1,BBB\n"))
    specs = [
        AliasTable(path=symbols, alias="old", approved="symbol"),
        AliasTable(path=ids, alias="entrez", approved="symbol"),
    ]
    table = read_aliases(specs)
    assert table == read_aliases(specs[::-1])
    assert table.approved == {"AAA", "BBB", "CCC"}
    assert table.by_alias == {"B1": "BBB", "7": "AAA", "8": "BBB", "9": "CCC"}
    # The two tables disagree.
    assert table.ambiguous == {"A1": ("AAA", "BBB")}
    ids.write_bytes(gzip.compress(b"entrez,symbol\n7,AAA\n8,\n"))
    with pytest.raises(GraphError, match=r"ids.csv.gz row 3: 'symbol' is empty"):
        read_aliases(specs)


FIELDS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "A", "B"]), max_size=3), min_size=2, max_size=2)


@given(st.lists(st.tuples(st.sampled_from(["A", "B", "C"]), FIELDS), min_size=1, max_size=8))
def test_columns_and_separators_are_rows_written_shorter(rows):
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.tsv", Path(folder) / "long.tsv"
        short.write_text(
            "s\tx\ty\n" + "".join(f"{symbol}\t{'|'.join(x)}\t{'|'.join(y)}\n" for symbol, (x, y) in rows)
        )
        pairs = [(symbol, name) for symbol, fields in rows for field in fields for name in field or [""]]
        long.write_text("s\tn\n" + "".join(f"{symbol}\t{name}\n" for symbol, name in pairs))
        table = read_aliases([AliasTable(path=short, alias=("x", "y"), approved="s", separator="|")])
        assert table == read_aliases([AliasTable(path=long, alias="n", approved="s")])
    assert table == make_aliases([(name, symbol) for symbol, name in pairs])


@pytest.mark.real
def test_entrez_ids_bring_the_terms_of_gene_ids_to_those_of_symbols(shared_file, tmp_path):
    source = shared_file("go-human-dhimmel/GO_annotations-9606-direct-expev.tsv")
    terms = pd.read_csv(source, sep="\t", dtype=str, keep_default_na=False)
    pairs = pd.DataFrame(
        {
            "symbol": terms.gene_symbols.str.split("|").explode(),
            "entrez": terms.gene_ids.str.split("|").explode(),
        }
    ).drop_duplicates()
    path = tmp_path / "ids.parquet"
    pairs.to_parquet(path)
    table = read_aliases([AliasTable(path=path, alias="entrez", approved="symbol")])
    # The file lists ids and symbols of a term in the same order, so this is the publisher's own pairing.
    assert not table.ambiguous
    assert table.by_alias == dict(zip(pairs.entrez, pairs.symbol, strict=True))
    by_id = tmp_path / "by_id.tsv"
    terms.assign(gene_symbols=terms.gene_ids).to_csv(by_id, sep="\t", index=False)
    options = {"aspects": ["biological_process"], "jaccard_above": 0.3}
    named = read_go(GoSource(path=source, **options), None)
    resolved = read_go(GoSource(path=by_id, **options), table)
    assert resolved.genes == named.genes
    assert (resolved.pairs.edges_2E == named.pairs.edges_2E).all()
    assert (resolved.pairs.weight_E == named.pairs.weight_E).all()
    assert not resolved.resolution.unmatched
