"""Highly variable genes from streamed moments: the dispersion method of Seurat v1 as scanpy computes it.

Enters: per-gene sums over the chosen cells. Leaves: gene numbers. Invariant: the result depends on the cells'
moments only, so blocks of any size and order select the same genes, the ones of
``scanpy.pp.highly_variable_genes(flavor="seurat")`` on the same cells.

Formula (Satija et al. 2015): of expm1(log1p expression), dispersion = log(variance / mean); genes are put
into 20 equal-width bins of log1p(mean); the normalised dispersion is the z-score within the bin.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_BINS = 20


class Moments(NamedTuple):
    """Sums over cells of normalised counts (before the logarithm), per gene."""

    num_cells: int
    sum_G: NDArray[np.float64]
    sum_squares_G: NDArray[np.float64]


def select_variable_genes(moments: Moments, count: int) -> NDArray[np.int64]:
    """Gene numbers, ascending, of the ``count`` genes with the highest normalised dispersion.

    Genes that tie with the last one are taken too; genes without any variance never are. ``count`` of 0, or
    as many as there are genes, gives all genes.
    """
    num_genes = len(moments.sum_G)
    if count == 0 or count >= num_genes:
        return np.arange(num_genes, dtype=np.int64)
    dispersion = normalised_dispersion(moments)
    known = np.sort(dispersion[~np.isnan(dispersion)])
    if not len(known):
        return np.arange(num_genes, dtype=np.int64)
    cutoff = known[-min(count, len(known))]
    return np.flatnonzero(np.nan_to_num(dispersion, nan=-np.inf) >= cutoff).astype(np.int64)


def normalised_dispersion(moments: Moments) -> NDArray[np.float64]:
    """(G,) z-score of each gene's log dispersion among genes of similar mean; NaN without variance."""
    n = moments.num_cells
    mean = moments.sum_G / n
    variance = (moments.sum_squares_G / n - mean**2) * (n / max(n - 1, 1))
    mean[mean == 0] = 1e-12
    ratio = np.maximum(variance, 0) / mean
    dispersion = np.log(np.where(ratio > 0, ratio, np.nan))
    bins = pd.cut(np.log1p(mean), bins=_BINS, labels=False)
    grouped = pd.Series(dispersion).groupby(bins)
    centre, width = grouped.transform("mean").to_numpy(), grouped.transform("std").to_numpy()
    # A gene alone in its bin has no spread to compare with: scanpy sets its score to 1.
    alone = np.isnan(width)
    width = np.where(alone, centre, width)
    centre = np.where(alone, 0.0, centre)
    with np.errstate(invalid="ignore", divide="ignore"):  # genes of one dispersion: undefined, as in scanpy
        return np.asarray((dispersion - centre) / width, np.float64)
