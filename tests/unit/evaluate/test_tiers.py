"""Knowledge tiers: fifths of equal width of the combined rank, by pandas; and tables that cannot be used."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.errors import InputError
from txpert_dist.evaluate.tiers import LEVELS, Tiers, read_tiers


def write(path: Path, **columns: object) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_scores_are_ranked_and_averaged_as_pandas_ranks_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(500)]
    table = pd.DataFrame(
        {"gene": genes, "mentions": rng.integers(0, 60, 500), "novelty": rng.normal(size=500)}
    )
    table.to_csv(tmp_path / "t.csv", index=False)
    rank = ((table[["mentions", "novelty"]].rank() - 1) / 499).mean(axis=1)
    expected = pd.cut(rank, np.linspace(0, 1, LEVELS + 1), right=False, labels=False, include_lowest=True)
    found = read_tiers(tmp_path / "t.csv")
    assert [found.level(gene) for gene in genes] == expected.tolist()
    assert set(expected) == set(range(LEVELS))


def test_a_rank_is_taken_as_it_is(tmp_path: Path) -> None:
    ranks = [0.0, 0.1999, 0.2, 0.5, 0.8, 1.0]
    found = read_tiers(write(tmp_path / "t.csv", gene=list("ABCDEF"), rank=ranks, other="x"))
    assert [found.level(gene) for gene in "ABCDEF"] == [0, 0, 1, 2, 4, 4]


def test_a_combination_is_as_known_as_its_least_known_gene() -> None:
    tiers = Tiers({"A": 0.9, "B": 0.3})
    assert tiers.level("A+B") == 1
    assert tiers.level("A") == 4
    assert tiers.level("A+missing") is None
    assert tiers.level("missing") is None


@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=80))
def test_levels_follow_the_scores(tmp_path_factory: pytest.TempPathFactory, scores: list[float]) -> None:
    path = tmp_path_factory.mktemp("tiers") / "t.csv"
    genes = [f"G{i}" for i in range(len(scores))]
    found = read_tiers(write(path, gene=genes, score=scores))
    levels = [found.level(gene) for gene in genes]
    assert all(level is not None and 0 <= level < LEVELS for level in levels)
    for first, low in zip(scores, levels, strict=True):
        assert all(low <= high for second, high in zip(scores, levels, strict=True) if first <= second)  # type: ignore[operator]


def test_spreadsheet_tables_and_tabs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("\ufeffgene\tscore\n" + "".join(f"G{i}\t{i}\n" for i in range(5)), encoding="utf-8")
    assert [read_tiers(path).level(f"G{i}") for i in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("symbol,score\nA,1\n", "no column gene and score"),
        ("gene\nA\n", "no column gene and score"),
        ("gene,score\nA,1\nB,two\n", r"line 3: score 'two' is not a number"),
        ("gene,score\nA,1\nB\n", r"line 3: score None is not a number"),
        ("gene,score\nA,nan\n", r"line 2: score 'nan' is not a number"),
        ("gene,score\nA,1\nA,2\n", r"line 3: A is there twice"),
        ("gene,score\n,1\n", r"line 2: has no gene"),
        ("gene,score\nA,1\n", r"has 1 genes; 5 tiers need at least 5"),
        ("gene,rank\nA,0.5\nB,1.5\n", r"rank of B is not between 0 and 1"),
    ],
)
def test_a_bad_table_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_tiers(tmp_path / "t.csv")


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_tiers(tmp_path / "t.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_tiers(tmp_path)
