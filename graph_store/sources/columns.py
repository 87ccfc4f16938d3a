"""Named columns of a table file, batch after batch: csv, tsv, txt (each also .gz) and parquet.

Enters: a path and column names. Leaves: Arrow arrays of a few megabytes at a time, with the row they begin
at. Invariant: text is never interpreted on the way (the gene NAN stays NAN), and whatever cannot be read is a
``GraphError`` naming file and row. Rows are counted as an editor does: in text the header is row 1.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from graph_store.graph import GraphError

BLOCK_BYTES = 1 << 23
BATCH_ROWS = 1 << 17
PARQUET_SUFFIXES = (".parquet", ".pq")


class Table(NamedTuple):
    """A table file whose header has been read."""

    path: Path
    columns: tuple[str, ...]
    separator: str | None
    """What stands between the fields of a line; None for parquet."""


class Batch(NamedTuple):
    """Some consecutive rows."""

    first_row: int
    columns: tuple[pa.Array, ...]
    """As many as were asked for, in that order; text files give strings."""


def open_table(path: Path) -> Table:
    """Read the header; ``GraphError`` when there is none."""
    if path.suffix.lower() in PARQUET_SUFFIXES:
        try:
            return Table(path, tuple(pyarrow.parquet.read_schema(path).names), None)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            header = stream.readline(BLOCK_BYTES).decode("utf-8-sig").rstrip("\r\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    if not header.strip():
        raise GraphError(f"{path}: is empty, or its first line is; the first line must name the columns")
    separator = _separator(path, header)
    return Table(path, tuple(_fields(header, separator)), separator)


def need(table: Table, name: str) -> str:
    """``name`` when the table has that column exactly once; ``GraphError`` otherwise."""
    if table.columns.count(name) == 1:
        return name
    if name in table.columns:
        raise GraphError(f"{table.path}: column {name!r} occurs more than once; rename all but one")
    raise GraphError(f"{table.path}: has no column {name!r}; its columns are {', '.join(table.columns)}")


def batches(table: Table, names: Sequence[str]) -> Iterator[Batch]:
    """The columns ``names`` in file order."""
    row = 1 if table.separator is None else 2
    try:
        for batch in _record_batches(table, names):
            yield Batch(row, tuple(batch.column(name) for name in names))
            row += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(table.path, error) from None


def as_names(
    array: pa.Array, *, path: Path, column: str, first_row: int
) -> tuple[NDArray[np.int32], list[str]]:
    """Codes (R,) into the distinct names, and those; surrounding blanks go, an empty name is refused."""
    encoded = pa.compute.utf8_trim_whitespace(array.cast(pa.string())).fill_null("").dictionary_encode()
    names: list[str] = encoded.dictionary.to_pylist()
    codes: NDArray[np.int32] = encoded.indices.to_numpy().astype(np.int32)
    if "" in names:
        row = first_row + int(np.argmax(codes == names.index("")))
        raise GraphError(f"{path} row {row}: {column!r} is empty; give a gene name or remove the row")
    return codes, names


def as_weights(array: pa.Array, *, path: Path, column: str, first_row: int) -> NDArray[np.float32]:
    """Weights (R,); what is no finite 32-bit number is refused."""
    is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    text = pa.compute.utf8_trim_whitespace(array) if is_text else array
    try:
        weights = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        weights = np.array([_number(item) for item in text.to_pylist()])
    with np.errstate(over="ignore"):
        weight_R: NDArray[np.float32] = weights.astype(np.float32)
    bad = ~np.isfinite(weight_R)
    if bad.any():
        place = int(np.argmax(bad))
        raise GraphError(
            f"{path} row {first_row + place}: {column} {array[place].as_py()!r} is not a finite number; "
            "correct it or remove the row"
        )
    return weight_R


def _number(item: object) -> float:
    try:
        return float(str(item))
    except ValueError:
        return np.nan


def _record_batches(table: Table, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if table.separator is None:
        with pyarrow.parquet.ParquetFile(table.path) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(names)))
        return
    with pa.input_stream(str(table.path), compression="detect") as stream:
        yield from pyarrow.csv.open_csv(
            stream,
            # One thread, so that errors name their row.
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=table.separator),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(dict.fromkeys(names)),
                column_types=dict.fromkeys(names, pa.string()),
            ),
        )


def _fields(header: str, separator: str) -> list[str]:
    return next(csv.reader([header], delimiter=separator))


def _separator(path: Path, header: str) -> str:
    """Tab, comma or semicolon, whichever cuts the header; blanks only when none of them does."""
    usual = [",", "\t", ";"] if ".csv" in path.suffixes else ["\t", ",", ";"]
    return next((mark for mark in [*usual, " "] if len(_fields(header, mark)) > 1), usual[0])


def _unreadable(path: Path, error: Exception) -> GraphError:
    if isinstance(error, FileNotFoundError):
        return GraphError(f"{path}: no such file; check the path in the graph configuration")
    reason = " ".join(str(error).split()) or type(error).__name__
    return GraphError(f"{path}: cannot be read ({reason[:200]}); check that the file is whole")
