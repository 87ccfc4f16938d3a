"""Embedding tables: one profile a gene, made from a screen, images or anything else.

Enters: a table of numbers with genes as rows or as columns. Leaves: a ``SourceGraph`` of the pairs with the
largest |cosine|. Invariant: a missing value is an error unless the recipe says what stands for it.
"""

import re

import numpy as np
from numpy.typing import NDArray

from graph_store.genes import Aliases
from graph_store.graph import GraphError
from graph_store.source_config import EmbeddingSource
from graph_store.sources.matrix import NumberTable, read_numbers
from graph_store.sources.profiles import Choice, exact_mean, profile_graph
from graph_store.sources.source import SourceGraph


def read_embedding(spec: EmbeddingSource, aliases: Aliases | None, *, percent: float) -> SourceGraph:
    """The strongest ``percent`` of pairs; ``GraphError`` names file and place of what cannot be used."""
    table = read_numbers(spec.path)
    if spec.genes_in == "rows":
        names, value_GD = _gene_names(table.names, "row", table.first_row, spec), table.value_RC
    else:
        names, value_GD = _gene_names(table.columns, "column", 2, spec), table.value_RC.T
    present_GD = np.isfinite(value_GD)
    if spec.missing == "refuse":
        _refuse_missing(table)
    kept_G = present_GD.any(axis=1)
    details = {
        "missing values, filled in": int((~present_GD[kept_G]).sum()),
        "profiles without a value, left out": int((~kept_G).sum()),
    }
    if not kept_G.any():
        raise GraphError(f"{spec.path}: holds no value at all; check that it is the right table")
    return profile_graph(
        tuple(names[gene] for gene in np.flatnonzero(kept_G).tolist()),
        _filled(value_GD[kept_G], present_GD[kept_G]),
        aliases,
        Choice(percent, spec.centre, spec.signed),
        where=str(spec.path),
        details=details,
    )


def _gene_names(given: tuple[str, ...], what: str, first: int, spec: EmbeddingSource) -> tuple[str, ...]:
    """The name in each row (or column), cut out of it where the recipe says how."""
    names = []
    for number, text in enumerate(given, start=first):
        name = text.strip()
        if spec.gene_pattern is not None:
            found = re.fullmatch(spec.gene_pattern, name)
            if found is None:
                raise GraphError(
                    f"{spec.path} {what} {number}: {name!r} does not match gene_pattern "
                    f"{spec.gene_pattern!r}; correct the pattern, or remove what is no gene"
                )
            name = (found[1] or "").strip()
        if not name:
            raise GraphError(f"{spec.path} {what} {number}: has no gene name; give one or remove the {what}")
        names.append(name)
    return tuple(names)


def _refuse_missing(table: NumberTable) -> None:
    missing = np.isnan(table.value_RC)
    if missing.any():
        row, column = (int(number) for number in np.argwhere(missing)[0])
        raise GraphError(
            f"{table.path} {table.place(row, column)}: has no value ({int(missing.sum())} are missing); "
            "fill it in, or set missing: gene_mean"
        )


def _filled(value_GD: NDArray[np.float32], present_GD: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Missing values replaced by the mean of the row's others."""
    filled_GD = np.ascontiguousarray(value_GD)
    for gene in np.flatnonzero(~present_GD.all(axis=1)).tolist():
        present_D = present_GD[gene]
        filled_GD[gene, ~present_D] = exact_mean(filled_GD[gene, present_D])
    return filled_GD
