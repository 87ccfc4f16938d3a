"""What a snapshot is like: sizes, degrees, components, overlap of its graphs, and what they know of a screen.

Enters: a ``Snapshot``, and for coverage the names of perturbed genes. Leaves: plain numbers and names (no
arrays), the same for the same snapshot. Invariants: a gene belongs to a graph when it has an edge there;
"neighbours" and "pairs" do not look at directions (A -> B and B -> A are one pair), "edges" and in- and
out-degrees do; pairs of several graphs together are counted once.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from graph_store.graph import KnowledgeGraph, Snapshot

TOGETHER = "(together)"
"""Stands for all graphs as one where graphs go by name; no graph can be called so."""
NUM_HUBS = 5


class Degrees(NamedTuple):
    """How a number of edges (or neighbours) is distributed over the genes of a graph."""

    mean: float
    median: float
    percentile_90: float
    largest: int
    counts: tuple[tuple[int, int], ...]
    """(degree, number of genes that have it), ascending; degrees that no gene has are left out."""


class Weights(NamedTuple):
    """How the weights of a graph are distributed."""

    lowest: float
    median: float
    highest: float


class Hub(NamedTuple):
    """A gene with many neighbours."""

    gene: str
    neighbours: int


class GraphStatistics(NamedTuple):
    """One graph, or all of them together."""

    name: str
    nodes: int
    """Genes with an edge."""
    isolated: int
    """Genes of the snapshot without one."""
    edges: int
    pairs: int
    """Genes joined, whatever the direction."""
    components: int
    """Parts that hang together by edges of any direction; isolated genes are not counted."""
    largest_component: int
    """Genes in the largest of them."""
    neighbours: Degrees
    in_degree: Degrees
    """Over the genes with an edge: those that only have outgoing ones count as 0."""
    out_degree: Degrees
    hubs: tuple[Hub, ...]
    """The genes with the most neighbours; ties by gene order."""
    weights: Weights | None
    """None without edges, and of several graphs together."""


class Overlap(NamedTuple):
    """What two graphs have in common."""

    first: str
    second: str
    genes: int
    """Genes with an edge in both."""
    pairs: int
    """Pairs joined in both."""
    share_of_first: float
    """``pairs`` of the first graph's pairs; 0 when it has none."""
    share_of_second: float
    jaccard: float
    """``pairs`` of the pairs that are joined in either."""


class Statistics(NamedTuple):
    """Everything about a snapshot that needs nothing else."""

    genes: int
    graphs: tuple[GraphStatistics, ...]
    together: GraphStatistics
    overlaps: tuple[Overlap, ...]
    """Each two graphs once, in the snapshot's order."""
    pairs_by_graphs: tuple[int, ...]
    """How many pairs are joined in exactly 1, 2, ... of the graphs."""
    isolated: tuple[str, ...]
    """Genes without an edge in any graph."""


class GraphCoverage(NamedTuple):
    """What one graph (or all together) knows of a screen."""

    graph: str
    genes: int
    """Perturbed genes with an edge."""
    median_neighbours: float
    """Of these; 0 when there is none."""
    pairs: int
    """Pairs of perturbed genes that are joined: what lets one tell about another directly."""


class Coverage(NamedTuple):
    """How the perturbed genes of a screen are found; genes = by name + by alias + absent."""

    genes: int
    by_name: int
    by_alias: dict[str, str]
    """Perturbed genes that are nodes by another name -> node name."""
    absent: tuple[str, ...]
    """Perturbed genes that are no node: they are trained as isolated ones."""
    without_edges: tuple[str, ...]
    """Perturbed genes that are nodes but have no edge in any graph."""
    graphs: tuple[GraphCoverage, ...]
    together: GraphCoverage


