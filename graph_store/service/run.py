"""A service from start to signal.

Enters: settings. Leaves: nothing; it returns when SIGTERM or SIGINT came and all answers are sent. Invariant:
the first signal drains, the second one ends at once.
"""

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from graph_store.graph import GraphError
from graph_store.service.health import health_server
from graph_store.service.server import GraphService
from graph_store.service.settings import Settings

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.2


class MetricsAddress(NamedTuple):
    """Where ``/healthz`` and ``/metrics`` are."""

    host: str
    port: int


def serve(
    settings: Settings,
    *,
    metrics: MetricsAddress | None,
    drain_s: float,
    announce: Callable[[str, int | None], None],
) -> bool:
    """Serve until a signal; whether every answer was sent before ``drain_s`` were over.

    ``announce`` is told the location and the port of the metrics once both are there.
    """
    ended, hurry = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        (hurry if ended.is_set() else ended).set()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        service = GraphService(settings)
        with ExitStack() as stack:
            port = None
            if metrics is not None:
                pages = health_server(*metrics, healthy=service.healthy, metrics=service.metrics.text)
                try:
                    port = stack.enter_context(pages)
                except GraphError:
                    service.close(0)
                    raise
            announce(service.location, port)
            while not ended.wait(_LOOK_S):  # A wait without end sleeps on when another thread got the signal.
                pass
            _LOG.info("stopping: no new requests; %.0f s for the others", drain_s)
            return service.close(drain_s, hurry)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
