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
from txpert_dist.model.encoders.reach import Cut, Reach
from txpert_dist.model.txpert import TxPert
from txpert_dist.train.inputs import Inputs

Shares = tuple[Cut | None, ...]
"""A rank's part of what all ranks have to do, one for each of the encoder's stacks of layers."""


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
    return model.depths(_rows(drawn_nodes(inputs, cells=cells, seed=seed)))


def drawn_nodes(inputs: Inputs, *, cells: int, seed: int) -> NDArray[np.int32]:
    """(cells, M) the perturbed nodes of so many training cells, the same on every rank."""
    drawn = np.random.default_rng(seed).choice(inputs.training, cells)
    nodes_RM: NDArray[np.int32] = inputs.nodes_RM[inputs.store.perturbation[drawn]]
    return nodes_RM


def needed_by(
    model: TxPert, nodes_RM: NDArray[np.int32], depths: Sequence[int], shares: Shares = ()
) -> Needed:
    """What ``model`` works on for the nodes ``nodes_RM``, -1 being none; so many layers cut.

    Of the layers that are not cut this rank does ``shares``, everything when there are none.
    """
    rows = _rows(nodes_RM)
    reaches = model.reaches(rows, depths)
    if shares:
        reaches = tuple(reach._replace(share=share) for reach, share in zip(reaches, shares, strict=True))
    return Needed(rows, reaches)


def needed_in_training(model: TxPert, inputs: Inputs, shares: Shares = ()) -> Needed:
    """What all training cells need: shapes that no step changes, for devices that want those."""
    nodes_RM = inputs.nodes_RM[np.unique(inputs.store.perturbation[inputs.training])]
    return needed_by(model, nodes_RM, model.depths(_rows(nodes_RM)), shares)


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
