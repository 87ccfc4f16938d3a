"""Highly variable genes: the ones scanpy selects."""

import anndata
import numpy as np
import pytest
import scanpy

from txpert_dist.errors import InputError
from txpert_dist.ingest.variable_genes import (
    Moments,
    expected_variance,
    normalised_dispersion,
    select_by_variance,
    select_variable_genes,
)


def counts(seed: int, num_cells: int = 400, num_genes: int = 300) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.5, 3.0, num_genes)
    counts = rng.negative_binomial(2, 2 / (2 + mean), (num_cells, num_genes)).astype(np.float64)
    counts[:, :3] = 0  # never measured
    counts[:, 3] = 1 + counts[:, 4]
    return counts


def screen(seed: int) -> anndata.AnnData:
    data = anndata.AnnData(counts(seed))
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


def plain_moments(x_BG: np.ndarray) -> Moments:
    return Moments(len(x_BG), x_BG.sum(0), (x_BG * x_BG).sum(0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [5, 50, 200])
def test_cell_ranger_selects_scanpys_genes(seed: int, count: int) -> None:
    data = screen(seed)
    expected = scanpy.pp.highly_variable_genes(data, flavor="cell_ranger", n_top_genes=count, inplace=False)
    found = select_variable_genes(plain_moments(data.X), count, "cell_ranger")
    assert found.tolist() == np.flatnonzero(expected["highly_variable"]).tolist()


def test_cell_ranger_refuses_what_it_cannot_bin() -> None:
    x_BG = counts(0)
    x_BG[:, :80] = 0
    with pytest.raises(InputError, match=r"too many genes have the same mean.*--hvg-flavour seurat"):
        select_variable_genes(plain_moments(x_BG), 20, "cell_ranger")


def variance_selected(x_BG: np.ndarray, count: int) -> list[int]:
    found = plain_moments(x_BG)
    expected = expected_variance(found)
    clipped = plain_moments(np.minimum(x_BG, expected.clip_G))
    return select_by_variance(found, clipped, expected, count).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [5, 50, 200])
def test_seurat_v3_selects_scanpys_genes(seed: int, count: int) -> None:
    x_BG = counts(seed)
    x_BG[0, 7] = 5_000  # far above what is clipped
    expected = scanpy.pp.highly_variable_genes(
        anndata.AnnData(x_BG), flavor="seurat_v3", n_top_genes=count, inplace=False
    )
    found, wanted = variance_selected(x_BG, count), np.flatnonzero(expected["highly_variable"]).tolist()
    assert len(found) == count
    # scanpy leaves open which of several genes with the very same variance comes last; we take the first.
    last = expected["variances_norm"].iloc[wanted].min()
    assert all(expected["variances_norm"].iloc[gene] == last for gene in set(found) ^ set(wanted))


def test_seurat_v3_never_selects_a_gene_without_variance() -> None:
    x_BG = counts(0)
    assert variance_selected(x_BG, 299) == np.flatnonzero(x_BG.var(0) > 0).tolist()


def test_seurat_v3_says_so_when_there_are_too_few_genes() -> None:
    with pytest.raises(InputError, match="seurat_v3 cannot fit a variance to 2 genes"):
        expected_variance(plain_moments(counts(0)[:, 3:5]))
