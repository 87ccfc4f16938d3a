"""A list of genes that are nodes whether or not a graph has an edge for them.

Enters: a text file of one name a line, or a table (csv, tsv, parquet) whose first column holds names. Leaves:
the names in file order, repeats included. Invariant: text is never interpreted (the gene NAN stays NAN); a
table has a header, a text file has none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from graph_store.graph import GraphError
from graph_store.sources.columns import PARQUET_SUFFIXES, as_names, batches, need, open_table
from graph_store.sources.lines import inner_suffix, lines

TABLE_SUFFIXES = (".csv", ".tsv", *PARQUET_SUFFIXES)
SEPARATORS = "\t,;"


class NodeNames(NamedTuple):
    """The names of such a file."""

    names: tuple[str, ...]
    header: str | None
    """Name of the column they stand in; None for a text file."""


def read_node_names(path: Path) -> NodeNames:
    """Read the list; ``GraphError`` names file and row of what cannot be used."""
    found = _table(path) if inner_suffix(path) in TABLE_SUFFIXES else NodeNames(tuple(_lines(path)), None)
    if not found.names:
        raise GraphError(f"{path}: holds no gene name; leave out nodes: or list one gene a line")
    return found


def _table(path: Path) -> NodeNames:
    table = open_table(path)
    column = need(table, table.columns[0]) if table.columns else ""
    if not column.strip():
        raise GraphError(f"{path}: its first column has no name (row numbers?); put gene names first, named")
    names: list[str] = []
    for batch in batches(table, [column]):
        codes, distinct = as_names(batch.columns[0], path=path, column=column, first_row=batch.first_row)
        names += [distinct[code] for code in codes.tolist()]
    return NodeNames(tuple(names), column)


def _lines(path: Path) -> Iterator[str]:
    """The names of a text file; blank lines are passed over."""
    for number, line in lines(path):
        name = line.strip()
        if any(mark in name for mark in SEPARATORS):
            raise GraphError(
                f"{path} line {number}: holds more than a gene name; list one gene a line, or name "
                "the file .csv or .tsv when it is a table with a header"
            )
        yield name
