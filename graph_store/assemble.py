"""From selected edges to everything a snapshot holds, over one vocabulary.

Enters: the kept edges of each source, the list of further nodes, the recipe. Leaves: a ``Draft``. Invariants:
the genes are those that have an edge in some graph and those listed, sorted; edges keep their order.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.config import GraphConfig, recipe
from graph_store.expander import draw_expander
from graph_store.genes import Aliases, Resolution, candidates, node_aliases
from graph_store.graph import GraphError, KnowledgeGraph, PositionalEncoding, PositionalKind
from graph_store.positional import encode
from graph_store.record import GraphReport, InputFile, NodesReport
from graph_store.snapshot import Draft, UnmatchedName
from graph_store.sources.nodes import NodeNames
from graph_store.sparsify import Edges

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, how much there is."""

NODE_LIST = "(nodes)"
"""Stands for the list of further nodes where graphs go by name; no graph can be called so."""


class Kept(NamedTuple):
    """One source after its edges were selected."""

    genes: tuple[str, ...]
    """Sorted names of every gene of the source."""
    resolution: Resolution
    """Of the source's names."""
    edges: Edges
    """Over ``genes``."""
    report: GraphReport
    origin: dict[str, str] | None = None
    """Where a screen's profiles come from, when they were read from a cell store."""


class NodeList(NamedTuple):
    """The list of further nodes."""

    listed: NodeNames
    resolution: Resolution
    """Of the listed names."""


def assemble(
    config: GraphConfig,
    inputs: tuple[InputFile, ...],
    aliases: Aliases | None,
    kept: list[Kept],
    nodes: NodeList | None,
    progress: Progress,
) -> Draft:
    """All parts of the snapshot. Raises ``GraphError`` when the expander or an encoding cannot be made."""
    in_graphs = {part.genes[node] for part in kept for node in np.unique(part.edges.edges_2E)}
    resolutions = [(part.report.name, part.resolution) for part in kept]
    report = None
    if nodes is not None:
        _refuse_missing_header(config, nodes.listed, in_graphs)
        report = _nodes_report(nodes.resolution, in_graphs)
        resolutions.append((NODE_LIST, nodes.resolution))
    genes = tuple(sorted(in_graphs | set(nodes.resolution.names if nodes is not None else ())))
    graphs = _graphs(kept, genes)
    seed = config.seed if config.expander.seed is None else config.expander.seed
    return Draft(
        recipe=recipe(config),
        inputs=inputs,
        genes=genes,
        graphs=graphs,
        aliases=node_aliases(aliases, genes),
        reports=tuple(part.report for part in kept),
        unmatched=tuple(_unmatched(resolutions, aliases)),
        nodes=report,
        expander=draw_expander(len(genes), config.expander.cycles, seed=seed),
        positional=_encodings(config, graphs, len(genes), progress),
        screens={part.report.name: part.origin for part in kept if part.origin is not None},
    )


def _graphs(kept: list[Kept], genes: tuple[str, ...]) -> tuple[KnowledgeGraph, ...]:
    position = {gene: number for number, gene in enumerate(genes)}
    return tuple(
        # Both vocabularies are sorted by name, so the order of the edges stays right.
        KnowledgeGraph(
            part.report.name,
            _renumbering(part.genes, position)[part.edges.edges_2E],
            part.edges.weight_E,
        )
        for part in kept
    )


def _renumbering(names: tuple[str, ...], position: dict[str, int]) -> NDArray[np.int32]:
    return np.array([position.get(name, -1) for name in names], dtype=np.int32)


def _refuse_missing_header(config: GraphConfig, listed: NodeNames, in_graphs: set[str]) -> None:
    if listed.header in in_graphs:
        raise GraphError(
            f"{config.nodes} row 1: is the gene {listed.header}, where a table has its header; give the "
            "column a name, or let the file's name end in .txt"
        )


def _nodes_report(names: Resolution, in_graphs: set[str]) -> NodesReport:
    distinct = set(names.names)
    return NodesReport(
        names=len(names.names),
        duplicates=len(names.names) - len(distinct),
        in_graphs=len(distinct & in_graphs),
        added=len(distinct - in_graphs),
        renamed=len(names.renamed),
        ambiguous=len(names.ambiguous),
        unmatched=len(names.unmatched),
    )


def _encodings(
    config: GraphConfig, graphs: tuple[KnowledgeGraph, ...], num_nodes: int, progress: Progress
) -> tuple[PositionalEncoding, ...]:
    wanted: tuple[tuple[PositionalKind, int], ...] = (
        ("random_walk", config.positional.random_walk),
        ("laplacian", config.positional.laplacian),
    )
    return tuple(
        encode(graph, num_nodes, kind, width, _stage(progress, f"{graph.name}: {kind} encoding"))
        for graph in graphs
        for kind, width in wanted
        if width
    )


def _stage(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _unmatched(
    resolutions: Iterable[tuple[str, Resolution]], aliases: Aliases | None
) -> Iterable[UnmatchedName]:
    if aliases is None:
        return
    for graph, names in resolutions:
        reasons = dict.fromkeys(names.unmatched, "unmatched") | dict.fromkeys(names.ambiguous, "ambiguous")
        near = candidates(aliases, reasons)
        for name in sorted(reasons):
            yield UnmatchedName(graph, name, reasons[name], near[name])
