"""The verb that brings public data here."""

import difflib
from pathlib import Path
from typing import Annotated

import typer

from txpert_dist.cli.data import Overwrite
from txpert_dist.cli.screen import output, progress, say, table
from txpert_dist.errors import InputError


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="What to fetch; left out, what there is.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("data"),
    overwrite: Overwrite = False,
) -> None:
    """Fetch a public screen or knowledge graph by name: verified, and resumed when it breaks off.

    Files get their names once their length and the publisher's checksum were checked; where there is none,
    the SHA-256 of what came is written beside the file. Without a name, lists what there is.

        txpert fetch
        txpert fetch norman --out data
    """
    from txpert_dist.ingest.catalogue import CATALOGUE
    from txpert_dist.ingest.fetch import fetch as run

    if name is None:
        rows = [
            [key, entry.title, ", ".join(a.file for a in entry.assets)] for key, entry in CATALOGUE.items()
        ]
        output.print(table("txpert fetch NAME", ["name", "what", "files"], rows, texts=3))
        return
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, 3, 0.4) or list(CATALOGUE)
        raise InputError(f"fetch: there is no {name!r}; choose one of {', '.join(near)}")
    entry = CATALOGUE[name]
    with progress() as show:
        done = run(entry, out, overwrite=overwrite, progress=show)
    for file in done:
        state = "fetched" if file.created else "was there already"
        check = f"has the published {file.checked}" if file.checked else "its publisher gives no checksum"
        say(f"{file.path}: {state}, {file.size:,} bytes; {check}; sha256 {file.sha256}")
    say(f"next: {entry.then.format(' and '.join(str(file.path) for file in done))}")
