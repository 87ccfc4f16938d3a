"""Predictions without learning: what a model has to beat.

Enters: control means of the contexts and, for the general baseline, mean deltas of training cells. Leaves:
predictors. Invariants: values never change after fitting; nothing but training perturbations is fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.metrics.delta import PerturbationDeltas


@dataclass(frozen=True, eq=False)
class NoChange:
    """A perturbation changes nothing: the control mean of the cell line and batch."""

    control_mean_CG: NDArray[np.floating]
    name: str = "no_change"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) control mean of each context."""
        return self.control_mean_CG[context_R]


@dataclass(frozen=True, eq=False)
class General:
    """The methods' non-learned general baseline; see ``fit_general``."""

    control_mean_CG: NDArray[np.floating]
    """(C, G) control mean of each context."""
    change_QG: NDArray[np.float64]
    """(perturbations, G) what is added to the control mean, by perturbation code; row 0 (control) is zero."""
    name: str = "general"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) control mean of each context plus the change of each perturbation."""
        return np.asarray(self.control_mean_CG[context_R] + self.change_QG[perturbation_R], np.float64)


def fit_general(
    training: PerturbationDeltas, perturbations: Sequence[str], control_mean_CG: NDArray[np.floating]
) -> General:
    """The general baseline of the methods ("Nonlearned general baseline"), from training cells.

    A perturbation or combination seen in training changes expression by its mean delta over all its training
    cells, in any cell line and batch. Otherwise its components are added: each by its own single-perturbation
    delta where that was seen, else by the mean delta over all perturbed training cells.
    ``perturbations`` are names by code, components joined with "+".
    Raises ``InputError`` when there is no perturbed training cell.
    """
    if not len(training.perturbation_P) or not training.num_cells_P.sum():
        raise InputError(
            "no perturbed cell is in the training split (outside held-out cell lines): baselines need some; "
            "ingest with another split, or more cell lines"
        )
    overall_G = np.average(training.delta_PG, axis=0, weights=training.num_cells_P)
    by_name = {perturbations[code]: delta_G for code, delta_G in _mean_by_perturbation(training).items()}
    change_QG = np.zeros((len(perturbations), len(overall_G)))
    for code, name in enumerate(perturbations[1:], start=1):
        components = [by_name.get(part, overall_G) for part in name.split("+")]
        change_QG[code] = by_name[name] if name in by_name else np.sum(components, axis=0)
    change_QG.flags.writeable = False
    return General(control_mean_CG, change_QG)


def _mean_by_perturbation(training: PerturbationDeltas) -> dict[int, NDArray[np.float64]]:
    """Mean delta over the cells of each perturbation, cell lines together."""
    codes, first = np.unique(training.perturbation_P, return_index=True)
    weighted_PG = training.delta_PG * training.num_cells_P[:, None]
    total_QG = np.add.reduceat(weighted_PG, first, axis=0)
    cells_Q = np.add.reduceat(training.num_cells_P, first)
    return dict(zip(codes.tolist(), total_QG / cells_Q[:, None], strict=True))
