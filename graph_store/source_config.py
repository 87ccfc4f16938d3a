"""Where a knowledge graph comes from, as sections of the recipe: one class a kind of source.

Enters: the ``source:`` of a graph in ``graphs.yaml``. Leaves: a frozen section. Invariant: every file that a
source reads is a ``Path`` field, so that resolving and hashing them need not know the kinds.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the tree: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )


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


StringChannel = Literal[
    "neighborhood",
    "neighborhood_transferred",
    "fusion",
    "cooccurence",
    "coexpression",
    "coexpression_transferred",
    "experiments",
    "experiments_transferred",
    "database",
    "database_transferred",
    "textmining",
    "textmining_transferred",
]
"""Channels of STRING's detailed and full link files, spelt as in the full one (experiments is
``experimental`` in the detailed one)."""


class StringSource(Section):
    """STRING's own files: ``TAXON.protein.links[.detailed|.full].vXX.txt[.gz]`` and ``protein.info``."""

    kind: Literal["string"] = "string"
    path: Path
    """The link file."""
    info: Path | None = None
    """``TAXON.protein.info.vXX.txt[.gz]``: protein -> preferred gene name."""
    protein_aliases: Path | None = None
    """``TAXON.protein.aliases.vXX.txt[.gz]``, in place of ``info``: protein -> names of ``alias_source``."""
    alias_source: str = "Ensembl_HGNC_symbol"
    """Which rows of ``protein_aliases`` name the gene."""
    without: tuple[StringChannel, ...] = ()
    """Channels left out; the combined score is then computed again from the others. With a channel goes what
    other organisms transfer to it; ``textmining_transferred`` leaves out only that."""
    minimum_score: Annotated[int, Field(ge=0, le=1000)] = 400
    """Pairs of a smaller combined score (0 to 1000) are dropped; STRING calls 400 medium and 700 high."""

    @model_validator(mode="after")
    def _one_table_of_names(self) -> "StringSource":
        if self.info is not None and self.protein_aliases is not None:
            raise ValueError("info and protein_aliases both name the genes; give one of them")
        return self


Aspect = Literal["biological_process", "molecular_function", "cellular_component"]


class GoSource(Section):
    """Gene Ontology annotations: genes are joined by the Jaccard index of the terms they have."""

    kind: Literal["go"] = "go"
    path: Path
    """GAF (.gaf), NCBI's gene2go, a JSON object gene -> list of terms (GEARS' gene2go), or a table of terms
    with their genes; each also .gz."""
    format: Literal["gaf", "gene2go", "json", "terms"] | None = None
    """Recognised from name and first line when left out."""
    ontology: Path | None = None
    """OBO file of the ontology; needed for ``propagate``, for aspects of formats without, and brings
    alternative ids to the main one."""
    propagate: bool = False
    """Give a gene also the ancestors of its terms."""
    relations: tuple[Literal["is_a", "part_of"], ...] = ("is_a", "part_of")
    """Relations that ancestors are found along."""
    aspects: tuple[Aspect, ...] | None = None
    """Only terms of these parts of the ontology, ancestors included; all when left out."""
    evidence: tuple[str, ...] | None = None
    """Only annotations with these evidence codes (IDA, IMP ...); all when left out."""
    without_evidence: tuple[str, ...] = ()
    """Annotations with these evidence codes (IEA ...) are left out."""
    taxon: PositiveInt | None = None
    """Only annotations of this NCBI taxon (9606: human); needed when the file has several."""
    jaccard_above: Probability = 0.1
    """Pairs with a Jaccard index above this become edges."""

    @model_validator(mode="after")
    def _can_propagate(self) -> "GoSource":
        if self.propagate and self.ontology is None:
            raise ValueError("propagate needs ontology, an OBO file")
        return self


class ReactomeSource(Section):
    """Reactome's ``*2Reactome`` tables (id, pathway, url, name, evidence, species): Jaccard of pathways."""

    kind: Literal["reactome"] = "reactome"
    path: Path
    species: str = "Homo sapiens"
    without_evidence: tuple[str, ...] = ()
    """Memberships with these evidence codes (IEA, TAS) are left out."""
    jaccard_above: Probability = 0.1
    """Pairs with a Jaccard index above this become edges."""


Centre = Literal["none", "gene", "feature", "both"]


class EmbeddingSource(Section):
    """A table of one embedding a gene (a screen's profiles, images, transcriptomes): |cosine| of pairs."""

    kind: Literal["embedding"] = "embedding"
    path: Path
    """csv, tsv, txt (each also .gz) or parquet; the first column holds gene names, the others numbers."""
    genes_in: Literal["rows", "columns"] = "rows"
    """``columns``: every column but the first is a gene (DepMap's gene effect)."""
    gene_pattern: str | None = None
    """Regular expression whose first group is the name, as ``(.*) \\(\\d+\\)`` for DepMap's ``A1BG (1)``."""
    missing: Literal["refuse", "gene_mean"] = "refuse"
    """What an empty value is: an error, or the mean of the gene's others."""
    centre: Centre = "none"
    """Subtract every gene's or every feature's mean, or both; centred by gene, cosine is Pearson's r."""
    signed: bool = False
    """Keep the sign of the cosine in the weight; the methods take its size."""

    @field_validator("gene_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        if not groups:
            raise ValueError(f"{pattern!r} has no group; put the gene's name in parentheses, as in (.*)_KO")
        return pattern


class PerturbSeqSource(Section):
    """Mean responses straight from a cell store's training split: |cosine| of pairs."""

    kind: Literal["perturb_seq"] = "perturb_seq"
    store: Path
    """The cell store; only its training split is read."""
    held_out_cell_lines: tuple[str, ...] = ()
    """Cell lines whose perturbed cells are not read."""
    minimum_cells: PositiveInt = 10
    """Perturbations with fewer cells are left out."""
    genes: Literal["selected", "all"] = "selected"
    """Responses of the highly variable genes that ingest selected, or of every gene."""
    centre: Centre = "none"
    """As for ``embedding``."""
    signed: bool = False
    """As for ``embedding``."""


class CombinedSource(Section):
    """Graphs named before this one, as one: their kept edges, weights divided by each graph's largest.

    Graphs are compared as pairs; a pair points as in the first graph that has it (or both ways, with
    ``both_directions``). So a ``top_percent`` of a combined graph is one of its ordered pairs.
    """

    kind: Literal["combined"] = "combined"
    of: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Names of the graphs."""
    how: Literal["union", "intersection"]
    """Pairs that some graph has (largest weight), or that all have (smallest weight)."""


ScreenSource = EmbeddingSource | PerturbSeqSource
Source = Annotated[
    EdgesSource
    | GmtSource
    | StringSource
    | GoSource
    | ReactomeSource
    | EmbeddingSource
    | PerturbSeqSource
    | CombinedSource,
    Field(discriminator="kind"),
]
