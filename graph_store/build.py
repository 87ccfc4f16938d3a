"""From the recipe to a snapshot: read, resolve, select, assemble, write.

Enters: a ``GraphConfig`` with absolute paths. Leaves: a snapshot under ``out`` and a ``BuildSummary``.
Invariant: building again from the same files and recipe changes nothing and reads only hashes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from graph_store import snapshot
from graph_store.assemble import Kept, NodeList, Progress, assemble
from graph_store.config import EdgesSource, GraphConfig, GraphSpec, recipe
from graph_store.genes import Aliases, resolve
from graph_store.graph import GraphError
from graph_store.hashing import file_digest, name_hashes
from graph_store.record import (
    ExpanderReport,
    GraphReport,
    InputFile,
    NodesReport,
    PositionalReport,
    Record,
    read_record,
    snapshot_ids,
)
from graph_store.rewire import rewire
from graph_store.snapshot import UNMATCHED
from graph_store.sources.aliases import read_aliases
from graph_store.sources.edges import read_edges
from graph_store.sources.gmt import read_gmt
from graph_store.sources.nodes import read_node_names
from graph_store.sparsify import Edges, sparsify


class BuildSummary(NamedTuple):
    """What was built, or found built already."""

    id: str
    path: Path
    num_genes: int
    num_aliases: int
    nodes: NodesReport | None
    graphs: tuple[GraphReport, ...]
    expander: ExpanderReport
    positional: tuple[PositionalReport, ...]
    unmatched: Path
    """Table of the names that could not be brought to one approved symbol."""
    was_there: bool
    """The same snapshot had been built before; nothing was done."""


def build(
    config: GraphConfig, *, out: Path, progress: Progress = lambda _what, _done, _total: None
) -> BuildSummary:
    """Build the snapshot that ``config`` describes under ``out``, unless it is there.

    Raises ``GraphError`` naming file and place for input that cannot be used.
    """
    total = len(config.graphs) + 4
    progress("hash inputs", 0, total)
    inputs = _inputs(config)
    present = _find(out, recipe(config), inputs)
    if present is not None:
        progress("already built", total, total)
        return _summary(out, present, was_there=True)
    progress("read gene names", 1, total)
    aliases = read_aliases(config.aliases) if config.aliases is not None else None
    nodes = _node_list(config.nodes, aliases) if config.nodes is not None else None
    kept = []
    for number, spec in enumerate(config.graphs):
        progress(f"build {spec.name}", number + 2, total)
        kept.append(_keep(spec, aliases, seed=config.seed))
    progress("draw expander, encode positions", total - 2, total)
    draft = assemble(config, inputs, aliases, kept, nodes, progress)
    progress("write snapshot", total - 1, total)
    folder = snapshot.write(out, draft)
    progress("done", total, total)
    return _summary(out, read_record(folder), was_there=False)


def _inputs(config: GraphConfig) -> tuple[InputFile, ...]:
    roles = [("aliases", config.aliases.path)] if config.aliases is not None else []
    roles += [("nodes", config.nodes)] if config.nodes is not None else []
    roles += [(f"graph {spec.name}", spec.source.path) for spec in config.graphs]
    inputs = []
    for role, path in roles:
        sha256, size = file_digest(path)
        inputs.append(InputFile(role=role, name=path.name, sha256=sha256, size=size))
    return tuple(inputs)


def _find(out: Path, plan: dict[str, Any], inputs: tuple[InputFile, ...]) -> Record | None:
    """The whole snapshot of this recipe and these file contents, if it is there."""
    wanted = [(file.role, file.sha256) for file in inputs]
    for identity in snapshot_ids(out):
        try:
            record = read_record(out / identity)
            if record.recipe == plan and [(file.role, file.sha256) for file in record.inputs] == wanted:
                snapshot.read(out / identity)
                return record
        except GraphError:
            # Somebody else's damaged snapshot is no obstacle; our own is written again.
            continue
    return None


def _node_list(path: Path, aliases: Aliases | None) -> NodeList:
    listed = read_node_names(path)
    return NodeList(listed, resolve(listed.names, aliases))


def _keep(spec: GraphSpec, aliases: Aliases | None, *, seed: int) -> Kept:
    """Read one source and select its edges."""
    if isinstance(spec.source, EdgesSource):
        source, directed = read_edges(spec.source, aliases), spec.source.directed
    else:
        source, directed = read_gmt(spec.source, aliases), False
    edges = sparsify(
        source.pairs, source.genes, spec.keep, directed=directed, mirrored=spec.both_directions, seed=seed
    )
    if not edges.num_edges:
        raise GraphError(
            f"graph {spec.name}: no edge is left of the {source.counts.rows} rows of {spec.source.path}; "
            "lower the minimum or check the file"
        )
    if spec.rewire:
        edges_2E = rewire(edges.edges_2E, len(source.genes), seed=_graph_seed(spec.name, seed))
        edges = Edges(edges_2E, edges.weight_E)
    names = source.resolution
    report = GraphReport(
        name=spec.name,
        **source.counts._asdict(),
        pairs=source.pairs.num_edges,
        not_kept=source.pairs.num_edges * (2 if spec.both_directions else 1) - edges.num_edges,
        edges=edges.num_edges,
        genes=len(source.genes),
        nodes=len(np.unique(edges.edges_2E)),
        renamed=len(names.renamed),
        ambiguous=len(names.ambiguous),
        unmatched=len(names.unmatched),
    )
    return Kept(source, edges, report)


def _graph_seed(name: str, seed: int) -> int:
    return int(name_hashes([name], seed=seed)[0] >> np.uint64(1))


def _summary(out: Path, record: Record, *, was_there: bool) -> BuildSummary:
    folder = out / record.id
    return BuildSummary(
        id=record.id,
        path=folder,
        num_genes=record.num_genes,
        num_aliases=record.num_aliases,
        nodes=record.nodes,
        graphs=tuple(record.graphs),
        expander=record.expander,
        positional=tuple(record.positional),
        unmatched=folder / UNMATCHED,
        was_there=was_there,
    )
