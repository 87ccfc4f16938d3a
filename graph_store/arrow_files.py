"""The files of a snapshot as bytes: Arrow IPC tables of one record batch, read only when their hash fits.

Enters: columns, or a file and what it must be. Leaves: bytes, or read-only columns. Invariant: files are
parsed from the very bytes that were hashed.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from graph_store.graph import GraphError
from graph_store.record import FileHash

Column = tuple[str, ...] | NDArray[np.int32] | NDArray[np.float32]


def table_bytes(columns: Mapping[str, Column]) -> bytes:
    """A table as an Arrow IPC file; tuples are text columns."""
    table = pa.table(
        {
            name: pa.array(column, pa.string()) if isinstance(column, tuple) else pa.array(column)
            for name, column in columns.items()
        }
    )
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def columns(data: bytes, *names: str) -> tuple[NDArray[Any], ...]:
    """Columns of a table that ``table_bytes`` wrote: numbers without a copy, text as objects."""
    table = pyarrow.ipc.open_file(pa.py_buffer(data)).read_all()
    return tuple(table[name].combine_chunks().to_numpy(zero_copy_only=False) for name in names)


def verified_bytes(path: Path, expected: FileHash) -> bytes:
    """The bytes of ``path``; ``GraphError`` naming it when they are not what they must be."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise GraphError(f"{path}: is missing; build the snapshot again") from None
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
    if len(data) != expected.size:
        raise GraphError(f"{path}: has {len(data)} bytes, not {expected.size}; build the snapshot again")
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise GraphError(f"{path}: is damaged (its hash does not match); build the snapshot again")
    return data
