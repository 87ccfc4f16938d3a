"""Normalisation and gene views on sparse rows, against dense arithmetic and scanpy."""

import anndata
import numpy as np
import pytest
import scanpy
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.minibatch import SparseRows
from txpert_dist.store.expression import TARGET_SUM, dense, gene_view, log1p_normalise, select_genes

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
