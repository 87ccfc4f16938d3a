import gzip
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.genes import make_aliases
from graph_store.graph import GraphError
from graph_store.source_config import EdgesSource, StringSource
from graph_store.sources.edges import read_edges
from graph_store.sources.string import OTHER_SCORE, SEVERAL_NAMES, UNNAMED, read_string
from graph_store.sources.string_score import combine

HEADER = "protein1 protein2 combined_score\n"
FULL = (
    "protein1 protein2 neighborhood neighborhood_transferred fusion cooccurence homology coexpression "
    "coexpression_transferred experiments experiments_transferred database database_transferred textmining "
    "textmining_transferred combined_score"
)
DETAILED = (
    "protein1 protein2 neighborhood fusion cooccurence coexpression experimental database textmining "
    "combined_score"
)
INFO = """\
#string_protein_id\tpreferred_name\tprotein_size\tannotation
9606.P1\tAAA\t180\t"Quoted; annotation with a stray quote
9606.P2\tBBB\t20\tnothing
9606.P3\tAAA\t7\tanother protein of the same gene
9606.P4\tOLD\t7\t'
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def read(path: Path, *, aliases=None, **options):
    return read_string(StringSource(path=path, **options), aliases)


def as_dict(graph) -> dict[tuple[str, str], float]:
    ends = graph.pairs.edges_2E.T.tolist()
    weights = graph.pairs.weight_E.tolist()
    return {(graph.genes[a], graph.genes[b]): weight for (a, b), weight in zip(ends, weights, strict=True)}


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_links_with_names_as_published(tmp_path, ending):
    links = write(
        tmp_path,
        f"9606.protein.links.v12.0{ending}",
        "protein1 protein2 combined_score\n9606.P1 9606.P2 700\n9606.P2 9606.P1 700\n9606.P3 9606.P2 900\n"
        "9606.P1 9606.P3 999\n9606.P4 9606.P9 400\n9606.P2 9606.P4 399\n",
    )
    info = write(tmp_path, f"9606.protein.info.v12.0{ending}", INFO)
    graph = read(links, info=info)
    assert as_dict(graph) == {("AAA", "BBB"): 900.0, ("9606.P9", "OLD"): 400.0}
    assert graph.genes == ("9606.P9", "AAA", "BBB", "OLD")
    assert graph.counts == (6, 1, 2, 1)
    assert graph.details == {UNNAMED: 1}
    table = make_aliases([("OLD", "NEW"), ("9606.P9", "NINE"), ("AAA", "AAA"), ("", "BBB")])
    renamed = read(links, info=info, aliases=table)
    assert as_dict(renamed) == {("AAA", "BBB"): 900.0, ("NEW", "NINE"): 400.0}
    assert renamed.resolution.renamed == {"OLD": "NEW", "9606.P9": "NINE"}
    assert renamed.resolution.unmatched == ()
    bare = read(links, minimum_score=0)
    assert len(as_dict(bare)) == 5
    assert bare.details == {}


def test_names_of_one_source_of_the_alias_table(tmp_path):
    links = write(
        tmp_path, "l.txt", "protein1 protein2 combined_score\n9606.P1 9606.P2 700\n9606.P1 9606.P3 700\n"
    )
    text = (
        "#string_protein_id\talias\tsource\n9606.P1\tP0\tUniProt_AC\n9606.P1\tAAA\tEnsembl_HGNC_symbol\n"
        "9606.P1\tAAA\tEnsembl_HGNC_symbol\n9606.P2\tBBB\tEnsembl_HGNC_symbol\n"
        "9606.P2\tCCC\tEnsembl_HGNC_symbol\n9606.P3\tDDD\tBLAST_KEGG Ensembl_HGNC_symbol\n"
    )
    names = write(tmp_path, "aliases.txt.gz", text)
    graph = read(links, protein_aliases=names)
    # P2 has two names under this source: none is chosen.
    assert as_dict(graph) == {("9606.P2", "AAA"): 700.0, ("AAA", "DDD"): 700.0}
    assert graph.details == {SEVERAL_NAMES: 1}
    accessions = read(links, protein_aliases=names, alias_source="UniProt_AC")
    assert accessions.genes == ("9606.P2", "9606.P3", "P0")
    assert accessions.details == {UNNAMED: 2}
    with pytest.raises(GraphError, match=r"no row of source Nobody; .*\(Ensembl_HGNC_symbol, UniProt_AC"):
        read(links, protein_aliases=names, alias_source="Nobody")


def test_leaving_channels_out(tmp_path):
    rows = [
        # Text mining alone; text mining and experiments; transferred text mining and database; nothing left.
        "9606.P1 9606.P2 0 0 0 0 0 0 0 0 0 0 0 800 0 800",
        "9606.P1 9606.P3 0 0 0 0 0 0 0 600 0 0 0 800 0 916",
        "9606.P2 9606.P3 0 0 0 0 0 0 0 0 0 500 0 0 700 843",
    ]
    links = write(tmp_path, "full.txt", "\n".join([FULL, *rows]) + "\n")
    pair = {name: (f"9606.{name[0:2]}", f"9606.{name[2:4]}") for name in ("P1P2", "P1P3", "P2P3")}
    assert as_dict(read(links)) == {pair["P1P2"]: 800.0, pair["P1P3"]: 916.0, pair["P2P3"]: 843.0}
    # Transferred scores go with their channel.
    mined = read(links, without=["textmining"])
    # The rule cuts digits off: 500 comes out as 499, as 419 does as 418 in STRING's own files.
    assert as_dict(mined) == {pair["P1P3"]: 600.0, pair["P2P3"]: 499.0}
    assert mined.counts == (3, 0, 0, 1)
    assert mined.details == {}
    transferred = read(links, without=["textmining_transferred"])
    assert as_dict(transferred) == {pair["P1P2"]: 800.0, pair["P1P3"]: 916.0, pair["P2P3"]: 499.0}
    assert as_dict(read(links, without=["textmining", "experiments"], minimum_score=0)) == {
        pair["P2P3"]: 499.0
    }


def test_the_detailed_file_spells_experiments_its_own_way(tmp_path):
    links = write(tmp_path, "d.txt", f"{DETAILED}\n9606.P1 9606.P2 0 0 0 0 600 0 800 919\n")
    assert list(as_dict(read(links, without=["textmining"])).values()) == [600.0]
    assert list(as_dict(read(links, without=["experiments"])).values()) == [800.0]
    with pytest.raises(GraphError, match="has no channel 'textmining_transferred' to leave out"):
        read(links, without=["textmining_transferred"])
    rest = ["experiments", "database", "textmining"]
    with pytest.raises(GraphError, match="every channel is left out"):
        read(links, without=["neighborhood", "fusion", "cooccurence", "coexpression", *rest])


@pytest.mark.parametrize("corrected", [True, False])
def test_the_form_of_the_rule_is_the_one_that_gives_the_files_own_scores(tmp_path, corrected):
    columns = FULL.split()[2:-1]
    rows, kept = [], {}
    rng = np.random.default_rng(0)
    for number in range(30):
        row = dict.fromkeys(columns, 0) | {
            "cooccurence": int(rng.integers(300, 500)),
            "homology": int(rng.integers(300, 900)),
            "experiments": int(rng.integers(100, 400)),
            "textmining": int(rng.integers(100, 400)),
        }
        scores = {name: np.array([score], np.float32) for name, score in row.items()}
        own = int(combine(scores, homology=corrected)[0])
        rows.append(f"9606.A 9606.B{number:02d} " + " ".join(map(str, row.values())) + f" {own}")
        del scores["textmining"]
        kept["9606.A", f"9606.B{number:02d}"] = float(combine(scores, homology=corrected)[0])
    links = write(tmp_path, "full.txt", "\n".join([FULL, *rows]) + "\n")
    graph = read(links, without=["textmining"], minimum_score=0)
    assert as_dict(graph) == kept
    assert graph.details == {}


def test_scores_that_the_rule_does_not_give_are_counted(tmp_path):
    links = write(
        tmp_path,
        "d.txt",
        f"{DETAILED}\n9606.P1 9606.P2 0 0 0 0 600 0 800 500\n9606.P1 9606.P3 0 0 0 0 600 0 0 599\n",
    )
    assert read(links, without=["textmining"]).details == {OTHER_SCORE: 1}
    assert read(links).details == {}


NAMES = ["P1", "P2", "P3", "P4", "X"]
ROWS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 1000), st.integers(0, 1000)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40)
@given(ROWS, st.sampled_from([0, 300, 700]), st.booleans(), st.randoms())
def test_against_pandas_in_any_order_of_rows(rows, minimum, leave_out, random):
    named = {"P1": "AAA", "P2": "BBB", "P3": "AAA", "P4": "OLD"}
    with tempfile.TemporaryDirectory() as folder:
        info = write(Path(folder), "i.txt", INFO.replace("9606.", ""))
        graphs = []
        for order in (rows, random.sample(rows, len(rows))):
            lines = [f"{a} {b} 0 0 0 0 {left} 0 {mined} {max(left, mined)}" for a, b, left, mined in order]
            links = write(Path(folder), "d.txt", "\n".join([DETAILED, *lines]) + "\n")
            without = ["textmining"] if leave_out else []
            graphs.append(read(links, info=info, minimum_score=minimum, without=without))
    assert as_dict(graphs[0]) == as_dict(graphs[1])
    assert graphs[0].counts == graphs[1].counts
    assert graphs[0].details == graphs[1].details
    frame = pd.DataFrame(rows, columns=["a", "b", "left", "mined"])
    frame[["a", "b"]] = frame[["a", "b"]].map(lambda name: named.get(name, name))
    frame["score"] = (
        frame.left.where(frame.left > 41, 0) if leave_out else np.maximum(frame.left, frame.mined)
    )
    # One channel alone keeps its score, but for the digit that is cut off.
    tolerance = 1 if leave_out else 0
    other = frame[frame.a != frame.b]
    pairs = pd.DataFrame(np.sort(other[["a", "b"]], axis=1), index=other.index)
    best = other.score.groupby([pairs[0], pairs[1]]).max()
    expected = best[best >= max(minimum, 1)]
    found = as_dict(graphs[0])
    for pair, score in best.items():
        if abs(score - max(minimum, 1)) > tolerance:
            assert (pair in found) == (pair in expected.index)
        if pair in found:
            assert abs(found[pair] - score) <= tolerance
    assert graphs[0].genes == tuple(sorted({*frame.a, *frame.b}))
    counts = graphs[0].counts
    assert counts.rows == len(rows) == sum(counts[1:]) + len(found)
    assert counts.self_loops == (frame.a == frame.b).sum()


@pytest.mark.parametrize(
    ("links", "options", "message"),
    [
        ("a b c\nx y 1\n", {}, "has no columns protein1 and protein2"),
        ("protein1 protein2 score\nx y 1\n", {}, "has no column 'combined_score'"),
        (HEADER, {}, "holds no link"),
        (HEADER + "x y 700\nx z 1001\n", {}, r"row 3: combined_score 1001 is no score of STRING"),
        (HEADER + "x y -1\n", {}, r"row 2: combined_score -1 is no score"),
        (HEADER + "x y much\n", {}, r"row 2: combined_score 'much' is not a finite number"),
        (
            HEADER + "x y 700\n",
            {"without": ["textmining"]},
            r"no channel 'textmining' to leave out \(of none\)",
        ),
        (f"{DETAILED}\nx y 0 0 0 0 2000 0 0 1\n", {"without": ["fusion"]}, "row 2: experimental 2000 is no"),
    ],
)
def test_bad_links_are_refused_naming_file_and_row(tmp_path, links, options, message):
    path = write(tmp_path, "links.txt", links)
    with pytest.raises(GraphError, match=message) as failure:
        read(path, **options)
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("info", "", "is empty"),
        ("info", "A\tB\n", "second column is not preferred_name"),
        ("info", INFO + "9606.P7\n", "line 6: has no protein or no name"),
        ("protein_aliases", "", "has no row of source Ensembl_HGNC_symbol.*it has none"),
        ("protein_aliases", "#x\na\tb\n", r"line 2: has 2 tab-separated field\(s\)"),
    ],
)
def test_bad_tables_of_names_are_refused(tmp_path, kind, text, message):
    links = write(tmp_path, "links.txt", HEADER + "x y 700\n")
    path = write(tmp_path, "names.txt", text)
    with pytest.raises(GraphError, match=message) as failure:
        read(links, **{kind: path})
    assert str(failure.value).startswith(str(path))


def test_missing_files(tmp_path):
    links = write(tmp_path, "links.txt", HEADER + "x y 700\n")
    with pytest.raises(GraphError, match=r"absent.txt: no such file"):
        read(links, info=tmp_path / "absent.txt")
    with pytest.raises(GraphError, match=r"absent.txt: no such file"):
        read(tmp_path / "absent.txt")


@pytest.mark.real
def test_a_mapped_table_reads_like_an_edge_list_and_loses_channels_as_pandas_says(shared_file):
    path = shared_file("string-v12-dmfind/string_v12_ntm_edges.parquet")
    graph = read(path, minimum_score=700)
    as_edges = read_edges(EdgesSource(path=path, minimum_weight=700), None)
    assert graph.genes == as_edges.genes
    assert graph.counts == as_edges.counts
    assert (graph.pairs.edges_2E == as_edges.pairs.edges_2E).all()
    assert (graph.pairs.weight_E == as_edges.pairs.weight_E).all()
    frame = pd.read_parquet(path)
    out = read(path, without=["coexpression", "database"], minimum_score=700)
    assert out.details == {}
    wrong = pd.Series(1.0, index=frame.index)
    for name in ("neighborhood", "fusion", "cooccurence", "experiments"):
        absent = pd.Series(1.0, index=frame.index)
        for column in {name, f"{name}_transferred"} & set(frame.columns):
            absent *= 1 - (frame[column] / 1000 - 0.041).clip(lower=0) / 0.959
        if name == "cooccurence":
            absent = 1 - (1 - absent) * (1 - frame.homology / 1000)
        wrong *= absent
    score = (1 - wrong) * 0.959 + 0.041
    # Those within rounding of the limit may fall on either side.
    assert (score > 0.7 + 1e-9).sum() <= out.pairs.num_edges <= (score > 0.7 - 1e-9).sum()
    assert out.counts.duplicates == 0
    ends = {tuple(sorted(pair)): value for *pair, value in zip(frame.gene1, frame.gene2, score, strict=True)}
    for pair, weight in as_dict(out).items():
        assert ends[pair] * 1000 - 1 - 1e-6 < weight <= ends[pair] * 1000 + 1e-6
