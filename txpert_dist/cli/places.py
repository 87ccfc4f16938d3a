"""Stores as users name them: a path, or the URL of a store that lies elsewhere.

Enters: the text of an argument, and TXPERT_CACHE. Leaves: a path that can be opened.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

CACHE = "TXPERT_CACHE"
"""Environment variable: folder for what is read of stores that lie elsewhere; else ~/.cache/txpert."""


def store_place(text: str) -> Path:
    """The store at a path; or, of one at a URL (s3://...), the view of it in the cache."""
    from txpert_dist.store.remote import cached_view, is_url

    if not is_url(text):
        return Path(text)
    cache = os.environ.get(CACHE)
    return cached_view(text, Path(cache) if cache else Path.home() / ".cache" / "txpert")


StorePlace = Annotated[
    Path, typer.Argument(parser=store_place, metavar="STORE", help="Cell store: a path, or a URL (s3://...).")
]
