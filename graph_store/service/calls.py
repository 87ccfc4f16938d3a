"""Every call passes here: counted, bounded in number, and ended in words a client may read.

Enters: what answers a call. Leaves: the answer, or a Flight error. Invariant: a call that began ends exactly
once, also when its client is gone before the first or in the middle of the last batch.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import pyarrow.flight as flight

from graph_store.service.metrics import Metrics
from graph_store.service.refusal import busy, to_flight_error

_LOG = logging.getLogger(__name__)
Value = TypeVar("Value")


class Calls:
    """The calls of one service."""

    def __init__(self, metrics: Metrics, limit: int, folders: Iterable[str]) -> None:
        self.stopping = False
        self.metrics = metrics
        self.folders = tuple(folders)
        self._limit = limit
        self._lock = threading.Lock()
        self._active = 0

    @property
    def active(self) -> int:
        """Calls that began and did not end."""
        return self._active

    def begin(self, kind: str) -> "Call":
        """A call that has a place; ``FlightUnavailableError`` when there is none."""
        with self._lock:
            refused = self.stopping or self._active >= self._limit
            self._active += not refused
        if refused:
            self.metrics.requests.labels(kind, "busy").inc()
            raise busy(
                "the service is stopping"
                if self.stopping
                else "the service answers as many requests as it may"
            )
        self.metrics.active.inc()
        return Call(kind, self)

    def end(self) -> None:
        """One call less."""
        self.metrics.active.dec()
        with self._lock:
            self._active -= 1

    def run(self, kind: str, function: Callable[[], Value]) -> Value:
        """A whole call: what ``function`` returns is all of the answer."""
        call = self.begin(kind)
        value = call.run(function)
        call.end("good")
        return value

    def stream(self, kind: str, items: Callable[[], Iterable[Value]]) -> Iterator[Value]:
        """A whole call whose answer is made while it is sent."""
        call = self.begin(kind)
        return call.send(call.run(items))


class Call:
    """One call; ``run`` what comes before the answer, ``send`` the answer, or ``end`` it."""

    def __init__(self, kind: str, calls: Calls) -> None:
        self._kind = kind
        self._calls = calls
        self._began = time.monotonic()

    def run(self, function: Callable[[], Value]) -> Value:
        """What ``function`` returns; when it raises, the call ends with a Flight error."""
        try:
            return function()
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must not see a traceback
            raise self._failed(error) from None

    def send(self, items: Iterable[Value]) -> Iterator[Value]:
        """``items``, after which the call ends; it ends too when the client goes away."""
        sending = self._send(items)
        # Now it is inside: however it is dropped, it ends the call.
        next(sending)
        return sending  # type: ignore[return-value]

    def end(self, outcome: str) -> None:
        """Count the call and give its place back."""
        seconds = time.monotonic() - self._began
        self._calls.metrics.requests.labels(self._kind, outcome).inc()
        self._calls.metrics.seconds.labels(self._kind).observe(seconds)
        self._calls.end()
        _LOG.info("%s: %s in %.3f s", self._kind, outcome, seconds)

    def _send(self, items: Iterable[Value]) -> Iterator[Value | None]:
        outcome = "client left"
        try:
            yield None
            yield from items
            outcome = "good"
        except Exception as error:  # noqa: BLE001 - as in run
            outcome = ""
            raise self._failed(error) from None
        finally:
            if outcome:
                self.end(outcome)

    def _failed(self, error: Exception) -> flight.FlightError:
        translated = to_flight_error(error, self._calls.folders)
        unavailable = isinstance(translated, flight.FlightUnavailableError)
        self.end("busy" if unavailable else "refused")
        _LOG.info("%s: %s", self._kind, error)
        return translated
