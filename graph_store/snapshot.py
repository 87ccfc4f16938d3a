"""Immutable snapshots: a folder of Arrow files named by the hash of what is in them.

Enters: genes, graphs, aliases, expander, positional encodings and the recipe they follow. Leaves:
``<out>/<id>/`` and, from it, a ``Snapshot``. Invariants: the id is a hash of recipe and content (no paths, no
file bytes), so it is the same on every machine and for every order of the input rows; a folder under an id is
complete or absent; nothing is read whose hash does not match.

The numbers of positional encodings follow from the edges but for their last digits, which differ between
machines and library versions. They enter the id by graph, kind and width only; as files they are hashed like
the others, so a snapshot that is copied keeps its very numbers.

What follows from the edges alone (the supra-adjacency, the indices for kernels) is made here, once, and does
not enter the id either.

Beside the Arrow files (see ``graph_store.tables``) lie ``unmatched.csv`` for people and ``snapshot.json``.
"""

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.arrow_files import verified_bytes
from graph_store.building import building
from graph_store.expander import NOT_DRAWN, DrawnExpander, check_expander
from graph_store.graph import GraphError, KnowledgeGraph, PositionalEncoding, Snapshot, check_graph
from graph_store.hashing import canonical_json
from graph_store.index import check_index, index_graph
from graph_store.positional import check_positional
from graph_store.record import (
    FILE_NAME,
    LAYOUT,
    ExpanderReport,
    FileHash,
    GraphReport,
    InputFile,
    NodesReport,
    PositionalReport,
    Record,
    read_record,
    to_text,
)
from graph_store.supra import check_supra, supra_adjacency
from graph_store.tables import file_names, from_files, to_files

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
    nodes: NodesReport | None = None
    """What became of the list of further nodes, when there is one."""
    expander: DrawnExpander = NOT_DRAWN
    positional: tuple[PositionalEncoding, ...] = ()
    screens: Mapping[str, dict[str, str]] = MappingProxyType({})
    """Graph -> where its screen's profiles come from, for graphs made from a cell store."""


def snapshot_id(
    recipe: dict[str, Any], content: Snapshot, screens: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> str:
    """32 hex digits: the hash of layout, recipe, names and the arrays that are the same on every machine.

    Of ``screens`` count split and cell lines: two splits may lead to the same edges, and training must tell
    them apart. The id that ``content`` has already does not matter.
    """
    expander = content.expander
    hashed: dict[str, Any] = {
        "layout": LAYOUT,
        "recipe": recipe,
        "genes": list(content.genes),
        "aliases": content.aliases,
        "graphs": [
            [graph.name, _digest(graph.edges_2E, "<i4"), _digest(graph.weight_E, "<f4")]
            for graph in content.graphs
        ],
        "expander": [
            expander.num_cycles,
            _digest(expander.edges_2E, "<i4"),
            _digest(expander.cycle_E, "<i4"),
        ],
        "positional": [[part.graph, part.kind, part.value_PN.shape[1]] for part in content.positional],
    }
    if screens:
        hashed["screens"] = {
            graph: [origin.get(key) for key in ("split", "cell_lines")] for graph, origin in screens.items()
        }
    return hashlib.sha256(canonical_json(hashed).encode()).hexdigest()[:32]


def write(out: Path, draft: Draft) -> Path:
    """Write the snapshot under ``out`` and return its folder; a whole one that is there already stays.

    Raises ``GraphError`` when ``out`` cannot be written, or when a part breaks its invariants.
    """
    content = Snapshot(
        "", draft.genes, draft.graphs, draft.aliases, draft.expander.expander, draft.positional
    )
    _check(content)
    identity = snapshot_id(draft.recipe, content, draft.screens)
    final = out / identity
    if _is_whole(final):
        return final
    content = content._replace(
        id=identity,
        supra=supra_adjacency(content.graphs, len(content.genes)),
        indices=tuple(index_graph(graph, len(content.genes)) for graph in content.graphs),
    )
    try:
        with building(final) as folder:
            _fill(folder, draft, content)
            _publish(folder, final)
    except OSError as error:
        raise GraphError(
            f"{out}: snapshot cannot be written ({error.strerror}); check space, rights"
        ) from None
    return final


def read(folder: Path) -> Snapshot:
    """The snapshot in ``folder``, every file and the id verified; ``GraphError`` names what is damaged."""
    record = read_record(folder)
    expected = {UNMATCHED} | file_names(record)
    if set(record.files) != expected or record.id != folder.name:
        raise GraphError(f"{folder / FILE_NAME}: does not belong to this folder; build the snapshot again")
    content = {name: verified_bytes(folder / name, record.files[name]) for name in sorted(expected)}
    snapshot = from_files(content, record)
    if snapshot_id(record.recipe, snapshot, record.screens) != record.id:
        raise GraphError(f"{folder}: content does not hash to its id; build the snapshot again")
    _check(snapshot)
    return snapshot


def _check(content: Snapshot) -> None:
    for graph in content.graphs:
        check_graph(graph, len(content.genes))
    check_expander(content.expander, len(content.genes))
    for encoding in content.positional:
        check_positional(encoding, len(content.genes))
    if content.supra is not None:
        check_supra(content.supra, content.graphs, len(content.genes))
    for index, graph in zip(content.indices, content.graphs, strict=False):
        check_index(index, graph, len(content.genes))


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        read(folder)
    except GraphError:
        return False
    return True


def _fill(folder: Path, draft: Draft, content: Snapshot) -> None:
    files = {**to_files(content), UNMATCHED: _unmatched_text(draft.unmatched).encode()}
    record = _record(draft, content, files)
    for name, data in {**files, FILE_NAME: to_text(record).encode("ascii")}.items():
        with (folder / name).open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def _record(draft: Draft, content: Snapshot, files: dict[str, bytes]) -> Record:
    drawn = draft.expander
    return Record(
        layout=LAYOUT,
        id=content.id,
        recipe=draft.recipe,
        inputs=list(draft.inputs),
        num_genes=len(draft.genes),
        num_aliases=len(draft.aliases),
        nodes=draft.nodes,
        graphs=list(draft.reports),
        expander=ExpanderReport(
            cycles=drawn.expander.num_cycles,
            edges=len(drawn.expander.cycle_E),
            tries=drawn.tries,
            # Six digits are what every machine agrees on.
            lambda_2=round(drawn.lambda_2, 6),
            gap=round(drawn.gap, 6),
        ),
        positional=[
            PositionalReport(graph=part.graph, kind=part.kind, width=part.value_PN.shape[1])
            for part in draft.positional
        ],
        screens=dict(draft.screens),
        files={
            name: FileHash(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
            for name, data in files.items()
        },
    )


def _publish(built: Path, final: Path) -> None:
    """Move the finished folder into place; a damaged one there goes, a whole one (a faster build) stays."""
    if final.exists() and not _is_whole(final):
        shutil.rmtree(final)
    try:
        built.rename(final)
    except OSError:
        if not _is_whole(final):
            raise


def _digest(array: NDArray[Any], kind: str) -> str:
    digest = hashlib.sha256()
    # Row by row, since the rows of a mapped matrix do not touch and would be copied.
    for row in np.atleast_2d(array):
        digest.update(np.ascontiguousarray(row, dtype=kind).data)
    return digest.hexdigest()


def _unmatched_text(unmatched: Sequence[UnmatchedName]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(UnmatchedName._fields)
    rows.writerows([item.graph, item.name, item.reason, " ".join(item.candidates)] for item in unmatched)
    return text.getvalue()
