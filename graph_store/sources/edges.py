"""Edge lists: csv, tsv, txt (each also .gz) and parquet, read in one bounded pass.

Enters: a file and how to read it. Leaves: a ``SourceGraph``. Invariant: the pairs do not depend on the order
of the rows, nor on which spelling of a gene a row uses.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.genes import Aliases, resolve
from graph_store.graph import GraphError
from graph_store.source_config import EdgesSource
from graph_store.sources.columns import Batch, Table, as_names, as_weights, batches, need, open_table
from graph_store.sources.source import Counts, SourceGraph, sorted_genes
from graph_store.sparsify import Edges, merge_duplicates, without_self_loops

ENDS = (
    ("source", "target"),
    ("regulator", "target"),
    ("gene1", "gene2"),
    ("Gene1", "Gene2"),
    ("protein1", "protein2"),
    ("entity1", "entity2"),
)
"""Recognised names of the two ends."""
WEIGHTS = ("weight", "combined_score", "importance", "Score")
"""Recognised names of the weight."""


class _Columns(NamedTuple):
    source: str
    target: str
    weight: str | None


def read_edges(spec: EdgesSource, aliases: Aliases | None) -> SourceGraph:
    """Read an edge list; ``GraphError`` names file, row or column of what cannot be used."""
    table = open_table(spec.path)
    columns = _columns(table, spec)
    codes: dict[str, int] = {}
    parts = [
        _rows(batch, columns, spec, codes)
        for batch in batches(table, [name for name in columns if name is not None])
    ]
    if not any(part.num_edges for part in parts):
        raise GraphError(f"{spec.path}: holds no edge; it has a header and no rows")
    resolution = resolve(tuple(codes), aliases)
    genes, number = sorted_genes(resolution.names)
    rows = Edges(
        number[np.concatenate([part.edges_2E for part in parts], axis=1)],
        np.concatenate([part.weight_E for part in parts]),
    )
    distinct = without_self_loops(rows)
    strong = distinct
    if spec.minimum_weight is not None:
        strong = distinct.take(np.abs(distinct.weight_E) >= np.float32(spec.minimum_weight))
    pairs = merge_duplicates(strong, directed=spec.directed)
    counts = Counts(
        rows=rows.num_edges,
        self_loops=rows.num_edges - distinct.num_edges,
        duplicates=strong.num_edges - pairs.num_edges,
        below_minimum=distinct.num_edges - strong.num_edges,
    )
    return SourceGraph(genes, pairs, counts, resolution)


def _columns(table: Table, spec: EdgesSource) -> _Columns:
    """The columns to read: as configured, otherwise the first recognised ones."""
    given = spec.columns
    if given.source is not None and given.target is not None:
        source, target = need(table, given.source), need(table, given.target)
    else:
        found = [ends for ends in ENDS if set(ends) <= set(table.columns)]
        if not found:
            known = "; ".join(",".join(ends) for ends in ENDS)
            raise GraphError(
                f"{table.path}: its columns are {', '.join(table.columns)[:200]} and none of the usual pairs "
                f"({known}); name them under columns: source and target"
            )
        source, target = (need(table, name) for name in found[0])
    if given.weight is not None:
        return _Columns(source, target, need(table, given.weight))
    usual = [name for name in WEIGHTS if name in table.columns]
    return _Columns(source, target, need(table, usual[0]) if usual else None)


def _rows(batch: Batch, columns: _Columns, spec: EdgesSource, codes: dict[str, int]) -> Edges:
    """One batch as edges over ``codes``, which grows by the names not seen before."""
    ends = [
        _encode(*as_names(array, path=spec.path, column=column, first_row=batch.first_row), codes)
        for array, column in zip(batch.columns[:2], columns[:2], strict=True)
    ]
    if columns.weight is None:
        return Edges(np.stack(ends), np.ones(len(ends[0]), dtype=np.float32))
    weight_E = as_weights(batch.columns[2], path=spec.path, column=columns.weight, first_row=batch.first_row)
    if not spec.signed and (weight_E < 0).any():
        place = int(np.argmax(weight_E < 0))
        raise GraphError(
            f"{spec.path} row {batch.first_row + place}: {columns.weight} {weight_E[place]} is negative; "
            "correct it, or set signed: true when weights have a sign (everything then goes by their size)"
        )
    return Edges(np.stack(ends), weight_E)


def _encode(local_R: NDArray[np.int32], names: Sequence[str], codes: dict[str, int]) -> NDArray[np.int32]:
    lookup = np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int32)
    encoded: NDArray[np.int32] = lookup[local_R]
    return encoded
