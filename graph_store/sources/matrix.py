"""A table of numbers with one column of names: csv, tsv, txt (each also .gz) and parquet.

Enters: a path. Leaves: a ``NumberTable``. Columns go by their place, so a header may repeat a name or leave
the first one empty. Invariant: a value is a finite 32-bit number or missing (NaN); anything else is a
``GraphError`` naming row and column. Memory: the numbers twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from graph_store.graph import GraphError
from graph_store.sources.columns import Table, as_weights, open_table

BLOCK_BYTES = 1 << 25
BATCH_VALUES = 1 << 22
NULLS = pyarrow.csv.ConvertOptions().null_values
"""Spellings of a missing number: nothing, NA, NaN, NULL and alike."""


class NumberTable(NamedTuple):
    """All of such a file."""

    path: Path
    names: tuple[str, ...]
    """(R,) what the column of names says, surrounding blanks removed; may be empty."""
    columns: tuple[str, ...]
    """(C,) the header over the numbers."""
    value_RC: NDArray[np.float32]
    """NaN where there is no value."""
    first_row: int
    """Number of the first row as an editor counts."""

    def place(self, row: int, column: int) -> str:
        """Where a value stands in the file."""
        return f"row {self.first_row + row}, column {self.columns[column]!r}"


def read_numbers(path: Path) -> NumberTable:
    """Read the whole table; ``GraphError`` names row and column of what is no number."""
    table = open_table(path)
    place = 0 if table.separator is not None else _place_of_names(table)
    columns = tuple(name for number, name in enumerate(table.columns) if number != place)
    if not columns:
        raise GraphError(f"{path}: has one column only; a name and at least one number a row are needed")
    read = _parquet_batches(table) if table.separator is None else _text_batches(table, numbers=True)
    first_row = 1 if table.separator is None else 2
    names: list[str] = []
    parts: list[NDArray[np.float32]] = []
    with _readable(table):
        for batch in read:
            names += _names(batch.column(place))
            parts.append(_values(batch, place, table, first_row))
            first_row += batch.num_rows
    if not names:
        raise GraphError(f"{path}: has a header and no rows; it needs a row of numbers")
    return NumberTable(path, tuple(names), columns, np.concatenate(parts), first_row - len(names))


@contextmanager
def _readable(table: Table) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if table.separator is not None:
            _refuse_text(table)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GraphError(f"{table.path}: cannot be read ({reason}); check that the file is whole") from None


def _place_of_names(table: Table) -> int:
    """The index that pandas wrote, which comes last, else the first column."""
    metadata = pyarrow.parquet.read_schema(table.path).pandas_metadata or {}
    index = [name for name in metadata.get("index_columns", ()) if isinstance(name, str)]
    return table.columns.index(index[0]) if index else 0


def _parquet_batches(table: Table) -> Iterator[pa.RecordBatch]:
    with pyarrow.parquet.ParquetFile(table.path) as file:
        yield from file.iter_batches(max(1, BATCH_VALUES // len(table.columns)))


def _text_batches(table: Table, *, numbers: bool) -> Iterator[pa.RecordBatch]:
    """The first column as text and the others as numbers, or all as text."""
    names = [str(number) for number in range(len(table.columns))]
    types = dict.fromkeys(names, pa.float64() if numbers else pa.string())
    with pa.input_stream(str(table.path), compression="detect") as stream:
        yield from pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                block_size=BLOCK_BYTES, use_threads=False, column_names=names, skip_rows=1
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=table.separator),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={**types, names[0]: pa.string()}, null_values=NULLS
            ),
        )


def _names(column: pa.Array) -> list[str]:
    text = pa.compute.utf8_trim_whitespace(column.cast(pa.string())).fill_null("")
    found: list[str] = text.to_pylist()
    return found


def _values(batch: pa.RecordBatch, place: int, table: Table, first_row: int) -> NDArray[np.float32]:
    value_RC = np.empty((batch.num_rows, batch.num_columns - 1), np.float32)
    others = [number for number in range(batch.num_columns) if number != place]
    for column, number in enumerate(others):
        array = batch.column(number)
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
            raise GraphError(
                f"{table.path}: column {table.columns[number]!r} is of type {array.type}, not of numbers; "
                "keep the names and the numbers only"
            )
        with np.errstate(over="ignore"):
            value_RC[:, column] = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    infinite = np.isinf(value_RC)
    if infinite.any():
        row, column = (int(place) for place in np.argwhere(infinite)[0])
        value = batch.column(others[column])[row].as_py()
        raise GraphError(
            f"{table.path} row {first_row + row}: column {table.columns[others[column]]!r} holds {value}, "
            "which is not a finite 32-bit number; correct it or leave it empty"
        )
    return value_RC


def _refuse_text(table: Table) -> None:
    """Raise ``GraphError`` for the first value of the text file that is no number, if there is one."""
    row = 2
    try:
        for batch in _text_batches(table, numbers=False):
            for number in range(1, batch.num_columns):
                array = pa.compute.utf8_trim_whitespace(batch.column(number))
                blank = pa.compute.is_in(array, pa.array(NULLS))
                filled = pa.compute.if_else(blank, "0", array)
                as_weights(filled, path=table.path, column=repr(table.columns[number]), first_row=row)
            row += batch.num_rows
    except (OSError, pa.ArrowException):
        return
