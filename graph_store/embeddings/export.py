"""An embedding as a parquet table, for other programs.

Enters: an ``Embedding``. Leaves: a file with the columns gene, 1, 2, ... (one row a gene, in its order) whose
schema says version and origin. Invariant: the file is complete or absent. ``txpert graph build`` reads it as
it is, as a source of kind ``embedding``.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from graph_store.embeddings.embedding import Embedding
from graph_store.graph import GraphError


def export_parquet(embedding: Embedding, path: Path) -> None:
    """Write ``embedding`` to ``path``; ``GraphError`` when it cannot be written."""
    columns = {str(number + 1): pa.array(column) for number, column in enumerate(embedding.z_PD.T)}
    table = pa.table({"gene": pa.array(embedding.genes, pa.string()), **columns})
    said = {"version": embedding.version, "origin": json.dumps(embedding.origin, sort_keys=True)}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table.replace_schema_metadata(said), partial)
        partial.replace(path)
    except OSError as error:
        raise GraphError(f"{path}: cannot be written ({error.strerror or error}); choose another") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
