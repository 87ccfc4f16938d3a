"""The linear baseline of Ahlmann-Eltze, Huber and Anders (Nature Methods 2025), fitted in seconds.

Enters: what baselines may know, an embedding of genes. Leaves: a predictor. Invariant: closed form, the same
result every time; the penalty is chosen among training perturbations only.

The mean deltas of training perturbations Y (one row each) are fitted as b + P W G^T: G is an embedding of the
measured genes, P one of the perturbations, W the least-squares solution under a ridge penalty of the same
relative size on both sides, b the intercept. G is the principal components of the training pseudobulks; P the
rows of G that belong to the perturbed genes (``ridge``), or an embedding of the graph's nodes
(``ridge_graph``). The genes of a combination are added; one without an embedding is taken for an average one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from txpert_dist.evaluate.baselines import Training

DIMENSIONS = 10
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Relative to the mean square length of an embedding's dimensions."""
FEWEST = 10
"""Training perturbations whose genes have an embedding: fewer are not fitted."""
_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Ridge:
    """Control mean plus a linear function of the perturbation's embedding."""

    control_mean_CG: NDArray[np.floating]
    intercept_G: NDArray[np.float64]
    weight_KG: NDArray[np.float64]
    embedding_QK: NDArray[np.float64]
    """By perturbation code."""
    penalty: float
    name: str

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) control mean of each context plus the change of each perturbation."""
        change_RG = self.intercept_G + self.embedding_QK[perturbation_R] @ self.weight_KG
        change_RG[perturbation_R == 0] = 0.0
        return np.asarray(self.control_mean_CG[context_R] + change_RG, np.float64)


def gene_embedding(training: Training, *, dimensions: int = DIMENSIONS) -> NDArray[np.float64]:
    """(G, K) principal components of the measured genes over the training pseudobulks and the control."""
    known = training.known
    control_G = training.control_mean_CG.mean(0, dtype=np.float64)
    profile_GT = np.vstack([np.zeros_like(control_G), known.change_TG[:-1]]).T + control_G[:, None]
    profile_GT -= profile_GT.mean(0)
    most = min(dimensions, min(profile_GT.shape) - 1)
    if most < 1:
        return np.zeros((len(control_G), 0))
    left_GK, size_K, _ = svds(profile_GT, k=most, v0=_start(min(profile_GT.shape)))
    return np.asarray(left_GK * size_K, np.float64)


def fit_ridge(
    training: Training,
    gene_GK: NDArray[np.float64],
    embedding: Mapping[str, NDArray[np.float64]],
    name: str,
) -> Ridge | None:
    """Fit ``name`` with the perturbed genes' ``embedding``; None with fewer than ``FEWEST`` perturbations."""
    known = training.known
    width = len(next(iter(embedding.values()), np.zeros(0)))
    usable = [label for label in known.row_of if all(gene in embedding for gene in label.split("+"))]
    if len(usable) < FEWEST or not width or not gene_GK.shape[1]:
        return None
    change_TG = known.change_TG[[known.row_of[label] for label in usable]]
    middle_K = np.mean([embedding[gene] for gene in _genes_of(usable)], axis=0)
    point_TK = np.stack([_point(label, embedding, middle_K) for label in usable])
    fold_T = np.arange(len(usable)) % _FOLDS
    errors = [
        sum(_error(point_TK, change_TG, gene_GK, fold_T == fold, penalty) for fold in range(_FOLDS))
        for penalty in PENALTIES
    ]
    penalty = PENALTIES[int(np.argmin(errors))]
    intercept_G, weight_KG = _solve(point_TK, change_TG, gene_GK, penalty)
    points = [_point(label, embedding, middle_K) for label in training.perturbations]
    return Ridge(training.control_mean_CG, intercept_G, weight_KG, np.stack(points), penalty, name)


def _genes_of(labels: Sequence[str]) -> list[str]:
    return sorted({gene for label in labels for gene in label.split("+")})


def _point(
    label: str, embedding: Mapping[str, NDArray[np.float64]], middle_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    parts = [embedding.get(gene, middle_K) for gene in label.split("+")]
    return np.asarray(np.sum(parts, axis=0), np.float64)


def _solve(
    point_TK: NDArray[np.float64],
    change_TG: NDArray[np.float64],
    gene_GK: NDArray[np.float64],
    penalty: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intercept, and (K, G) weights: W G^T with W = (P'P + a)^-1 P' Y G (G'G + b)^-1, P and Y centred."""
    middle_K, mean_G = point_TK.mean(0), change_TG.mean(0)
    around_TK = point_TK - middle_K
    across_KK = around_TK.T @ ((change_TG - mean_G) @ gene_GK)
    left_KK = np.linalg.solve(_penalised(around_TK, penalty), across_KK)
    weight_KG = np.linalg.solve(_penalised(gene_GK, penalty), left_KK.T).T @ gene_GK.T
    return mean_G - middle_K @ weight_KG, weight_KG


def _penalised(value_NK: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    square_KK = value_NK.T @ value_NK
    size = np.trace(square_KK) / len(square_KK)
    return np.asarray(square_KK + max(penalty * size, 1e-12) * np.eye(len(square_KK)), np.float64)


def _error(
    point_TK: NDArray[np.float64],
    change_TG: NDArray[np.float64],
    gene_GK: NDArray[np.float64],
    left_out_T: NDArray[np.bool_],
    penalty: float,
) -> float:
    intercept_G, weight_KG = _solve(point_TK[~left_out_T], change_TG[~left_out_T], gene_GK, penalty)
    difference_TG = intercept_G + point_TK[left_out_T] @ weight_KG - change_TG[left_out_T]
    return float((difference_TG**2).sum())


def _start(size: int) -> NDArray[np.float64]:
    """Where the iteration begins: any fixed vector without structure."""
    return np.random.default_rng(0).normal(size=size)
