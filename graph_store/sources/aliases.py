"""Tables of gene names: each row other names or ids of one approved symbol.

Enters: csv, tsv or parquet files (HGNC's complete set and alike). Leaves: ``Aliases``. Invariants: a row
without an approved symbol is refused; a row without another name only says that the symbol exists; several
tables are read as if they were one, so a symbol that any of them approves stays what it is. Nothing is cut
off a name: ``ENSG00000121410.12`` is another name than ``ENSG00000121410``.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute

from graph_store.config import AliasTable
from graph_store.genes import Aliases, make_aliases
from graph_store.graph import GraphError
from graph_store.sources.columns import batches, need, open_table


def read_aliases(tables: Sequence[AliasTable]) -> Aliases:
    """Read the tables; ``GraphError`` names file and row of what cannot be used."""
    return make_aliases(pair for spec in tables for pair in _pairs(spec))


def _pairs(spec: AliasTable) -> Iterator[tuple[str, str]]:
    """(other name, approved symbol) of every row and column; a name may be empty."""
    table = open_table(spec.path)
    aliases = (spec.alias,) if isinstance(spec.alias, str) else spec.alias
    names = [need(table, name) for name in (spec.approved, *aliases)]
    holds_rows = False
    for batch in batches(table, names):
        symbols, *others = (_text(array).to_pylist() for array in batch.columns)
        if "" in symbols:
            row = batch.first_row + symbols.index("")
            raise GraphError(f"{spec.path} row {row}: {spec.approved!r} is empty; give the approved symbol")
        holds_rows = holds_rows or bool(symbols)
        for column in others:
            for field, symbol in zip(column, symbols, strict=True):
                for name in field.split(spec.separator) if spec.separator else [field]:
                    yield name.strip(), symbol
    if not holds_rows:
        raise GraphError(f"{spec.path}: holds no row; leave out aliases: or give a table with names")


def _text(array: pa.Array) -> pa.Array:
    return pa.compute.utf8_trim_whitespace(array.cast(pa.string())).fill_null("")
