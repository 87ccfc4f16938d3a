"""A trained TxPert as a predictor of conditions.

Enters: a model, the nodes of every perturbation, control means. Leaves: predicted mean expression.
Invariants: node embeddings are computed once; dropout is off; the model is left in the mode it was in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txpert_dist.model.txpert import TxPert


@dataclass(frozen=True, eq=False)
class ModelPredictor:
    """Predicts each condition from the control mean of its context; build it with ``model_predictor``."""

    model: TxPert
    nodes_QM: NDArray[np.int32]
    """(perturbations, M) nodes of each of the store's perturbations, -1 padded."""
    control_mean_CG: NDArray[np.float32]
    """(C, G) control mean of each context, over the model's genes."""
    z_PD: Tensor = field(repr=False)
    """Node embeddings."""
    minibatch_size: int
    name: str = "model"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) float32 predicted expression of each condition, a minibatch of conditions at a time."""
        predicted_RG = np.empty((len(perturbation_R), self.control_mean_CG.shape[1]), np.float32)
        with _evaluating(self.model):
            for start in range(0, len(predicted_RG), self.minibatch_size):
                block = slice(start, start + self.minibatch_size)
                control_BG = self._tensor(self.control_mean_CG[context_R[block]])
                nodes_BM = self._tensor(self.nodes_QM[perturbation_R[block]].astype(np.int64))
                predicted_BG = self.model.decode(control_BG, nodes_BM, self.z_PD)
                predicted_RG[block] = predicted_BG.float().cpu().numpy()
        return predicted_RG

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.z_PD.device)


def model_predictor(
    model: TxPert,
    nodes_QM: NDArray[np.int32],
    control_mean_CG: NDArray[np.float32],
    *,
    minibatch_size: int = 1024,
    name: str = "model",
) -> ModelPredictor:
    """A predictor around ``model``, on the device that the model is on.

    ``nodes_QM`` are the nodes of the store's perturbations by code, ``control_mean_CG`` the store's control
    means over the model's genes.
    """
    with _evaluating(model):
        z_PD = model.perturbation_embeddings()
    return ModelPredictor(model, nodes_QM, control_mean_CG, z_PD, minibatch_size, name)


@contextmanager
def _evaluating(model: TxPert) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
