"""The files of a snapshot: Arrow IPC tables of one record batch, mapped into memory when their hash fits.

Enters: columns, or a file and what it must be. Leaves: bytes, or read-only columns. Invariants: files are
parsed from the very bytes that were hashed; numbers are not copied, so processes that read one file share its
pages. A file is never written to again once it has its name: whoever replaces a damaged one makes a new file.
"""

import hashlib
import io
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from graph_store.graph import GraphError
from graph_store.record import FileHash

NUMBERS = {pa.int32(): np.int32, pa.float32(): np.float32}
"""The types that numbers have in our files."""

Column = tuple[str, ...] | NDArray[np.int32] | NDArray[np.float32]
"""Text, or numbers: (rows,), or (rows, width) for a column of fixed-size lists."""


def table_bytes(columns: Mapping[str, Column]) -> bytes:
    """A table as an Arrow IPC file."""
    batch = pa.record_batch({name: _array(column) for name, column in columns.items()})
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def columns(data: memoryview | bytes, *names: str) -> tuple[NDArray[Any], ...]:
    """Columns of a table that ``table_bytes`` wrote: numbers without a copy, text as objects."""
    batch = pyarrow.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    return tuple(_values(batch.column(name)) for name in names)


def matrix(data: memoryview | bytes, *names: str) -> NDArray[Any]:
    """(columns, rows) columns of one type, each a row of the matrix, without a copy."""
    found = columns(data, *names)
    if not len(found[0]):
        return np.stack(found)
    # Columns of one type lie in the file one after the other, the same number of bytes apart.
    first, second = (_address(column) for column in found[:2])
    return np.ndarray(
        (len(found), len(found[0])),
        found[0].dtype,
        data,
        offset=first - _address(np.frombuffer(data, np.uint8)),
        strides=(second - first, found[0].itemsize),
    )


def verified_bytes(path: Path, expected: FileHash) -> memoryview:
    """The bytes of ``path``, mapped; ``GraphError`` naming it when they are not what they must be."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            # An empty file cannot be mapped.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        raise GraphError(f"{path}: is missing; build the snapshot again") from None
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    data = memoryview(mapped)
    if len(data) != expected.size:
        raise GraphError(f"{path}: has {len(data)} bytes, not {expected.size}; build the snapshot again")
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise GraphError(f"{path}: is damaged (its hash does not match); build the snapshot again")
    return data


def _array(column: Column) -> pa.Array:
    if isinstance(column, tuple):
        return pa.array(column, pa.string())
    if column.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])
    return pa.array(column)


def _values(array: pa.Array) -> NDArray[Any]:
    # Not Array.to_numpy nor to_pandas_dtype, which import pandas.
    if pa.types.is_string(array.type):
        return np.array(array.to_pylist(), dtype=object)
    if pa.types.is_fixed_size_list(array.type):
        return _values(array.flatten()).reshape(len(array), array.type.list_size)
    return np.frombuffer(array.buffers()[1], NUMBERS[array.type], len(array))


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
