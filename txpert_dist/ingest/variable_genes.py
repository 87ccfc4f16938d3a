"""Highly variable genes from streamed sums, as scanpy selects them on the same cells.

Enters: per-gene sums over the chosen cells. Leaves: gene numbers. Invariant: the result depends on these sums
only, so blocks of any size and order select the same genes: the ones of
``scanpy.pp.highly_variable_genes`` with the flavour's name on the same cells.

seurat (Satija et al. 2015): of expm1(log1p expression), dispersion = log(variance / mean); genes are put into
20 equal-width bins of log1p(mean); the normalised dispersion is the z-score within the bin.
cell_ranger (Zheng et al. 2017): of log1p expression, dispersion = variance / mean; bins are bounded by
percentiles of the mean, and the score is the distance to the bin's median in median absolute deviations.
seurat_v3 (Stuart et al. 2019): of counts; variance of standardised counts, clipped at the square root of the
number of cells, where the expected variance is a local regression of log10 variance on log10 mean.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.config import HvgFlavour

_BINS = 20
_PERCENTILES = np.arange(10, 105, 5)
_NORMAL_MAD = 0.6744897501960817
"""Median absolute deviation of the standard normal distribution."""
_SPAN, _DEGREE = 0.3, 2
"""Of the local regression: share of genes that have a say at each point, degree of the polynomials."""
_FEWEST_GENES = 40
"""So that a dozen genes have a say at each point."""


class Moments(NamedTuple):
    """Sums over cells of the flavour's values, per gene: which values these are, the module's text says."""

    num_cells: int
    sum_G: NDArray[np.float64]
    sum_squares_G: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean per gene."""
        return self.sum_G / self.num_cells

    @property
    def variance(self) -> NDArray[np.float64]:
        """Unbiased variance per gene."""
        n = self.num_cells
        return np.maximum((self.sum_squares_G / n - self.mean**2) * (n / max(n - 1, 1)), 0)


def select_variable_genes(moments: Moments, count: int, flavour: HvgFlavour = "seurat") -> NDArray[np.int64]:
    """Gene numbers, ascending, of the ``count`` genes with the highest normalised dispersion.

    Genes that tie with the last one are taken too; genes without any variance never are. ``count`` of 0, or
    as many as there are genes, gives all genes. For seurat_v3 see ``select_by_variance``.
    """
    num_genes = len(moments.sum_G)
    if not selects(count, num_genes):
        return np.arange(num_genes, dtype=np.int64)
    score = normalised_dispersion(moments) if flavour == "seurat" else _cell_ranger_dispersion(moments)
    known = np.sort(score[~np.isnan(score)])
    if not len(known):
        return np.arange(num_genes, dtype=np.int64)
    cutoff = known[-min(count, len(known))]
    return np.flatnonzero(np.nan_to_num(score, nan=-np.inf) >= cutoff).astype(np.int64)


def selects(count: int, num_genes: int) -> bool:
    """Whether to choose ``count`` of ``num_genes`` genes at all, rather than to take all."""
    return 0 < count < num_genes


def normalised_dispersion(moments: Moments) -> NDArray[np.float64]:
    """(G,) z-score of each gene's log dispersion among genes of similar mean; NaN without variance."""
    mean = moments.mean
    mean[mean == 0] = 1e-12
    ratio = moments.variance / mean
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


def _cell_ranger_dispersion(moments: Moments) -> NDArray[np.float64]:
    mean = moments.mean
    mean[mean == 0] = 1e-12
    dispersion = pd.Series(moments.variance / mean)
    bounds = np.r_[-np.inf, np.percentile(mean, _PERCENTILES), np.inf]
    if (np.diff(bounds) <= 0).any():
        raise InputError(
            "too many genes have the same mean for --hvg-flavour cell_ranger (usually genes that no cell "
            "has); choose --hvg-flavour seurat, or leave such genes out"
        )
    bins = pd.cut(mean, bins=bounds, labels=False)
    centre = dispersion.groupby(bins).transform("median")
    deviation = (dispersion - centre).abs().groupby(bins).transform("median") / _NORMAL_MAD
    with np.errstate(invalid="ignore", divide="ignore"):  # a bin of one dispersion: undefined, as in scanpy
        return np.asarray((dispersion - centre) / deviation, np.float64)


class Expected(NamedTuple):
    """What seurat_v3 expects of each gene."""

    deviation_G: NDArray[np.float64]
    """Standard deviation that genes of its mean usually have."""
    clip_G: NDArray[np.float64]
    """Counts above this one count as this one."""


def expected_variance(moments: Moments) -> Expected:
    """Regress variance on mean; raises ``InputError`` where scikit-misc is missing or cannot fit."""
    try:
        from skmisc.loess import loess
    except ImportError:
        raise InputError(
            "--hvg-flavour seurat_v3 needs scikit-misc; install it (pip install scikit-misc), or choose "
            "another flavour"
        ) from None
    mean, variance = moments.mean, moments.variance
    varies = variance > 0
    if varies.sum() < _FEWEST_GENES:  # with a few, the library reads memory that is not its own
        raise InputError(
            f"--hvg-flavour seurat_v3 cannot fit a variance to {varies.sum()} genes that vary, "
            f"{_FEWEST_GENES} are needed; choose another flavour"
        )
    fitted = np.zeros(len(mean))
    try:
        model = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=_SPAN, degree=_DEGREE)
        model.fit()
    except ValueError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"--hvg-flavour seurat_v3 cannot fit a variance to these genes ({reason}); choose another flavour"
        ) from None
    fitted[varies] = model.outputs.fitted_values
    deviation = np.sqrt(10**fitted)
    return Expected(deviation, deviation * np.sqrt(moments.num_cells) + mean)


def select_by_variance(
    moments: Moments, clipped: Moments, expected: Expected, count: int
) -> NDArray[np.int64]:
    """Gene numbers, ascending, of the ``count`` genes whose standardised ``clipped`` counts vary most.

    Of genes that tie, the first are taken; genes without any variance never are.
    """
    n, mean = moments.num_cells, moments.mean
    total = n * mean**2 + clipped.sum_squares_G - 2 * clipped.sum_G * mean
    variance = total / ((n - 1) * expected.deviation_G**2)
    best = np.argsort(-variance, kind="stable")[:count]
    return np.sort(best[moments.variance[best] > 0]).astype(np.int64)
