"""Embeddings that a client sends.

Enters: a stream of record batches. Leaves: an ``Embedding``. Invariant: no more is read than is allowed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from graph_store.embeddings.embedding import Embedding
from graph_store.graph import GraphError
from graph_store.protocol import PutEmbedding


def read_embedding(
    asked: PutEmbedding, reader: Any, limit: int, received: Callable[[int], object]
) -> Embedding:
    """The embedding in the stream; ``GraphError`` when it is too large or of other columns."""
    value = _value_type(reader.schema)
    size, batches = 0, []
    for chunk in reader:
        size += chunk.data.nbytes
        received(chunk.data.nbytes)
        if size > limit:
            raise GraphError(
                f"embedding {asked.version} has more than the {limit} bytes allowed; send fewer genes"
            )
        if chunk.data.column("gene").null_count or chunk.data.column("value").null_count:
            raise GraphError(f"embedding {asked.version}: a gene or vector is missing; send all of them")
        batches.append(chunk.data)
    table = pa.Table.from_batches(batches, reader.schema)
    numbers = table["value"].combine_chunks().flatten()
    if numbers.null_count:
        raise GraphError(f"embedding {asked.version}: holds empty numbers; send all of them")
    z_PD = np.asarray(numbers.to_numpy(zero_copy_only=False), np.float32).reshape(-1, value.list_size)
    return Embedding(asked.version, tuple(table["gene"].to_pylist()), z_PD, asked.origin)


def _value_type(schema: Any) -> Any:
    if schema.names == ["gene", "value"]:
        value = schema.field("value").type
        if (
            schema.field("gene").type == pa.string()
            and pa.types.is_fixed_size_list(value)
            and value.value_type == pa.float32()
            and value.list_size > 0
        ):
            return value
    raise GraphError(
        "embeddings are sent as columns gene (text) and value (lists of a fixed size of 32-bit floats)"
    )
