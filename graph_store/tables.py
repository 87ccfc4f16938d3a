"""Which file holds which part of a snapshot.

Enters: a ``Snapshot``, or the bytes of its files and the record that lists its parts. Leaves: the other.
Invariant: the two are inverse to each other; the arrays that leave are read-only views of the bytes.

All files are Arrow IPC of one record batch, P genes, E edges of a graph, V virtual rows:

* ``genes.arrow`` (name), ``aliases.arrow`` (alias, name)
* ``edges-GRAPH.arrow`` (source, target, weight): E rows, destination-sorted
* ``pointers-GRAPH.arrow`` (by_target, by_source): P + 1 rows, where each node's edges begin
* ``transposed-GRAPH.arrow`` (edge): E edge numbers, sorted by source, then target
* ``neighbours-GRAPH.arrow`` (row, edge, source): V rows; source is a list of fixed size, -1 padded
* ``supra.arrow`` (source, target, layer, weight): all graphs as one, destination-sorted
* ``expander.arrow`` (source, target, cycle)
* ``positional-GRAPH-KIND.arrow`` (value): P rows; value is a list of fixed size
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from graph_store.arrow_files import Column, columns, matrix, table_bytes
from graph_store.graph import Expander, GraphIndex, KnowledgeGraph, PositionalEncoding, Snapshot, Supra
from graph_store.record import PositionalReport, Record

GENES, ALIASES, EXPANDER, SUPRA = "genes.arrow", "aliases.arrow", "expander.arrow", "supra.arrow"
OF_A_GRAPH = ("edges", "pointers", "transposed", "neighbours")


def to_files(snapshot: Snapshot) -> dict[str, bytes]:
    """The content of every file, by name."""
    tables: dict[str, dict[str, Column]] = {
        GENES: {"name": snapshot.genes},
        ALIASES: {"alias": tuple(snapshot.aliases), "name": tuple(snapshot.aliases.values())},
        EXPANDER: {**_ends(snapshot.expander.edges_2E), "cycle": snapshot.expander.cycle_E},
    }
    for graph in snapshot.graphs:
        tables[_file("edges", graph.name)] = {**_ends(graph.edges_2E), "weight": graph.weight_E}
    for index in snapshot.indices:
        tables |= _index_tables(index)
    if snapshot.supra is not None:
        tables[SUPRA] = _ends(snapshot.supra.edges_2M)
        tables[SUPRA] |= {"layer": snapshot.supra.layer_M, "weight": snapshot.supra.weight_M}
    for encoding in snapshot.positional:
        tables[_positional_file(encoding.graph, encoding.kind)] = {"value": encoding.value_PN}
    return {name: table_bytes(table) for name, table in tables.items()}


def file_names(record: Record) -> set[str]:
    """The files that the snapshot of ``record`` has."""
    graphs = {_file(part, report.name) for report in record.graphs for part in OF_A_GRAPH}
    encodings = {_positional_file(report.graph, report.kind) for report in record.positional}
    return {GENES, ALIASES, EXPANDER, SUPRA} | graphs | encodings


def from_files(content: Mapping[str, memoryview], record: Record) -> Snapshot:
    """The snapshot whose files hold ``content``."""
    (genes,) = columns(content[GENES], "name")
    alias, name_of_alias = columns(content[ALIASES], "alias", "name")
    (cycle_E,) = columns(content[EXPANDER], "cycle")
    layer_M, weight_M = columns(content[SUPRA], "layer", "weight")
    return Snapshot(
        id=record.id,
        genes=tuple(genes.tolist()),
        graphs=tuple(
            KnowledgeGraph(
                report.name,
                matrix(content[_file("edges", report.name)], "source", "target"),
                *columns(content[_file("edges", report.name)], "weight"),
            )
            for report in record.graphs
        ),
        aliases=dict(zip(alias.tolist(), name_of_alias.tolist(), strict=True)),
        expander=Expander(matrix(content[EXPANDER], "source", "target"), cycle_E, record.expander.cycles),
        positional=tuple(_encoding(report, content) for report in record.positional),
        supra=Supra(
            matrix(content[SUPRA], "source", "target"),
            layer_M,
            weight_M,
            len(record.graphs),
            record.num_genes,
        ),
        indices=tuple(_index(report.name, content) for report in record.graphs),
    )


def _index_tables(index: GraphIndex) -> dict[str, dict[str, Column]]:
    return {
        _file("pointers", index.graph): {"by_target": index.indptr_P1, "by_source": index.source_indptr_P1},
        _file("transposed", index.graph): {"edge": index.by_source_E},
        _file("neighbours", index.graph): {
            "row": index.row_of_V,
            "edge": index.edge_V,
            "source": index.neighbour_VW,
        },
    }


def _index(name: str, content: Mapping[str, memoryview]) -> GraphIndex:
    by_target, by_source = columns(content[_file("pointers", name)], "by_target", "by_source")
    (by_source_E,) = columns(content[_file("transposed", name)], "edge")
    row_of_V, edge_V, neighbour_VW = columns(content[_file("neighbours", name)], "row", "edge", "source")
    return GraphIndex(name, by_target, by_source, by_source_E, neighbour_VW, row_of_V, edge_V)


def _encoding(report: PositionalReport, content: Mapping[str, memoryview]) -> PositionalEncoding:
    (value_PN,) = columns(content[_positional_file(report.graph, report.kind)], "value")
    return PositionalEncoding(report.graph, report.kind, value_PN)


def _ends(edges_2E: NDArray[np.int32]) -> dict[str, Column]:
    return {"source": edges_2E[0], "target": edges_2E[1]}


def _file(part: str, graph: str) -> str:
    # No part has a hyphen, so it never runs into the name.
    return f"{part}-{graph}.arrow"


def _positional_file(name: str, kind: str) -> str:
    # No kind has a hyphen, so a name never runs into it.
    return f"positional-{name}-{kind}.arrow"
