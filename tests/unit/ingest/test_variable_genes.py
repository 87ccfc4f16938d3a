"""Highly variable genes: the ones scanpy selects."""

import anndata
import numpy as np
import pytest
import scanpy

from txpert_dist.ingest.variable_genes import Moments, normalised_dispersion, select_variable_genes


def screen(seed: int, num_cells: int = 400, num_genes: int = 300) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.5, 3.0, num_genes)
    counts = rng.negative_binomial(2, 2 / (2 + mean), (num_cells, num_genes)).astype(np.float64)
    counts[:, :3] = 0  # never measured
    counts[:, 3] = 1 + counts[:, 4]
    data = anndata.AnnData(counts)
    scanpy.pp.normalize_total(data, target_sum=4000)
    scanpy.pp.log1p(data)
    return data


def moments(log1p_BG: np.ndarray, block: int) -> Moments:
    total, squares = np.zeros(log1p_BG.shape[1]), np.zeros(log1p_BG.shape[1])
    for start in range(0, len(log1p_BG), block):
        part = np.expm1(log1p_BG[start : start + block])
        total += part.sum(0)
        squares += (part * part).sum(0)
    return Moments(len(log1p_BG), total, squares)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [5, 50, 200])
def test_the_selection_is_scanpys(seed: int, count: int) -> None:
    data = screen(seed)
    found = moments(data.X, block=37)
    expected = scanpy.pp.highly_variable_genes(data, flavor="seurat", n_top_genes=count, inplace=False)
    np.testing.assert_allclose(
        normalised_dispersion(found), expected["dispersions_norm"], rtol=1e-6, atol=1e-8, equal_nan=True
    )
    assert (
        select_variable_genes(found, count).tolist() == np.flatnonzero(expected["highly_variable"]).tolist()
    )


@pytest.mark.parametrize("count", [0, 300, 5000])
def test_all_genes_when_asked_for_none_or_for_enough(count: int) -> None:
    assert select_variable_genes(moments(screen(0).X, 400), count).tolist() == list(range(300))


def test_genes_without_variance_are_never_selected() -> None:
    data = screen(0)
    selected = select_variable_genes(moments(data.X, 400), 299)
    assert not set(selected.tolist()) & {0, 1, 2}
    assert selected.tolist() == np.flatnonzero(data.X.var(0) > 0).tolist()
