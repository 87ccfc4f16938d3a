"""Embedding tables: files of every kind, real ones, against pandas and scikit-learn."""

import gzip
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics.pairwise import cosine_similarity

from graph_store.genes import make_aliases
from graph_store.graph import GraphError
from graph_store.source_config import EmbeddingSource, PerturbSeqSource
from graph_store.sources.embedding import read_embedding
from graph_store.sources.profiles import Choice, profile_graph
from graph_store.sources.screen import ScreenProfiles, screen_graph

GI_MAP = "norman-gi-emap/CRISPRa_K562_emap_gene.txt"
DEPMAP = r"(.*) \(\d+\)"


def read(path, *, aliases=None, percent=100.0, **options):
    return read_embedding(EmbeddingSource(path=path, **options), aliases, percent=percent)


def as_dict(graph) -> dict[tuple[str, str], float]:
    ends = graph.pairs.edges_2E.T.tolist()
    weights = graph.pairs.weight_E.tolist()
    return {(graph.genes[a], graph.genes[b]): weight for (a, b), weight in zip(ends, weights, strict=True)}


def strongest(cosine: pd.DataFrame, percent: float) -> dict[tuple[str, str], float]:
    """The pairs that a plain computation selects, by name."""
    pairs = {pair: float(cosine.loc[pair]) for pair in itertools.combinations(sorted(cosine.index), 2)}
    count = max(1, int(len(pairs) * percent / 100))
    return dict(sorted(pairs.items(), key=lambda item: (-abs(item[1]), item[0]))[:count])


def assert_same(found: dict[tuple[str, str], float], expected: dict[tuple[str, str], float]) -> None:
    assert found.keys() == expected.keys()
    for pair, value in expected.items():
        assert found[pair] == pytest.approx(value, abs=2e-7)


