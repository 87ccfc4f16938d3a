"""Which nodes' embeddings the cells of a step need, and what those depend on.

Enters: a model in training, the perturbed nodes of cells. Leaves: ``Needed``, and minibatches that name the
nodes by their places in it. Invariants: every perturbed node of the cells is there, so a step with these
embeddings alone is the step with all of them; what a rank's cells do not need, it does not compute.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.minibatch import Minibatch
from txpert_dist.model.encoders.reach import Reach
from txpert_dist.model.txpert import TxPert
from txpert_dist.train.inputs import Inputs


class Needed(NamedTuple):
    """Nodes that some cells need."""

    rows: NDArray[np.int64]
    """(R,) their numbers, ascending."""
    reaches: tuple[Reach, ...]
    """What the encoder works on for them."""


def depths_in_training(model: TxPert, inputs: Inputs, *, cells: int, seed: int) -> tuple[int, ...]:
    """How many layers to cut in every step in which a rank has ``cells`` cells: as a drawn share says.

    The same on every rank and in every step: ZeRO 2 exchanges gradients in the order in which they come, so
    the ranks' operations must not differ.
    """
    drawn = np.random.default_rng(seed).choice(inputs.training, cells)
    return model.depths(_rows(inputs.nodes_RM[inputs.store.perturbation[drawn]]))


def needed_by(model: TxPert, nodes_RM: NDArray[np.int32], depths: Sequence[int]) -> Needed:
    """What ``model`` works on for the nodes ``nodes_RM``, -1 being none; so many layers cut."""
    rows = _rows(nodes_RM)
    return Needed(rows, model.reaches(rows, depths))


def needed_in_training(model: TxPert, inputs: Inputs) -> Needed:
    """What all training cells need: shapes that no step changes, for devices that want those."""
    nodes_RM = inputs.nodes_RM[np.unique(inputs.store.perturbation[inputs.training])]
    return needed_by(model, nodes_RM, model.depths(_rows(nodes_RM)))


def placed(minibatch: Minibatch, needed: Needed) -> Minibatch:
    """``minibatch`` with places in ``needed.rows`` for nodes. Raises ``ValueError`` when one is not there."""
    nodes_BM, rows = minibatch.perturbations_BM, needed.rows
    place_BM = np.searchsorted(rows, nodes_BM).astype(np.int32)
    known_BM = np.append(rows, -1)[place_BM] == nodes_BM
    if not (known_BM | (nodes_BM < 0)).all():
        raise ValueError(f"node {nodes_BM[~known_BM & (nodes_BM >= 0)][0]} is not among those needed")
    return minibatch._replace(perturbations_BM=np.where(nodes_BM < 0, np.int32(-1), place_BM))


def _rows(nodes_RM: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.unique(nodes_RM[nodes_RM >= 0]).astype(np.int64)
