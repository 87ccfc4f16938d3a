"""What a run reads: the cell store, the graphs, and how the one's perturbations find the other's nodes.

Enters: a configuration. Leaves: ``Inputs``. Invariant: everything a user can get wrong about them, and about
how they go with the model, is said here, before any worker starts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.client import describe, open_snapshot
from graph_store.graph import Snapshot
from txpert_dist import config as configuration
from txpert_dist.config import Config
from txpert_dist.errors import ConfigError, InputError
from txpert_dist.loader.conditions import cell_lines, cells_of_lines, perturbed_rows
from txpert_dist.loader.loader import training_rows
from txpert_dist.loader.sampling import sampling_weights
from txpert_dist.model.encoders.build import check_encoder
from txpert_dist.model.fusion import MAX_ORDERED
from txpert_dist.model.graph_input import GraphInput, graph_input
from txpert_dist.model.vocabulary import Vocabulary, build_vocabulary, node_numbers
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.train.graphs import graphs_folder
from txpert_dist.train.screen_graphs import check_screen_graphs


class Inputs(NamedTuple):
    """The opened inputs of one run; open them again in every process."""

    store: CellStore
    snapshot: Snapshot
    graph: GraphInput
    """The snapshot's graphs that this run uses, over all nodes of the vocabulary."""
    vocabulary: Vocabulary
    nodes_RM: NDArray[np.int32]
    """(perturbations of the store, M) node numbers, -1 padded."""
    genes: NDArray[np.int64]
    """Gene numbers of the training view, ascending."""
    basal_width: int
    """Values a control that the basal encoder reads: the genes, or those of an embedding."""
    training: NDArray[np.int64]
    """Rows of the cells to learn from."""
    validation: NDArray[np.int64]
    """Rows of the perturbed cells to validate on."""

    @property
    def gene_names(self) -> tuple[str, ...]:
        """Names of the training view's genes, in the model's order."""
        return tuple(self.store.genes[number] for number in self.genes)


def open_inputs(config: Config, snapshot_folder: Path | None = None) -> Inputs:
    """Open store and snapshot and match them with each other and the model.

    ``snapshot_folder`` is a copy to read in place of the run's own, which must have been fetched where it is
    a service's (``with_graphs``).
    Raises ``StoreError``, ``GraphError``, ``ConfigError`` or ``InputError`` for what a user can repair.
    """
    store = open_store(config.data.store)
    if snapshot_folder is None:
        location, identity = graphs_folder(config.graph, config.run_folder), config.graph.snapshot
    else:
        location, identity = str(snapshot_folder.parent), snapshot_folder.name
    snapshot = open_snapshot(location, identity)
    vocabulary = build_vocabulary(snapshot, store.perturbations)
    graph = graph_input(snapshot, config.graph.use, len(vocabulary.genes))
    check_encoder(config.model.perturbation, graph)
    genes = store.training_genes(config.data.genes)
    width = basal_width(config.model, store, len(genes))
    _check_embedding(config, store)
    training, validation = _rows(config, store)
    record = describe(location, snapshot.id)
    used = [layer.name for layer in graph.graphs]
    check_screen_graphs(record.screens, record.recipe, used, store, config.data.held_out_cell_lines)
    nodes_RM = perturbation_nodes(config.model, vocabulary, store.perturbations)
    if config.model.control_token == "learned" and nodes_RM.shape[1] < 2:
        raise ConfigError(
            f"model.control_token=learned: no perturbation of {store.path} has two genes, so the token would "
            "shift every cell alike; leave it at none"
        )
    return Inputs(
        store=store,
        snapshot=snapshot,
        graph=graph,
        vocabulary=vocabulary,
        nodes_RM=nodes_RM,
        genes=genes,
        basal_width=width,
        training=training,
        validation=validation,
    )


