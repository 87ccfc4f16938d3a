"""What a run reads: the cell store, the graphs, and how the one's perturbations find the other's nodes.

Enters: a configuration. Leaves: ``Inputs``. Invariant: everything a user can get wrong about them is said
here, before any worker starts.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.client import open_snapshot
from graph_store.graph import KnowledgeGraph, Snapshot
from txpert_dist.config import Config
from txpert_dist.errors import ConfigError, InputError
from txpert_dist.loader.conditions import perturbed_rows
from txpert_dist.loader.loader import training_rows
from txpert_dist.model.vocabulary import Vocabulary, build_vocabulary, node_numbers
from txpert_dist.store.cells import CellStore, open_store


class Inputs(NamedTuple):
    """The opened inputs of one run; open them again in every process."""

    store: CellStore
    snapshot: Snapshot
    graphs: tuple[KnowledgeGraph, ...]
    """The snapshot's graphs that this run uses."""
    vocabulary: Vocabulary
    nodes_RM: NDArray[np.int32]
    """(perturbations of the store, M) node numbers, -1 padded."""
    genes: NDArray[np.int64]
    """Gene numbers of the training view, ascending."""
    training: NDArray[np.int64]
    """Rows of the cells to learn from."""
    validation: NDArray[np.int64]
    """Rows of the perturbed cells to validate on."""

    @property
    def gene_names(self) -> tuple[str, ...]:
        """Names of the training view's genes, in the model's order."""
        return tuple(self.store.genes[number] for number in self.genes)


def open_inputs(config: Config) -> Inputs:
    """Open store and snapshot and match them.

    Raises ``StoreError``, ``GraphError``, ``ConfigError`` or ``InputError`` for what a user can repair.
    """
    store = open_store(config.data.store)
    snapshot = open_snapshot(config.graph.location, config.graph.snapshot)
    vocabulary = build_vocabulary(snapshot, store.perturbations)
    training = training_rows(store, controls_as_targets=config.data.controls_as_targets)
    if len(training) < config.train.minibatch_size:
        raise InputError(
            f"{store.path}: {len(training)} training cells, fewer than "
            f"train.minibatch_size={config.train.minibatch_size}; choose a smaller one"
        )
    return Inputs(
        store=store,
        snapshot=snapshot,
        graphs=chosen_graphs(snapshot, config.graph.use),
        vocabulary=vocabulary,
        nodes_RM=node_numbers(vocabulary, store.perturbations),
        genes=store.training_genes(config.data.genes),
        training=training,
        validation=perturbed_rows(store, "validation"),
    )


def chosen_graphs(snapshot: Snapshot, use: Sequence[str] | None) -> tuple[KnowledgeGraph, ...]:
    """The graphs of ``snapshot`` named in ``use``, in that order; all when ``use`` is None.

    Raises ``ConfigError`` naming an unknown graph and the near ones.
    """
    if use is None:
        return snapshot.graphs
    named = {graph.name: graph for graph in snapshot.graphs}
    for name in use:
        if name not in named:
            near = difflib.get_close_matches(name, named, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(named)}"
            raise ConfigError(f"graph.use: snapshot {snapshot.id} has no graph {name!r}; {hint}")
    return tuple(named[name] for name in use)
