"""Normalisation and gene views on sparse rows, against dense arithmetic and scanpy."""

from typing import get_args

import anndata
import numpy as np
import pytest
import scanpy
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from txpert_dist.minibatch import SparseRows
from txpert_dist.store.expression import (
    TARGET_SUM,
    InputScale,
    dense,
    dense_log1p,
    gene_view,
    log1p_normalise,
    select_genes,
)

NUM_GENES = 23


def random_rows(seed: int, num_cells: int = 17) -> tuple[SparseRows, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.7, (num_cells, NUM_GENES))
    counts[:, 0] += 1
    sparse = scipy.sparse.csr_matrix(counts.astype(np.uint16))
    library = counts.sum(1).astype(np.float32)
    return SparseRows(sparse.indptr.astype(np.int64), sparse.indices, sparse.data, library), counts


def test_normalisation_is_scanpys() -> None:
    rows, counts = random_rows(0)
    screen = anndata.AnnData(counts.astype(np.float64))
    scanpy.pp.normalize_total(screen, target_sum=TARGET_SUM)
    scanpy.pp.log1p(screen)
    ours = dense(log1p_normalise(rows, input_scale="counts"), NUM_GENES)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, screen.X, rtol=1e-6)


def test_log1p_input_is_left_as_it_is() -> None:
    rows, _ = random_rows(1)
    kept = log1p_normalise(rows, input_scale="log1p")
    assert kept.value.dtype == np.float32
    assert kept.value.tolist() == rows.value.tolist()


@given(seed=st.integers(0, 50), genes=st.sets(st.integers(0, NUM_GENES - 1)).map(sorted))
def test_selecting_genes_and_normalising_commute(seed: int, genes: list[int]) -> None:
    rows, counts = random_rows(seed)
    view = gene_view(np.array(genes, np.int64), NUM_GENES)
    selected = select_genes(rows, view)
    assert dense(selected, len(genes)).tolist() == counts[:, genes].tolist()
    assert selected.gene.dtype == np.int32
    for start, stop in zip(selected.indptr[:-1], selected.indptr[1:], strict=True):
        assert (np.diff(selected.gene[start:stop]) > 0).all()
    before = select_genes(log1p_normalise(rows, input_scale="counts"), view)
    after = log1p_normalise(selected, input_scale="counts")
    assert before.value.tolist() == after.value.tolist()


def test_a_view_tells_where_each_gene_went() -> None:
    assert gene_view(np.array([1, 4]), 6).tolist() == [-1, 0, -1, -1, 1, -1]


def test_two_genes_cannot_share_an_entry() -> None:
    with pytest.raises(IndexError):
        gene_view(np.array([6]), 6)


@given(seed=st.integers(0, 99), dtype=st.sampled_from([np.uint8, np.uint16, np.uint32, np.float32]))
@settings(deadline=None)
def test_dense_log1p_is_normalising_then_making_dense(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    num_cells, num_genes = int(rng.integers(0, 20)), int(rng.integers(1, 30))
    most = min(70_000, np.iinfo(dtype).max) if dtype is not np.float32 else 70_000
    # counts of every size around the table's end, and fractions where they may be
    x_BG = rng.choice([0, 0, 1, 2, 62, 63, 64, 65, most], (num_cells, num_genes)).astype(dtype)
    if dtype is np.float32:
        x_BG += (x_BG > 0) * rng.choice([0, 0.5], x_BG.shape).astype(dtype)
    sparse = scipy.sparse.csr_matrix(x_BG)
    size = rng.integers(1, 5000, num_cells).astype(np.float32)
    for gene_type in (np.uint16, np.int32):
        rows = SparseRows(sparse.indptr.astype(np.int64), sparse.indices.astype(gene_type), sparse.data, size)
        which = rng.integers(0, max(num_cells, 1), 2 * num_cells)
        for scale in get_args(InputScale):
            expected = dense(log1p_normalise(rows, input_scale=scale), num_genes)
            y_BG = np.full((num_cells, num_genes), np.nan, np.float32)
            dense_log1p(rows, y_BG, input_scale=scale)
            np.testing.assert_allclose(y_BG, expected, rtol=2e-7)
            picked_BG = np.full((2 * num_cells, num_genes), np.nan, np.float32)
            dense_log1p(rows, picked_BG, input_scale=scale, which=which)
            np.testing.assert_array_equal(picked_BG, y_BG[which])


@pytest.mark.parametrize("gene", [[-1], [3], [65_535]])
@pytest.mark.parametrize("scale", get_args(InputScale))
def test_a_gene_outside_the_view_is_never_written_anywhere(gene: list[int], scale: InputScale) -> None:
    dtype = np.int32 if gene[0] < 0 else np.uint16
    rows = SparseRows(np.array([0, 1]), np.array(gene, dtype), np.ones(1, np.uint8), np.ones(1, np.float32))
    with pytest.raises(IndexError, match="gene outside the view"):
        dense_log1p(rows, np.zeros((1, 3), np.float32), input_scale=scale)
    with pytest.raises(IndexError, match="1 cells do not fill 2 rows"):
        dense_log1p(rows, np.zeros((2, 3), np.float32), input_scale=scale)


def test_a_library_size_of_zero_gives_what_is_not_finite_and_is_seen_by_training() -> None:
    rows = SparseRows(np.array([0, 1]), np.zeros(1, np.uint16), np.ones(1, np.uint8), np.zeros(1, np.float32))
    y_BG = np.zeros((1, 2), np.float32)
    dense_log1p(rows, y_BG, input_scale="counts")
    assert y_BG.tolist() == [[np.inf, 0]]
