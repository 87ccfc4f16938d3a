"""What can be evaluated: anything that predicts the mean expression of conditions."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Predictor(Protocol):
    """A model or a baseline, over the gene view that it is evaluated on."""

    @property
    def name(self) -> str:
        """Name in the report."""
        ...

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        """(R, G) predicted log1p expression of cells with the store's perturbation and context codes."""
        ...
