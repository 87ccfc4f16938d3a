"""Verbs about the graph service: graph serve, graph list, graph fetch, and graph build at a service."""

import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txpert_dist.cli.graph_access import (
    GraphLocation,
    Patience,
    TlsRoots,
    TokenFile,
    graph_access,
    read_file,
    token,
)
from txpert_dist.cli.screen import console, output, progress, say, table
from txpert_dist.errors import InputError

if TYPE_CHECKING:
    from graph_store.service.settings import Settings

_WORKER = (sys.executable, "-m", "txpert_dist.cli.graph_build_worker")
_READ_TOKEN = "TXPERT_GRAPH_READ_TOKEN"


def serve(
    graphs: Annotated[
        str, typer.Argument(help="Folder of snapshots, or any fsspec URL (s3://bucket/graphs).")
    ] = "graphs",
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8815,
    sources: Annotated[
        Path | None,
        typer.Option(help="Folder with the files that recipes name; no builds without.", show_default=False),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for local copies of what a URL holds.", show_default=False)
    ] = None,
    token_file: TokenFile = None,
    read_token_file: Annotated[
        Path | None,
        typer.Option(help=f"File with a token that may only read; or {_READ_TOKEN}.", show_default=False),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file: serve TLS.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file of the certificate's key.", show_default=False)
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve /healthz and /metrics over HTTP; 0: any free port.", show_default=False),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address for them; they ask for no token.")] = "127.0.0.1",
    streams: Annotated[int, typer.Option(help="Requests answered at the same time.", min=1)] = 64,
    build_memory_gib: Annotated[
        float | None,
        typer.Option(help="Memory that one build may use; all there is when left out.", show_default=False),
    ] = None,
    drain_seconds: Annotated[
        float, typer.Option(help="Time for answers under way after a signal to stop.", min=0)
    ] = 20.0,
) -> None:
    """Serve snapshots and embeddings over Arrow Flight until SIGTERM or SIGINT.

    The token is read from TXPERT_GRAPH_TOKEN or --token-file. Clients name the service as grpc://HOST:PORT
    (grpc+tls:// with a certificate), `graph.location` of a run included.

        txpert graph serve graphs --sources data
        txpert graph serve s3://bucket/graphs --cache /var/cache/txpert --host 0.0.0.0 --token-file token
            --tls-certificate cert.pem --tls-key key.pem --metrics-port 9815
    """
    from graph_store.service.run import MetricsAddress
    from graph_store.service.run import serve as run
    from graph_store.service.settings import Limits, Settings

    memory = None if build_memory_gib is None else int(build_memory_gib * 2**30)
    settings = Settings(
        blobs=graphs,
        host=host,
        port=port,
        cache=cache,
        token=token(token_file),
        read_token=token(read_token_file, _READ_TOKEN),
        tls_certificate=read_file(tls_certificate, "--tls-certificate"),
        tls_key=read_file(tls_key, "--tls-key"),
        sources=sources,
        build_command=_WORKER,
        limits=Limits(streams=streams, build_memory_bytes=memory),
    )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("graph_store").setLevel(logging.INFO)
    _warn(settings)
    metrics = None if metrics_port is None else MetricsAddress(metrics_host, metrics_port)

    def announce(location: str, metrics_at: int | None) -> None:
        say(f"serving {graphs} at {location}")
        if metrics_at is not None:
            say(f"health and metrics at http://{metrics_host}:{metrics_at}/healthz and /metrics")
        sys.stdout.flush()

    drained = run(settings, metrics=metrics, drain_s=drain_seconds, announce=announce)
    say("stopped" if drained else f"stopped; answers that took more than {drain_seconds:g} s were cut off")
    if not drained:
        sys.stdout.flush()
        # Threads that still send cannot be ended otherwise.
        os._exit(0)


def list_(
    location: Annotated[
        str, typer.Argument(help="Folder of snapshots, or grpc://HOST:PORT of a service.")
    ] = "graphs",
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = 10.0,
) -> None:
    """List the snapshots in a folder or at a service.

    txpert graph list grpc://127.0.0.1:8815
    """
    from graph_store.client import list_snapshots

    rows = [
        [
            entry.id,
            ", ".join(entry.graphs),
            f"{datetime.fromtimestamp(entry.created, UTC):%Y-%m-%d %H:%M}",
            f"{entry.genes:,}",
            f"{entry.edges:,}",
            f"{entry.bytes / 2**20:,.1f}",
        ]
        for entry in list_snapshots(location, graph_access(token_file, tls_roots, patience))
    ]
    columns = ["snapshot", "graphs", "written (UTC)", "genes", "edges", "MiB"]
    output.print(table(f"snapshots at {location}", columns, rows, texts=3))


def fetch(
    snapshot: Annotated[
        str | None, typer.Argument(help="Snapshot id, when there are several.", show_default=False)
    ] = None,
    location: GraphLocation = "grpc://127.0.0.1:8815",
    out: Annotated[Path, typer.Option(help="Folder of snapshots to fetch into.")] = Path("graphs"),
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = 60.0,
) -> None:
    """Fetch a snapshot from a service, every file verified. Broken off: the same command goes on.

    txpert graph fetch 0123456789abcdef0123456789abcdef --location grpc://127.0.0.1:8815 --out graphs
    """
    from graph_store.client import is_remote, snapshot_folder

    if not is_remote(location):
        raise InputError(f"--location {location}: is no address of a service; write grpc://HOST:PORT")
    access = graph_access(token_file, tls_roots, patience)._replace(cache=out)
    folder = snapshot_folder(location, snapshot, access)
    say(f"snapshot {folder.name}: {folder}")


def build_at(
    location: str, recipe: Path, token_file: Path | None, tls_roots: Path | None, patience: float
) -> None:
    """``graph build --location``: let a service build, and show what became of the sources."""
    from graph_store.client import build_remotely, describe
    from txpert_dist.cli.graph_tables import show_sources

    access = graph_access(token_file, tls_roots, patience)
    with progress() as show:
        done = build_remotely(location, recipe, show, access)
    say(f"snapshot {done.id} {'was built before' if done.was_there else 'built'} at {location}")
    show_sources(tuple(describe(location, done.id, access).graphs))
    say(f"fetch it: txpert graph fetch {done.id} --location {location}")


def _warn(settings: "Settings") -> None:
    from graph_store.service.settings import is_loopback

    if settings.tls_certificate is None and not is_loopback(settings.host):
        console.print(
            f"warning: on {settings.host} without TLS, tokens and graphs travel in the clear; "
            "give --tls-certificate and --tls-key",
            style="yellow",
            soft_wrap=True,
        )
