"""One more embedding in a store that is there already, in one step.

Enters: the claim on a store and the embedding, block by block. Leaves: the store with it. Invariants: those
of ``ingest.claim``; every file of the store but the embedding's and what lists it is the old one's.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.claim import Claim, put_in_place, require_ours
from txpert_dist.ingest.publish import clear_abandoned
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.write import add_embedding, check_embedding_name

_REWRITTEN = frozenset((layout.MANIFEST, layout.SOURCES, "zarr.json"))
"""Names of small files that get copies of their own."""


def open_whole(path: Path) -> CellStore:
    """The store in ``path``, after what a killed process left beside it was cleared away."""
    clear_abandoned(path.resolve())
    return open_store(path)


def require_place(store: CellStore, name: str, *, overwrite: bool) -> None:
    """``InputError`` when an embedding may not be called ``name``, or one is there and has to stay."""
    check_embedding_name(name)
    if name in store.embeddings and not overwrite:
        raise InputError(
            f"{store.path}: has an embedding {name!r} already; choose another --name, or give --overwrite"
        )


def commit(
    claim: Claim, name: str, width: int, blocks: Iterable[NDArray[np.float32]], *, origin: Mapping[str, Any]
) -> str:
    """Write the embedding and put the store that has it in place; returns the new manifest's hash.

    ``blocks`` are (rows, ``width``) finite values of all cells in order. Raises ``InputError`` when the store
    was replaced meanwhile.
    """
    before = manifest.read(claim.target)
    require_ours(claim, layout.OBSM)
    _link_tree(claim.target, claim.built, leave_out=name)
    add_embedding(claim.built, name, width, blocks, origin=origin, before=before)
    return put_in_place(claim, "the embedding was written")


def _link_tree(source: Path, built: Path, *, leave_out: str) -> None:
    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == leave_out and Path(folder) == source / layout.OBSM]

    shutil.copytree(source, built, symlinks=True, ignore=ignored, copy_function=_link_or_copy)


def _link_or_copy(source: str, destination: str) -> None:
    if Path(source).name not in _REWRITTEN:
        with contextlib.suppress(OSError):
            os.link(source, destination)
            return
    shutil.copy2(source, destination)
