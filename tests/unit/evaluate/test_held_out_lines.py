"""Evaluation on cell lines that were held out: their cells are scored, the others' are learned from."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.errors import InputError
from txpert_dist.evaluate.fitting import training_deltas
from txpert_dist.evaluate.report import to_json, write_report
from txpert_dist.evaluate.run import evaluate
from txpert_dist.loader.conditions import perturbation_deltas, perturbed_rows

SPLITS = ("train", "validation", "test")
ALLOWED: dict[str, Any] = {"genes_selected_on": "all"}
"""The screen was ingested for evaluation within cell lines: its genes were selected on all of them."""


class Shift(NamedTuple):
    """Predicts the control mean plus one and notes what it was asked."""

    control_CG: NDArray[np.float32]
    asked: list[tuple[int, int]]
    name: str = "model"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        self.asked.extend(zip(perturbation_R.tolist(), context_R.tolist(), strict=True))
        return self.control_CG[context_R] + 1.0


@pytest.mark.parametrize("line", ["K562", "RPE1"])
@pytest.mark.parametrize("split", SPLITS)
def test_only_cells_of_the_line_are_scored_and_only_others_are_fitted_on(
    screen: DenseScreen, split: str, line: str
) -> None:
    store, genes = screen.store, screen.store.training_genes("selected")
    predictor = Shift(store.control_mean_CG[:, genes], [])
    report = evaluate(store, [predictor], split=split, genes=genes, held_out_cell_lines=[line], **ALLOWED)
    here, code = screen.line == line, SPLITS.index(split)
    scored = screen.in_split(code) & here
    assert {store.contexts[context].cell_line for _, context in predictor.asked} == {line}
    assert set(report.table["cell_line"]) == {line}
    assert set(report.table["perturbation"]) == set(screen.name[scored])
    assert report.counts.cells == scored.sum()
    fitted = screen.in_split(0) & ~here
    assert report.counts.training_cells == fitted.sum()
    seen = set(screen.name[scored]) & set(screen.name[fitted])
    assert report.counts.perturbations_with_training_cells == len(seen)
    assert bool(seen) is (split == "train")
    # retrieval ranks among all perturbations of a line, as without held-out lines
    whole = evaluate(store, [], split=split, genes=genes)
    assert report.counts.reference_perturbations == whole.counts.reference_perturbations
    assert_general_is_of_the_other_lines(screen, report.table, fitted, genes)


def assert_general_is_of_the_other_lines(
    screen: DenseScreen, table: pd.DataFrame, fitted: NDArray[np.bool_], genes: NDArray[np.int64]
) -> None:
    """Pearson delta of single perturbations, from the deltas of the cells that may be fitted on."""
    change_BG = (screen.y_BG - screen.control_BG)[:, genes]
    shown = table[table["predictor"] == "general"]
    singles = shown[~shown["perturbation"].str.contains("+", regex=False)]
    assert len(singles)
    for name, line, score in singles[["perturbation", "cell_line", "pearson_delta"]].itertuples(index=False):
        seen = fitted & (screen.name == name)
        predicted_G = change_BG[seen if seen.any() else fitted].mean(0)
        observed_G = change_BG[(screen.name == name) & (screen.line == line)].mean(0)
        assert score == pytest.approx(np.corrcoef(predicted_G, observed_G)[0, 1], abs=1e-4)


@given(held_out=st.sets(st.sampled_from(["K562", "RPE1"])), seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_baselines_never_see_a_perturbed_cell_of_a_held_out_line(
    screen: DenseScreen, held_out: set[str], seed: int
) -> None:
    split = np.random.default_rng(seed).integers(0, 3, len(screen.store.split)).astype(np.uint8)
    store = replace(screen.store, split=split)
    everything = perturbation_deltas(store, perturbed_rows(store), genes=np.arange(3))
    lines = ["K562", "RPE1"]
    training = training_deltas(store, everything, [lines.index(line) for line in sorted(held_out)])
    assert not {lines[code] for code in training.cell_line_P} & held_out
    assert (split[training.perturbation_P] == 0).all()
    of_train = np.isin(screen.name, [store.perturbations[code] for code in np.flatnonzero(split == 0)])
    allowed = of_train & screen.perturbed & ~np.isin(screen.line, sorted(held_out))
    assert training.num_cells_P.sum() == allowed.sum()


def test_the_report_says_what_was_held_out_and_what_seen_means(screen: DenseScreen, tmp_path) -> None:
    store, genes = screen.store, screen.store.training_genes("selected")
    for split, word in (("train", "seen perturbations"), ("test", "unseen perturbations")):
        report = evaluate(store, [], split=split, genes=genes, held_out_cell_lines=("RPE1",), **ALLOWED)
        assert to_json(report)["provenance"]["held_out_cell_lines"] == ("RPE1",)
        write_report(report, tmp_path / split)
        text = (tmp_path / split / "report.md").read_text()
        assert "Held-out cell lines: RPE1. Only their cells are scored." in text
        assert f"The {split} split holds {word}" in text
        assert "- held out cell lines: RPE1" in text
        assert "very cells it is scored on" not in text
    write_report(evaluate(store, [], split="train", genes=genes), tmp_path / "none")
    text = (tmp_path / "none" / "report.md").read_text()
    assert "- held out cell lines: none" in text
    assert "Held-out" not in text
    assert "very cells it is scored on" in text


def test_without_anything_to_score_or_to_fit_on_it_is_refused(screen: DenseScreen) -> None:
    store, genes = screen.store, screen.store.training_genes("selected")
    with pytest.raises(InputError, match="no cell line 'K652'; did you mean K562"):
        evaluate(store, [], split="test", genes=genes, held_out_cell_lines=["K652"])
    with pytest.raises(InputError, match="outside held-out cell lines"):
        evaluate(store, [], split="test", genes=genes, held_out_cell_lines=["K562", "RPE1"], **ALLOWED)
    only_train = replace(store, split=np.zeros_like(store.split))
    with pytest.raises(InputError, match="no perturbed cell of RPE1 is in the test split"):
        evaluate(only_train, [], split="test", genes=genes, held_out_cell_lines=["RPE1"])