def summarise(snapshot: Snapshot) -> Statistics:
    """The statistics of ``snapshot``."""
    outlines = [_outline(graph, len(snapshot.genes)) for graph in snapshot.graphs]
    pairs = np.concatenate([np.zeros(0, np.int64), *(outline.pairs for outline in outlines)])
    _, times = np.unique(pairs, return_counts=True)
    joined = _together(snapshot)
    with_edges = set(_nodes(joined, len(snapshot.genes)).tolist())
    return Statistics(
        genes=len(snapshot.genes),
        graphs=tuple(_of_graph(graph, snapshot.genes) for graph in snapshot.graphs),
        together=_of_graph(joined, snapshot.genes)._replace(weights=None),
        overlaps=tuple(_overlap(first, second) for first, second in combinations(outlines, 2)),
        pairs_by_graphs=tuple(np.bincount(times, minlength=len(outlines) + 1)[1:].tolist()),
        isolated=tuple(gene for node, gene in enumerate(snapshot.genes) if node not in with_edges),
    )


def coverage(snapshot: Snapshot, perturbed: Iterable[str]) -> Coverage:
    """What ``snapshot`` knows of the genes ``perturbed``; a name that is a node means that node.

    Names given twice count once; two names of one node count as two genes, but never as a pair.
    """
    position = {gene: node for node, gene in enumerate(snapshot.genes)}
    names = sorted(set(perturbed))
    by_alias = {
        name: snapshot.aliases[name]
        for name in names
        if name not in position and snapshot.aliases.get(name) in position
    }
    node_of = {
        name: position[by_alias.get(name, name)] for name in names if name in position or name in by_alias
    }
    joined = _together(snapshot)
    with_edges = set(_nodes(joined, len(snapshot.genes)).tolist())
    return Coverage(
        genes=len(names),
        by_name=len(node_of) - len(by_alias),
        by_alias=by_alias,
        absent=tuple(name for name in names if name not in node_of),
        without_edges=tuple(name for name, node in node_of.items() if node not in with_edges),
        graphs=tuple(_graph_coverage(graph, node_of, len(snapshot.genes)) for graph in snapshot.graphs),
        together=_graph_coverage(joined, node_of, len(snapshot.genes)),
    )


def _graph_coverage(graph: KnowledgeGraph, node_of: Mapping[str, int], num_genes: int) -> GraphCoverage:
    nodes = np.fromiter(node_of.values(), np.int64, len(node_of))
    first, second = _ends(_pair_keys(graph.edges_2E, num_genes), num_genes)
    neighbours = np.bincount(np.concatenate([first, second]), minlength=num_genes)[nodes]
    known = neighbours[neighbours > 0]
    return GraphCoverage(
        graph=graph.name,
        genes=len(known),
        median_neighbours=float(np.median(known)) if len(known) else 0.0,
        pairs=int((np.isin(first, nodes) & np.isin(second, nodes)).sum()),
    )


def _together(snapshot: Snapshot) -> KnowledgeGraph:
    """Every edge of any graph once; the weights, which have no common scale, are 1."""
    num_genes = max(len(snapshot.genes), 1)
    keys = [graph.edges_2E[1].astype(np.int64) * num_genes + graph.edges_2E[0] for graph in snapshot.graphs]
    target, source = np.divmod(_distinct(np.concatenate([np.zeros(0, np.int64), *keys])), num_genes)
    edges_2E = np.stack([source, target]).astype(np.int32)
    return KnowledgeGraph(TOGETHER, edges_2E, np.ones(edges_2E.shape[1], np.float32))


