"""Who may call: a bearer token in every request, compared in constant time.

Enters: the header ``authorization`` of a call. Leaves: a ``Caller`` that handlers ask for its rights.
Invariant: with a token set, no handler runs for a caller without one.
"""

import hmac
from collections.abc import Mapping, Sequence

import pyarrow.flight as flight

KEY = "caller"
"""Name of the middleware, by which handlers find it."""
_SCHEME = b"Bearer "


class Caller(flight.ServerMiddleware):  # type: ignore[misc]
    """The right to write, for one call."""

    def __init__(self, *, may_write: bool) -> None:
        self.may_write = may_write


class TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets calls with a known token in; everybody, when no token is set."""

    def __init__(self, token: str | None, read_token: str | None) -> None:
        self._token = token
        self._read_token = read_token

    def start_call(self, _info: object, headers: Mapping[str, Sequence[str | bytes]]) -> Caller:
        """The caller; raises ``FlightUnauthenticatedError`` for a missing or unknown token."""
        if self._token is None:
            return Caller(may_write=True)
        given = _given(headers)
        # Both are compared whatever the first says, so that the time tells nothing.
        writes, reads = _same(given, self._token), _same(given, self._read_token)
        if not writes and not reads:
            raise flight.FlightUnauthenticatedError("a token is needed, and this is none or another one")
        return Caller(may_write=writes)


def _given(headers: Mapping[str, Sequence[str | bytes]]) -> bytes:
    values = headers.get("authorization", ())
    value = values[0] if len(values) == 1 else b""
    value = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
    return value.removeprefix(_SCHEME) if value.startswith(_SCHEME) else b""


def _same(given: bytes, token: str | None) -> bool:
    equal = hmac.compare_digest(given, (token or "").encode())
    return equal and token is not None
