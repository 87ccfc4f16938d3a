"""What ``do_get`` sends for each kind of ticket.

Enters: a ticket and what is held. Leaves: a schema and record batches. Invariants: nothing is sent from a
file whose hash was not checked since it was last changed; batches refer to the mapped file, so a stream needs
no memory of its own however large the file; what would be larger than the limits is refused, not cut.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from graph_store.embeddings.embedding import Embedding, rows_of
from graph_store.graph import GraphError, Snapshot
from graph_store.neighbourhood import Neighbourhood, graphs_of, neighbourhood, nodes_of
from graph_store.protocol import ColumnsTicket, EmbeddingTicket, NeighbourhoodTicket, Part
from graph_store.record import FileHash, Record
from graph_store.service.opened import Opened
from graph_store.service.settings import Limits

CHUNK_BYTES = 1 << 20
"""Of a file's bytes in one batch: measured fastest on loopback, of 256 KiB to 16 MiB."""
_ROWS = 1 << 17
RAW = pa.schema([("data", pa.uint8())])
EDGES = pa.schema(
    [
        ("graph", pa.string()),
        ("source", pa.string()),
        ("target", pa.string()),
        ("weight", pa.float32()),
        ("step", pa.int8()),
    ]
)


class Stream(NamedTuple):
    """An answer, made while it is sent."""

    schema: Any
    batches: Iterator[Any]
    """Record batches, or pairs of one and its metadata."""
    rows: int
    size: int
    """Bytes, or -1 when nobody knows before."""


class VerifiedFiles:
    """Maps files whose hash fits; each is hashed once, until it changes."""

    def __init__(self, remembered: int) -> None:
        self._verified: Opened[None] = Opened(remembered)

    def map(self, folder: Path, record: Record, name: str) -> Any:
        """The bytes of a file that ``record`` names; ``GraphError`` when there is none or it is damaged."""
        if name not in record.files:
            raise GraphError(
                f"snapshot {record.id}: has no file {name}; it has {', '.join(sorted(record.files))}"
            )
        path, expected = folder / name, record.files[name]
        try:
            with pa.memory_map(str(path)) as source:
                buffer = source.read_buffer()
            state = path.stat()
        except FileNotFoundError:
            raise GraphError(f"{path}: is missing; build the snapshot again") from None
        key = (path, state.st_ino, state.st_mtime_ns, state.st_size)
        self._verified.get(key, lambda: _verify(path, buffer, expected))
        return buffer


def _verify(path: Path, buffer: Any, expected: FileHash) -> None:
    if buffer.size != expected.size or hashlib.sha256(buffer).hexdigest() != expected.sha256:
        raise GraphError(f"{path}: is damaged (its hash does not match); build the snapshot again")


def files_stream(files: Sequence[tuple[Part, Any]]) -> Stream:
    """The bytes of mapped files, each from its offset on; the name of its file comes with each batch."""
    size = 0
    for part, buffer in files:
        if part.offset > buffer.size:
            raise GraphError(f"{part.file}: has {buffer.size} bytes; offset {part.offset} is behind them")
        size += buffer.size - part.offset
    return Stream(RAW, _chunks(files), size, size)


def _chunks(files: Sequence[tuple[Part, Any]]) -> Iterator[Any]:
    for part, buffer in files:
        name = pa.py_buffer(part.file.encode())
        for start in range(part.offset, buffer.size, CHUNK_BYTES):
            size = min(CHUNK_BYTES, buffer.size - start)
            array = pa.Array.from_buffers(pa.uint8(), size, [None, buffer.slice(start, size)])
            yield pa.RecordBatch.from_arrays([array], schema=RAW), name


def columns_stream(buffer: Any, ticket: ColumnsTicket) -> Stream:
    """Columns of a table, in the order asked for."""
    if not ticket.file.endswith(".arrow"):
        raise GraphError(f"{ticket.file}: is no table; ask for a file that ends in .arrow")
    there = pyarrow.ipc.open_file(buffer).schema.names
    names = ticket.columns if ticket.columns is not None else there
    for name in names:
        if name not in there:
            raise GraphError(f"{ticket.file}: has no column {name}; it has {', '.join(there)}")
    if len(set(names)) < len(names):
        raise GraphError(f"{ticket.file}: a column is asked for twice; name each once")
    options = pyarrow.ipc.IpcReadOptions(included_fields=[there.index(name) for name in names])
    return _table(pyarrow.ipc.open_file(buffer, options=options).read_all().select(names))


def neighbourhood_stream(snapshot: Snapshot, ticket: NeighbourhoodTicket, limits: Limits) -> Stream:
    """The edges around some genes, by name."""
    if ticket.hops > limits.hops:
        raise GraphError(f"{ticket.hops} hops are more than the {limits.hops} of one request; ask for fewer")
    limit = min(ticket.limit, limits.edges)
    found = neighbourhood(
        snapshot,
        nodes_of(snapshot, ticket.genes),
        graphs_of(snapshot, ticket.graphs),
        hops=ticket.hops,
        inwards=ticket.direction != "out",
        outwards=ticket.direction != "in",
    )
    if len(found.weight_M) > limit:
        raise GraphError(
            f"the neighbourhood has {len(found.weight_M)} edges, more than {limit}; ask for fewer hops, "
            f"genes or graphs, or for a limit of up to {limits.edges}"
        )
    return Stream(EDGES, _named_edges(snapshot, found), len(found.weight_M), -1)


def _named_edges(snapshot: Snapshot, found: Neighbourhood) -> Iterator[Any]:
    genes = pa.array(snapshot.genes, pa.string())
    graphs = pa.array([graph.name for graph in snapshot.graphs], pa.string())
    for start in range(0, len(found.weight_M), _ROWS):
        part = slice(start, start + _ROWS)
        source, target = found.edges_2M[:, part]
        yield pa.record_batch(
            [
                graphs.take(pa.array(found.graph_M[part])),
                genes.take(pa.array(source)),
                genes.take(pa.array(target)),
                pa.array(found.weight_M[part]),
                pa.array(found.step_M[part]),
            ],
            schema=EDGES,
        )


def embedding_stream(embedding: Embedding, ticket: EmbeddingTicket) -> Stream:
    """Columns gene and value, in the order asked for."""
    genes, z_PD = embedding.genes, embedding.z_PD
    if ticket.genes is not None:
        genes = tuple(ticket.genes)
        z_PD = z_PD[rows_of(embedding, genes)]
    return _table(embedding_table(genes, z_PD))


def embedding_table(genes: tuple[str, ...], z_PD: Any) -> Any:
    """Vectors as a table of columns gene and value."""
    numbers = pa.array(np.ascontiguousarray(z_PD).reshape(-1), pa.float32())
    value = pa.FixedSizeListArray.from_arrays(numbers, z_PD.shape[1])
    return pa.table({"gene": pa.array(genes, pa.string()), "value": value})


def _table(table: Any) -> Stream:
    return Stream(table.schema, iter(table.to_batches(max_chunksize=_ROWS)), table.num_rows, table.nbytes)
