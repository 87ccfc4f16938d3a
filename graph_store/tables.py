"""Which file holds which part of a snapshot.

Enters: a ``Snapshot``, or the bytes of its files and the record that lists its parts. Leaves: the other.
Invariant: the two are inverse to each other; the arrays that leave are read-only.

All files are Arrow IPC of one record batch (they can be memory-mapped): ``genes.arrow`` (name),
``aliases.arrow`` (alias, name), ``edges-GRAPH.arrow`` (source, target, weight; destination-sorted),
``expander.arrow`` (source, target, cycle), ``positional-GRAPH-KIND.arrow`` (columns 1, 2, ...).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from graph_store.arrow_files import columns, table_bytes
from graph_store.graph import Expander, KnowledgeGraph, PositionalEncoding, Snapshot
from graph_store.record import PositionalReport, Record

GENES, ALIASES, EXPANDER = "genes.arrow", "aliases.arrow", "expander.arrow"


def to_files(snapshot: Snapshot) -> dict[str, bytes]:
    """The content of every file, by name."""
    source, target = snapshot.expander.edges_2E
    content = {
        GENES: table_bytes({"name": snapshot.genes}),
        ALIASES: table_bytes({"alias": tuple(snapshot.aliases), "name": tuple(snapshot.aliases.values())}),
        EXPANDER: table_bytes({"source": source, "target": target, "cycle": snapshot.expander.cycle_E}),
    }
    for graph in snapshot.graphs:
        source, target = graph.edges_2E
        content[_edges_file(graph.name)] = table_bytes(
            {"source": source, "target": target, "weight": graph.weight_E}
        )
    for encoding in snapshot.positional:
        names = _numbers(encoding.value_PN.shape[1])
        content[_positional_file(encoding.graph, encoding.kind)] = table_bytes(
            {name: np.ascontiguousarray(encoding.value_PN[:, place]) for place, name in enumerate(names)}
        )
    return content


def file_names(record: Record) -> set[str]:
    """The files that the snapshot of ``record`` has."""
    graphs = {_edges_file(report.name) for report in record.graphs}
    encodings = {_positional_file(report.graph, report.kind) for report in record.positional}
    return {GENES, ALIASES, EXPANDER} | graphs | encodings


def from_files(content: Mapping[str, bytes], record: Record) -> Snapshot:
    """The snapshot whose files hold ``content``."""
    (genes,) = columns(content[GENES], "name")
    alias, name_of_alias = columns(content[ALIASES], "alias", "name")
    source, target, cycle_E = columns(content[EXPANDER], "source", "target", "cycle")
    return Snapshot(
        id=record.id,
        genes=tuple(genes.tolist()),
        graphs=tuple(_graph(report.name, content[_edges_file(report.name)]) for report in record.graphs),
        aliases=dict(zip(alias.tolist(), name_of_alias.tolist(), strict=True)),
        expander=Expander(_ends(source, target), cycle_E, record.expander.cycles),
        positional=tuple(
            _encoding(report, content[_positional_file(report.graph, report.kind)])
            for report in record.positional
        ),
    )


def _graph(name: str, data: bytes) -> KnowledgeGraph:
    source, target, weight_E = columns(data, "source", "target", "weight")
    return KnowledgeGraph(name, _ends(source, target), weight_E)


def _encoding(report: PositionalReport, data: bytes) -> PositionalEncoding:
    value_PN = np.stack(columns(data, *_numbers(report.width)), axis=1)
    value_PN.setflags(write=False)
    return PositionalEncoding(report.graph, report.kind, value_PN)


def _ends(source: NDArray[np.int32], target: NDArray[np.int32]) -> NDArray[np.int32]:
    edges_2E = np.stack([source, target])
    edges_2E.setflags(write=False)
    return edges_2E


def _edges_file(name: str) -> str:
    return f"edges-{name}.arrow"


def _positional_file(name: str, kind: str) -> str:
    # No kind has a hyphen, so a name never runs into it.
    return f"positional-{name}-{kind}.arrow"


def _numbers(width: int) -> list[str]:
    return [str(number) for number in range(1, width + 1)]
