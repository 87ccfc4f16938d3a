"""``snapshot.json``: what a snapshot was made of and what its files must be.

Enters: a ``Record``. Leaves: its one canonical text, which carries its own SHA-256, and back. Invariant: a
text that is not byte for byte what we would write is refused, so no damage to it goes unnoticed.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from graph_store.graph import GraphError

FILE_NAME = "snapshot.json"
LAYOUT = 3
"""Version of the files of a snapshot, and of the rules from recipe to arrays; another one is refused."""


ID = re.compile(r"[0-9a-f]{32}")
"""What a snapshot id looks like; nothing else becomes the name of a folder."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileHash(_Part):
    """What a file must be."""

    sha256: str
    size: int


class InputFile(_Part):
    """A file the snapshot was built from; its folder is nobody's business."""

    role: str
    """``aliases`` (the next tables: ``aliases 2`` ...), ``nodes``, ``graph NAME``, and ``graph NAME KEY`` for
    what a source reads beside its main file."""
    name: str
    sha256: str
    """Of a cell store: that of its manifest, which lists the hashes of its files."""
    size: int


class GraphReport(_Part):
    """What became of one source; rows = self_loops + below_minimum + duplicates + pairs for an edge list."""

    name: str
    rows: int
    """Rows of an edge list, memberships of gene sets."""
    self_loops: int
    duplicates: int
    """Rows merged into another of the same edge (pair, when undirected); repeated memberships."""
    below_minimum: int
    """Rows under the minimum weight; gene pairs that share a set but not enough."""
    pairs: int
    """Distinct edges (pairs, when undirected) that the filter chose from."""
    not_kept: int
    """Of those (twice as many with both_directions) what the filter left out."""
    edges: int
    """What is in the snapshot: without what ``not_kept`` and downsampling (in ``details``) left out."""
    genes: int
    """Genes of the source."""
    nodes: int
    """Genes that still have an edge."""
    renamed: int
    """Names brought to their approved symbol."""
    ambiguous: int
    """Names that mean several genes, left as they are."""
    unmatched: int
    """Names that the gene table does not know, left as they are."""
    details: dict[str, int] = {}
    """What else was counted for this kind of source, by a few plain words."""


class NodesReport(_Part):
    """What became of the list of further nodes; names = duplicates + in_graphs + added."""

    names: int
    duplicates: int
    """Names that mean a gene which the list has already."""
    in_graphs: int
    """Genes that a graph has too."""
    added: int
    """Genes that are nodes because of the list alone: they have expander edges only."""
    renamed: int
    """Names brought to their approved symbol."""
    ambiguous: int
    """Names that mean several genes, left as they are."""
    unmatched: int
    """Names that the gene table does not know, left as they are."""


class ExpanderReport(_Part):
    """The random cycles through all nodes."""

    cycles: int
    edges: int
    """Both directions counted."""
    tries: int
    """Draws until the spectral gap was wide enough; 0 without cycles."""
    lambda_2: float
    """Second largest eigenvalue of the cycles' adjacency matrix."""
    gap: float
    """The largest eigenvalue, which is the degree, minus ``lambda_2``."""


class PositionalReport(_Part):
    """One positional encoding; the kinds are those of ``graph_store.graph.PositionalKind``."""

    graph: str
    kind: Literal["random_walk", "laplacian"]
    width: int
    """Steps of the walk, or eigenvectors."""


class Record(_Part):
    """Everything ``snapshot.json`` says."""

    layout: int
    id: str
    recipe: dict[str, Any]
    """The graph configuration without paths; versions and licences of the sources stand here."""
    inputs: list[InputFile]
    num_genes: int
    num_aliases: int
    nodes: NodesReport | None
    """None when the recipe lists no further nodes."""
    graphs: list[GraphReport]
    expander: ExpanderReport
    positional: list[PositionalReport]
    screens: dict[str, dict[str, str]] = {}
    """Graph -> where its screen's profiles come from, for graphs made from a cell store."""
    files: dict[str, FileHash]


def to_text(record: Record) -> str:
    """The canonical text of a record."""
    body = record.model_dump(mode="json")
    return _spell({**body, "sha256": hashlib.sha256(_spell(body).encode()).hexdigest()})


def read_record(folder: Path) -> Record:
    """The record of the snapshot in ``folder``; ``GraphError`` when missing, damaged or of another layout."""
    path = folder / FILE_NAME
    try:
        text = path.read_bytes().decode("ascii")
        body = json.loads(text)
        layout = body.get("layout") if isinstance(body, dict) else None
    except FileNotFoundError:
        raise GraphError(f"{path}: is missing, so this is no whole snapshot; build it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise GraphError(f"{path}: is damaged ({error}); build the snapshot again") from None
    if isinstance(layout, int) and layout != LAYOUT and _sealed(body):
        raise GraphError(f"{path}: is of layout {layout} and this software reads {LAYOUT}; build it again")
    try:
        record = Record.model_validate({key: body[key] for key in body if key != "sha256"})
    except (ValidationError, TypeError):
        raise GraphError(f"{path}: is damaged; build the snapshot again") from None
    if to_text(record) != text:
        raise GraphError(f"{path}: is damaged or was edited; build the snapshot again")
    return record


def snapshot_ids(folder: Path) -> tuple[str, ...]:
    """The ids in a folder of snapshots, sorted; none when the folder is not there."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in folder.iterdir() if ID.fullmatch(entry.name)))


def _sealed(body: dict[str, Any]) -> bool:
    rest = {key: value for key, value in body.items() if key != "sha256"}
    return body.get("sha256") == hashlib.sha256(_spell(rest).encode()).hexdigest()


def _spell(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
