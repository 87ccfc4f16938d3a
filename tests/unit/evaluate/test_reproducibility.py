"""Split-half reproducibility against halves averaged cell by cell, with SciPy and cell-eval as oracles."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from cell_eval._types import PerturbationAnndataPair
from cell_eval.metrics._anndata import discrimination_score
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.test_scores import cell_eval_pair
from txpert_dist.evaluate.halves import first_halves
from txpert_dist.evaluate.reproducibility import per_batch_halves, pooled_halves
from txpert_dist.evaluate.scores import Background, Values, background_of
from txpert_dist.evaluate.survey import differential_genes
from txpert_dist.loader.conditions import cell_lines, perturbation_deltas, perturbed_rows, split_moments
from txpert_dist.metrics.moments import ConditionMoments, conditions_of

REPEATS = 3
TOLERANCE = 2e-5
"""The store's control means are float32."""


POOLED_METRICS = ("pearson_delta", "retrieval", "retrieval_fast", "pseudobulk_mse", "per_cell_mse")


class Halves(NamedTuple):
    rows: NDArray[np.int64]
    first_SB: NDArray[np.bool_]
    whole: ConditionMoments
    firsts: tuple[ConditionMoments, ...]
    background: Background


@pytest.fixture(scope="module")
def halves(screen: DenseScreen) -> Halves:
    store = screen.store
    genes = np.arange(len(store.genes), dtype=np.int64)
    rows = perturbed_rows(store, "test")
    condition = conditions_of(store.perturbation[rows], store.context[rows]).row_B
    first_SB = first_halves(rows, condition, seed=5, repeats=REPEATS)
    whole, firsts = split_moments(store, rows, first_SB, genes=genes)
    lines = cell_lines(store)
    everything = perturbation_deltas(store, perturbed_rows(store), genes=genes)
    differential = differential_genes(store, rows, genes=genes, max_groups=100)
    background = background_of(
        store, everything, lines.cell_line_C, genes=genes, differential=differential, seed=0
    )
    return Halves(rows, first_SB, whole, firsts, background)


def units(values: Values, keys: list[tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    for row, key in enumerate(keys):
        yield key, {metric: float(column[row]) for metric, column in values.items()}


def test_per_batch_is_the_methods_definition_cell_by_cell(screen: DenseScreen, halves: Halves) -> None:
    store, rows, whole = screen.store, halves.rows, halves.whole
    values = per_batch_halves(whole, halves.firsts, halves.background)
    keys = [
        (store.perturbations[p], *store.contexts[c])
        for p, c in zip(whole.perturbation_R, whole.context_R, strict=True)
    ]
    y_BG, control_BG = screen.y_BG[rows], screen.control_BG[rows]
    name, line, batch = screen.name[rows], screen.line[rows], screen.batch[rows]
    counted = {True: 0, False: 0}
    for key, found in units(values, keys):
        cells = (name == key[0]) & (line == key[1]) & (batch == key[2])
        counted[bool(cells.sum() > 1)] += 1
        if cells.sum() < 2:
            assert np.isnan(list(found.values())).all()
            continue
        expected: dict[str, list[float]] = {"pearson_delta": [], "pseudobulk_mse": [], "per_cell_mse": []}
        for first in halves.first_SB:
            one, two = y_BG[cells & first].mean(0), y_BG[cells & ~first].mean(0)
            control = control_BG[cells][0]
            expected["pearson_delta"].append(pearsonr(one - control, two - control)[0])
            expected["pseudobulk_mse"].append(mean_squared_error(one, two))
            second = y_BG[cells & ~first]
            expected["per_cell_mse"].append(mean_squared_error(second, np.tile(one, (len(second), 1))))
        for metric, repeats in expected.items():
            assert found[metric] == pytest.approx(np.mean(repeats), abs=TOLERANCE)
    assert counted[True] > 5
    assert counted[False] > 5


def test_per_batch_retrieval_is_cell_evals_within_each_batch(screen: DenseScreen, halves: Halves) -> None:
    store, rows, whole = screen.store, halves.rows, halves.whole
    change_BG = screen.y_BG[rows] - screen.control_BG[rows]
    for first, moments in zip(halves.first_SB, halves.firsts, strict=True):
        found = per_batch_halves(whole, [moments], halves.background)["retrieval"]
        for context in np.unique(whole.context_R):
            here = (store.context[rows] == context) & np.isin(
                store.perturbation[rows],
                whole.perturbation_R[(whole.context_R == context) & (whole.num_cells_R > 1)],
            )
            names = np.array(store.perturbations)[store.perturbation[rows]]
            one, two = here & first, here & ~first
            pair = half_pair(change_BG, names, one, two)
            theirs = discrimination_score(pair, metric="correlation", exclude_target_gene=False)
            num = len(theirs)
            for name, rank in theirs.items():
                row = (whole.context_R == context) & (whole.perturbation_R == store.perturbations.index(name))
                assert found[row][0] == pytest.approx(1 - (1 - rank) * num / (num - 1), abs=1e-12)


def half_pair(
    change_BG: NDArray[np.float64], names: NDArray[np.str_], one: NDArray[np.bool_], two: NDArray[np.bool_]
) -> PerturbationAnndataPair:
    """cell-eval's pair with the first half as the prediction, both as one mean row a perturbation."""
    order = np.array(sorted(set(names[one | two])))
    first = np.array([change_BG[one & (names == name)].mean(0) for name in order])
    second = np.array([change_BG[two & (names == name)].mean(0) for name in order])
    return cell_eval_pair(second, first, order)


def test_pooled_is_the_models_metric_on_halves_drawn_within_batches(
    screen: DenseScreen, halves: Halves
) -> None:
    store, rows, whole = screen.store, halves.rows, halves.whole
    values = pooled_halves(whole, halves.firsts, halves.background)
    name, line = screen.name[rows], screen.line[rows]
    change_BG = screen.y_BG[rows] - screen.control_BG[rows]
    codes = {p: i for i, p in enumerate(store.perturbations)}
    keys = sorted(set(zip(name, line, strict=True)), key=lambda key: (codes[key[0]], key[1]))
    truth_BG = screen.y_BG - screen.control_BG
    for key, found in units(values, keys):
        cells = (name == key[0]) & (line == key[1])
        others = sorted(set(screen.name[screen.perturbed & (screen.line == key[1])]) - {key[0]})
        expected: dict[str, list[float]] = {metric: [] for metric in POOLED_METRICS}
        for first in halves.first_SB:
            if not (cells & first).any() or not (cells & ~first).any():
                continue
            one, two = change_BG[cells & first].mean(0), change_BG[cells & ~first].mean(0)
            own = pearsonr(one, two)[0]
            table = [truth_BG[(screen.name == q) & (screen.line == key[1])].mean(0) for q in others]
            rank = float(np.mean([own >= pearsonr(one, reference)[0] for reference in table]))
            expected["pearson_delta"].append(own)
            expected["retrieval"].append(rank)
            expected["retrieval_fast"].append(rank)
            expected["pseudobulk_mse"].append(mean_squared_error(one, two))
            second = change_BG[cells & ~first]
            expected["per_cell_mse"].append(mean_squared_error(second, np.tile(one, (len(second), 1))))
        for metric, repeats in expected.items():
            mean = np.mean(repeats) if repeats else np.nan
            assert found[metric] == pytest.approx(mean, abs=TOLERANCE, nan_ok=True)
    lone = values["pearson_delta"][[i for i, key in enumerate(keys) if key == ("I", "K562")]]
    assert np.isnan(lone).all()
    assert len(lone) == 1
