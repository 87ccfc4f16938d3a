"""What a trained model says of genes: Z, one vector a node of its graphs.

Enters: a ready model. Leaves: names, vectors and where they come from, for the graph store to keep.
Invariant: the vectors are those that predictions are made with.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.serve.registered import Registered

_LONGEST_NAME = 80


class ModelEmbedding(NamedTuple):
    """Z of one model."""

    version: str
    """The run's name and the beginning of the weights' hash: another model, another version."""
    genes: tuple[str, ...]
    """Every gene that the model can perturb."""
    z_PD: NDArray[np.float32]
    origin: dict[str, str]


def model_embedding(model: Registered) -> ModelEmbedding:
    """The embeddings of all genes of ``model``."""
    config, state = model.loaded.config, model.loaded.state
    origin = {
        "run": config.name,
        "encoder": config.model.perturbation.kind,
        "model_hash": state.model_hash,
        "snapshot_id": state.snapshot_id,
        "store_hash": state.store_hash,
        "split_hash": state.split_hash,
        "git_commit": state.git_commit,
    }
    version = f"{config.name[:_LONGEST_NAME]}-{state.model_hash[:12]}"
    z_PD = np.ascontiguousarray(model.z_PD.numpy(), dtype=np.float32)
    return ModelEmbedding(version, model.loaded.vocabulary.genes, z_PD, origin)
