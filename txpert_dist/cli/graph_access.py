"""How the command line reaches a graph service: its options, and the token from file or environment."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txpert_dist.errors import InputError

if TYPE_CHECKING:
    from graph_store.client import Access

TOKEN = "TXPERT_GRAPH_TOKEN"

GraphLocation = Annotated[str, typer.Option(help="Folder of snapshots, or grpc://HOST:PORT of a service.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(help=f"File with the service's token; or {TOKEN} in the environment.", show_default=False),
]
TlsRoots = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of the authority of the service's certificate; the system's when left out.",
        show_default=False,
    ),
]
Patience = Annotated[float, typer.Option(help="Seconds to go on trying while the service is away.", min=0)]


def graph_access(token_file: Path | None, tls_roots: Path | None, patience: float) -> "Access":
    """What the client needs beside a location."""
    from graph_store.client import Access

    return Access(token(token_file), read_file(tls_roots, "--tls-roots"), None, patience)


def token(file: Path | None, variable: str = TOKEN) -> str | None:
    """The token in ``file``, else in the environment; None when there is neither."""
    if file is None:
        return os.environ.get(variable) or None
    content = read_file(file, f"token in {file}") or b""
    text = content.decode("ascii", "replace").strip()
    if not text or len(text.split()) != 1 or not text.isprintable() or not text.isascii():
        raise InputError(f"{file}: holds no token; write one line of ASCII letters and digits into it")
    return text


def read_file(file: Path | None, what: str) -> bytes | None:
    """The bytes of a file that was given in an option."""
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{what}: {file} cannot be read ({error.strerror}); check the path") from None
