"""Predictions without deep learning: what a model has to beat.

Enters: control means of the contexts and statistics of training cells (``Training``). Leaves: predictors.
Invariants: values never change after fitting; nothing but training perturbations outside held-out cell lines
is fitted on, so other perturbed cells change no prediction. Every baseline but ``batch_mean`` predicts the
control mean of the condition's own cell line and batch plus a change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.metrics.delta import PerturbationDeltas

Parts = list[tuple[int, float]]
"""Rows of a table of changes, and the weight of each."""


class Known(NamedTuple):
    """Changes that were seen in training, cell lines together."""

    row_of: dict[str, int]
    """Perturbation name -> row."""
    change_TG: NDArray[np.float64]
    """Mean delta over the cells of each perturbation; the last row that over all perturbed cells."""

    @property
    def overall(self) -> int:
        """Row of the mean over all perturbed training cells."""
        return len(self.row_of)


class Training(NamedTuple):
    """What baselines may know; see ``training_from``."""

    deltas: PerturbationDeltas
    """Of training perturbations in cell lines that are not held out."""
    perturbations: tuple[str, ...]
    """Names by code, genes joined with "+", the control first."""
    control_mean_CG: NDArray[np.floating]
    cell_line_C: NDArray[np.int64]
    context_mean_CG: NDArray[np.float64]
    """(C, G) mean expression of the perturbed training cells of each context; NaN without any."""
    known: Known


@dataclass(frozen=True, eq=False)
class PerContext:
    """The same for every perturbation: one profile a context."""

    expression_CG: NDArray[np.floating]
    name: str = "no_change"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) the profile of each context."""
        return self.expression_CG[context_R]


@dataclass(frozen=True, eq=False)
class Mixture:
    """The control mean plus a weighted sum of known changes."""

    control_mean_CG: NDArray[np.floating]
    weight_QT: scipy.sparse.csr_array
    """(perturbations, T) how much of each known change a perturbation is; the control's row is empty."""
    change_TG: NDArray[np.float64]
    name: str

    def change(self, perturbation_R: NDArray[np.integer]) -> NDArray[np.float64]:
        """(R, G) what is added to the control mean."""
        return np.asarray(self.weight_QT[perturbation_R] @ self.change_TG, np.float64)

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) control mean of each context plus the change of each perturbation."""
        return np.asarray(self.control_mean_CG[context_R] + self.change(perturbation_R), np.float64)


@dataclass(frozen=True, eq=False)
class ByLine:
    """Another mixture for each cell line."""

    mixtures: tuple[Mixture, ...]
    """By cell line code."""
    cell_line_C: NDArray[np.int64]
    name: str

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) the prediction of each condition's own cell line's mixture."""
        line_R = self.cell_line_C[context_R]
        predicted_RG = np.empty((len(context_R), self.mixtures[0].change_TG.shape[1]))
        for line in np.unique(line_R):
            here = line_R == line
            predicted_RG[here] = self.mixtures[line].predict(perturbation_R[here], context_R[here])
        return predicted_RG


def training_from(
    deltas: PerturbationDeltas,
    perturbations: tuple[str, ...],
    control_mean_CG: NDArray[np.floating],
    cell_line_C: NDArray[np.int64],
    context_mean_CG: NDArray[np.float64],
) -> Training:
    """``Training`` with what follows from the deltas. Raises ``InputError`` when there are none."""
    known = known_changes(deltas, perturbations)
    return Training(deltas, perturbations, control_mean_CG, cell_line_C, context_mean_CG, known)


def known_changes(training: PerturbationDeltas, perturbations: Sequence[str]) -> Known:
    """Raises ``InputError`` when there is no perturbed training cell."""
    if not len(training.perturbation_P) or not training.num_cells_P.sum():
        raise InputError(
            "no perturbed cell is in the training split (outside held-out cell lines): baselines need some; "
            "ingest with another split, or more cell lines"
        )
    codes, first = np.unique(training.perturbation_P, return_index=True)
    weighted_PG = training.delta_PG * training.num_cells_P[:, None]
    cells_T = np.add.reduceat(training.num_cells_P, first)
    mean_TG = np.add.reduceat(weighted_PG, first, axis=0) / cells_T[:, None]
    change_TG = np.vstack([mean_TG, np.average(mean_TG, axis=0, weights=cells_T)])
    change_TG.flags.writeable = False
    return Known({perturbations[code]: row for row, code in enumerate(codes.tolist())}, change_TG)


def fit_general(
    training: PerturbationDeltas, perturbations: Sequence[str], control_mean_CG: NDArray[np.floating]
) -> Mixture:
    """The general baseline of the methods ("Nonlearned general baseline"), from training cells.

    A perturbation or combination seen in training changes expression by its mean delta over all its training
    cells, in any cell line and batch. Otherwise its components are added: each by its own single-perturbation
    delta where that was seen, else by the mean delta over all perturbed training cells.
    ``perturbations`` are names by code, components joined with "+".
    Raises ``InputError`` when there is no perturbed training cell.
    """
    return general_of(known_changes(training, perturbations), perturbations, control_mean_CG)


def general_of(known: Known, perturbations: Sequence[str], control_mean_CG: NDArray[np.floating]) -> Mixture:
    """``fit_general`` from known changes."""
    return _mixture("general", known, perturbations, control_mean_CG, _exact_or_components(known))


def fit_additive(training: Training) -> Mixture:
    """Components are always added, also where the combination itself was seen; singles as in ``general``."""
    known = training.known
    return _mixture("additive", known, training.perturbations, training.control_mean_CG, _components(known))


