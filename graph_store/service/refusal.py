"""How a request that is not granted ends: one sentence for the client, the rest for the log.

Enters: an exception. Leaves: a Flight error. Invariant: no traceback and no path of this machine is in what
a client reads.
"""

import logging
import re
import secrets
from collections.abc import Iterable

import pyarrow.flight as flight
from pydantic import ValidationError

from graph_store.graph import GraphError
from graph_store.protocol import Refusal

_LOG = logging.getLogger(__name__)
_MAX_CHARACTERS = 1000
"""gRPC carries messages in headers, which may not be long."""
_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/:;,'\")]+/)*([^\s/:;,'\")]+)")


def refuse(message: str) -> flight.FlightServerError:
    """The error that says ``message`` to the client."""
    text = message if len(message) <= _MAX_CHARACTERS else message[:_MAX_CHARACTERS] + " ..."
    return flight.FlightServerError(text, Refusal(refused=text).to_bytes())


def busy(message: str) -> flight.FlightUnavailableError:
    """The error that asks the client to come again."""
    return flight.FlightUnavailableError(message)


def to_flight_error(error: Exception, folders: Iterable[str]) -> flight.FlightError:
    """What the client is told about ``error``; ``folders`` are this machine's, and nobody's business."""
    if isinstance(error, flight.FlightError):
        return error
    if isinstance(error, GraphError):
        return refuse(without_paths(str(error), folders))
    if isinstance(error, ValidationError):
        return refuse(_explain(error))
    if isinstance(error, OSError):
        _LOG.exception("storage failed")
        return busy("the service's storage does not answer; its log says why")
    reference = secrets.token_hex(4)
    _LOG.exception("internal error %s", reference)
    return refuse(f"internal error; the service's log has it under {reference}")


def without_paths(text: str, folders: Iterable[str]) -> str:
    """``text`` with every path relative to the service's folders, or cut to its last name."""
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder.rstrip("/") + "/", "").replace(folder, "the service")
    return _PATH.sub(r"\1", text)


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"request: {place + ': ' if place else ''}{str(first['msg']).removeprefix('Value error, ')}"
