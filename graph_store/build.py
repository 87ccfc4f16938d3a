"""From the recipe to a snapshot: read, resolve, select, assemble, write.

Enters: a ``GraphConfig`` with absolute paths. Leaves: a snapshot under ``out`` and a ``BuildSummary``.
Invariants: building again from the same files and recipe changes nothing and reads only hashes; of one source
at a time all pairs are in memory, of the others the kept edges.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from graph_store import snapshot
from graph_store.assemble import Kept, NodeList, Progress, assemble
from graph_store.config import AliasTable, GraphConfig, GraphSpec, KeepAll, TopPercent, files, recipe
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
from graph_store.rewire import num_share, rewire_share
from graph_store.snapshot import UNMATCHED
from graph_store.source_config import (
    CombinedSource,
    EdgesSource,
    EmbeddingSource,
    GmtSource,
    GoSource,
    PerturbSeqSource,
    ReactomeSource,
    StringSource,
)
from graph_store.sources.aliases import read_aliases
from graph_store.sources.combined import Part, combine
from graph_store.sources.edges import read_edges
from graph_store.sources.embedding import read_embedding
from graph_store.sources.gmt import read_gmt
from graph_store.sources.go import read_go
from graph_store.sources.nodes import read_node_names
from graph_store.sources.reactome import read_reactome
from graph_store.sources.screen import ScreenReader, screen_graph
from graph_store.sources.source import SourceGraph
from graph_store.sources.string import read_string
from graph_store.sparsify import Edges, downsample, sparsify

STORE_MANIFEST = "manifest.json"
"""The file of a cell store that lists the hashes of all others, and so stands for them."""
DOWNSAMPLED = "edges left out by downsampling"
REWIRED = "edges chosen for rewiring"


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
    config: GraphConfig,
    *,
    out: Path,
    progress: Progress = lambda _what, _done, _total: None,
    read_screen: ScreenReader | None = None,
) -> BuildSummary:
    """Build the snapshot that ``config`` describes under ``out``, unless it is there.

    ``read_screen`` reads cell stores, for recipes that name one. Raises ``GraphError`` naming file and place
    for input that cannot be used.
    """
    total = len(config.graphs) + 4
    progress("hash inputs", 0, total)
    inputs = _inputs(config)
    present = _find(out, recipe(config), inputs)
    if present is not None:
        progress("already built", total, total)
        return _summary(out, present, was_there=True)
    progress("read gene names", 1, total)
    tables = _alias_tables(config)
    aliases = read_aliases(tables) if tables else None
    nodes = _node_list(config.nodes, aliases) if config.nodes is not None else None
    kept: list[Kept] = []
    for number, spec in enumerate(config.graphs):
        progress(f"build {spec.name}", number + 2, total)
        # Nothing here holds on to a source once its edges are kept: it may have millions of pairs.
        kept.append(_keep(spec, *_read(spec, aliases, kept, read_screen), seed=config.seed))
    progress("draw expander, encode positions", total - 2, total)
    draft = assemble(config, inputs, aliases, kept, nodes, progress)
    progress("write snapshot", total - 1, total)
    folder = snapshot.write(out, draft)
    progress("done", total, total)
    return _summary(out, read_record(folder), was_there=False)


def _alias_tables(config: GraphConfig) -> tuple[AliasTable, ...]:
    return (*(() if config.aliases is None else (config.aliases,)), *config.more_aliases)


def _inputs(config: GraphConfig) -> tuple[InputFile, ...]:
    roles = [
        ("aliases" if number == 1 else f"aliases {number}", table.path)
        for number, table in enumerate(_alias_tables(config), start=1)
    ]
    roles += [("nodes", config.nodes)] if config.nodes is not None else []
    for spec in config.graphs:
        for key, path in files(spec.source).items():
            roles.append((f"graph {spec.name}" + ("" if key in ("path", "store") else f" {key}"), path))
    inputs = []
    stores = {spec.source.store for spec in config.graphs if isinstance(spec.source, PerturbSeqSource)}
    for role, path in roles:
        sha256, size = file_digest(path / STORE_MANIFEST if path in stores else path)
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


def _read(
    spec: GraphSpec, aliases: Aliases | None, before: list[Kept], read_screen: ScreenReader | None
) -> tuple[SourceGraph, dict[str, str] | None]:
    """Read one source; of a screen in a cell store also where it comes from."""
    match spec.source:
        case EdgesSource() as source:
            return read_edges(source, aliases), None
        case GmtSource() as source:
            return read_gmt(source, aliases), None
        case StringSource() as source:
            return read_string(source, aliases), None
        case GoSource() as source:
            return read_go(source, aliases), None
        case ReactomeSource() as source:
            return read_reactome(source, aliases), None
        case EmbeddingSource() as source:
            return read_embedding(source, aliases, percent=_percent(spec)), None
        case PerturbSeqSource() as source:
            if read_screen is None:
                raise GraphError(
                    f"graph {spec.name}: reads a cell store, which cannot be done here; build it with "
                    "`txpert graph build` where the store is"
                )
            profiles = read_screen(source)
            return screen_graph(profiles, source, aliases, percent=_percent(spec)), profiles.origin
        case CombinedSource() as source:
            by_name = {part.report.name: Part(part.genes, part.edges) for part in before}
            parts = [by_name[name] for name in source.of]
            return combine(parts, source.how, mirrored=spec.both_directions), None


def _percent(spec: GraphSpec) -> float:
    if not isinstance(spec.keep, TopPercent):
        raise GraphError(f"graph {spec.name}: has every pair of its genes; keep a top_percent of them")
    return spec.keep.percent


def _keep(spec: GraphSpec, source: SourceGraph, origin: dict[str, str] | None, *, seed: int) -> Kept:
    """Select the edges of one source."""
    edges = sparsify(
        source.pairs,
        source.genes,
        # Screens have too many pairs to hand over: their readers have chosen the strongest already.
        spec.keep if source.num_candidates is None else KeepAll(),
        directed=_is_directed(spec),
        mirrored=spec.both_directions,
        seed=seed,
    )
    if not edges.num_edges:
        raise GraphError(f"graph {spec.name}: {_nothing_left(spec, source)}")
    num_pairs = source.pairs.num_edges if source.num_candidates is None else source.num_candidates
    not_kept = num_pairs * (2 if spec.both_directions else 1) - edges.num_edges
    edges, changes = _disturbed(spec, edges, source.genes, seed=seed)
    names = source.resolution
    report = GraphReport(
        name=spec.name,
        **source.counts._asdict(),
        pairs=num_pairs,
        not_kept=not_kept,
        edges=edges.num_edges,
        genes=len(source.genes),
        nodes=len(np.unique(edges.edges_2E)),
        renamed=len(names.renamed),
        ambiguous=len(names.ambiguous),
        unmatched=len(names.unmatched),
        details={**source.details, **changes},
    )
    return Kept(source.genes, names, edges, report, origin)


def _disturbed(
    spec: GraphSpec, edges: Edges, genes: tuple[str, ...], *, seed: int
) -> tuple[Edges, dict[str, int]]:
    """The edges after downsampling and rewiring, and how many of them that concerned."""
    changes, own = {}, _graph_seed(spec.name, seed)
    if spec.downsample < 1:
        kept = downsample(edges, genes, spec.downsample, mirrored=spec.both_directions, seed=own)
        changes[DOWNSAMPLED] = edges.num_edges - kept.num_edges
        edges = kept
    if spec.rewire:
        changes[REWIRED] = num_share(edges.num_edges, spec.rewire)
        ends, weight_E = rewire_share(edges.edges_2E, edges.weight_E, len(genes), share=spec.rewire, seed=own)
        edges = Edges(ends, weight_E)
    return edges, changes


def _is_directed(spec: GraphSpec) -> bool:
    """Whether the pairs of the source have directions already."""
    match spec.source:
        case EdgesSource() as source:
            return source.directed
        case CombinedSource():
            return not spec.both_directions
        case _:
            return False


def _nothing_left(spec: GraphSpec, source: SourceGraph) -> str:
    if isinstance(spec.source, CombinedSource):
        return (
            f"{' and '.join(spec.source.of)} have no pair in common; combine other graphs, or take the union"
        )
    file = next(iter(files(spec.source).values()))
    return f"no edge is left of the {source.counts.rows} rows of {file}; lower the minimum or check the file"


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
