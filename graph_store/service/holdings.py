"""What the service holds: snapshots and embeddings by name, opened when asked for.

Enters: names that were checked to be names. Leaves: records, streams, neighbours. Invariant: a name leads
to a file only when the blobs, or a snapshot's record, list it.
"""

from pathlib import Path

from graph_store import snapshot
from graph_store.embeddings.alignment import align, rotated
from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.neighbours import Neighbour, nearest
from graph_store.graph import GraphError, Snapshot
from graph_store.protocol import (
    ColumnsTicket,
    EmbeddingTicket,
    FilesTicket,
    FileTicket,
    Listed,
    ListedEmbedding,
    NearestRequest,
    Part,
    Ticket,
    listed,
    listed_embedding,
)
from graph_store.record import FILE_NAME, Record, read_record, to_text
from graph_store.service import blobs
from graph_store.service.catalogue import Catalogue
from graph_store.service.opened import Opened
from graph_store.service.settings import Limits
from graph_store.service.streams import (
    RAW,
    Stream,
    VerifiedFiles,
    columns_stream,
    embedding_stream,
    files_stream,
    neighbourhood_stream,
)

_REMEMBERED = 4096
"""Files whose hash was checked, and records, until they change."""
_NAMES_SHOWN = 10


class Holdings:
    """The holdings of one service."""

    raw_schema = RAW

    def __init__(self, place: str, cache: Path | None, limits: Limits) -> None:
        self._blobs = blobs.open_blobs(place, cache)
        self._limits = limits
        self._catalogue = Catalogue(self._blobs.folder)
        self._files = VerifiedFiles(_REMEMBERED)
        self._copied: set[str] = set()
        self._records: Opened[Record] = Opened(_REMEMBERED)
        self._snapshots: Opened[Snapshot] = Opened(limits.opened)
        self._embeddings: Opened[Embedding] = Opened(limits.opened)

    @property
    def folder(self) -> Path:
        """Where builds put their snapshots."""
        return self._blobs.folder

    def publish(self, identity: str) -> None:
        """Let everybody see a snapshot that was built in ``folder``."""
        blobs.publish_snapshot(self._blobs, identity)

    def snapshot_ids(self) -> tuple[str, ...]:
        """The ids of all snapshots."""
        return blobs.snapshot_ids(self._blobs)

    def listed(self) -> list[Listed]:
        """What there is, by id."""
        return self._catalogue.snapshots(self.snapshot_ids(), self._listed)

    def listed_embeddings(self) -> list[ListedEmbedding]:
        """The versions of embeddings there are, by name."""
        return self._catalogue.embeddings(blobs.embedding_versions(self._blobs), self._listed_embedding)

    def record(self, identity: str) -> Record:
        """The snapshot's record; ``GraphError`` when there is no such snapshot."""
        return self._folder(identity)[1]

    def record_text(self, identity: str) -> bytes:
        """The bytes of the snapshot's ``snapshot.json``."""
        return to_text(self.record(identity)).encode("ascii")

    def stream(self, ticket: Ticket) -> Stream:
        """What the ticket asks for."""
        if isinstance(ticket, EmbeddingTicket):
            return embedding_stream(self._embedding(ticket.version), ticket)
        folder, record = self._folder(ticket.snapshot)
        if isinstance(ticket, FileTicket | FilesTicket):
            parts = _parts(ticket)
            return files_stream([(part, self._files.map(folder, record, part.file)) for part in parts])
        if isinstance(ticket, ColumnsTicket):
            return columns_stream(self._files.map(folder, record, ticket.file), ticket)
        opened = self._snapshots.get(record.id, lambda: snapshot.read(folder))
        return neighbourhood_stream(opened, ticket, self._limits)

    def put(self, embedding: Embedding) -> str:
        """Keep an embedding and return the hash of its content."""
        return blobs.put_embedding(self._blobs, embedding)

    def nearest(self, asked: NearestRequest) -> tuple[tuple[Neighbour, ...], ...]:
        """The nearest genes; in another version, after this one is aligned to it."""
        embedding = self._embedding(asked.version)
        if asked.among is None or asked.among == asked.version:
            return nearest(embedding, asked.genes, asked.count)
        among = self._embedding(asked.among)
        turned = rotated(embedding, align(embedding, among))
        return nearest(turned, asked.genes, asked.count, among=among)

    def _check_there(self, identity: str) -> None:
        if not blobs.has_snapshot(self._blobs, identity):
            there = _some(self.snapshot_ids())
            raise GraphError(f"there is no snapshot {identity} here; there {there}")

    def _folder(self, identity: str) -> tuple[Path, Record]:
        self._check_there(identity)
        folder = self.folder / identity
        if identity not in self._copied or not folder.exists():
            folder = blobs.snapshot_folder(self._blobs, identity)
            self._copied.add(identity)
        state = (folder / FILE_NAME).stat()
        key = (identity, state.st_ino, state.st_mtime_ns, state.st_size)
        return folder, self._records.get(key, lambda: read_record(folder))

    def _embedding(self, version: str) -> Embedding:
        versions = blobs.embedding_versions(self._blobs)
        if version not in versions:
            raise GraphError(f"there is no embedding {version} here; there {_some(versions)}")
        return self._embeddings.get(version, lambda: blobs.get_embedding(self._blobs, version))

    def _listed(self, identity: str) -> Listed:
        return listed(*blobs.describe_snapshot(self._blobs, identity))

    def _listed_embedding(self, version: str) -> ListedEmbedding:
        return listed_embedding(blobs.describe_embedding(self._blobs, version))


def _parts(ticket: FileTicket | FilesTicket) -> list[Part]:
    return ticket.files if isinstance(ticket, FilesTicket) else [Part(file=ticket.file, offset=ticket.offset)]


def _some(names: tuple[str, ...]) -> str:
    if not names:
        return "is none"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"is {', '.join(names[:_NAMES_SHOWN])}{more}"
