"""A model that is ready to predict, opened from a run's checkpoint or from a registered version's folder.

Layout of a registered version's artefact folder: ``checkpoint/`` (weights, state, configuration, manifest),
``snapshots/ID/`` (the knowledge graphs it was trained with), ``report/`` (its evaluation). Invariant: every
file is verified against a manifest before it is used, and nothing outside the folder is needed.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from txpert_dist.train.checkpoint import LoadedModel, best_checkpoint, load_model

CHECKPOINT = "checkpoint"
SNAPSHOTS = "snapshots"
REPORT = "report"


class Registered(NamedTuple):
    """A verified model in evaluation mode with its perturbation embeddings."""

    loaded: LoadedModel
    z_PD: torch.Tensor
    """(P, D) embedding of every node of the graph; computed once, the graph does not change."""


def open_registered(folder: Path) -> Registered:
    """Open a registered version's artefact folder.

    Raises ``CheckpointError`` or ``GraphError`` naming a missing or damaged file.
    """
    return ready(load_model(folder / CHECKPOINT, graphs=str(folder / SNAPSHOTS)))


def ready(loaded: LoadedModel) -> Registered:
    """Switch to evaluation mode and embed every perturbation once."""
    loaded.model.eval()
    with torch.inference_mode():
        return Registered(loaded, loaded.model.perturbation_embeddings())


def open_checkpoint(folder: Path) -> Registered:
    """Open a run's best checkpoint, or the one checkpoint in ``folder``.

    Raises ``CheckpointError`` or ``GraphError`` naming a missing or damaged file.
    """
    chosen = best_checkpoint(folder) if (folder / "checkpoints").is_dir() else folder
    return ready(load_model(chosen))
