"""Files that name cells and give each a row of numbers.

Enters: a path. Leaves: a ``Table`` that yields named rows block by block. Invariants: nothing is unpickled;
memory is bounded by a block, but for npz files, which are read whole; every format ends in the same blocks.

    .h5ad            obsm KEY, cells by obs index
    .npz             arrays ``cell`` (names) and ``embedding`` (cells x width)
    .parquet         cell names in the pandas index or else the first column, a number column a dimension
    .csv, .tsv       a line of column names, then a cell a line: its name, then numbers; .gz is read too
"""

import csv
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.embeddings import open_embedding
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.matrix import stream

_BLOCK_VALUES = 2_000_000
_CSV_BLOCK_BYTES = 1 << 24
"""Bytes of text parsed at once; a line must fit."""
_REMEDY = "write it again, or give another format (h5ad, npz, parquet, csv, tsv)"


class NamedRows(NamedTuple):
    """Some rows of a table."""

    names: NDArray[np.object_]
    """(R,) cell names."""
    value_RN: NDArray[np.generic]
    """(R, width) numbers, of any type, finite or not."""


class Table(NamedTuple):
    """An opened file."""

    width: int
    blocks: Iterable[NamedRows]
    """Every row once, in order of the file; ``InputError`` where it turns out to be damaged."""
    header: str | None = None
    """Name of the first column, of text files."""


def open_table(path: Path, key: str | None, scratch: Path) -> Table:
    """Open ``path`` by its ending; ``key`` names the obsm array of an h5ad file.

    ``scratch`` is a folder for temporary files. Raises ``InputError`` for a file that cannot be used.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an h5ad, npz, parquet, csv or tsv file")
    ending = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()
    if ending == ".h5ad":
        return _h5ad(path, key or "", scratch)
    readers: dict[str, Callable[[Path], Table]] = {".npz": _npz, ".parquet": _parquet}
    readers |= dict.fromkeys((".csv", ".csv.gz"), _comma)
    readers |= dict.fromkeys((".tsv", ".txt", ".tsv.gz", ".txt.gz"), _tab)
    if ending not in readers:
        raise InputError(f"{path}: its ending says no known format; {_REMEDY}")
    if key is not None:
        raise InputError(f"{path}: a key is for h5ad files; leave --key out")
    try:
        return readers[ending](path)
    except _DAMAGE as error:
        raise _unreadable(path, error) from None


_DAMAGE = (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile, zlib.error, pa.ArrowException)
"""What the libraries raise for a file that is not what its ending says."""


def _unreadable(path: Path, error: BaseException) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); {_REMEDY}")


def _h5ad(path: Path, key: str, scratch: Path) -> Table:
    part = open_embedding(path, key)
    names = part.obs.index.astype(str).to_numpy(object)
    blocks = (
        NamedRows(names[block.start : block.start + block.matrix.shape[0]], block.matrix.toarray())
        for block in stream(part, scratch)
    )
    return Table(part.shape[1], blocks)


def _npz(path: Path) -> Table:
    with np.load(path, allow_pickle=False) as arrays:
        missing = sorted({"cell", "embedding"} - set(arrays.files))
        if missing:
            raise ValueError(f"no array {missing[0]!r}, there is {listing(arrays.files) or 'none'}")
        names, value_RN = arrays["cell"], arrays["embedding"]
    if names.dtype.kind not in "US" or names.ndim != 1:
        raise ValueError("array 'cell' is no list of names: save np.array(names, dtype=str)")
    if value_RN.dtype.kind not in "iufb" or value_RN.ndim != 2 or not value_RN.shape[1]:
        raise ValueError("array 'embedding' is no matrix of numbers")
    if len(names) != len(value_RN):
        raise ValueError(f"{len(names)} cells, but {len(value_RN)} rows of numbers")
    return Table(value_RN.shape[1], [NamedRows(names.astype(str).astype(object), value_RN)])


def _parquet(path: Path) -> Table:
    file = pa.parquet.ParquetFile(path, pre_buffer=False)  # which would hold the whole file
    schema = file.schema_arrow
    index = [
        name for name in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(name, str)
    ]
    place = schema.get_field_index(index[0]) if index else 0
    if len(schema) < 2:
        raise ValueError("it has no column besides the cells' names")
    for number, field in enumerate(schema):
        if number != place and not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            raise ValueError(f"column {field.name!r} is of type {field.type}, not of numbers")
    batches = file.iter_batches(max(1, _BLOCK_VALUES // len(schema)))
    return Table(len(schema) - 1, _rows(path, batches, place))


def _comma(path: Path) -> Table:
    return _text(path, ",")


def _tab(path: Path) -> Table:
    return _text(path, "\t")


def _text(path: Path, separator: str) -> Table:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
        header = next(csv.reader(text, delimiter=separator), [])
    if len(header) < 2:
        raise ValueError("its first line does not name a column of cells and columns of numbers")
    columns = ["cell", *(f"column {number}" for number in range(len(header) - 1))]
    types = dict.fromkeys(columns, pa.float64()) | {"cell": pa.string()}
    reader = pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(column_names=columns, skip_rows=1, block_size=_CSV_BLOCK_BYTES),
        parse_options=pa.csv.ParseOptions(delimiter=separator),
        convert_options=pa.csv.ConvertOptions(column_types=types),
    )
    return Table(len(header) - 1, _rows(path, reader, 0), header[0])


def _rows(path: Path, batches: Iterable[Any], place: int) -> Iterator[NamedRows]:
    """Record batches as named rows; column ``place`` holds the names."""
    read = 0
    try:
        for batch in batches:
            names = batch.column(place).to_pylist()
            if None in names:
                raise InputError(f"{path}: row {read + names.index(None)} has no cell name; {_REMEDY}")
            others = [column for number, column in enumerate(batch.columns) if number != place]
            value_RN = np.empty((len(names), len(others)), np.float64)
            for number, column in enumerate(others):
                value_RN[:, number] = column.to_numpy(zero_copy_only=False)
            yield NamedRows(np.array([str(name) for name in names], object), value_RN)
            read += len(names)
    except _DAMAGE as error:
        raise _unreadable(path, error) from None
