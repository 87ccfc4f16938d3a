import anndata
import numpy as np
import pytest
import scanpy
import scipy.sparse
import torch

from txpert_dist.minibatch import SparseRows
from txpert_dist.model.expression import dense_expression
from txpert_dist.store.expression import dense, log1p_normalise


def example_counts() -> np.ndarray:
    random = np.random.default_rng(0)
    counts = random.negative_binomial(0.4, 0.02, size=(30, 50)) * (random.random((30, 50)) < 0.4)
    return counts


def rows_of(counts: np.ndarray, dtype: type) -> SparseRows:
    sparse = scipy.sparse.csr_array(counts)
    return SparseRows(
        indptr=sparse.indptr.astype(np.int64),
        gene=sparse.indices.astype(np.int32),
        value=sparse.data.astype(dtype),
        library_size=counts.sum(1).astype(np.float32),
    )


def on_device(rows: SparseRows, num_genes: int, scale: str) -> torch.Tensor:
    indptr, gene, value, library_size = (torch.from_numpy(field) for field in rows)
    return dense_expression(indptr, gene, value, library_size, num_genes=num_genes, input_scale=scale)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_equals_scanpy(dtype):
    counts = example_counts() % 251
    oracle = anndata.AnnData(scipy.sparse.csr_matrix(counts.astype(np.float64)))
    scanpy.pp.normalize_total(oracle, target_sum=4000)
    scanpy.pp.log1p(oracle)
    y_BG = on_device(rows_of(counts, dtype), 50, "counts")
    assert y_BG.dtype == torch.float32
    np.testing.assert_allclose(y_BG.numpy(), oracle.X.toarray(), rtol=1e-6, atol=1e-7)


def test_equals_the_stores_own_definition_and_keeps_log1p_input():
    counts = example_counts()
    counts[7] = 0
    rows = rows_of(counts, np.uint16)
    rows = rows._replace(library_size=np.maximum(rows.library_size, 1))
    expected = dense(log1p_normalise(rows, input_scale="counts"), 60)
    np.testing.assert_allclose(on_device(rows, 60, "counts").numpy(), expected, rtol=1e-6, atol=1e-7)
    logged = rows._replace(value=np.log1p(rows.value.astype(np.float32)))
    assert np.array_equal(on_device(logged, 60, "log1p").numpy(), dense(logged, 60))


def test_no_cells():
    rows = rows_of(np.zeros((0, 5), np.int64), np.uint16)
    assert on_device(rows, 5, "counts").shape == (0, 5)
