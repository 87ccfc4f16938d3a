"""Some genes of each row: the ones that changed most, or all but the perturbed ones.

Enters: values over all genes and gene positions, another set for each row. Leaves: values over the wanted
genes, for metrics that know nothing of the choice. Invariant: a position of -1 stands for no gene.
"""

import numpy as np
from numpy.typing import NDArray


def take_genes(values_PG: NDArray[np.floating], gene_PK: NDArray[np.integer]) -> NDArray[np.float64]:
    """(P, K) each row's values of its own genes; rows with a position of -1 are NaN."""
    taken_PK = np.take_along_axis(values_PG, np.maximum(gene_PK, 0).astype(np.int64), 1).astype(np.float64)
    return np.where((gene_PK < 0).any(1, keepdims=True), np.nan, taken_PK)


def neutralise(values_PG: NDArray[np.floating], gene_PM: NDArray[np.integer]) -> NDArray[np.float64]:
    """(P, G) the values with those of each row's genes replaced by the mean of the row's other genes.

    A Pearson correlation over these is the one over the other genes: what lies at the mean adds nothing.
    """
    kept_PG = np.array(values_PG, np.float64)
    row, slot = np.nonzero(gene_PM >= 0)
    gone_PG = np.zeros(kept_PG.shape, bool)
    gone_PG[row, gene_PM[row, slot]] = True
    number_P = kept_PG.shape[1] - gone_PG.sum(1)
    mean_P = np.where(gone_PG, 0.0, kept_PG).sum(1) / np.where(number_P > 0, number_P, np.nan)
    some = np.unique(row)
    # the mean of equal values is rounded, and must not make a constant row vary
    low_S = np.where(gone_PG[some], np.inf, kept_PG[some]).min(1, initial=np.inf)
    high_S = np.where(gone_PG[some], -np.inf, kept_PG[some]).max(1, initial=-np.inf)
    mean_P[some] = np.clip(mean_P[some], low_S, high_S)
    kept_PG[some] = np.where(gone_PG[some], mean_P[some, None], kept_PG[some])
    return kept_PG
