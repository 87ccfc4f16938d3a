"""How a service is run: where its blobs lie, whom it lets in, how much one request may ask for.

Enters: what the command line was given. Leaves: frozen settings, checked. Invariant: a service that other
machines can reach has a token.
"""

import ipaddress
import sys
from pathlib import Path
from typing import NamedTuple

from graph_store.graph import GraphError

MIN_TOKEN = 16
"""Characters of a token; shorter ones can be guessed."""


class Limits(NamedTuple):
    """What keeps one client from taking all of the service's memory or time."""

    streams: int = 64
    """Requests of any size that are answered at the same time; further ones are asked to come again."""
    computations: int = 2
    """Of them, those that compute (neighbourhoods, nearest genes) at the same time; further ones wait."""
    puts: int = 1
    """Of them, embeddings that are being put; further ones are asked to come again."""
    ticket_bytes: int = 1 << 20
    """Of a ticket, or the body of an action."""
    put_bytes: int = 1 << 30
    """Embeddings of one ``do_put``."""
    genes: int = 20_000
    """Genes named in one request."""
    hops: int = 4
    edges: int = 2_000_000
    """Edges of one neighbourhood."""
    neighbours: int = 1_000
    """Nearest genes of one gene."""
    opened: int = 4
    """Snapshots (and as many embeddings) that stay open for neighbourhoods and nearest genes."""
    builds: int = 1
    """Builds that run at the same time; further ones wait."""
    waiting_builds: int = 16
    """Builds that may wait; further ones are asked to come again."""
    build_memory_bytes: int | None = None
    """Address space of one build; as much as there is when None."""


class Settings(NamedTuple):
    """One service."""

    blobs: str
    """Folder of snapshots, or any fsspec URL (s3://bucket/graphs)."""
    host: str = "127.0.0.1"
    port: int = 8815
    """0: any free one."""
    cache: Path | None = None
    """Local copies of what ``blobs`` holds, when that is a URL."""
    token: str | None = None
    """What a client must show to read and to write; None: nobody is asked (loopback only)."""
    read_token: str | None = None
    """What a client may show instead to read only."""
    tls_certificate: bytes | None = None
    """PEM; with ``tls_key`` the service speaks TLS."""
    tls_key: bytes | None = None
    sources: Path | None = None
    """Folder that the paths of recipes are relative to; builds are refused when None."""
    build_command: tuple[str, ...] = (sys.executable, "-m", "graph_store.service.build_worker")
    """What runs one build, in a process of its own (see ``graph_store.service.build_worker``)."""
    limits: Limits = Limits()

    def __repr__(self) -> str:
        """Without tokens and key, which must not get into logs."""
        return f"Settings(blobs={self.blobs}, host={self.host}, port={self.port})"


def check(settings: Settings) -> None:
    """Raise ``GraphError`` for settings that no service may run with."""
    for name, token in (("token", settings.token), ("read-only token", settings.read_token)):
        if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
            raise GraphError(
                f"the {name} is too short or holds odd characters; use {MIN_TOKEN} or more of ASCII "
                "letters and digits"
            )
    if settings.token is None and (settings.read_token is not None or not is_loopback(settings.host)):
        why = "a read-only token" if settings.read_token is not None else f"host {settings.host}"
        raise GraphError(
            f"{why} needs a token for writing too, or everybody who reaches this port could build and "
            "publish; set TXPERT_GRAPH_TOKEN or give --token-file"
        )
    if settings.token is not None and settings.token == settings.read_token:
        raise GraphError("the read-only token is the token itself; give it another one")
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise GraphError("TLS needs both certificate and key; give both or neither")
    if settings.sources is not None and not settings.sources.is_dir():
        raise GraphError(f"{settings.sources}: no such folder; --sources is where recipes find their files")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
