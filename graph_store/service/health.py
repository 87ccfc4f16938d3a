"""``/healthz`` and ``/metrics`` over HTTP, for orchestrators and Prometheus.

Enters: two functions. Leaves: a small web server on a thread. Invariant: it reads nothing but the first line
and headers of a GET request, and says nothing but these two pages.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from graph_store.graph import GraphError


@contextmanager
def health_server(
    host: str, port: int, *, healthy: Callable[[], bool], metrics: Callable[[], bytes]
) -> Iterator[int]:
    """Serve both pages on ``host``, yield the port (any free one for 0), end the server at exit."""

    class Pages(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/healthz":
                good = healthy()
                self._answer(200 if good else 503, b"serving\n" if good else b"not serving\n")
            elif self.path == "/metrics":
                self._answer(200, metrics())
            else:
                self._answer(404, b"only /healthz and /metrics\n")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Probes every few seconds are not worth a line."""

    try:
        server = ThreadingHTTPServer((host, port), Pages)
    except OSError as error:
        raise GraphError(
            f"port {port} of {host} cannot be used for metrics ({error.strerror}); give another"
        ) from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