def cosines(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(cosine_similarity(table), table.index, table.index)


@pytest.mark.parametrize("percent", [1.0, 7.5])
def test_a_real_genetic_interaction_map_as_a_screen(shared_file, percent):
    path = shared_file(GI_MAP)
    table = pd.read_csv(path, sep="\t", index_col=0)
    expected = strongest(cosines(table), percent)
    assert len(expected) == {1.0: 62, 7.5: 466}[percent]
    graph = read(path, percent=percent, signed=True)
    assert_same(as_dict(graph), expected)
    assert (min(expected.values()) < 0) == (percent > 5)
    assert (len(graph.genes), graph.num_candidates, graph.counts) == (112, 6216, (112, 0, 0, 0))
    assert graph.details == {
        "features": 112,
        "missing values, filled in": 0,
        "profiles without a value, left out": 0,
        "genes of zeros, left out": 0,
    }
    unsigned = read(path, percent=percent)
    assert as_dict(unsigned) == {pair: abs(weight) for pair, weight in as_dict(graph).items()}


def test_centring_a_real_map_gives_pearson(shared_file):
    path = shared_file(GI_MAP)
    table = pd.read_csv(path, sep="\t", index_col=0)
    by_gene = read(path, percent=2, centre="gene", signed=True)
    assert_same(as_dict(by_gene), strongest(table.T.corr(), 2))
    by_feature = read(path, percent=2, centre="feature", signed=True)
    assert_same(as_dict(by_feature), strongest(cosines(table - table.mean()), 2))
    both = table - table.mean()
    both = both.sub(both.mean(axis=1), axis=0)
    assert_same(as_dict(read(path, percent=2, centre="both", signed=True)), strongest(cosines(both), 2))


def test_genes_as_columns_with_missing_values_and_repeated_genes(tmp_path):
    """The shape of DepMap's gene effect: cell lines as rows, symbol and Entrez id as header."""
    rng = np.random.default_rng(0)
    names = [f"GENE{number}" for number in range(40)]
    columns = [f"{name} ({number})" for number, name in enumerate(names)] + ["GENE3 (900)", "OLD7 (901)"]
    table = pd.DataFrame(rng.normal(size=(25, 42)), [f"ACH-{n:06d}" for n in range(25)], columns)
    table = table.mask(rng.random(table.shape) < 0.05).astype(np.float32)
    table.to_csv(tmp_path / "effect.csv", index_label="ModelID")
    aliases = make_aliases([*((name, name) for name in names), ("OLD7", "GENE7")])
    graph = read(
        tmp_path / "effect.csv",
        aliases=aliases,
        percent=10,
        genes_in="columns",
        gene_pattern=DEPMAP,
        missing="gene_mean",
        centre="gene",
        signed=True,
    )
    genes = [name.split(" ")[0].replace("OLD7", "GENE7") for name in columns]
    filled = table.fillna(table.mean()).T.groupby(np.array(genes)).mean()
    assert_same(as_dict(graph), strongest(filled.T.corr(), 10))
    assert graph.counts == (42, 0, 2, 0)
    assert graph.details["missing values, filled in"] == int(table.isna().to_numpy().sum())
    assert graph.details["features"] == 25
    assert graph.resolution.renamed == {"OLD7": "GENE7"}
    with pytest.raises(
        GraphError, match=r"effect\.csv row \d+, column 'GENE.*': has no value \(\d+ are missi"
    ):
        read(tmp_path / "effect.csv", genes_in="columns", gene_pattern=DEPMAP)


def test_every_container_gives_the_same_graph(tmp_path):
    table = pd.DataFrame(
        np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32),
        ["B", "A", "NAN", "NA", "c-1", "\u03b1"],
    )
    table.columns = ["x", "y", "z", "w"]
    table.to_csv(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv", sep="\t", index_label="gene")
    table.to_csv(tmp_path / "a.txt", sep="\t", index_label="gene")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    (tmp_path / "b.csv").write_text(
        "\ufeff" + (tmp_path / "a.csv").read_text().replace("x,y", "x,x").replace("\n", "\r\n")
    )
    table.to_parquet(tmp_path / "a.parquet")
    table.rename_axis("gene").reset_index().to_parquet(tmp_path / "b.pq", index=False)
    table.astype(np.float64).to_parquet(tmp_path / "c.parquet")
    table.T.to_csv(tmp_path / "t.csv")
    found = [read(path) for path in sorted(tmp_path.iterdir()) if path.name != "t.csv"]
    found.append(read(tmp_path / "t.csv", genes_in="columns"))
    assert len(found) == 9
    for graph in found:
        assert graph.genes == ("A", "B", "NA", "NAN", "c-1", "\u03b1")
        assert graph.pairs.weight_E.tobytes() == found[0].pairs.weight_E.tobytes()


centres = st.sampled_from(["none", "gene", "feature", "both"])


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), centres)
def test_order_of_rows_and_of_features_changes_no_byte(seed, centre):
    rng = np.random.default_rng(seed)
    value_RD = (rng.normal(size=(14, 6)) * np.exp(rng.normal(0, 4, (14, 6)))).astype(np.float32)
    names = rng.choice(list("ABCDEFG"), 14)
    graphs = []
    for rows, features in [(slice(None), slice(None)), (rng.permutation(14), rng.permutation(6))]:
        graphs.append(
            profile_graph(
                names[rows].tolist(),
                value_RD[rows][:, features],
                None,
                Choice(30, centre, True),
                where="here",
                details={},
            )
        )
    assert graphs[0].genes == graphs[1].genes
    assert graphs[0].pairs.edges_2E.tobytes() == graphs[1].pairs.edges_2E.tobytes()
    assert graphs[0].pairs.weight_E.tobytes() == graphs[1].pairs.weight_E.tobytes()


def test_genes_without_a_direction_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.csv").write_text("gene,x,y,z\nA,0.1,0.1,0.1\nB,1,2,3\nC,,,\nD,0,0,0\nE,3,2,\nF,-1,5,2\n")
    plain = read(tmp_path / "a.csv", missing="gene_mean")
    assert plain.genes == ("A", "B", "E", "F")
    assert plain.num_candidates == 6
    assert plain.details == {
        "features": 3,
        "missing values, filled in": 1,
        "profiles without a value, left out": 1,
        "genes of zeros, left out": 1,
    }
    assert plain.counts == (5, 0, 0, 0)
    centred = read(tmp_path / "a.csv", missing="gene_mean", centre="gene")
    assert centred.genes == ("B", "E", "F")
    assert centred.details["genes of zeros, left out"] == 2


def test_what_centring_leaves_of_equal_rows_is_no_direction():
    rng = np.random.default_rng(0)
    # Multiples of 1/64, so that rows differ by nothing but their shift; their means are rounded.
    row, shift = rng.integers(-500, 500, 50) / 64, rng.integers(-20, 20, (29, 1)) / 4
    value_RD = (row + shift).astype(np.float32)
    names = [f"G{number}" for number in range(29)]
    with pytest.raises(
        GraphError, match="here: 0 of its 29 genes have a profile that is not zero everywhere"
    ):
        profile_graph(names, value_RD, None, Choice(100, "both", True), where="here", details={})


