"""The recipe of a snapshot as one typed tree (``graphs.yaml``).

Enters: a YAML file. Leaves: one frozen ``GraphConfig`` with absolute paths. Unknown keys are refused with the
nearest known one. ``recipe`` is everything that decides the snapshot, without the paths: it enters the
snapshot id.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, ValidationError, model_validator

from graph_store.explain import explain, read_yaml
from graph_store.graph import GraphError
from graph_store.source_config import (
    CombinedSource,
    EdgesSource,
    EmbeddingSource,
    Name,
    PerturbSeqSource,
    Section,
    Share,
    Source,
)

Width = Annotated[int, Field(ge=0, le=256)]
MAX_SEED = 2**63 - 1
MAX_CYCLES = 64
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class AliasTable(Section):
    """A table of gene names: each row other (or the same) names or ids of an approved symbol."""

    path: Path
    alias: tuple[str, ...] | str = "Symbol"
    """Column, or columns, of previous symbols, aliases and ids (approved symbols may stand here too)."""
    approved: str = "Approved.Symbol"
    """Column of approved symbols."""
    separator: str | None = None
    """What stands between several names in one field, as ``|`` in HGNC's complete set."""
    version: str | None = None
    """Version of the table, for the record."""
    licence: str | None = None
    """Licence of the table, for the record."""


class TopInEdges(Section):
    """At most ``count`` incoming edges a target, the largest absolute weights first."""

    kind: Literal["top_in_edges"] = "top_in_edges"
    count: PositiveInt = 20


class TopPercent(Section):
    """The strongest ``percent`` of all possible pairs of the source's genes, by absolute weight."""

    kind: Literal["top_percent"] = "top_percent"
    percent: Annotated[float, Field(gt=0, le=100)] = 1.0


class KeepAll(Section):
    """Every edge of the source."""

    kind: Literal["none"] = "none"


def _keep_none(value: object) -> object:
    return {"kind": "none"} if value == "none" else value


Keep = Annotated[TopInEdges | TopPercent | KeepAll, Field(discriminator="kind"), BeforeValidator(_keep_none)]


_KEEP_BY_KIND = {
    "embedding": {"kind": "top_percent"},
    "perturb_seq": {"kind": "top_percent"},
    "combined": {"kind": "none"},
}
"""What is kept of sources that differ from edge lists when the recipe does not say."""


class GraphSpec(Section):
    """One knowledge graph: where it comes from and what of it is kept."""

    name: Name
    source: Source
    keep: Keep = TopInEdges()
    """When left out: for screens the strongest 1 % of all pairs, for combined graphs everything, otherwise at
    most 20 incoming edges a target."""
    both_directions: bool = False
    """Keep an undirected pair as two edges, not as one of arbitrary (seeded) direction."""
    downsample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the kept edges that stay, chosen at random (for robustness studies)."""
    rewire: Share = 0.0
    """Share of the edges that are rewired at random, keeping in- and out-degrees (``true``: all of them)."""
    version: str | None = None
    """Version of the source, for the record."""
    licence: str | None = None
    """Licence of the source, for the record."""

    @model_validator(mode="before")
    @classmethod
    def _keep_by_source(cls, given: Any) -> Any:
        """Fill in ``keep``, so that the recipe of a snapshot states it."""
        source = given.get("source") if isinstance(given, dict) else None
        kind = source.get("kind") if isinstance(source, dict) else None
        if not isinstance(given, dict) or "keep" in given or kind not in _KEEP_BY_KIND:
            return given
        return {**given, "keep": _KEEP_BY_KIND[kind]}

    @model_validator(mode="after")
    def _screens_keep_a_share(self) -> "GraphSpec":
        if isinstance(self.source, EmbeddingSource | PerturbSeqSource) and not isinstance(
            self.keep, TopPercent
        ):
            raise ValueError(f"keep: a {self.source.kind} source has every pair; keep a top_percent of them")
        return self

    @model_validator(mode="after")
    def _directions(self) -> "GraphSpec":
        if self.both_directions and isinstance(self.source, EdgesSource) and self.source.directed:
            raise ValueError("both_directions is for undirected sources, and this one is directed")
        if self.both_directions and self.rewire:
            raise ValueError("rewire would tear the two directions of a pair apart; choose one of the two")
        return self


class ExpanderOptions(Section):
    """Random cycles through all genes, for encoders that attend along them (Exphormer)."""

    cycles: Annotated[int, Field(ge=0, le=MAX_CYCLES)] = 3
    """Number of cycles; each gives every gene two neighbours. 0: none."""
    seed: Seed | None = None
    """Seed of the cycles; the recipe's when left out."""


