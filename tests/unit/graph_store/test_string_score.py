import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.sources.string_score import CHANNELS, TRANSFERRED, combine

FULL = [name for channel in CHANNELS for name in (channel, channel + TRANSFERRED)]

PUBLISHED_COLUMNS = [
    *("neighborhood", "neighborhood_transferred", "fusion", "cooccurence", "homology"),
    *("coexpression", "coexpression_transferred", "experiments", "experiments_transferred"),
    *("database", "database_transferred", "textmining", "textmining_transferred"),
]
# Rows of protein.links.full.v10.5 (of 4932, the last of 9606) as published: the columns above, then the
# combined score.
PUBLISHED = """\
0 0 0 0 0 0 0 0 0 0 0 343 0 343
0 0 0 0 0 0 0 0 0 0 0 419 0 418
0 0 0 0 0 0 0 0 0 0 0 154 0 153
0 0 0 0 0 0 0 0 0 0 0 900 0 900
0 0 0 527 989 912 0 652 0 900 0 923 0 996
0 0 0 0 0 0 152 0 0 0 0 127 102 277
0 321 0 403 0 0 409 41 668 0 517 349 295 977
0 0 0 0 0 0 53 0 176 0 0 0 128 260
"""


def as_scores(row: dict[str, int]) -> dict[str, np.ndarray]:
    return {name: np.array([score], np.float32) for name, score in row.items()}


def by_the_help_page(row: dict[str, int], *, homology: bool) -> float:
    """STRING's help page, with the direct and transferred scores of a channel combined first."""
    prior, wrong = 0.041, 1.0
    for channel in CHANNELS:
        not_there = 1.0
        for name in (channel, channel + "_transferred"):
            not_there *= 1 - max(row.get(name, 0) / 1000 - prior, 0) / (1 - prior)
        there = 1 - not_there
        if homology and channel in ("cooccurence", "textmining"):
            there *= 1 - row["homology"] / 1000
        wrong *= 1 - there
    return 1000 * (1 - wrong + prior * wrong)


@pytest.mark.parametrize("line", PUBLISHED.splitlines())
def test_published_rows_are_reproduced(line):
    *channels, published = map(int, line.split())
    row = dict(zip(PUBLISHED_COLUMNS, channels, strict=True))
    # STRING rounds the channels it prints, so the last digit of the sum of many may differ.
    assert abs(combine(as_scores(row), homology=True)[0] - published) <= 1
    if not row["homology"]:
        assert combine(as_scores(row), homology=False)[0] == combine(as_scores(row), homology=True)[0]


def test_without_the_homology_correction_the_published_row_of_homologs_comes_out_wrong():
    row = dict(zip(PUBLISHED_COLUMNS, map(int, PUBLISHED.splitlines()[4].split()), strict=False))
    assert combine(as_scores(row), homology=True)[0] == 996
    assert combine(as_scores(row), homology=False)[0] == 999


@given(
    st.dictionaries(st.sampled_from(FULL), st.integers(0, 1000), min_size=1),
    st.integers(0, 1000),
    st.booleans(),
)
def test_against_the_formula_of_the_help_page(row, homologous, homology):
    row = {**row, "homology": homologous}
    expected = by_the_help_page(row, homology=homology)
    found = float(combine(as_scores(row), homology=homology)[0])
    if found == 0:
        # No channel beyond chance: what is left is the prior alone.
        assert expected == pytest.approx(41)
    else:
        # Cut off after three digits; at a whole number rounding decides.
        assert expected - 1 - 1e-6 < found <= expected + 1e-6


@given(st.dictionaries(st.sampled_from(FULL), st.integers(0, 1000), min_size=2), st.data())
def test_leaving_out_a_channel_never_raises_a_score(row, data):
    out = data.draw(st.sampled_from(sorted(row)))
    less = {name: score for name, score in row.items() if name != out}
    assert combine(as_scores(less), homology=False)[0] <= combine(as_scores(row), homology=False)[0]


def test_no_channel_supports_nothing():
    assert combine({"homology": np.array([900, 0], np.float32)}, homology=True).tolist() == [0, 0]


@pytest.mark.real
def test_every_score_of_the_string_v12_table_without_text_mining(shared_file):
    table = pyarrow.parquet.read_table(shared_file("string-v12-dmfind/string_v12_ntm_edges.parquet"))
    scores = {
        name: table[name].to_numpy().astype(np.float32)
        for name in [*FULL, "homology"]
        if name in table.column_names
    }
    own = table["combined_score"].to_numpy()
    assert (combine(scores, homology=True) == own).all()
    # Without the correction 5,630 of the 6,622 rows with homology and co-occurrence come out too high.
    plain = combine(scores, homology=False)
    assert (plain >= own).all()
    assert (plain != own).sum() == 5630
    assert not (plain != own)[(scores["homology"] == 0) | (scores["cooccurence"] <= 41)].any()