BAD = {
    "nothing": ("", "is empty, or its first line is"),
    "names only": ("gene\nA\n", "has one column only; a name and at least one number a row are needed"),
    "header only": ("gene,x\n", "has a header and no rows; it needs a row of numbers"),
    "text": ("gene,x,y\nA,1,2\nB,3,foo\n", r"row 3: 'y' 'foo' is not a finite number"),
    "infinite": ("gene,x,y\nA,1,2\nB,3,inf\n", r"row 3: column 'y' holds inf, which is not a finite 32-bit"),
    "too large": (
        "gene,x,y\nA,1,2\nB,1e39,1\n",
        r"row 3: column 'x' holds 1e\+39, which is not a finite 32-",
    ),
    "missing": ("gene,x,y\nA,1,2\nB,,NA\n", r"row 3, column 'x': has no value \(2 are missing\); fill it in"),
    "short row": ("gene,x,y\nA,1,2\nB,3\n", "cannot be read .*Row #3: Expected 3 columns, got 2"),
    "no name": ("gene,x,y\nA,1,2\n ,3,4\n", "row 3: has no gene name; give one or remove the row"),
    "zeros": ("gene,x,y\nA,1,2\nB,0,0\n", "1 of its 2 genes have a profile that is not zero everywhere"),
    "one gene": ("gene,x,y\nA,1,2\nA,3,4\n", "1 of its 1 genes have a profile"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_in_one_line(tmp_path, case):
    text, message = BAD[case]
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(GraphError, match=rf"bad\.csv:? ?{message}") as refused:
        read(tmp_path / "bad.csv")
    assert "\n" not in str(refused.value)


def test_bad_values_are_placed_beyond_the_first_block(tmp_path):
    lines = [f"G{number},{number}.25" + ",0.123456789012345" * 20 for number in range(90_000)]
    lines[80_000] = lines[80_000].replace(".25", ".25x")
    (tmp_path / "bad.csv").write_text("\n".join([",".join(["gene", *map(str, range(21))]), *lines]))
    with pytest.raises(GraphError, match=r"bad\.csv row 80002: '0' '80000\.25x' is not a finite number"):
        read(tmp_path / "bad.csv")


def test_other_bad_files_and_patterns(tmp_path):
    with pytest.raises(GraphError, match="no such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"gene,x\n" + b"A,1\nB,2\n" * 99_999)[:-200])
    with pytest.raises(GraphError, match=r"cut\.csv\.gz: cannot be read"):
        read(tmp_path / "cut.csv.gz")
    pd.DataFrame({"gene": ["A", "B"], "x": [1, 2], "note": ["u", "v"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(GraphError, match=r"t\.parquet: column 'note' is of type .*string, not of numbers"):
        read(tmp_path / "t.parquet")
    (tmp_path / "m.csv").write_text("id,A (1),B\nx,1,2\n")
    message = re.escape("column 3: 'B' does not match gene_pattern '(.*) \\\\(\\\\d+\\\\)'")
    with pytest.raises(GraphError, match=message):
        read(tmp_path / "m.csv", genes_in="columns", gene_pattern=DEPMAP)
    for pattern, reason in [("(", "is no regular expression"), ("A.*", "has no group")]:
        with pytest.raises(ValidationError, match=reason):
            EmbeddingSource(path=tmp_path, gene_pattern=pattern)


def test_a_screen_gives_what_the_table_of_its_profiles_gives(tmp_path):
    rng = np.random.default_rng(3)
    genes = tuple(f"G{number:02d}" for number in range(30))
    value_GD = rng.normal(size=(30, 17)).astype(np.float32)
    pd.DataFrame(value_GD, genes).to_csv(tmp_path / "profiles.csv")
    profiles = ScreenProfiles(genes, value_GD, {"store": "h"}, {"cells": 12, "left out": 3})
    spec = PerturbSeqSource(store=tmp_path / "screen.zarr", centre="feature", signed=True)
    graph = screen_graph(profiles, spec, None, percent=10)
    table = read(tmp_path / "profiles.csv", percent=10, centre="feature", signed=True)
    assert as_dict(graph) == as_dict(table)
    assert len(as_dict(graph)) == 43
    assert graph.details == {"features": 17, "cells": 12, "left out": 3, "genes of zeros, left out": 0}
    value_GD[4, 5] = np.nan
    with pytest.raises(GraphError, match=r"screen\.zarr: the mean response to G04 is not finite"):
        screen_graph(profiles, spec, None, percent=10)