class PositionalOptions(Section):
    """Encodings of where a gene stands in each knowledge graph; 0: not computed."""

    random_walk: Width = 0
    """Steps of a random walk after which its probability of being back is kept."""
    laplacian: Width = 0
    """Eigenvectors of the normalised Laplacian."""


class GraphConfig(Section):
    """The recipe of one snapshot."""

    seed: Seed = 0
    """Decides the direction of undirected pairs, the rewiring and the expander."""
    aliases: AliasTable | None = None
    """Table that brings gene names to their approved symbols; names stay as they are without one."""
    more_aliases: tuple[AliasTable, ...] = ()
    """Further tables, read as if they were one with ``aliases`` (ids in a table of their own)."""
    nodes: Path | None = None
    """Genes that are nodes even when no graph has an edge for them: a text file with one name a line, or the
    first column of a csv, tsv or parquet table."""
    expander: ExpanderOptions = ExpanderOptions()
    positional: PositionalOptions = PositionalOptions()
    graphs: Annotated[tuple[GraphSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> "GraphConfig":
        seen: set[str] = set()
        for graph in self.graphs:
            # Graph names become file names, and some file systems do not tell GO from go.
            if graph.name.casefold() in seen:
                raise ValueError(f"graphs: two graphs are named {graph.name}; give each its own name")
            seen.add(graph.name.casefold())
        return self

    @model_validator(mode="after")
    def _combined_come_after(self) -> "GraphConfig":
        before: list[str] = []
        for graph in self.graphs:
            if isinstance(graph.source, CombinedSource):
                for name in graph.source.of:
                    if name not in before or graph.source.of.count(name) > 1:
                        raise ValueError(
                            f"graphs: {graph.name} combines {name}; name each graph once, and graphs that "
                            f"stand before it ({', '.join(before) or 'there is none'})"
                        )
            before.append(graph.name)
        return self


def recipe(config: GraphConfig) -> dict[str, Any]:
    """Everything that decides the snapshot, as plain JSON values; of paths only whether there is one."""
    return {key: _plan(value) for key, value in config} | {"nodes": config.nodes is not None}


def files(section: Section) -> dict[str, Path]:
    """The files (and stores) that a section names, by key, in the order of the keys."""
    return {key: value for key, value in section if isinstance(value, Path)}


def load(path: Path) -> GraphConfig:
    """Read the recipe in ``path``; relative paths in it are relative to the file's folder.

    Raises ``GraphError`` of one line naming the file, the line, the key and, for a misspelt key, the nearest
    known one.
    """
    tree, root = read_yaml(path)
    try:
        config = GraphConfig.model_validate(tree)
    except ValidationError as error:
        # The first one only: one mistake often shows up a second time at a later key.
        raise GraphError(f"{path}{explain(dict(error.errors()[0]), root, GraphConfig)}") from None
    return _resolved(config, path.absolute().parent)


def _plan(value: Any) -> Any:
    if isinstance(value, Section):
        return {key: _plan(item) for key, item in value if key not in ("path", "store")}
    if isinstance(value, tuple):
        return [_plan(item) for item in value]
    return True if isinstance(value, Path) else value


def _resolved(config: GraphConfig, folder: Path) -> GraphConfig:
    return config.model_copy(update={key: _absolute(value, folder) for key, value in config})


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, Section):
        return value.model_copy(update={key: _absolute(item, folder) for key, item in value})
    if isinstance(value, tuple):
        return tuple(_absolute(item, folder) for item in value)
    return folder / value.expanduser() if isinstance(value, Path) else value
