"""Predictions of conditions: the one way from a model to the expression of (perturbation, context).

Enters: a model with its node embeddings, the nodes and contexts of conditions, the control table. Leaves:
predicted mean expression, a block of conditions at a time. Invariants: a condition's prediction is the mean
of the model's predictions over its context's controls, as the way of matching has them: the one mean, or up
to ``EVALUATION_CONTROLS`` control cells, the same for every perturbation; dropout is off, running statistics
are used, nothing is sampled; the model is left in the mode it was in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txpert_dist.errors import CheckpointError
from txpert_dist.loader.pairing import ControlTable, control_table, evaluation_rows
from txpert_dist.model.txpert import TxPert
from txpert_dist.store.cells import CellStore
from txpert_dist.train.batch import Controls, control_rows, resident_controls
from txpert_dist.train.checkpoint import LoadedModel
from txpert_dist.train.inputs import basal_width, embedding_key

EVALUATION_CONTROLS = 64
"""Most control cells that the prediction of a condition is averaged over."""

ROWS_AT_ONCE = 1024
"""Cells decoded together: bounds memory at about 100 MB for 20,000 genes."""


class ContextControls(NamedTuple):
    """Which controls the predictions of each context start from."""

    resident: Controls
    """The control table, where the model is."""
    rows_of_context: list[NDArray[np.int64]]
    """By context code: rows of the table, at least one."""


def context_controls(table: ControlTable, resident: Controls, *, seed: int) -> ContextControls:
    """The controls of every context; ``seed`` draws control cells where there are more than enough."""
    return ContextControls(resident, evaluation_rows(table, seed=seed, most=EVALUATION_CONTROLS))


def controls_of_store(
    loaded: LoadedModel, store: CellStore, genes: NDArray[np.int64], *, device: torch.device | None = None
) -> ContextControls:
    """The controls of ``store`` as the model was trained to find them; ``genes`` are the model's, in order.

    Raises ``ConfigError`` when the store lacks the embedding that the model starts from, and
    ``CheckpointError`` when it is of another width.
    """
    config = loaded.config
    width = basal_width(config.model, store, len(genes))
    if width != loaded.state.basal_width:
        raise CheckpointError(
            f"{store.path}: embedding {embedding_key(config.model)} has {width} values a cell, the model "
            f"starts from {loaded.state.basal_width}; embed this screen as the model's own was"
        )
    table = control_table(store, config.data.control_matching, genes, embedding_key(config.model))
    resident = resident_controls(table, num_genes=len(genes), device=device or torch.device("cpu"))
    return context_controls(table, resident, seed=config.seed)


@contextmanager
def evaluating(model: TxPert) -> Iterator[None]:
    """While the context lasts: evaluation mode, no gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def node_embeddings(model: TxPert) -> Tensor:
    """z_PD of every node, to be computed once for many predictions."""
    with evaluating(model):
        return model.perturbation_embeddings()


def predicted_conditions(
    model: TxPert,
    z_PD: Tensor,
    nodes_RM: NDArray[np.int32],
    context_R: NDArray[np.integer],
    controls: ContextControls,
    *,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of conditions in order: which ones, and their predicted expression (conditions, G).

    ``nodes_RM`` and ``context_R`` are each condition's perturbed nodes (-1 padded) and context code.
    """
    rows_R = [controls.rows_of_context[context] for context in context_R]
    for block in _blocks([len(rows) for rows in rows_R], rows_at_once):
        size_R = np.array([len(rows) for rows in rows_R[block]])
        rows = torch.from_numpy(np.concatenate(rows_R[block])).to(z_PD.device)
        nodes_BM = torch.from_numpy(np.repeat(nodes_RM[block], size_R, axis=0)).to(z_PD.device)
        with evaluating(model):
            predicted_BG = model.decode(control_rows(controls.resident, rows), nodes_BM, z_PD).float()
            mean_RG = _means(predicted_BG, size_R)
        yield block, mean_RG


def _blocks(sizes: list[int], most: int) -> Iterator[slice]:
    """Cut items of these sizes into consecutive blocks of at most ``most`` in all, one item at least."""
    start, used = 0, 0
    for item, size in enumerate(sizes):
        if item > start and used + size > most:
            yield slice(start, item)
            start, used = item, 0
        used += size
    if sizes:
        yield slice(start, len(sizes))


def _means(value_BG: Tensor, size_R: NDArray[np.int64]) -> Tensor:
    """Mean of each run of ``size_R`` consecutive rows."""
    if len(size_R) == len(value_BG):
        return value_BG
    lengths = torch.from_numpy(size_R).to(value_BG.device)
    mean_RG: Tensor = torch.segment_reduce(value_BG, "mean", lengths=lengths, axis=0)
    return mean_RG
