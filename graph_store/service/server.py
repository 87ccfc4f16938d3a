"""The service itself: Arrow Flight on one side, snapshots and embeddings on the other.

Enters: settings. Leaves: a running server. Invariants: no handler runs for a caller without a token,
where one is set; every answer passes ``calls``, which counts it, bounds how many there are and keeps
tracebacks and paths at home. It holds no state that a restart loses.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from graph_store.graph import GraphError
from graph_store.protocol import (
    BuildRequest,
    ColumnsTicket,
    FilesTicket,
    FileTicket,
    Health,
    Nearest,
    NearestRequest,
    OneSnapshot,
    PutEmbedding,
    Stored,
    Ticket,
    parse_ticket,
)
from graph_store.service import auth
from graph_store.service.builds import Builds
from graph_store.service.calls import Calls
from graph_store.service.holdings import Holdings
from graph_store.service.incoming import read_embedding
from graph_store.service.metrics import Metrics
from graph_store.service.recipes import confined_recipe
from graph_store.service.refusal import busy, refuse
from graph_store.service.settings import Settings, check
from graph_store.service.streams import Stream

_LOOK_S = 0.05
_LINGERS = 0.1
"""Share of the time to drain for what the last answers left in buffers."""
_END_S = 2.0
ACTIONS = {
    "list": "Every snapshot there is, one result each.",
    "list_embeddings": "Every version of embeddings there is, one result each.",
    "describe": "The text of a snapshot's snapshot.json.",
    "build": "Build a recipe's snapshot: progress, then its id. Needs the right to write.",
    "nearest": "The nearest genes of genes in a version of embeddings.",
    "health": "Whether the service serves.",
}


class GraphService(flight.FlightServerBase):  # type: ignore[misc]
    """Serves from the moment it is made until ``close``."""

    def __init__(self, settings: Settings) -> None:
        check(settings)
        self._settings = settings
        self._limits = settings.limits
        self.metrics = Metrics()
        self._holdings = Holdings(settings.blobs, settings.cache, settings.limits)
        self._calls = Calls(self.metrics, settings.limits.streams, _private_folders(settings))
        self._computing = threading.BoundedSemaphore(settings.limits.computations)
        self._putting = threading.BoundedSemaphore(settings.limits.puts)
        self._builds = Builds(
            self._holdings.folder, settings.build_command, settings.limits, self._holdings.publish
        )
        self.metrics.builds.set_function(lambda: self._builds.running)
        scheme = "grpc" if settings.tls_certificate is None else "grpc+tls"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            # This listens already, so everything above is there.
            super().__init__(
                f"{scheme}://{host}:{settings.port}",
                tls_certificates=None
                if settings.tls_certificate is None
                else [(settings.tls_certificate, settings.tls_key)],
                middleware={auth.KEY: auth.TokenCheck(settings.token, settings.read_token)},
            )
        except (OSError, pa.ArrowException) as error:
            raise GraphError(
                f"port {settings.port} of {settings.host} cannot be listened on ({_first_line(error)}); "
                "give another port, or check certificate and key"
            ) from None
        self.location = f"{scheme}://{host}:{self.port}"

    def healthy(self) -> bool:
        """Whether new requests are answered."""
        try:
            self.metrics.snapshots.set(len(self._holdings.snapshot_ids()))
        except Exception:  # noqa: BLE001 - however the storage fails, the answer is no
            return False
        return not self._calls.stopping

    def close(self, drain_s: float, hurry: threading.Event | None = None) -> bool:
        """Take no new requests, end builds, let the other answers end; whether all did.

        They have ``drain_s``, or until ``hurry`` is set.
        """
        until, hurry = time.monotonic() + drain_s, hurry or threading.Event()
        busy_at_first = self._calls.active > 0
        self._calls.stopping = True
        self._builds.stop()
        while self._calls.active and time.monotonic() < until and not hurry.wait(_LOOK_S):
            pass
        drained = not self._calls.active
        if busy_at_first and drained:
            # Ends of answers are still in buffers, which gRPC's own end would throw away.
            hurry.wait(min(drain_s * _LINGERS, max(0.0, until - time.monotonic())))
        # It waits for answers, so one that hangs would keep it for ever.
        ending = threading.Thread(target=self.shutdown, daemon=True)
        ending.start()
        ending.join(_END_S)
        return drained and not ending.is_alive()

    def list_flights(self, _context: Any, _criteria: bytes) -> Iterator[Any]:
        """One flight a snapshot."""
        return self._calls.stream("list_flights", self._flights)

    def get_flight_info(self, _context: Any, descriptor: Any) -> Any:
        """Of a snapshot (path ID), one of its tables (path ID/FILE) or a ticket (command)."""
        return self._calls.run("get_flight_info", lambda: self._info(descriptor))

    def do_get(self, _context: Any, ticket: Any) -> Any:
        """The stream of a ticket."""
        call = self._calls.begin("do_get")
        stream = call.run(lambda: self._stream(self._ticket(ticket.ticket)))
        return flight.GeneratorStream(stream.schema, call.send(self._counted(stream)))

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Embeddings announced by a ``PutEmbedding``; answers ``Stored``."""
        self._calls.run("do_put", lambda: self._put(context, descriptor, reader, writer))

    def do_action(self, context: Any, action: Any) -> Iterator[bytes]:
        """One of ``ACTIONS``."""
        kind = action.type if action.type in ACTIONS else "unknown"
        return self._calls.stream(f"action {kind}", lambda: self._act(context, action))

    def list_actions(self, _context: Any) -> list[tuple[str, str]]:
        """``ACTIONS``."""
        return list(ACTIONS.items())

    def get_schema(self, _context: Any, descriptor: Any) -> Any:
        """Of what ``get_flight_info`` knows."""
        return self._calls.run("get_schema", lambda: flight.SchemaResult(self._info(descriptor).schema))

    def do_exchange(self, _context: Any, _descriptor: Any, _reader: Any, _writer: Any) -> None:
        """Not offered."""
        raise refuse("this service exchanges nothing; use do_get, do_put and do_action")

    def _flights(self) -> Iterator[Any]:
        for entry in self._holdings.listed():
            yield self._snapshot_info(entry.id)

    def _info(self, descriptor: Any) -> Any:
        if descriptor.descriptor_type == flight.DescriptorType.CMD:
            ticket = self._ticket(descriptor.command)
        else:
            parts = [bytes(part).decode("utf-8", "replace") for part in descriptor.path or []]
            if len(parts) == 1:
                return self._snapshot_info(OneSnapshot(snapshot=parts[0]).snapshot)
            if len(parts) != 2:
                raise GraphError("a flight is named by a snapshot's id, or by an id and the name of a table")
            ticket = ColumnsTicket(snapshot=parts[0], file=parts[1])
        stream = self._stream(ticket)
        endpoint = flight.FlightEndpoint(ticket.to_bytes(), [])
        return flight.FlightInfo(stream.schema, descriptor, [endpoint], stream.rows, stream.size)

    def _snapshot_info(self, identity: str) -> Any:
        files = self._holdings.record(identity).files
        tickets = [FileTicket(snapshot=identity, file=name) for name in sorted(files)]
        size = sum(file.size for file in files.values())
        endpoints = [flight.FlightEndpoint(ticket.to_bytes(), []) for ticket in tickets]
        descriptor = flight.FlightDescriptor.for_path(identity)
        return flight.FlightInfo(self._holdings.raw_schema, descriptor, endpoints, size, size)

    def _ticket(self, data: bytes) -> Ticket:
        if len(data) > self._limits.ticket_bytes:
            raise GraphError(
                f"a ticket has {len(data)} bytes, more than {self._limits.ticket_bytes}; ask for less"
            )
        ticket = parse_ticket(data)
        self._check_genes(getattr(ticket, "genes", None))
        return ticket

    def _check_genes(self, genes: list[str] | None) -> None:
        if genes is not None and len(genes) > self._limits.genes:
            raise GraphError(
                f"{len(genes)} genes are more than the {self._limits.genes} of one request; ask for fewer"
            )

    def _stream(self, ticket: Ticket) -> Stream:
        if isinstance(ticket, FileTicket | FilesTicket | ColumnsTicket):
            return self._holdings.stream(ticket)
        with self._computing:
            return self._holdings.stream(ticket)

    def _counted(self, stream: Stream) -> Iterator[Any]:
        for item in stream.batches:
            yield item
            batch = item[0] if isinstance(item, tuple) else item
            self.metrics.sent.inc(batch.nbytes)

    def _put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        _check_may_write(context)
        announced = descriptor.command or b""
        if len(announced) > self._limits.ticket_bytes:
            raise GraphError("the announcement of an embedding is too long; shorten its origin")
        asked = PutEmbedding.model_validate_json(announced)
        if not self._putting.acquire(blocking=False):
            raise busy("other embeddings are being put")
        try:
            embedding = read_embedding(asked, reader, self._limits.put_bytes, self.metrics.received.inc)
            sha256 = self._holdings.put(embedding)
        finally:
            self._putting.release()
        writer.write(pa.py_buffer(Stored(sha256=sha256).to_bytes()))

    def _act(self, context: Any, action: Any) -> Iterable[bytes]:
        body = action.body.to_pybytes() if action.body is not None else b""
        if len(body) > self._limits.ticket_bytes:
            raise GraphError(
                f"a request has {len(body)} bytes, more than {self._limits.ticket_bytes}; ask for less"
            )
        match action.type:
            case "list":
                return [entry.to_bytes() for entry in self._holdings.listed()]
            case "list_embeddings":
                return [entry.to_bytes() for entry in self._holdings.listed_embeddings()]
            case "describe":
                return [self._holdings.record_text(OneSnapshot.model_validate_json(body).snapshot)]
            case "build":
                _check_may_write(context)
                return self._build(BuildRequest.model_validate_json(body))
            case "nearest":
                return [self._nearest(NearestRequest.model_validate_json(body))]
            case "health":
                return [self._health()]
        raise GraphError(f"no such action; there are {', '.join(ACTIONS)}")

    def _build(self, request: BuildRequest) -> Iterator[bytes]:
        if self._settings.sources is None:
            raise GraphError("this service builds nothing: it was started without --sources")
        config = confined_recipe(request.recipe, self._settings.sources)
        return (news.to_bytes() for news in self._builds.build(config))

    def _nearest(self, asked: NearestRequest) -> bytes:
        self._check_genes(asked.genes)
        if asked.count > self._limits.neighbours:
            raise GraphError(
                f"{asked.count} neighbours are more than the {self._limits.neighbours} of one request; "
                "ask for fewer"
            )
        with self._computing:
            found = self._holdings.nearest(asked)
        return Nearest(neighbours=[[(near.gene, near.cosine) for near in each] for each in found]).to_bytes()

    def _health(self) -> bytes:
        return Health(
            status="serving" if self.healthy() else "stopping",
            snapshots=len(self._holdings.snapshot_ids()),
            builds=self._builds.running,
        ).to_bytes()


def _check_may_write(context: Any) -> None:
    caller = context.get_middleware(auth.KEY)
    if caller is None or not caller.may_write:
        raise flight.FlightUnauthorizedError("this token may only read")


def _private_folders(settings: Settings) -> list[str]:
    given = [Path(settings.blobs)] if "://" not in settings.blobs else []
    given += [folder for folder in (settings.cache, settings.sources) if folder is not None]
    # Only whole paths: a word like "graphs" is in many messages.
    return sorted({str(form) for folder in given for form in (folder.absolute(), folder.resolve())})


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
