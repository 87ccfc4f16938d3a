"""The table of gene names: each row a name and the approved symbol it means.

Enters: a csv, tsv or parquet file (HGNC's and alike). Leaves: ``Aliases``. Invariant: a row without an
approved symbol is refused; a row without an alias only says that the symbol exists.
"""

import pyarrow as pa
import pyarrow.compute

from graph_store.config import AliasTable
from graph_store.genes import Aliases, make_aliases
from graph_store.graph import GraphError
from graph_store.sources.columns import batches, need, open_table


def read_aliases(spec: AliasTable) -> Aliases:
    """Read the table; ``GraphError`` names file and row of what cannot be used."""
    table = open_table(spec.path)
    names = [need(table, spec.alias), need(table, spec.approved)]
    pairs: list[tuple[str, str]] = []
    for batch in batches(table, names):
        alias, approved = (
            pa.compute.utf8_trim_whitespace(array.cast(pa.string())).fill_null("").to_pylist()
            for array in batch.columns
        )
        if "" in approved:
            row = batch.first_row + approved.index("")
            raise GraphError(f"{spec.path} row {row}: {spec.approved!r} is empty; give the approved symbol")
        pairs += zip(alias, approved, strict=True)
    if not pairs:
        raise GraphError(f"{spec.path}: holds no row; leave out aliases: or give a table with names")
    return make_aliases(pairs)