def _of_graph(graph: KnowledgeGraph, genes: tuple[str, ...]) -> GraphStatistics:
    nodes = _nodes(graph, len(genes))
    first, second = _ends(_pair_keys(graph.edges_2E, len(genes)), len(genes))
    neighbours = np.bincount(np.concatenate([first, second]), minlength=len(genes))
    hubs = np.argsort(-neighbours, kind="stable")[: min(NUM_HUBS, len(nodes))]
    sizes = _component_sizes(first, second, len(genes))
    return GraphStatistics(
        name=graph.name,
        nodes=len(nodes),
        isolated=len(genes) - len(nodes),
        edges=graph.edges_2E.shape[1],
        pairs=len(first),
        components=len(sizes),
        largest_component=int(sizes.max(initial=0)),
        neighbours=_degrees(neighbours[nodes]),
        in_degree=_degrees(np.bincount(graph.edges_2E[1], minlength=len(genes))[nodes]),
        out_degree=_degrees(np.bincount(graph.edges_2E[0], minlength=len(genes))[nodes]),
        hubs=tuple(Hub(genes[node], int(neighbours[node])) for node in hubs),
        weights=_weights(graph.weight_E),
    )


class _Outline(NamedTuple):
    """What graphs are compared by."""

    name: str
    nodes: NDArray[np.int64]
    pairs: NDArray[np.int64]


def _outline(graph: KnowledgeGraph, num_genes: int) -> _Outline:
    return _Outline(graph.name, _nodes(graph, num_genes), _pair_keys(graph.edges_2E, num_genes))


def _overlap(first: _Outline, second: _Outline) -> Overlap:
    pairs = len(np.intersect1d(first.pairs, second.pairs, assume_unique=True))
    return Overlap(
        first=first.name,
        second=second.name,
        genes=len(np.intersect1d(first.nodes, second.nodes, assume_unique=True)),
        pairs=pairs,
        share_of_first=pairs / max(len(first.pairs), 1),
        share_of_second=pairs / max(len(second.pairs), 1),
        jaccard=pairs / max(len(first.pairs) + len(second.pairs) - pairs, 1),
    )


def _nodes(graph: KnowledgeGraph, num_genes: int) -> NDArray[np.int64]:
    """Numbers of the genes that have an edge, ascending."""
    return np.flatnonzero(np.bincount(graph.edges_2E.ravel(), minlength=num_genes))


def _pair_keys(edges_2E: NDArray[np.int32], num_genes: int) -> NDArray[np.int64]:
    """One number for each pair of joined genes, ascending."""
    source, target = edges_2E.astype(np.int64)
    return _distinct(np.minimum(source, target) * num_genes + np.maximum(source, target))


def _distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers, none negative, once each and ascending; ``np.unique`` hashes first, which takes longer."""
    ascending = np.sort(numbers)
    return ascending[np.diff(ascending, prepend=-1) > 0]


def _ends(pairs: NDArray[np.int64], num_genes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    low, high = np.divmod(pairs, max(num_genes, 1))
    return low, high


def _component_sizes(
    first: NDArray[np.int64], second: NDArray[np.int64], num_genes: int
) -> NDArray[np.int64]:
    """Genes of each component that has an edge."""
    if not len(first):
        return np.zeros(0, np.int64)
    joined = sparse.coo_array((np.ones(len(first), np.int8), (first, second)), shape=(num_genes, num_genes))
    _, component = sparse.csgraph.connected_components(joined, directed=False)
    sizes = np.bincount(component)
    # A gene has no edge with itself, so what is alone has none.
    return sizes[sizes > 1]


def _degrees(degree: NDArray[np.int64]) -> Degrees:
    """Of the genes of a graph, each with its degree."""
    if not len(degree):
        return Degrees(0.0, 0.0, 0.0, 0, ())
    values, counts = np.unique(degree, return_counts=True)
    return Degrees(
        mean=float(degree.mean()),
        median=float(np.median(degree)),
        percentile_90=float(np.percentile(degree, 90)),
        largest=int(values[-1]),
        counts=tuple(zip(values.tolist(), counts.tolist(), strict=True)),
    )


def _weights(weight_E: NDArray[np.float32]) -> Weights | None:
    if not len(weight_E):
        return None
    return Weights(float(weight_E.min()), float(np.median(weight_E)), float(weight_E.max()))
