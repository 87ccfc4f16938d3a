"""Embeddings on disk: one folder a version, never changed, read only when every hash fits.

Enters: an ``Embedding``. Leaves: ``<folder>/embeddings/<version>/`` and, from it, the same embedding,
memory-mapped. Invariants: a folder under a version is complete or absent; a version means one content for
ever; the vectors that are read are those that were hashed.

In it lie ``embedding.arrow`` (Arrow IPC of one record batch: gene, z as a list of fixed size) and
``embedding.json``, the record, which carries its own SHA-256.
"""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from pydantic import BaseModel, ConfigDict, ValidationError

from graph_store.building import building
from graph_store.embeddings.embedding import (
    VERSION,
    Embedding,
    check_embedding,
    check_version,
    without_direction,
)
from graph_store.graph import GraphError
from graph_store.hashing import canonical_json

FOLDER, DATA, RECORD = "embeddings", "embedding.arrow", "embedding.json"
LAYOUT = 1


class EmbeddingInfo(BaseModel):
    """Everything ``embedding.json`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    layout: int
    version: str
    num_genes: int
    width: int
    num_zero: int
    """Genes whose vector is zero: they have no cosine and no neighbours."""
    sha256: str
    """Of genes, numbers and origin: the same on every machine and for every version of Arrow."""
    origin: dict[str, str]
    file_sha256: str
    file_size: int


def put_embedding(folder: Path, embedding: Embedding) -> str:
    """Keep ``embedding`` under its version in ``folder`` and return the SHA-256 of its content.

    The same content again changes nothing. Raises ``GraphError`` when the version has another content, when
    the embedding breaks its invariants or ``folder`` cannot be written.
    """
    check_embedding(embedding)
    data = _to_bytes(embedding)
    info = _info(embedding, data)
    final = folder / FOLDER / embedding.version
    if _is_there(final, info):
        return info.sha256
    try:
        with building(final) as written:
            for name, content in ((DATA, data), (RECORD, _to_text(info).encode("ascii"))):
                with (written / name).open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
            _publish(written, final, info)
    except OSError as error:
        raise GraphError(
            f"{folder}: embedding cannot be written ({error.strerror}); check space, rights"
        ) from None
    return info.sha256


def get_embedding(folder: Path, version: str) -> Embedding:
    """The embedding of ``version``, verified; its numbers stay in the file, memory-mapped and read-only.

    Raises ``GraphError`` listing the versions there are, or naming the damaged file.
    """
    info = describe_embedding(folder, version)
    return _read(folder / FOLDER / version, info)


def describe_embedding(folder: Path, version: str) -> EmbeddingInfo:
    """What the store says of ``version``; its numbers are not read. Raises ``GraphError``."""
    check_version(version)
    if not (folder / FOLDER / version).is_dir():
        there = ", ".join(embedding_versions(folder)) or "none"
        raise GraphError(f"{folder}: has no embedding {version}; there are: {there}")
    return _read_info(folder / FOLDER / version)


def embedding_versions(folder: Path) -> tuple[str, ...]:
    """The versions in ``folder``, sorted; none when it has no embeddings."""
    parent = folder / FOLDER
    if not parent.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in parent.iterdir() if VERSION.fullmatch(entry.name)))


def list_embeddings(folder: Path) -> tuple[EmbeddingInfo, ...]:
    """What the store says of every version, sorted; ``GraphError`` names a damaged one."""
    return tuple(describe_embedding(folder, version) for version in embedding_versions(folder))


def content_hash(embedding: Embedding) -> str:
    """SHA-256 of genes, numbers and origin; not of the version."""
    numbers = np.ascontiguousarray(embedding.z_PD, dtype="<f4")
    hashed = {
        "genes": list(embedding.genes),
        "width": embedding.z_PD.shape[1],
        "z": hashlib.sha256(numbers.tobytes()).hexdigest(),
        "origin": embedding.origin,
    }
    return hashlib.sha256(canonical_json(hashed).encode()).hexdigest()


def _is_there(final: Path, info: EmbeddingInfo) -> bool:
    """Whether that very content is there, whole; another one, or one that cannot be told, is an error."""
    if not final.exists():
        return False
    present = _read_info(final)
    if present.sha256 != info.sha256:
        raise GraphError(
            f"{final}: version {info.version} is there with another content, and a version never changes; "
            "choose another version"
        )
    try:
        _read(final, present)
    except GraphError:  # its numbers are damaged, and ours are what they were
        return False
    return True


def _publish(built: Path, final: Path, info: EmbeddingInfo) -> None:
    """Move the finished folder into place; a damaged one of this content goes, a whole one stays."""
    if final.exists() and not _is_there(final, info):
        shutil.rmtree(final)
    try:
        built.rename(final)
    except OSError:  # somebody was faster
        if not _is_there(final, info):
            raise


def _to_bytes(embedding: Embedding) -> bytes:
    values = pa.array(np.ascontiguousarray(embedding.z_PD).reshape(-1), pa.float32())
    batch = pa.record_batch(
        {
            "gene": pa.array(embedding.genes, pa.string()),
            "z": pa.FixedSizeListArray.from_arrays(values, embedding.z_PD.shape[1]),
        }
    )
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _info(embedding: Embedding, data: bytes) -> EmbeddingInfo:
    return EmbeddingInfo(
        layout=LAYOUT,
        version=embedding.version,
        num_genes=len(embedding.genes),
        width=embedding.z_PD.shape[1],
        num_zero=int(without_direction(embedding.z_PD).sum()),
        sha256=content_hash(embedding),
        origin=embedding.origin,
        file_sha256=hashlib.sha256(data).hexdigest(),
        file_size=len(data),
    )


def _to_text(info: EmbeddingInfo) -> str:
    body = info.model_dump(mode="json")
    return canonical_json({"record": body, "seal": hashlib.sha256(canonical_json(body).encode()).hexdigest()})


def _read_info(final: Path) -> EmbeddingInfo:
    path = final / RECORD
    try:
        text = path.read_bytes().decode("ascii")
        info = EmbeddingInfo.model_validate(json.loads(text)["record"])
    except FileNotFoundError:
        raise GraphError(f"{path}: is missing; remove the folder and put the embedding again") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError):
        raise GraphError(f"{path}: is damaged; remove the folder and put the embedding again") from None
    if _to_text(info) != text or info.version != final.name:
        raise GraphError(f"{path}: is damaged or was edited; remove the folder and put the embedding again")
    if info.layout != LAYOUT:
        raise GraphError(
            f"{path}: is of layout {info.layout} and this software reads {LAYOUT}; put the embedding again"
        )
    return info


def _read(final: Path, info: EmbeddingInfo) -> Embedding:
    path = final / DATA
    try:
        with pa.memory_map(str(path)) as source:
            data = source.read_buffer()
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error}); put the embedding again") from None
    if data.size != info.file_size or hashlib.sha256(data).hexdigest() != info.file_sha256:
        raise GraphError(f"{path}: is damaged (its hash does not match); put the embedding again")
    batch = pyarrow.ipc.open_file(data).get_batch(0)
    genes = tuple(batch["gene"].to_pylist())
    z_PD = batch["z"].values.to_numpy().reshape(len(genes), info.width)
    return Embedding(info.version, genes, z_PD, info.origin)
