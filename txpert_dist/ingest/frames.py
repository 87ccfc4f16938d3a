"""The source tables as one obs and one var.

Enters: every file's tables. Leaves: one DataFrame each, with every column of every file. Invariants: a column
that all files have in one kind keeps that kind; one that some files lack becomes nullable, never guessed.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import union_categoricals

from txpert_dist.ingest.genes import GeneJoin
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.source import Source


def obs_table(sources: Sequence[Source], rows: Sequence[NDArray[np.int64]]) -> pd.DataFrame:
    """obs of the kept cells in store order; names that two files share get the file's number appended."""
    parts = [source.obs.iloc[kept] for source, kept in zip(sources, rows, strict=True)]
    parts = [part.set_axis(part.index.astype(str).rename(part.index.name)) for part in parts]
    names = pd.Index(np.concatenate([part.index.unique() for part in parts]))
    if len(parts) > 1 and names.has_duplicates:
        parts = [part.set_axis(part.index + f"-{number}") for number, part in enumerate(parts, 1)]
    return _concatenate(parts)


def longer_table(before: pd.DataFrame, part: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """obs of the cells of a store and, below, of those that follow; and what the summary should say.

    Names of the store's cells stay. Where one of ``part`` is among them, all of ``part`` get a number.
    """
    notes = []
    shared = int(part.index.isin(before.index).sum())
    if shared:
        number = next(n for n in itertools.count(2) if not (part.index + f"-{n}").isin(before.index).any())
        part = part.set_axis((part.index + f"-{number}").rename(part.index.name))
        notes.append(f"{shared} names of new cells are in the store: all new names end in -{number}")
    for one, other, where in ((before, part, "new"), (part, before, "older")):
        lacking = [str(column) for column in one.columns if column not in other.columns]
        if lacking:
            notes.append(f"obs columns {listing(lacking)} are missing for the {where} cells")
    return _concatenate([before, part]), tuple(notes)


def var_table(sources: Sequence[Source], names: Sequence[Sequence[str]], genes: GeneJoin) -> pd.DataFrame:
    """var of the store's genes, indexed by name; where files disagree, the first file's row stands.

    Where names come from a column, the file's own index is kept as a column.
    """
    frames = [_renamed(source.var, file) for source, file in zip(sources, names, strict=True)]
    wanted, seen, parts = set(genes.names), set[str](), []
    for frame in frames:
        new = np.array([name in wanted and name not in seen for name in frame.index], bool)
        parts.append(frame[new])
        seen |= set(frame.index[new])
    table = _concatenate([part for part in parts if len(part)]).loc[list(genes.names)]
    for frame in frames:
        for column in frame.columns.difference(table.columns, sort=False):
            table[column] = frame[column].reindex(table.index)
    return table


def _renamed(var: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    if list(var.index) == list(names):
        return var
    column = str(var.index.name or "source_index")
    kept = var if column in var.columns else var.assign(**{column: var.index.to_numpy()})
    return kept.set_axis(pd.Index(names))


def _concatenate(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    if len(parts) == 1:
        return parts[0].copy()
    index = parts[0].index.append([part.index for part in parts[1:]])
    columns = list(dict.fromkeys(str(column) for part in parts for column in part.columns))
    return pd.DataFrame({column: _column(parts, column, index) for column in columns}, index=index)


def _column(parts: Sequence[pd.DataFrame], name: str, index: pd.Index) -> "pd.Series[Any]":
    there = [part[name] for part in parts if name in part.columns]
    kinds = {"category" if isinstance(c.dtype, pd.CategoricalDtype) else c.dtype.kind for c in there}
    complete = len(there) == len(parts)
    if complete and len(kinds) == 1:
        if kinds != {"category"}:
            joined: pd.Series[Any] = pd.concat(there).set_axis(index)
            return joined
        if len({c.cat.categories.dtype for c in there}) == 1:
            alike = all(c.dtype == there[0].dtype for c in there)  # else their order means nothing
            return pd.Series(union_categoricals(there, ignore_order=not alike), index=index)
    values: pd.Series[Any] = pd.concat(
        [part.get(name, pd.Series(None, part.index, object)).astype(object) for part in parts]
    )
    values = values.set_axis(index)
    if kinds <= {"i", "u", "f", "b"}:
        nullable: Any = "boolean" if kinds == {"b"} else "Int64" if kinds <= {"i", "u"} else "float64"
        return values.astype(nullable)
    return values.map(str, na_action="ignore").astype("category")
