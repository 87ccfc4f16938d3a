"""The client of a graph service: asks, goes on asking while the service is away, verifies what it gets.

Enters: an address and what it takes to be let in. Leaves: local folders, tables, records. Invariants: a
transfer that breaks off goes on where it was, also with a service that was started anew; patience counts from
the last sign of life; every failure is one ``GraphError`` that says what to do.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
from pydantic import ValidationError

from graph_store import mirror
from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.neighbours import Neighbour
from graph_store.graph import GraphError
from graph_store.protocol import (
    BuildRequest,
    Built,
    ColumnsTicket,
    EmbeddingTicket,
    FilesTicket,
    Health,
    Listed,
    ListedEmbedding,
    Message,
    Nearest,
    NearestRequest,
    NeighbourhoodTicket,
    OneSnapshot,
    Part,
    PutEmbedding,
    Stored,
    parse_build_news,
    parse_refusal,
)
from graph_store.record import Record

SCHEMES = ("grpc://", "grpc+tls://")

_AWAY = (flight.FlightUnavailableError, flight.FlightTimedOutError, flight.FlightCancelledError)
"""What a service that is not there, or not yet, or no longer, looks like from here."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 3.0
_SHORT_S, _LONG_S = 60.0, 24 * 3600.0
"""Limits of a call that is answered at once, and of one that streams."""
_CHANNEL = [
    # Else a channel waits up to minutes before it tries again, and shares that wait with others.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Notices a machine that is gone without a word.
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

Value = TypeVar("Value")


class Service(NamedTuple):
    """A service, and what it takes to be let in."""

    location: str
    token: str | None = None
    tls_roots: bytes | None = None
    patience_s: float = 60.0

    def __repr__(self) -> str:
        """Without the token, which must not get into logs."""
        return f"Service({self.location})"


def fetch(service: Service, snapshot_id: str | None, cache: Path) -> Path:
    """The folder under ``cache`` that holds the snapshot, fetched unless it is there, verified.

    Processes that share ``cache`` fetch it once.
    """
    with _connected(service) as line:
        identity = _chosen(line, snapshot_id)
        return mirror.copy_snapshot(_origin(line), identity, cache)


def describe(service: Service, snapshot_id: str | None) -> Record:
    """The record of the snapshot."""
    with _connected(service) as line, TemporaryDirectory() as folder:
        return mirror.copied_record(_origin(line), _chosen(line, snapshot_id), Path(folder))


def list_snapshots(service: Service) -> tuple[Listed, ...]:
    """The snapshots there are."""
    with _connected(service) as line:
        return _listed(line)


def columns(service: Service, ticket: ColumnsTicket) -> Any:
    """Columns of one of a snapshot's tables, as an Arrow table."""
    with _connected(service) as line:
        return _table(line, ticket)


def neighbourhood(service: Service, ticket: NeighbourhoodTicket) -> Any:
    """The edges around some genes, as an Arrow table: graph, source, target, weight, step."""
    with _connected(service) as line:
        return _table(line, ticket)


def build(service: Service, recipe: dict[str, Any], progress: Callable[[str, int, int], None]) -> Built:
    """Let the service build the tree of a ``graphs.yaml``, whose paths are relative to its sources."""

    def ask(client: Any, options: Any, alive: Callable[[], None]) -> Built:
        for result in client.do_action(request, options):
            alive()
            news = parse_build_news(result.body.to_pybytes())
            if isinstance(news, Built):
                return news
            progress(news.what, news.done, news.total)
        raise flight.FlightUnavailableError("the service ended the build without a result")

    with _connected(service) as line:
        request = flight.Action("build", BuildRequest(recipe=recipe).to_bytes())
        return line.persist(ask, _LONG_S)


def health(service: Service) -> Health:
    """Whether the service serves."""
    with _connected(service) as line:
        return Health.model_validate_json(_act(line, "health")[0])


def list_embeddings(service: Service) -> tuple[ListedEmbedding, ...]:
    """The versions of embeddings there are."""
    with _connected(service) as line:
        return tuple(ListedEmbedding.model_validate_json(body) for body in _act(line, "list_embeddings"))


def put_embedding(service: Service, embedding: Embedding) -> str:
    """Publish the embedding and return the SHA-256 of its content; again is the same as once."""
    numbers = pa.array(np.ascontiguousarray(embedding.z_PD, np.float32).reshape(-1), pa.float32())
    value = pa.FixedSizeListArray.from_arrays(numbers, embedding.z_PD.shape[1])
    table = pa.table({"gene": pa.array(embedding.genes, pa.string()), "value": value})

    def send(client: Any, options: Any, _alive: Callable[[], None]) -> str:
        writer, answers = client.do_put(descriptor, table.schema, options)
        with writer:
            writer.write_table(table, max_chunksize=1 << 13)
            writer.done_writing()
            answer = answers.read()
        if answer is None:
            raise flight.FlightUnavailableError("the service did not confirm the embedding")
        return Stored.model_validate_json(answer.to_pybytes()).sha256

    with _connected(service) as line:
        announced = PutEmbedding(version=embedding.version, origin=embedding.origin)
        descriptor = flight.FlightDescriptor.for_command(announced.to_bytes())
        return line.persist(send, _LONG_S)


def get_embedding(service: Service, version: str, genes: Sequence[str] | None = None) -> Embedding:
    """The vectors of ``genes``, or of all, in their order."""
    with _connected(service) as line:
        asked = list(genes) if genes is not None else None
        table = _table(line, EmbeddingTicket(version=version, genes=asked))
        origin = next((entry.origin for entry in _embeddings(line) if entry.version == version), {})
    value = table["value"].combine_chunks()
    z_PD = value.flatten().to_numpy().reshape(-1, table.schema.field("value").type.list_size)
    return Embedding(version, tuple(table["gene"].to_pylist()), z_PD, origin)


def nearest(
    service: Service, version: str, genes: Sequence[str], count: int, *, among: str | None = None
) -> tuple[tuple[Neighbour, ...], ...]:
    """The nearest genes of each of ``genes``, in this version or in another, to which it is aligned."""
    with _connected(service) as line:
        request = NearestRequest(version=version, genes=list(genes), count=count, among=among)
        found = Nearest.model_validate_json(_act(line, "nearest", request, _LONG_S)[0])
    return tuple(tuple(Neighbour(*near) for near in each) for each in found.neighbours)


class _Line:
    """A connection that is made when it is needed, and again when it broke."""

    def __init__(self, service: Service) -> None:
        _check_location(service.location)
        _check_token(service)
        self.service = service
        self._client: Any = None

    def drop(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def persist(
        self, attempt: Callable[[Any, Any, Callable[[], None]], Value], limit_s: float = _SHORT_S
    ) -> Value:
        """What ``attempt(client, options, alive)`` returns, tried again while the service is away.

        ``alive`` is called at every sign of life. Raises ``GraphError`` when patience is over, and at once
        when trying again would not help.
        """
        lasts = time.monotonic() + self.service.patience_s
        wait_s = _FIRST_WAIT_S

        def alive() -> None:
            nonlocal lasts, wait_s
            lasts, wait_s = time.monotonic() + self.service.patience_s, _FIRST_WAIT_S

        while True:
            try:
                return attempt(self._open(), self._options(limit_s), alive)
            except _AWAY as error:
                self.drop()
                if time.monotonic() + wait_s > lasts or _is_hopeless(error):
                    raise GraphError(_away(self.service, error)) from None
                # Clients that lost the same service do not come back all at the same moment.
                time.sleep(wait_s * random.SystemRandom().uniform(0.5, 1))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            except (flight.FlightError, pa.ArrowException, OSError) as error:
                self.drop()
                raise GraphError(_explained(self.service, error)) from None

    def _open(self) -> Any:
        if self._client is None:
            roots = self.service.tls_roots
            self._client = flight.FlightClient(
                self.service.location, tls_root_certs=roots, generic_options=_CHANNEL
            )
        return self._client

    def _options(self, limit_s: float) -> Any:
        token = self.service.token
        headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        return flight.FlightCallOptions(timeout=limit_s, headers=headers)


@contextmanager
def _connected(service: Service) -> Iterator[_Line]:
    """A line for one task; questions and answers that break the protocol are a user's error too."""
    line = _Line(service)
    try:
        yield line
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or error.title
        raise GraphError(f"{service.location}: {place}: {first['msg']} (got {first['input']!r})") from None
    finally:
        line.drop()


def _check_location(location: str) -> None:
    try:
        parts = urlsplit(location)
        good = parts.hostname and parts.port and not parts.path.strip("/") and parts.username is None
    except ValueError:
        good = False
    if not good or not location.startswith(SCHEMES):
        raise GraphError(
            f"{location}: is no address of a service; write grpc://HOST:PORT or grpc+tls://HOST:PORT"
        )


def _check_token(service: Service) -> None:
    # gRPC ends the process for a header that it cannot send.
    token = service.token or "none"
    if not token.isascii() or not token.isprintable():
        raise GraphError(f"{service.location}: the token holds odd characters (a line break?); repair it")


def _origin(line: _Line) -> mirror.Origin:
    return mirror.Origin(
        name=line.service.location,
        record=lambda identity: _act(line, "describe", OneSnapshot(snapshot=identity))[0],
        contents=lambda identity, missing: _contents(
            line,
            FilesTicket(
                snapshot=identity, files=[Part(file=rest.file, offset=rest.offset) for rest in missing]
            ),
        ),
    )


def _contents(line: _Line, ticket: FilesTicket) -> Iterator[tuple[str, Any]]:
    """The bytes that the ticket asks for, by file; fewer when the service goes away after the first."""

    def begin(client: Any, options: Any, _alive: Callable[[], None]) -> tuple[Any, Any]:
        reader = client.do_get(flight.Ticket(ticket.to_bytes()), options)
        return reader, next(reader, None)

    reader, chunk = line.persist(begin, _LONG_S)
    while chunk is not None:
        column = chunk.data.column(0)
        yield chunk.app_metadata.to_pybytes().decode(), column.buffers()[1].slice(column.offset, len(column))
        try:
            chunk = next(reader, None)
        except _AWAY:
            line.drop()
            return
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            line.drop()
            raise GraphError(_explained(line.service, error)) from None


def _table(line: _Line, ticket: Message) -> Any:
    return line.persist(
        lambda client, options, _alive: client.do_get(flight.Ticket(ticket.to_bytes()), options).read_all(),
        _LONG_S,
    )


def _act(line: _Line, action: str, body: Message | None = None, limit_s: float = _SHORT_S) -> list[bytes]:
    """All answers to an action."""
    request = flight.Action(action, body.to_bytes() if body is not None else b"")
    return line.persist(
        lambda client, options, _alive: [
            result.body.to_pybytes() for result in client.do_action(request, options)
        ],
        limit_s,
    )


def _listed(line: _Line) -> tuple[Listed, ...]:
    return tuple(Listed.model_validate_json(body) for body in _act(line, "list"))


def _embeddings(line: _Line) -> tuple[ListedEmbedding, ...]:
    return tuple(ListedEmbedding.model_validate_json(body) for body in _act(line, "list_embeddings"))


def _chosen(line: _Line, snapshot_id: str | None) -> str:
    if snapshot_id is not None:
        return snapshot_id
    there = [entry.id for entry in _listed(line)]
    location = line.service.location
    if not there:
        raise GraphError(f"{location}: holds no snapshot; build one with `txpert graph build --location`")
    if len(there) > 1:
        raise GraphError(f"{location}: holds several snapshots; give one of {', '.join(there)}")
    return there[0]


_UNTRUSTED, _PLAIN = "certificate verify failed", "wrong version number"


def _is_hopeless(error: Exception) -> bool:
    """Whether the service is there and speaks otherwise: waiting would not help."""
    return any(sign in _signs(error) for sign in (_UNTRUSTED, _PLAIN))


def _signs(error: Exception) -> str:
    """An error's text as all TLS libraries would spell it: CERTIFICATE_VERIFY_FAILED is one of their ways."""
    return str(error).lower().replace("_", " ")


def _away(service: Service, error: Exception) -> str:
    if _UNTRUSTED in _signs(error):
        return (
            f"{service.location}: its certificate is of no authority that is trusted here (or of another "
            "host name); give the authority's PEM file with --tls-roots"
        )
    if _PLAIN in _signs(error):
        return f"{service.location}: does not speak TLS; write grpc:// in place of grpc+tls://"
    hint = "" if service.location.startswith("grpc+tls") else ", or write grpc+tls:// if it speaks TLS"
    return (
        f"{service.location}: does not answer, tried for {service.patience_s:g} s ({_reason(error)}); "
        f"start it with `txpert graph serve`, check host and port{hint}"
    )


def _reason(error: Exception) -> str:
    """What gRPC says, without its wrapping."""
    text = str(error).partition(". Detail:")[0].partition(" gRPC client")[0].partition("\n")[0]
    return text.rpartition("with message: ")[2].strip().rstrip(".")


def _explained(service: Service, error: Exception) -> str:
    if isinstance(error, flight.FlightUnauthenticatedError):
        wrong = "asks for a token" if service.token is None else "does not know this token"
        return f"{service.location}: {wrong}; set TXPERT_GRAPH_TOKEN or give --token-file"
    if isinstance(error, flight.FlightUnauthorizedError):
        return f"{service.location}: this token may only read; use the one that may write"
    refused = parse_refusal(getattr(error, "extra_info", None))
    if refused is not None:
        return f"{service.location}: {refused}"
    return (
        f"{service.location}: does not answer as a graph service does ({_reason(error)}); check the address"
    )
