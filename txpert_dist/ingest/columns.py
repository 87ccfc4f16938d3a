"""obs columns as text codes, and the filters over them.

Enters: a ``Source``, rows and a column. Leaves: codes and their texts, or the rows that a filter keeps.
Invariants: a whole number is written without decimals whatever its type (27, 27.0 and "27" are one batch);
a missing or empty value is an error with its cell, never a value of its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.config import Key
from txpert_dist.ingest.labels import check_name, listing
from txpert_dist.ingest.source import Source, find_column


class Coded(NamedTuple):
    """A column as positions in a list of texts."""

    code: NDArray[np.int64]
    """(cells,) position in ``texts``."""
    texts: list[str]


class FilterRow(NamedTuple):
    """What one filter did."""

    filter: str
    kept: int
    dropped: int


_REMEDY = "fill it in, or leave those cells out"
_FLAGS = {"1": True, "true": True, "0": False, "false": False}


def coded(source: Source, rows: NDArray[np.int64], column: str, remedy: str = _REMEDY) -> Coded:
    """The values of obs ``column`` in ``rows`` as text.

    Raises ``InputError`` naming the first cell whose value is missing or empty, and how many there are.
    """
    found = _codes(source.obs[column].iloc[rows])
    missing = np.flatnonzero(_is_missing(found))
    if len(missing):
        raise InputError(
            f"{source.path}: obs column {column!r} is empty for {source.cell(int(rows[missing[0]]))} and "
            f"{len(missing) - 1} more cells; {remedy}"
        )
    return found


def labelled_cells(
    sources: Sequence[Source], rows: Sequence[NDArray[np.int64]], key: Key
) -> tuple[list[NDArray[np.int64]], FilterRow]:
    """Those of ``rows`` (per file) that have a value in the column, and how many have not."""
    kept = []
    for source, own in zip(sources, rows, strict=True):
        column = find_column(source, "obs", key) or ""
        kept.append(own[~_is_missing(_codes(source.obs[column].iloc[own]))])
    before, after = sum(map(len, rows)), sum(map(len, kept))
    return kept, FilterRow(f"a label in {key.name}", after, before - after)


def flags(source: Source, rows: NDArray[np.int64], column: str) -> NDArray[np.bool_]:
    """obs ``column`` of ``rows``, which holds true and false or 1 and 0; ``InputError`` for anything else."""
    found = coded(source, rows, column)
    wrong = [text for text in found.texts if text.lower() not in _FLAGS]
    if wrong:
        raise InputError(
            f"{source.path}: obs column {column!r} holds {wrong[0]!r}; a column that marks controls holds "
            "true and false, or 1 and 0"
        )
    return np.array([_FLAGS[text.lower()] for text in found.texts], bool)[found.code]


def _is_missing(found: Coded) -> NDArray[np.bool_]:
    # The last one is what code -1, a missing value, looks up.
    blank = np.array([*(not text for text in found.texts), True], bool)
    return blank[found.code]


def safe_coded(source: Source, rows: NDArray[np.int64], column: str) -> Coded:
    """As ``coded``, for names that appear in reports: no path separators, control characters or dates."""
    found = coded(source, rows, column)
    for code, text in enumerate(found.texts):
        try:
            check_name(text)
        except ValueError as error:
            used = np.flatnonzero(found.code == code)
            if len(used):
                raise InputError(
                    f"{source.path}: obs column {column!r} holds {text!r}, for instance in "
                    f"{source.cell(int(rows[used[0]]))}: {error}; rename it"
                ) from None
    return found


def merged(columns: Sequence[Coded]) -> Coded:
    """The columns of several files one after the other, coded by one sorted list of texts."""
    texts = sorted({text for column in columns for text in column.texts})
    number = {text: position for position, text in enumerate(texts)}
    codes = [np.array([number[text] for text in c.texts], np.int64)[c.code] for c in columns]
    return Coded(np.concatenate([np.zeros(0, np.int64), *codes]), texts)


def filter_cells(
    sources: Sequence[Source], where: Sequence[str]
) -> tuple[list[NDArray[np.int64]], tuple[FilterRow, ...]]:
    """Rows of every file that pass all filters, and what each filter did.

    ``where`` holds ``column=value``; values of one column are alternatives. Raises ``InputError`` for a
    filter of another form, an unknown column, or when nothing passes.
    """
    rows = [np.arange(source.shape[0], dtype=np.int64) for source in sources]
    report = []
    for column, values in _by_column(where).items():
        before = sum(map(len, rows))
        rows = [_passing(source, kept, column, values) for source, kept in zip(sources, rows, strict=True)]
        after = sum(map(len, rows))
        report.append(FilterRow(f"{column}={'|'.join(values)}", after, before - after))
        if not after:
            seen = sorted({text for source in sources for text in _codes(source.obs[column]).texts})
            raise InputError(
                f"{sources[0].path}: filter {report[-1].filter!r} keeps no cell; obs column {column!r} holds "
                f"{listing(seen)}"
            )
    return rows, tuple(report)


def _by_column(where: Sequence[str]) -> dict[str, list[str]]:
    filters: dict[str, list[str]] = {}
    for item in where:
        column, equals, value = item.partition("=")
        if not (column.strip() and equals and value.strip()):
            raise InputError(f"filter {item!r} is not of the form column=value")
        filters.setdefault(column.strip(), []).append(value.strip())
    return filters


def _passing(source: Source, rows: NDArray[np.int64], column: str, values: list[str]) -> NDArray[np.int64]:
    find_column(source, "obs", Key(column, True))
    found = _codes(source.obs[column].iloc[rows])
    wanted = [code for code, text in enumerate(found.texts) if text in values]
    return rows[np.isin(found.code, wanted)]


def _codes(column: pd.Series) -> Coded:
    code, values = pd.factorize(column)
    texts = [_text(value) for value in values]
    distinct = list(dict.fromkeys(texts))
    number = np.array(
        [distinct.index(text) for text in texts] if len(distinct) < len(texts) else range(len(texts))
    )
    position = np.append(number.astype(np.int64), -1)
    return Coded(position[code], distinct)


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()