def embedding_key(model: configuration.Model) -> str | None:
    """Name of the embedding that the basal encoder reads; None when it reads expression."""
    return model.basal.key if isinstance(model.basal, configuration.EmbeddingBasal) else None


def basal_width(model: configuration.Model, store: CellStore, num_genes: int) -> int:
    """Values a control that the basal encoder reads.

    Raises ``ConfigError`` when ``store`` lacks the embedding, listing those there are.
    """
    key = embedding_key(model)
    if key is None:
        return num_genes
    if key not in store.embeddings:
        there = f"it has {', '.join(store.embeddings)}" if store.embeddings else "it has none"
        raise ConfigError(
            f"model.basal.key={key}: {store.path} has no such embedding, {there}; make one with "
            "`txpert embed`, or bring it along with `txpert ingest --embedding`"
        )
    return store.embeddings[key]


def perturbation_nodes(
    model: configuration.Model, vocabulary: Vocabulary, perturbations: Sequence[str]
) -> NDArray[np.int32]:
    """(R, M) node numbers of each perturbation, in the order of the nodes' names, -1 padded.

    Raises ``InputError`` for a gene without a node, and ``ConfigError`` when a perturbation has more genes
    than the fusion can average the orders of.
    """
    nodes_RM = node_numbers(vocabulary, perturbations)
    if isinstance(model.fusion, configuration.SequentialFusion) and model.fusion.order == "all":
        number_R = (nodes_RM >= 0).sum(1)
        if number_R.max(initial=0) > MAX_ORDERED:
            raise ConfigError(
                f"model.fusion.order=all averages the orders of at most {MAX_ORDERED} genes, but "
                f"{perturbations[int(number_R.argmax())]} has {number_R.max()}; train with "
                "model.fusion.order=by_name, or leave such perturbations out"
            )
    # whatever order and alias the genes were given in, a transition from one to the next sees one order
    rank_P = np.argsort(np.argsort(np.array(vocabulary.genes)))
    rank_RM = np.where(nodes_RM < 0, len(rank_P), rank_P[nodes_RM])
    return np.take_along_axis(nodes_RM, np.argsort(rank_RM, axis=1, kind="stable"), axis=1)


def _check_embedding(config: Config, store: CellStore) -> None:
    """Raise ``ConfigError`` when the embedding was trained on cells that this run holds out."""
    key = embedding_key(config.model)
    origin = {} if key is None else store.embedding_origin(key)
    if "held_out_cell_lines" not in origin:
        return  # computed elsewhere: what it was trained on is not known here
    seen = [line for line in config.data.held_out_cell_lines if line not in origin["held_out_cell_lines"]]
    if seen:
        raise ConfigError(
            f"data.held_out_cell_lines: embedding {key} was trained on perturbed cells of {', '.join(seen)}; "
            f"make it again with `txpert embed scvi --held-out-cell-line {seen[0]} --overwrite`"
        )


def _rows(config: Config, store: CellStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from and rows to validate on."""
    held_out = config.data.held_out_cell_lines
    try:
        among = ~cells_of_lines(store, held_out)
    except InputError as error:
        raise ConfigError(f"data.held_out_cell_lines: {error}") from None
    if held_out and not len(perturbed_rows(store, "train", among=among)):
        raise ConfigError(
            f"data.held_out_cell_lines={','.join(held_out)}: leaves no perturbed training cell of "
            f"{store.path} (cell lines: {', '.join(cell_lines(store).names)}); hold out fewer"
        )
    training = training_rows(
        store, controls_as_targets=config.data.controls_as_targets, held_out_cell_lines=held_out
    )
    if len(training) < config.train.minibatch_size:
        raise InputError(
            f"{store.path}: {len(training)} training cells, fewer than "
            f"train.minibatch_size={config.train.minibatch_size}; choose a smaller one"
        )
    sampling_weights(store, training, config.data)  # raises for a column that cannot weigh
    return training, perturbed_rows(store, "validation", among=among)
