"""A map of the perturbation encoder's nodes: their embeddings in two dimensions.

Enters: node embeddings, node names and graphs, which genes the screen perturbs, perhaps gene sets. Leaves: a
``NodeMap``. Invariants: every node is on the map; the same embeddings give the same map (signs of principal
components are fixed, UMAP is seeded); which projection was used is said.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from graph_store.graph import KnowledgeGraph
from txpert_dist.errors import InputError

Projection = Literal["pca", "umap"]
COLUMNS = ("gene", "x", "y", "degree", "perturbed", "pathway")
"""Of the points; ``degree`` counts the edges of all graphs, ``perturbed`` says whether the screen
perturbs the gene, ``pathway`` is empty where there is none."""
MOST_PATHWAYS = 8
"""That the eye tells apart by colour."""
_FEWEST_GENES = 2
_NEIGHBOURS = 15


class NodeMap(NamedTuple):
    """Nodes in two dimensions."""

    projection: Projection
    axes: tuple[str, str]
    pathways: tuple[str, ...]
    """The gene sets that are told apart, the one with most say first; none: degree is shown."""
    points: pd.DataFrame
    """``COLUMNS``, a row for each node in order."""


def node_map(
    z_PD: NDArray[np.floating],
    genes: Sequence[str],
    graphs: Sequence[KnowledgeGraph],
    perturbed: frozenset[str],
    *,
    projection: Projection = "pca",
    gene_sets: Mapping[str, frozenset[str]] | None = None,
) -> NodeMap:
    """Map the nodes ``genes`` with embeddings ``z_PD``; see ``chosen_sets`` for the pathways shown.

    Raises ``InputError`` for UMAP where umap-learn is not installed, and for gene sets of which none can be
    shown.
    """
    place_P2, axes = _umap(z_PD) if projection == "umap" else principal_components(z_PD)
    chosen = chosen_sets(gene_sets or {}, perturbed & frozenset(genes))
    if gene_sets and not chosen:
        raise InputError(
            "--pathways: none of its gene sets has two of the perturbed genes; give sets of the same gene "
            "names, or leave it out"
        )
    pathway = [next((name for name in chosen if gene in (gene_sets or {})[name]), "") for gene in genes]
    points = pd.DataFrame(
        {
            "gene": list(genes),
            "x": place_P2[:, 0],
            "y": place_P2[:, 1],
            "degree": degrees(graphs, len(genes)),
            "perturbed": [gene in perturbed for gene in genes],
            "pathway": pathway,
        }
    )
    return NodeMap(projection, axes, chosen, points)


def principal_components(z_PD: NDArray[np.floating]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """(P, 2) the first two principal components and their names with the share of variance.

    The largest loading of each is positive. Embeddings without any variance lie in one point.
    """
    centred_PD = z_PD.astype(np.float64) - z_PD.mean(0, dtype=np.float64)
    _, vectors_DK = np.linalg.eigh(centred_PD.T @ centred_PD)
    leading_DK = vectors_DK[:, ::-1][:, :2]
    largest_K = np.abs(leading_DK).argmax(0)
    leading_DK = leading_DK * np.where(leading_DK[largest_K, np.arange(leading_DK.shape[1])] < 0, -1, 1)
    place_P2 = np.zeros((len(z_PD), 2))
    place_P2[:, : leading_DK.shape[1]] = centred_PD @ leading_DK
    whole = float((centred_PD**2).sum())
    share = (place_P2**2).sum(0) / whole if whole > 0 else np.zeros(2)
    return place_P2, (f"PC 1 ({share[0]:.0%} of variance)", f"PC 2 ({share[1]:.0%} of variance)")


def degrees(graphs: Sequence[KnowledgeGraph], num_nodes: int) -> NDArray[np.int64]:
    """(P,) edges of all graphs that begin or end at each node."""
    ends = [graph.edges_2E.ravel() for graph in graphs]
    return np.bincount(np.concatenate(ends or [np.zeros(0, np.int32)]), minlength=num_nodes)


def chosen_sets(sets: Mapping[str, frozenset[str]], perturbed: frozenset[str]) -> tuple[str, ...]:
    """At most ``MOST_PATHWAYS`` sets that tell perturbed genes apart, each by genes that no earlier one has.

    The next one is that of the largest n^2 / size, n its perturbed genes that are not yet in one (two at
    least): many of the screen's genes, in a small set. Ties go to the first in the file.
    """
    chosen: list[str] = []
    left = set(perturbed)
    while len(chosen) < MOST_PATHWAYS:
        number = {name: len(genes & left) for name, genes in sets.items()}
        some = {name: n**2 / len(sets[name]) for name, n in number.items() if n >= _FEWEST_GENES}
        if not some:
            break
        best = max(some, key=lambda name: some[name])
        chosen.append(best)
        left -= sets[best]
    return tuple(chosen)


def _umap(z_PD: NDArray[np.floating]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    if importlib.util.find_spec("umap") is None:
        raise InputError("--map umap needs umap-learn; install it (pip install umap-learn), or use --map pca")
    from umap import UMAP

    if len(z_PD) <= _NEIGHBOURS:
        raise InputError(f"--map umap: {len(z_PD)} nodes are too few for UMAP; use --map pca")
    place_P2 = UMAP(n_neighbors=_NEIGHBOURS, random_state=0, n_jobs=1).fit_transform(z_PD)
    return np.asarray(place_P2, np.float64), ("UMAP 1", "UMAP 2")
