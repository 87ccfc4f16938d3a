"""Gene names of every file, and the genes that the store holds.

Enters: var tables. Leaves: one ``GeneJoin``. Invariants: names are unique, none is a spreadsheet's date, and
genes keep the order of the first file.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.config import Key
from txpert_dist.ingest.labels import is_date, listing
from txpert_dist.ingest.source import Source, find_column


class GeneNames(NamedTuple):
    """Names of one file's genes, in the file's order."""

    names: tuple[str, ...]
    note: str | None
    """What the summary should say about them."""


class GeneJoin(NamedTuple):
    """The store's genes and where each file's genes went."""

    names: tuple[str, ...]
    number_of: tuple[NDArray[np.int32], ...]
    """Per file: (genes of the file,) gene number in the store, -1 for a gene left out."""


def gene_names(source: Source, key: Key) -> GeneNames:
    """The names of ``source``'s genes from var column ``key``, or the var index without one.

    A symbol that the column gives to several genes names none of them: these go by their var index.
    Raises ``InputError`` for repeated index names, dates and control characters.
    """
    index = [str(name) for name in source.var.index]
    repeated = [name for name, times in Counter(index).items() if times > 1]
    if repeated:
        raise InputError(
            f"{source.path}: var holds gene {repeated[0]!r} {index.count(repeated[0])} times "
            f"({len(repeated)} such names); make var_names unique first, or name a column of unique ids"
        )
    column = find_column(source, "var", key)
    names, note = (index, None) if column is None else _symbols(source, column, index)
    for row, name in enumerate(names):
        if is_date(name):
            raise InputError(
                f"{source.path}: gene {name!r} (row {row} of var) is a date that a spreadsheet made of a "
                "gene symbol; restore the symbol, or name the var column that has them with --gene-name-key"
            )
        if not name or not name.isprintable():
            raise InputError(f"{source.path}: gene {name!r} (row {row} of var) is no usable name; rename it")
    return GeneNames(tuple(names), note)


def join_genes(
    sources: Sequence[Source], names: Sequence[GeneNames], how: Literal["intersection", "union"]
) -> GeneJoin:
    """Genes that all files have (or any has), by first appearance. ``InputError`` when there are none."""
    every = list(dict.fromkeys(name for file in names for name in file.names))
    if how == "intersection":
        common = set(names[0].names).intersection(*(file.names for file in names[1:]))
        every = [name for name in every if name in common]
    if not every:
        examples = "; ".join(
            f"{source.path} has {listing(file.names, 2)}" for source, file in zip(sources, names, strict=True)
        )
        raise InputError(
            f"{sources[0].path}: no gene is in all {len(sources)} files ({examples}); give --gene-name-key "
            "so that all use the same names, or join by union"
        )
    number = {name: position for position, name in enumerate(every)}
    maps = tuple(np.array([number.get(name, -1) for name in file.names], np.int32) for file in names)
    return GeneJoin(tuple(every), maps)


def join_stored(
    sources: Sequence[Source], names: Sequence[GeneNames], genes: tuple[str, ...]
) -> tuple[GeneJoin, tuple[str, ...]]:
    """The ``genes`` of a store in files whose cells are to follow, and what the summary should say.

    ``InputError`` when a file lacks one of them.
    """
    number = {name: position for position, name in enumerate(genes)}
    maps, notes = [], []
    for source, file in zip(sources, names, strict=True):
        there = set(file.names)
        missing = [name for name in genes if name not in there]
        if missing:
            raise InputError(
                f"{source.path}: lacks {len(missing)} of the store's {len(genes)} genes "
                f"({listing(missing)}); ingest all files together, which keeps the genes that all have"
            )
        maps.append(np.array([number.get(name, -1) for name in file.names], np.int32))
        if more := len(file.names) - len(genes):
            notes.append(
                f"{source.path.name}: {more} of its {len(file.names)} genes are not the store's: left out"
            )
    return GeneJoin(genes, tuple(maps)), tuple(notes)


def _symbols(source: Source, column: str, index: list[str]) -> tuple[list[str], str | None]:
    values = source.var[column]
    symbols = ["" if missing else str(v).strip() for v, missing in zip(values, pd.isna(values), strict=True)]
    times = Counter(symbols)
    names = [
        symbol if symbol and times[symbol] == 1 else own for symbol, own in zip(symbols, index, strict=True)
    ]
    replaced = sum(name != symbol for name, symbol in zip(names, symbols, strict=True))
    if len(set(names)) != len(names):
        clash = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(
            f"{source.path}: gene {clash!r} is both a var index and a symbol of another gene in var column "
            f"{column!r}; make them unique, or leave --gene-name-key out"
        )
    if not replaced:
        return names, None
    shared = sorted(symbol for symbol, count in times.items() if symbol and count > 1)
    reason = f"symbols shared by several genes: {listing(shared, 4)}" if shared else "no symbol"
    return names, f"{source.path.name}: {replaced} genes go by their var index ({reason})"
