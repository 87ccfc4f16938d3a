"""Rank correlation, explained variance, directions, subsets of genes: against SciPy and scikit-learn."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance as energy_in_one_dimension
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import r2_score

from txpert_dist.metrics.differential import GeneMoments, top_genes, welch_scores
from txpert_dist.metrics.direction import direction_accuracy
from txpert_dist.metrics.energy import energy_distance
from txpert_dist.metrics.error import r2_delta
from txpert_dist.metrics.pearson import BLOCK, pearson_delta
from txpert_dist.metrics.ranks import spearman_delta
from txpert_dist.metrics.subset import neutralise, take_genes


def noisy(num: int, genes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    observed_PG = rng.normal(size=(num, genes))
    return 0.4 * observed_PG + rng.normal(size=(num, genes)), observed_PG


@pytest.mark.parametrize("decimals", [0, 15])
def test_spearman_is_scipys_with_and_without_ties(decimals: int) -> None:
    predicted_PG, observed_PG = (part.round(decimals) for part in noisy(BLOCK + 3, 31))
    expected = [spearmanr(p, o)[0] for p, o in zip(predicted_PG, observed_PG, strict=True)]
    assert np.abs(spearman_delta(predicted_PG, observed_PG) - expected).max() < 1e-12


def test_spearman_of_what_has_none_is_nan() -> None:
    predicted_PG, observed_PG = noisy(5, 9)
    predicted_PG[0] = 2.0
    observed_PG[1, 3] = np.nan
    predicted_PG[2, 0] = np.inf
    assert np.isnan(spearman_delta(predicted_PG, observed_PG)).tolist() == [True, True, True, False, False]
    assert spearman_delta(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)
    with pytest.raises(ValueError, match="differ in shape"):
        spearman_delta(predicted_PG, observed_PG[:2])


def test_r2_is_scikit_learns_truth_first() -> None:
    predicted_PG, observed_PG = noisy(40, 50)
    expected = [r2_score(o, p) for p, o in zip(predicted_PG, observed_PG, strict=True)]
    assert np.abs(r2_delta(predicted_PG, observed_PG) - expected).max() < 1e-12
    assert r2_delta(observed_PG, observed_PG).tolist() == [1.0] * 40
    observed_PG[3] = 0.25
    predicted_PG[4, 0] = np.nan
    assert np.flatnonzero(np.isnan(r2_delta(predicted_PG, observed_PG))).tolist() == [3, 4]


def test_direction_counts_signs_and_no_change_as_wrong() -> None:
    predicted_PG = np.array([[1.0, -1, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1], [np.nan, 1, 1, 1]])
    observed_PG = np.array([[3.0, -2, 1, -1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    found = direction_accuracy(predicted_PG, observed_PG)
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()
    assert direction_accuracy(np.array([[1.0, -1, 3]]), np.array([[0.5, 0, 2]])).tolist() == [1.0]


@given(seed=st.integers(0, 1000), genes=st.integers(4, 30), gone=st.integers(0, 3))
@settings(max_examples=60)
def test_without_some_genes_is_the_correlation_over_the_others(seed: int, genes: int, gone: int) -> None:
    predicted_PG, observed_PG = noisy(6, genes, seed)
    rng = np.random.default_rng(seed)
    own_PM = np.full((6, 3), -1)
    for row in range(6):
        own_PM[row, :gone] = rng.choice(genes, gone, replace=False)
    found = pearson_delta(neutralise(predicted_PG, own_PM), neutralise(observed_PG, own_PM))
    for row, value in enumerate(found):
        kept = np.setdiff1d(np.arange(genes), own_PM[row])
        if len(kept) > 2:
            assert value == pytest.approx(
                pearsonr(predicted_PG[row, kept], observed_PG[row, kept])[0], abs=1e-9
            )


def test_a_row_that_varies_in_the_left_out_gene_alone_is_constant() -> None:
    values_PG = np.full((1, 7), 0.1)
    values_PG[0, 4] = 9.0
    other_PG = np.random.default_rng(0).normal(size=(1, 7))
    assert np.isnan(pearson_delta(neutralise(values_PG, np.array([[4]])), other_PG)).all()
    assert not np.isnan(pearson_delta(neutralise(values_PG, np.array([[-1]])), other_PG)).any()
    every = np.arange(7)[None]
    assert np.isnan(neutralise(values_PG, every)).all()


def test_taken_genes_are_the_rows_own() -> None:
    values_PG = np.arange(12.0).reshape(3, 4)
    taken_PK = take_genes(values_PG, np.array([[3, 0], [1, 1], [-1, -1]]))
    assert taken_PK[:2].tolist() == [[3.0, 0.0], [5.0, 5.0]]
    assert np.isnan(taken_PK[2]).all()


def moments_of(y_BG: np.ndarray, group_B: np.ndarray, num: int) -> GeneMoments:
    sums = [[part[group_B == g].sum(0) for g in range(num)] for part in (y_BG, y_BG**2)]
    return GeneMoments(np.bincount(group_B, minlength=num), np.array(sums[0]), np.array(sums[1]))


def test_ranked_genes_are_scanpys() -> None:
    rng = np.random.default_rng(1)
    group_B = np.repeat([0, 1, 2, 3, 4], [40, 25, 2, 9, 1])
    y_BG = rng.gamma(1.0, 1.0, (len(group_B), 60)) + 0.4 * rng.normal(size=(5, 60))[group_B]
    y_BG[:, 7] = 0.0  # varies nowhere
    names = np.array(["control", "A", "B", "C", "D"])[group_B]
    data = anndata.AnnData(y_BG, obs=pd.DataFrame({"p": names}, index=[str(i) for i in range(len(names))]))
    scanpy.tl.rank_genes_groups(
        data, "p", groups=["A", "B", "C"], reference="control", method="t-test", rankby_abs=True
    )
    result = data.uns["rank_genes_groups"]
    cells = moments_of(y_BG, group_B, 5)
    score_PG = welch_scores(cells, GeneMoments(*(part[:1] for part in cells)), np.zeros(5, np.int64))
    found_PK = top_genes(score_PG, 60)
    for row, name in enumerate(("A", "B", "C"), start=1):
        theirs = result["names"][name].astype(int)
        assert found_PK[row].tolist() == theirs.tolist()
        assert np.abs(score_PG[row][theirs] - result["scores"][name]).max() < 1e-5  # scanpy's are float32
    assert (found_PK[4] == -1).all()  # one cell has no variance
    assert top_genes(score_PG, 3).tolist() == found_PK[:, :3].tolist()
    assert top_genes(np.array([[1.0, -1.0, 1.0]]), 2).tolist() == [[0, 1]]  # ties in gene order


@given(seed=st.integers(0, 1000), number=st.integers(1, 15), levels=st.integers(1, 20))
@settings(max_examples=60)
def test_top_genes_are_the_first_of_a_stable_sort_whatever_ties_there_are(
    seed: int, number: int, levels: int
) -> None:
    score_PG = np.random.default_rng(seed).integers(-levels, levels + 1, (4, 12)).astype(float)
    expected = np.argsort(-np.abs(score_PG), axis=1, kind="stable")[:, :number]
    assert top_genes(score_PG, number).tolist() == expected.tolist()


def test_energy_distance_is_the_definition_and_scipys_in_one_dimension() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(30, 4)), 0.5 + rng.normal(size=(20, 4))
    expected = 2 * cdist(first, second).mean() - cdist(first, first).mean() - cdist(second, second).mean()
    assert energy_distance(first, second) == pytest.approx(expected, abs=1e-12)
    line = energy_in_one_dimension(first[:, 0], second[:, 0]) ** 2
    assert energy_distance(first[:, :1], second[:, :1]) == pytest.approx(line, abs=1e-12)
    assert energy_distance(first, first[::-1]) == pytest.approx(0.0, abs=1e-12)
    repeated = energy_distance(np.repeat(first, 3, 0), second)
    assert energy_distance(first, second, np.full(30, 3.0)) == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(energy_distance(first[:0], second))


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(3)
    first, second, times = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), np.array([1, 4, 2, 1, 3])
    expected = energy_distance(np.repeat(first, times, 0), second)
    assert energy_distance(first, second, times.astype(float)) == pytest.approx(expected, abs=1e-12)
