"""Perturbation labels: one perturbation, one name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.ingest.labels import (
    canonical_perturbation,
    is_control_spelling,
    is_date,
    looks_like_several_guides,
)

GENE = st.sampled_from(["STAT1", "IRF1", "JAK2", "HLA-A", "NTRK1", "CTRL1", "KLF1"])
CONTROLS = [
    "ctrl",
    "control",
    "Control",
    "CTRL",
    "non-targeting",
    "NT",
    "non_targeting",
    "Non Targeting",
    "ntc",
]


def canonical(label: str, control_label: str | None = None, separator: str | None = None) -> str:
    return canonical_perturbation(label, control_label=control_label, separator=separator)


@given(
    genes=st.lists(GENE, min_size=1, max_size=3),
    controls=st.lists(st.sampled_from(CONTROLS), max_size=2),
    shuffle=st.randoms(use_true_random=False),
)
def test_order_repeats_and_attached_controls_make_no_difference(
    genes: list[str], controls: list[str], shuffle: "object"
) -> None:
    tokens = genes + controls
    shuffle.shuffle(tokens)  # type: ignore[attr-defined]
    expected = "+".join(sorted(set(genes)))
    assert canonical("+".join(tokens)) == expected
    assert canonical(" + ".join(tokens)) == expected
    assert canonical(canonical("+".join(tokens))) == expected


@pytest.mark.parametrize("label", [*CONTROLS, "ctrl+ctrl", "non-targeting+NT"])
def test_spellings_of_control(label: str) -> None:
    assert canonical(label) == "control"


@pytest.mark.parametrize("gene", ["NTRK1", "CTRL1", "NT5E", "NEGR1"])
def test_genes_that_resemble_controls_stay_genes(gene: str) -> None:
    assert not is_control_spelling(gene)
    assert canonical(gene) == gene


def test_a_control_label_of_the_users_own() -> None:
    assert canonical("AAVS1", control_label="AAVS1") == "control"
    assert canonical("STAT1+AAVS1", control_label="AAVS1") == "STAT1"
    assert canonical("AAVS1") == "AAVS1"


@pytest.mark.parametrize("separator", ["_", ",", ";", "|"])
def test_other_separators_only_when_said_so(separator: str) -> None:
    label = f"JAK2{separator}IRF1"
    assert canonical(label, separator=separator) == "IRF1+JAK2"
    assert canonical(label) == label
    assert looks_like_several_guides(label)
    assert not looks_like_several_guides("non_targeting")


@pytest.mark.parametrize(
    "label", ["STAT1+", "+STAT1", "STAT1++IRF1", "a/b", "a\\b", "a\nb", "1-Mar", "Sep-02"]
)
def test_labels_that_cannot_be_names(label: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        canonical(label)


@pytest.mark.parametrize(
    "date",
    ["1-Mar", "01-Mar", "Mar-01", "mar-1", "2-Sep", "Sept-2", "1-Dec", "2023-03-01", "2001-03-01 00:00:00"],
)
def test_dates(date: str) -> None:
    assert is_date(date)


@pytest.mark.parametrize(
    "gene", ["MARCH1", "MARCHF1", "SEPT2", "SEPTIN2", "DEC1", "HLA-A", "NKX3-1", "MT-CO1", "7SK"]
)
def test_genes_that_are_no_dates(gene: str) -> None:
    assert not is_date(gene)
