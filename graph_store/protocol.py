"""What a graph service and its clients say to each other: JSON tickets, actions and answers; raw bytes.

Enters: values. Leaves: their JSON, and back, checked. Invariants: no name in a ticket or an action can be a
path (all are checked by pattern here, and looked up, not joined, by the service); unknown keys are refused.

Streams of ``do_get``: a ``FileTicket`` or ``FilesTicket`` brings the bytes of files in one column ``data`` of
8-bit numbers, the other tickets bring tables.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter

from graph_store.embeddings.store import EmbeddingInfo
from graph_store.hashing import canonical_json
from graph_store.record import Record
from graph_store.source_config import Name

SnapshotId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,159}$")]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Gene = Annotated[str, Field(min_length=1, max_length=256)]
Column = Annotated[str, Field(min_length=1, max_length=64)]
Direction = Literal["in", "out", "both"]


class Message(BaseModel):
    """A part of the conversation: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_bytes(self) -> bytes:
        """The JSON of this message."""
        return self.model_dump_json().encode()


class FileTicket(Message):
    """A file of a snapshot as it lies on disk, from ``offset`` on."""

    kind: Literal["file"] = "file"
    snapshot: SnapshotId
    file: FileName
    offset: Annotated[int, Field(ge=0)] = 0


class Part(Message):
    """A file from some byte on."""

    file: FileName
    offset: Annotated[int, Field(ge=0)] = 0


class FilesTicket(Message):
    """Several files of a snapshot in one stream, in this order; each batch names its file in its metadata."""

    kind: Literal["files"] = "files"
    snapshot: SnapshotId
    files: Annotated[list[Part], Field(min_length=1)]


class ColumnsTicket(Message):
    """Columns of one of a snapshot's tables."""

    kind: Literal["columns"] = "columns"
    snapshot: SnapshotId
    file: FileName
    columns: Annotated[list[Column], Field(min_length=1)] | None = None
    """All when left out."""


class NeighbourhoodTicket(Message):
    """The edges that are walked in ``hops`` steps from some genes."""

    kind: Literal["neighbourhood"] = "neighbourhood"
    snapshot: SnapshotId
    genes: Annotated[list[Gene], Field(min_length=1)]
    hops: PositiveInt = 1
    direction: Direction = "both"
    """``in``: from a target to its sources; ``out``: from a source to its targets."""
    graphs: Annotated[list[Name], Field(min_length=1)] | None = None
    """Names of the graphs walked together; all when left out."""
    limit: PositiveInt = 100_000
    """More edges than this are refused."""


class EmbeddingTicket(Message):
    """Vectors of a published version of embeddings."""

    kind: Literal["embedding"] = "embedding"
    version: Version
    genes: Annotated[list[Gene], Field(min_length=1)] | None = None
    """All, in the order of the version, when left out."""


Ticket = FileTicket | FilesTicket | ColumnsTicket | NeighbourhoodTicket | EmbeddingTicket
_TICKET: TypeAdapter[Ticket] = TypeAdapter(Annotated[Ticket, Field(discriminator="kind")])


class PutEmbedding(Message):
    """Announces the embeddings that follow in a ``do_put``: columns ``gene`` and ``value``."""

    kind: Literal["put_embedding"] = "put_embedding"
    version: Version
    origin: dict[str, str] = {}


class OneSnapshot(Message):
    """Body of ``describe``: the answer is the text of ``snapshot.json``."""

    snapshot: SnapshotId


class BuildRequest(Message):
    """Body of ``build``: the tree of a ``graphs.yaml`` whose paths are relative to the service's sources.

    The answer is a stream of ``Progress`` and, at last, a ``Built``.
    """

    recipe: dict[str, Any]


class NearestRequest(Message):
    """Body of ``nearest``: the answer is ``Nearest``."""

    version: Version
    genes: Annotated[list[Gene], Field(min_length=1)]
    count: PositiveInt = 10
    among: Version | None = None
    """Another version to look in, aligned to first; the same one when left out."""


class Nearest(Message):
    """Answer of ``nearest``: for each gene asked for its neighbours, nearest first."""

    neighbours: list[list[tuple[str, float]]]
    """Names and cosines."""


class Progress(Message):
    """How far a build is: a stage's name, and steps done of all."""

    kind: Literal["progress"] = "progress"
    what: str
    done: int
    total: int


class Built(Message):
    """How a build ended."""

    kind: Literal["built"] = "built"
    id: SnapshotId
    was_there: bool


_BUILD_NEWS: TypeAdapter[Progress | Built] = TypeAdapter(
    Annotated[Progress | Built, Field(discriminator="kind")]
)


class Listed(Message):
    """A snapshot as ``list`` answers it."""

    id: SnapshotId
    created: float
    """Seconds since 1970."""
    bytes: int
    genes: int
    edges: int
    """Of all its graphs."""
    graphs: list[str]
    recipe: str
    """SHA-256 of the recipe."""


class ListedEmbedding(Message):
    """A version of embeddings as ``list_embeddings`` answers it."""

    version: Version
    genes: int
    width: int
    zero: int
    """Genes whose vector is zero."""
    sha256: str
    origin: dict[str, str]


class Health(Message):
    """Answer of ``health``."""

    status: Literal["serving", "stopping"]
    snapshots: int
    builds: int
    """Running now."""


class Stored(Message):
    """Answer of a ``do_put``."""

    sha256: str


class Refusal(Message):
    """Why a request was refused; travels as the extra information of a Flight error."""

    refused: str


def listed(record: Record, created: float) -> Listed:
    """The entry of a snapshot whose record was written at ``created``."""
    return Listed(
        id=record.id,
        created=created,
        bytes=sum(file.size for file in record.files.values()),
        genes=record.num_genes,
        edges=sum(report.edges for report in record.graphs),
        graphs=[report.name for report in record.graphs],
        recipe=hashlib.sha256(canonical_json(record.recipe).encode()).hexdigest(),
    )


def listed_embedding(info: EmbeddingInfo) -> ListedEmbedding:
    """The entry of a version of embeddings."""
    return ListedEmbedding(
        version=info.version,
        genes=info.num_genes,
        width=info.width,
        zero=info.num_zero,
        sha256=info.sha256,
        origin=info.origin,
    )


def parse_ticket(data: bytes) -> Ticket:
    """The ticket in ``data``; ``ValidationError`` when it is none."""
    return _TICKET.validate_json(data)


def parse_build_news(data: bytes) -> Progress | Built:
    """What a build says; ``ValidationError`` when it is neither."""
    return _BUILD_NEWS.validate_json(data)


def parse_refusal(data: bytes | None) -> str | None:
    """The reason in a Flight error's extra information, if it is one of ours."""
    try:
        reason = json.loads(data or b"null")
    except ValueError:
        return None
    return str(reason["refused"]) if isinstance(reason, dict) and "refused" in reason else None
