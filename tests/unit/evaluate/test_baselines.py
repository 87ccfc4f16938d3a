"""Baselines against the methods' formula written out cell by cell, and exactness where effects add up."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.errors import InputError
from txpert_dist.evaluate.baselines import PerContext, fit_general
from txpert_dist.loader.conditions import perturbation_deltas, perturbed_rows
from txpert_dist.metrics.delta import PerturbationDeltas

Sample = tuple[str, int, NDArray[np.float64]]
"""Perturbation, context and expression of one training cell."""


def literal_general(
    name: str, context: int, train: Sequence[Sample], control_CG: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The formulas of "Nonlearned general baseline" over the multiset of training samples."""

    def mean_delta(samples: Sequence[Sample]) -> NDArray[np.float64]:
        return np.mean([y_G - control_CG[c] for _, c, y_G in samples], axis=0)

    exact = [sample for sample in train if sample[0] == name]
    if exact:
        return control_CG[context] + mean_delta(exact)
    result_G = control_CG[context].copy()
    for part in name.split("+"):
        seen = [sample for sample in train if sample[0] == part]
        result_G += mean_delta(seen or train)
    return result_G


def deltas_of(
    train: Sequence[Sample],
    names: Sequence[str],
    control_CG: NDArray[np.float64],
    line_C: NDArray[np.int64],
) -> PerturbationDeltas:
    keys = sorted({(names.index(name), int(line_C[c])) for name, c, _ in train})
    means, counts = [], []
    for code, line in keys:
        cells = [
            y_G - control_CG[c] for name, c, y_G in train if (names.index(name), line_C[c]) == (code, line)
        ]
        means.append(np.mean(cells, axis=0))
        counts.append(len(cells))
    codes, lines = np.array(keys, np.int32).T
    return PerturbationDeltas(codes, lines, np.array(counts), np.array(means))


@given(seed=st.integers(0, 10_000), num_cells=st.integers(1, 60))
@settings(max_examples=60)
def test_general_is_the_formula_of_the_methods(seed: int, num_cells: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["control", "A", "A+B", "A+C", "B", "B+C", "C", "C+D", "D"]
    line_C = np.array([0, 0, 1])
    control_CG = rng.random((3, 4))
    seen = rng.permutation(names[1:])[: rng.integers(1, 8)]
    train = [(str(rng.choice(seen)), int(rng.integers(3)), rng.random(4)) for _ in range(num_cells)]
    general = fit_general(deltas_of(train, names, control_CG, line_C), names, control_CG)
    for code, name in enumerate(names[1:], start=1):
        for context in range(3):
            found = general.predict(np.array([code], np.int32), np.array([context], np.int32))[0]
            assert np.abs(found - literal_general(name, context, train, control_CG)).max() < 1e-12


def test_general_on_the_screen_is_the_formula_over_its_training_cells(screen: DenseScreen) -> None:
    store = screen.store
    genes = np.arange(len(store.genes), dtype=np.int64)
    training = perturbation_deltas(store, perturbed_rows(store, "train"), genes=genes)
    general = fit_general(training, store.perturbations, store.control_mean_CG)
    in_train = screen.in_split(0)
    names = set(screen.name[in_train])
    change_BG = screen.y_BG - screen.control_BG
    for code, name in enumerate(store.perturbations[1:], start=1):
        if name in names:
            expected = change_BG[screen.name == name].mean(0)
        else:
            parts = [screen.name == part if part in names else in_train for part in name.split("+")]
            expected = sum(change_BG[part].mean(0) for part in parts)
        assert np.abs(general.change(np.array([code])) - expected).max() < 1e-5
    assert not general.change(np.array([0])).any()
    unseen = set(store.perturbations[1:]) - names
    assert any("+" in name for name in unseen)
    assert any("+" not in name for name in unseen)


def test_general_is_exact_where_effects_add_up() -> None:
    rng = np.random.default_rng(0)
    names = ["control", "A", "A+B", "B"]
    control_CG = rng.random((2, 6))
    effect = {"A": rng.normal(size=6), "B": rng.normal(size=6)}
    train = [(name, c, control_CG[c] + effect[name]) for name in ("A", "B") for c in (0, 1) for _ in range(3)]
    general = fit_general(deltas_of(train, names, control_CG, np.zeros(2, np.int64)), names, control_CG)
    double = general.predict(np.array([2, 2], np.int32), np.array([0, 1], np.int32))
    assert np.abs(double - (control_CG + effect["A"] + effect["B"])).max() < 1e-14


def test_no_change_is_the_control_mean() -> None:
    control_CG = np.random.default_rng(0).random((3, 5)).astype(np.float32)
    predicted = PerContext(control_CG).predict(np.array([4, 9], np.int32), np.array([2, 0], np.int32))
    assert (predicted == control_CG[[2, 0]]).all()


def test_fitted_values_cannot_be_changed() -> None:
    deltas = PerturbationDeltas(
        np.array([1], np.int32), np.array([0], np.int32), np.array([2]), np.array([[1.0, 2.0]])
    )
    general = fit_general(deltas, ["control", "A"], np.zeros((1, 2)))
    with pytest.raises(ValueError, match="read-only"):
        general.change_TG[0, 0] = 5.0
    general.predict(np.array([1], np.int32), np.array([0], np.int32))[:] = 7.0
    assert general.predict(np.array([1], np.int32), np.array([0], np.int32)).tolist() == [[1.0, 2.0]]


def test_no_training_cell_is_said() -> None:
    empty = np.zeros(0, np.int32)
    deltas = PerturbationDeltas(empty, empty, np.zeros(0, np.int64), np.zeros((0, 2)))
    with pytest.raises(InputError, match="training split"):
        fit_general(deltas, ["control", "A"], np.zeros((1, 2)))
