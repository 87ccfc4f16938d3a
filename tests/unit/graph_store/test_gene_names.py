import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.config import AliasTable
from graph_store.genes import candidates, make_aliases, node_aliases, resolve
from graph_store.graph import GraphError
from graph_store.sources.aliases import read_aliases

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
    table = read_aliases(spec)
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
        read_aliases(AliasTable(path=path))
    assert str(path) in str(failure.value)


@pytest.mark.real
def test_hgnc_table(shared_file):
    table = read_aliases(AliasTable(path=shared_file("gene-ids/hgnc_table.csv")))
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
