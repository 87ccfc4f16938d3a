"""Moments, deltas and errors against the plain sums over dense cells."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import mean_squared_error

from txpert_dist.metrics.delta import centre_sums, groups_of, mean_by_group, pseudobulk_delta
from txpert_dist.metrics.error import per_cell_mse, per_cell_squared_error, pseudobulk_mse
from txpert_dist.metrics.moments import ConditionMoments, merge_moments, moments_of, subtract_moments
from txpert_dist.minibatch import SparseRows

NUM_GENES = 7
CELL_LINE_C = np.array([0, 0, 1], np.int64)
CONTROL_CG = np.random.default_rng(5).random((3, NUM_GENES)).astype(np.float32)


def sparse_rows(y_BG: NDArray[np.float32]) -> SparseRows:
    matrix = scipy.sparse.csr_matrix(y_BG)
    size = np.ones(len(y_BG), np.float32)
    return SparseRows(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, size)


def random_cells(num: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    y_BG = (rng.random((num, NUM_GENES)) * (rng.random((num, NUM_GENES)) < 0.6)).astype(np.float32)
    return y_BG, rng.integers(1, 4, num).astype(np.int32), rng.integers(0, 3, num).astype(np.int32)


def as_dict(moments: ConditionMoments) -> dict[tuple[int, int], tuple[int, list[float], float]]:
    rows = zip(
        moments.perturbation_R.tolist(),
        moments.context_R.tolist(),
        moments.num_cells_R.tolist(),
        moments.sum_RG.tolist(),
        moments.sum_squares_R.tolist(),
        strict=True,
    )
    return {(p, c): (n, s, q) for p, c, n, s, q in rows}


@given(num=st.integers(0, 60), cut=st.integers(0, 60), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_moments_are_the_plain_sums_and_merge_from_any_division(num: int, cut: int, seed: int) -> None:
    y_BG, perturbation, context = random_cells(num, seed)
    whole = moments_of(sparse_rows(y_BG), perturbation, context, num_genes=NUM_GENES)
    found = as_dict(whole)
    assert list(found) == sorted(set(zip(perturbation.tolist(), context.tolist(), strict=True)))
    for (p, c), (number, total, squares) in found.items():
        cells = y_BG[(perturbation == p) & (context == c)].astype(np.float64)
        assert number == len(cells)
        assert total == pytest.approx(cells.sum(0).tolist(), abs=1e-12)
        assert squares == pytest.approx((cells**2).sum(), abs=1e-12)
    order = np.random.default_rng(seed).permutation(num)
    parts = [
        moments_of(sparse_rows(y_BG[part]), perturbation[part], context[part], num_genes=NUM_GENES)
        for part in np.split(order, [min(cut, num)])
    ]
    merged = as_dict(merge_moments(*parts))
    assert list(merged) == list(found)
    for key, (number, total, squares) in merged.items():
        assert number == found[key][0]
        assert total == pytest.approx(found[key][1], abs=1e-12)
        assert squares == pytest.approx(found[key][2], abs=1e-12)


def test_moments_over_different_genes_do_not_merge() -> None:
    empty = np.zeros(0, np.int32)
    few = moments_of(sparse_rows(np.zeros((0, 3), np.float32)), empty, empty, num_genes=3)
    many = moments_of(sparse_rows(np.zeros((0, 4), np.float32)), empty, empty, num_genes=4)
    with pytest.raises(ValueError, match="3 and 4 genes"):
        merge_moments(few, many)


def test_subtracting_a_part_leaves_the_rest() -> None:
    y_BG, perturbation, context = random_cells(80, 1)
    whole = moments_of(sparse_rows(y_BG), perturbation, context, num_genes=NUM_GENES)
    gone = (perturbation == whole.perturbation_R[0]) & (context == whole.context_R[0])
    part = whole._replace(
        num_cells_R=whole.num_cells_R * (np.arange(len(whole.num_cells_R)) == 0),
        sum_RG=whole.sum_RG * (np.arange(len(whole.num_cells_R)) == 0)[:, None],
        sum_squares_R=whole.sum_squares_R * (np.arange(len(whole.num_cells_R)) == 0),
    )
    rest = subtract_moments(whole, part)
    assert rest.num_cells_R[0] == 0
    assert not rest.sum_RG[0].any()
    kept = moments_of(sparse_rows(y_BG[~gone]), perturbation[~gone], context[~gone], num_genes=NUM_GENES)
    assert (rest.sum_RG[1:] == kept.sum_RG).all()


def test_deltas_centre_every_cell_on_its_own_context() -> None:
    y_BG, perturbation, context = random_cells(200, 2)
    moments = moments_of(sparse_rows(y_BG), perturbation, context, num_genes=NUM_GENES)
    deltas = pseudobulk_delta(moments, CONTROL_CG, CELL_LINE_C)
    line = CELL_LINE_C[context]
    keys = list(zip(deltas.perturbation_P.tolist(), deltas.cell_line_P.tolist(), strict=True))
    assert keys == sorted(set(zip(perturbation.tolist(), line.tolist(), strict=True)))
    num_cells_PC = np.zeros((len(keys), 3), np.int64)
    sum_PG = np.zeros((len(keys), NUM_GENES))
    for row, (p, c) in enumerate(keys):
        cells = (perturbation == p) & (line == c)
        expected = (y_BG[cells].astype(np.float64) - CONTROL_CG[context[cells]]).mean(0)
        assert np.abs(deltas.delta_PG[row] - expected).max() < 1e-14
        assert deltas.num_cells_P[row] == cells.sum()
        num_cells_PC[row] = np.bincount(context[cells], minlength=3)
        sum_PG[row] = y_BG[cells].astype(np.float64).sum(0)
    assert np.abs(centre_sums(sum_PG, num_cells_PC, CONTROL_CG) - deltas.delta_PG).max() < 1e-14


def test_a_group_without_cells_has_no_mean() -> None:
    y_BG, perturbation, context = random_cells(30, 3)
    moments = moments_of(sparse_rows(y_BG), perturbation, context, num_genes=NUM_GENES)
    nothing = subtract_moments(moments, moments)
    assert np.isnan(pseudobulk_delta(nothing, CONTROL_CG, CELL_LINE_C).delta_PG).all()


def test_errors_are_those_of_sklearn_over_dense_cells() -> None:
    y_BG, perturbation, context = random_cells(300, 4)
    moments = moments_of(sparse_rows(y_BG), perturbation, context, num_genes=NUM_GENES)
    predicted_RG = np.random.default_rng(6).random(moments.sum_RG.shape).astype(np.float32)
    groups = groups_of(moments.perturbation_R, moments.context_R, CELL_LINE_C)
    found = per_cell_mse(moments, predicted_RG, groups.group_R, len(groups.perturbation_P))
    means_PG = mean_by_group(predicted_RG, moments.num_cells_R, groups)
    row = {(p, c): i for i, (p, c) in enumerate(zip(moments.perturbation_R, moments.context_R, strict=True))}
    prediction_BG = predicted_RG[[row[p, c] for p, c in zip(perturbation, context, strict=True)]]
    pseudobulk_PG = []
    for p, line in zip(groups.perturbation_P, groups.cell_line_P, strict=True):
        cells = (perturbation == p) & (CELL_LINE_C[context] == line)
        expected = mean_squared_error(y_BG[cells].astype(float), prediction_BG[cells].astype(float))
        group = np.flatnonzero((groups.perturbation_P == p) & (groups.cell_line_P == line))[0]
        assert found[group] == pytest.approx(expected, rel=1e-12)
        assert np.abs(means_PG[group] - prediction_BG[cells].astype(float).mean(0)).max() < 1e-14
        pseudobulk_PG.append(y_BG[cells].astype(float).mean(0))
    expected_P = mean_squared_error(np.transpose(pseudobulk_PG), means_PG.T, multioutput="raw_values")
    assert np.abs(pseudobulk_mse(means_PG, np.array(pseudobulk_PG)) - expected_P).max() < 1e-15


def test_a_prediction_that_meets_every_cell_has_no_error() -> None:
    y_BG = np.full((3, NUM_GENES), 0.1, np.float32)
    labels = np.ones(3, np.int32)
    moments = moments_of(sparse_rows(y_BG), labels, labels * 0, num_genes=NUM_GENES)
    error = per_cell_squared_error(moments, y_BG[:1])
    assert 0 <= error[0] < 1e-15