def fit_train_mean(training: Training) -> PerContext:
    """The mean change over training perturbations, all weighing the same; of the own cell line, if any."""
    deltas = training.deltas
    change_LG = np.tile(
        _mean_of_perturbations(deltas.perturbation_P, deltas.delta_PG), (_num_lines(training), 1)
    )
    for line in np.unique(deltas.cell_line_P):
        change_LG[line] = deltas.delta_PG[deltas.cell_line_P == line].mean(0)
    return PerContext(training.control_mean_CG + change_LG[training.cell_line_C], "train_mean")


def _mean_of_perturbations(
    perturbation_P: NDArray[np.integer], delta_PG: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(G,) mean over perturbations of the mean over their cell lines."""
    _, first, lines_T = np.unique(perturbation_P, return_index=True, return_counts=True)
    return np.asarray((np.add.reduceat(delta_PG, first, axis=0) / lines_T[:, None]).mean(0), np.float64)


def fit_batch_mean(training: Training) -> PerContext:
    """The mean expression of the perturbed training cells of the batch: where a cell was, not what was done.

    A batch without any is predicted as ``train_mean`` has it. It scores above chance without any effect, too:
    predicted and observed delta hold the sampling error of the same control mean. A model that does no better
    may have learned no more than to smooth its controls.
    """
    without_C1 = np.isnan(training.context_mean_CG).all(1, keepdims=True)
    other_CG = fit_train_mean(training).expression_CG
    return PerContext(np.where(without_C1, other_CG, training.context_mean_CG), "batch_mean")


def fit_nearest_line(training: Training) -> ByLine:
    """The general baseline of the most similar other training cell line (methods, "nearest-cell-line").

    Similarity is the mean correlation of the deltas of shared training perturbations. A cell line without
    perturbed training cells, a held-out one, has none to compare, and no perturbed cell of it may be looked
    at: there the control means are correlated. The only training cell line there is stands in for itself.
    """
    deltas, mixtures = training.deltas, []
    trained = np.unique(deltas.cell_line_P).tolist()
    for line in range(_num_lines(training)):
        others = [other for other in trained if other != line] or trained
        similarity = [_similarity(training, line, other) for other in others]
        nearest = others[int(np.nanargmax([-2.0 if np.isnan(s) else s for s in similarity]))]
        part = _of_line(deltas, nearest)
        mixtures.append(fit_general(part, training.perturbations, training.control_mean_CG))
    return ByLine(tuple(mixtures), training.cell_line_C, "nearest_line")


def fit_neighbours(
    training: Training, neighbours: Callable[[str], Mapping[str, float]], *, number: int = 10
) -> Mixture:
    """A perturbation seen in training as in ``general``; another gene by its neighbours in the graph.

    ``neighbours`` gives the weight of the edge to each neighbour of a gene. The ``number`` heaviest of those
    that were perturbed alone in training count, by weight; ties go by name. A gene without any changes what
    all training perturbations do on average; the genes of a combination are added.
    """
    known = training.known

    def parts(name: str) -> Parts:
        if name in known.row_of:
            return [(known.row_of[name], 1.0)]
        return [part for gene in name.split("+") for part in component(gene)]

    def component(gene: str) -> Parts:
        if gene in known.row_of:
            return [(known.row_of[gene], 1.0)]
        found = sorted(
            ((-weight, other) for other, weight in neighbours(gene).items() if other in known.row_of)
        )[:number]
        total = -sum(weight for weight, _ in found)
        return [(known.row_of[other], -weight / total) for weight, other in found] or [(known.overall, 1.0)]

    return _mixture("knn_graph", known, training.perturbations, training.control_mean_CG, parts)


def _num_lines(training: Training) -> int:
    return int(training.cell_line_C.max()) + 1


def _of_line(deltas: PerturbationDeltas, line: int) -> PerturbationDeltas:
    here_P = deltas.cell_line_P == line
    return PerturbationDeltas(*(part[here_P] for part in deltas))


def _similarity(training: Training, line: int, other: int) -> float:
    """How alike two cell lines are, from training cells."""
    first, second = _of_line(training.deltas, line), _of_line(training.deltas, other)
    _, here, there = np.intersect1d(first.perturbation_P, second.perturbation_P, return_indices=True)
    pairs = list(zip(first.delta_PG[here], second.delta_PG[there], strict=True))
    if not pairs:
        pairs = [(_control(training, line), _control(training, other))]
    with np.errstate(invalid="ignore", divide="ignore"):  # a delta of 0 throughout has no correlation
        found = [np.corrcoef(x_G, y_G)[0, 1] for x_G, y_G in pairs]
    defined = [value for value in found if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _control(training: Training, line: int) -> NDArray[np.float64]:
    here_C = training.cell_line_C == line
    return np.asarray(training.control_mean_CG[here_C].mean(0, dtype=np.float64))


def _exact_or_components(known: Known) -> Callable[[str], Parts]:
    components = _components(known)

    def parts(name: str) -> Parts:
        return [(known.row_of[name], 1.0)] if name in known.row_of else components(name)

    return parts


def _components(known: Known) -> Callable[[str], Parts]:
    return lambda name: [(known.row_of.get(gene, known.overall), 1.0) for gene in name.split("+")]


def _mixture(
    name: str,
    known: Known,
    perturbations: Sequence[str],
    control_mean_CG: NDArray[np.floating],
    parts: Callable[[str], Parts],
) -> Mixture:
    # the control, code 0, changes nothing
    entries = [(code, *part) for code, label in enumerate(perturbations[1:], 1) for part in parts(label)]
    row, column, weight = zip(*entries, strict=True) if entries else ((), (), ())
    shape = (len(perturbations), len(known.change_TG))
    # the sum over repeated entries: A+A and two unseen components are meant to count twice
    weight_QT = scipy.sparse.coo_array((weight, (row, column)), shape=shape).tocsr()
    return Mixture(control_mean_CG, weight_QT, known.change_TG, name)
