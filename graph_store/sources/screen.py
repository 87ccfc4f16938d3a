"""A Perturb-seq screen as a graph: genes whose perturbation changes expression alike.

Enters: the mean response to each perturbed gene, read from a cell store by whoever calls (the store has its
own package, which this one does not know). Leaves: a ``SourceGraph``. Invariant: the profiles carry where
they are from, so that a run can refuse a graph that has seen what the run holds out.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.genes import Aliases
from graph_store.graph import GraphError
from graph_store.source_config import PerturbSeqSource
from graph_store.sources.profiles import Choice, profile_graph
from graph_store.sources.source import SourceGraph


class ScreenProfiles(NamedTuple):
    """What was read of one screen."""

    genes: tuple[str, ...]
    """(G,) the perturbed gene of each row; single-gene perturbations only."""
    value_GD: NDArray[np.float32]
    """(G, D) mean over the gene's training cells of expression minus the control mean."""
    origin: dict[str, str]
    """Which store, split and cell lines were read; goes into the snapshot's record."""
    details: dict[str, int]
    """Counts: cells read, perturbations left out and why."""


ScreenReader = Callable[[PerturbSeqSource], ScreenProfiles]
"""Reads the training split of the store that a source names."""


def screen_graph(
    profiles: ScreenProfiles, spec: PerturbSeqSource, aliases: Aliases | None, *, percent: float
) -> SourceGraph:
    """The strongest ``percent`` of pairs by |cosine|; ``GraphError`` when fewer than two genes are left."""
    bad = ~np.isfinite(profiles.value_GD)
    if bad.any():
        gene = profiles.genes[int(bad.any(axis=1).argmax())]
        raise GraphError(f"{spec.store}: the mean response to {gene} is not finite; ingest the screen again")
    return profile_graph(
        profiles.genes,
        profiles.value_GD,
        aliases,
        Choice(percent, spec.centre, spec.signed),
        where=str(spec.store),
        details=profiles.details,
    )
