"""The recipe of a snapshot as one typed tree (``graphs.yaml``).

Enters: a YAML file. Leaves: one frozen ``GraphConfig`` with absolute paths. Unknown keys are refused with the
nearest known one. ``recipe`` is everything that decides the snapshot, without the paths: it enters the
snapshot id.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from graph_store.explain import explain, read_yaml
from graph_store.graph import GraphError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Width = Annotated[int, Field(ge=0, le=256)]
Probability = Annotated[float, Field(ge=0, lt=1)]
MAX_SEED = 2**63 - 1
MAX_CYCLES = 64
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Section(BaseModel):
    """A part of the tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


class AliasTable(Section):
    """A table of gene names: each row another (or the same) name of an approved symbol."""

    path: Path
    alias: str = "Symbol"
    """Column of previous symbols and aliases (approved symbols may stand here too)."""
    approved: str = "Approved.Symbol"
    """Column of approved symbols."""


class Columns(Section):
    """Column names of an edge list; the usual names are recognised when left out."""

    source: str | None = None
    target: str | None = None
    weight: str | None = None

    @model_validator(mode="after")
    def _both_ends(self) -> "Columns":
        if (self.source is None) != (self.target is None):
            raise ValueError("source and target columns must be named together, or neither")
        return self


class EdgesSource(Section):
    """An edge list: csv, tsv, txt (each also .gz) or parquet."""

    kind: Literal["edges"] = "edges"
    path: Path
    columns: Columns = Columns()
    directed: bool = False
    """Edges run from source to target; otherwise a row and its reverse are the same pair."""
    signed: bool = False
    """Weights may be negative (correlations of a screen); everything then goes by the absolute weight."""
    minimum_weight: NonNegativeFloat | None = None
    """Rows of smaller absolute weight are dropped."""


class GmtSource(Section):
    """Gene sets (GMT): genes are joined by the Jaccard index of the sets they are in."""

    kind: Literal["gmt"] = "gmt"
    path: Path
    jaccard_above: Probability = 0.1
    """Pairs with a Jaccard index above this become edges."""


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


Source = Annotated[EdgesSource | GmtSource, Field(discriminator="kind")]
Keep = Annotated[TopInEdges | TopPercent | KeepAll, Field(discriminator="kind"), BeforeValidator(_keep_none)]


class GraphSpec(Section):
    """One knowledge graph: where it comes from and what of it is kept."""

    name: Name
    source: Source
    keep: Keep = TopInEdges()
    both_directions: bool = False
    """Keep an undirected pair as two edges, not as one of arbitrary (seeded) direction."""
    rewire: bool = False
    """Rewire all edges at random, keeping in- and out-degrees: the control of the robustness benchmark."""
    version: str | None = None
    """Version of the source, for the record."""
    licence: str | None = None
    """Licence of the source, for the record."""

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


def recipe(config: GraphConfig) -> dict[str, Any]:
    """Everything that decides the snapshot, as plain JSON values; of paths only whether there is one."""
    plan = config.model_dump(
        mode="json", exclude={"aliases": {"path"}, "graphs": {"__all__": {"source": {"path"}}}, "nodes": True}
    )
    return plan | {"nodes": config.nodes is not None}


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


def _resolved(config: GraphConfig, folder: Path) -> GraphConfig:
    def absolute(section: Any) -> Any:
        return section.model_copy(update={"path": folder / section.path.expanduser()})

    graphs = tuple(spec.model_copy(update={"source": absolute(spec.source)}) for spec in config.graphs)
    aliases = absolute(config.aliases) if config.aliases is not None else None
    nodes = folder / config.nodes.expanduser() if config.nodes is not None else None
    return config.model_copy(update={"aliases": aliases, "graphs": graphs, "nodes": nodes})
