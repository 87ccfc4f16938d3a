"""A trained TxPert as a predictor of conditions.

Enters: a model, the nodes of every perturbation, the controls of every context. Leaves: predicted mean
expression. Invariants: node embeddings are computed once; dropout is off; the model is left in the mode it
was in.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from txpert_dist.model.txpert import TxPert
from txpert_dist.store.cells import CellStore
from txpert_dist.train.checkpoint import LoadedModel
from txpert_dist.train.conditions import (
    ROWS_AT_ONCE,
    ContextControls,
    controls_of_store,
    node_embeddings,
    predicted_conditions,
)
from txpert_dist.train.inputs import perturbation_nodes


@dataclass(frozen=True, eq=False)
class ModelPredictor:
    """Predicts each condition from the controls of its context; build it with ``model_predictor``."""

    model: TxPert
    nodes_QM: NDArray[np.int32]
    """(perturbations, M) nodes of each of the store's perturbations, -1 padded."""
    controls: ContextControls = field(repr=False)
    z_PD: Tensor = field(repr=False)
    """Node embeddings."""
    rows_at_once: int
    name: str = "model"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) float32 predicted expression of each condition, a block of conditions at a time."""
        predicted_RG = np.empty((len(perturbation_R), self.controls.resident.num_genes), np.float32)
        nodes_RM = self.nodes_QM[perturbation_R]
        for block, predicted_BG in predicted_conditions(
            self.model, self.z_PD, nodes_RM, context_R, self.controls, rows_at_once=self.rows_at_once
        ):
            predicted_RG[block] = predicted_BG.cpu().numpy()
        return predicted_RG


def model_predictor(
    model: TxPert,
    nodes_QM: NDArray[np.int32],
    controls: ContextControls,
    *,
    rows_at_once: int = ROWS_AT_ONCE,
    name: str = "model",
) -> ModelPredictor:
    """A predictor around ``model``, on the device that the model is on.

    ``nodes_QM`` are the nodes of the store's perturbations by code, ``controls`` those of the store's
    contexts.
    """
    return ModelPredictor(model, nodes_QM, controls, node_embeddings(model), rows_at_once, name)


def predictor_of_store(loaded: LoadedModel, store: CellStore, genes: NDArray[np.int64]) -> ModelPredictor:
    """A predictor of ``store``'s conditions as the model was trained; ``genes`` are the model's, in order.

    Raises ``InputError`` for a perturbation that the model has no node for, ``ConfigError`` or
    ``CheckpointError`` when model and store do not fit.
    """
    nodes_QM = perturbation_nodes(loaded.config.model, loaded.vocabulary, store.perturbations)
    return model_predictor(loaded.model, nodes_QM, controls_of_store(loaded, store, genes))
