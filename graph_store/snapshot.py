"""Immutable snapshots: a folder of Arrow files named by the hash of what is in them.

Enters: genes, graphs, aliases and the recipe they follow. Leaves: ``<out>/<id>/`` and, from it, a
``Snapshot``. Invariants: the id is a hash of recipe and content (no paths, no file bytes), so it is the same
on every machine and for every order of the input rows; a folder under an id is complete or absent; nothing is
read whose hash does not match.

Files, all Arrow IPC of one record batch (they can be memory-mapped): ``genes.arrow`` (name),
``aliases.arrow`` (alias, name), ``edges-GRAPH.arrow`` (source, target, weight; destination-sorted). Beside
them ``unmatched.csv`` for people and ``snapshot.json``.
"""

import csv
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from graph_store.arrow_files import columns, table_bytes, verified_bytes
from graph_store.graph import GraphError, KnowledgeGraph, Snapshot, check_graph
from graph_store.hashing import canonical_json
from graph_store.record import (
    FILE_NAME,
    LAYOUT,
    FileHash,
    GraphReport,
    InputFile,
    Record,
    read_record,
    to_text,
)

UNMATCHED = "unmatched.csv"


class UnmatchedName(NamedTuple):
    """A name of a source that could not be brought to one approved symbol."""

    graph: str
    name: str
    reason: str
    """``unmatched`` or ``ambiguous``."""
    candidates: tuple[str, ...]
    """Symbols a person may want to look at; nothing was done with them."""


class Draft(NamedTuple):
    """All that goes into a snapshot."""

    recipe: dict[str, Any]
    inputs: tuple[InputFile, ...]
    genes: tuple[str, ...]
    graphs: tuple[KnowledgeGraph, ...]
    aliases: dict[str, str]
    reports: tuple[GraphReport, ...]
    unmatched: tuple[UnmatchedName, ...]


def snapshot_id(
    recipe: dict[str, Any],
    genes: Sequence[str],
    graphs: Sequence[KnowledgeGraph],
    aliases: dict[str, str],
) -> str:
    """32 hex digits: the hash of layout, recipe, names and arrays."""
    content = {
        "layout": LAYOUT,
        "recipe": recipe,
        "genes": list(genes),
        "aliases": aliases,
        "graphs": [
            [
                graph.name,
                hashlib.sha256(np.ascontiguousarray(graph.edges_2E, dtype="<i4").tobytes()).hexdigest(),
                hashlib.sha256(np.ascontiguousarray(graph.weight_E, dtype="<f4").tobytes()).hexdigest(),
            ]
            for graph in graphs
        ],
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]


def write(out: Path, draft: Draft) -> Path:
    """Write the snapshot under ``out`` and return its folder; a whole one that is there already stays.

    Raises ``GraphError`` when ``out`` cannot be written.
    """
    for graph in draft.graphs:
        check_graph(graph, len(draft.genes))
    identity = snapshot_id(draft.recipe, draft.genes, draft.graphs, draft.aliases)
    final = out / identity
    if _is_whole(final):
        return final
    building = out / f".building-{identity}-{secrets.token_hex(4)}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        _fill(building, draft, identity)
        _publish(building, final)
    except OSError as error:
        raise GraphError(
            f"{out}: snapshot cannot be written ({error.strerror}); check space, rights"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return final


def read(folder: Path) -> Snapshot:
    """The snapshot in ``folder``, every file and the id verified; ``GraphError`` names what is damaged."""
    record = read_record(folder)
    names = [report.name for report in record.graphs]
    expected = {"genes.arrow", "aliases.arrow", UNMATCHED, *map(_edges_file, names)}
    if set(record.files) != expected or record.id != folder.name:
        raise GraphError(f"{folder / FILE_NAME}: does not belong to this folder; build the snapshot again")
    content = {name: verified_bytes(folder / name, record.files[name]) for name in sorted(expected)}
    (genes,) = columns(content["genes.arrow"], "name")
    alias, name_of_alias = columns(content["aliases.arrow"], "alias", "name")
    graphs = tuple(_graph(name, content[_edges_file(name)]) for name in names)
    aliases = dict(zip(alias.tolist(), name_of_alias.tolist(), strict=True))
    snapshot = Snapshot(record.id, tuple(genes.tolist()), graphs, aliases)
    if snapshot_id(record.recipe, snapshot.genes, graphs, aliases) != record.id:
        raise GraphError(f"{folder}: content does not hash to its id; build the snapshot again")
    for graph in graphs:
        check_graph(graph, len(snapshot.genes))
    return snapshot


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        read(folder)
    except GraphError:
        return False
    return True


def _fill(folder: Path, draft: Draft, identity: str) -> None:
    content = {
        "genes.arrow": table_bytes({"name": draft.genes}),
        "aliases.arrow": table_bytes({"alias": tuple(draft.aliases), "name": tuple(draft.aliases.values())}),
    }
    for graph in draft.graphs:
        source, target = graph.edges_2E
        content[_edges_file(graph.name)] = table_bytes(
            {"source": source, "target": target, "weight": graph.weight_E}
        )
    content[UNMATCHED] = _unmatched_text(draft.unmatched).encode()
    record = Record(
        layout=LAYOUT,
        id=identity,
        recipe=draft.recipe,
        inputs=list(draft.inputs),
        num_genes=len(draft.genes),
        num_aliases=len(draft.aliases),
        graphs=list(draft.reports),
        files={
            name: FileHash(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
            for name, data in content.items()
        },
    )
    for name, data in {**content, FILE_NAME: to_text(record).encode("ascii")}.items():
        with (folder / name).open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def _publish(building: Path, final: Path) -> None:
    """Move the finished folder into place; a damaged one there goes, a whole one (a faster build) stays."""
    if final.exists() and not _is_whole(final):
        shutil.rmtree(final)
    try:
        building.rename(final)
    except OSError:
        if not _is_whole(final):
            raise


def _edges_file(name: str) -> str:
    return f"edges-{name}.arrow"


def _unmatched_text(unmatched: Sequence[UnmatchedName]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(UnmatchedName._fields)
    rows.writerows([item.graph, item.name, item.reason, " ".join(item.candidates)] for item in unmatched)
    return text.getvalue()


def _graph(name: str, data: bytes) -> KnowledgeGraph:
    source, target, weight_E = columns(data, "source", "target", "weight")
    edges_2E = np.stack([source, target])
    edges_2E.setflags(write=False)
    return KnowledgeGraph(name, edges_2E, weight_E)
