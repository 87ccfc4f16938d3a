"""One more embedding in a store that is there already, in one step.

Enters: a store's path and the embedding, block by block. Leaves: the store with it. Invariants: killed at any
moment, the store is as it was or complete; one process at a time changes a store; processes that read it
meanwhile go on, for no file of theirs is touched.

The new store is built beside the old one. Its files are hard links to those of the old one (copies where the
file system has none) but for the embedding and what lists it, so nothing big is written twice; then the two
folders are exchanged.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.publish import clear_abandoned, partial_folder, publish
from txpert_dist.store import layout, manifest, remote
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.write import add_embedding, check_embedding_name

_REWRITTEN = frozenset((layout.MANIFEST, layout.SOURCES, "zarr.json"))
"""Names of small files that get copies of their own."""


class Claim(NamedTuple):
    """The right to change a store, and where to work."""

    store: CellStore
    target: Path
    """The store's folder, links resolved."""
    scratch: Path
    """A private folder beside it."""


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


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[Claim]:
    """Hold the store in ``path``, opened; ``InputError`` when another process does or nothing can be written.

    Whatever a killed process left beside it is cleared away first.
    """
    target = path.resolve()
    if remote.is_view(target):
        raise InputError(f"{path}: is a view of a store that lies elsewhere; change that one")
    clear_abandoned(target)
    manifest.read(path)
    try:
        with (target / layout.MANIFEST).open("r+b") as lock:
            _lock(lock.fileno(), target / layout.MANIFEST, path)
            with partial_folder(target) as scratch:
                yield Claim(open_store(path), target, scratch)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free space, or check its permissions"
        ) from error


def commit(
    claim: Claim, name: str, width: int, blocks: Iterable[NDArray[np.float32]], *, origin: Mapping[str, Any]
) -> str:
    """Write the embedding and put the store that has it in place; returns the new manifest's hash.

    ``blocks`` are (rows, ``width``) finite values of all cells in order. Raises ``InputError`` when the store
    was replaced meanwhile.
    """
    target, built = claim.target, claim.scratch / "store"
    before = manifest.read(target)
    _link_tree(target, built, {record.path for record in before.files}, leave_out=name)
    add_embedding(built, name, width, blocks, origin=origin, before=before)
    after = manifest.file_sha256(built / layout.MANIFEST)
    if manifest.file_sha256(target / layout.MANIFEST) != claim.store.manifest_hash:
        raise InputError(f"{claim.store.path}: was replaced while the embedding was written; run again")
    publish(built, target, replace=True)
    return after


def _lock(descriptor: int, manifest_path: Path, store: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(descriptor).st_ino == manifest_path.stat().st_ino
    except BlockingIOError:
        mine = False
    if not mine:
        raise InputError(f"{store}: another process is changing this store; run again when it is done")


def _link_tree(source: Path, built: Path, listed: set[str], *, leave_out: str) -> None:
    obsm = source / layout.OBSM
    for file in sorted(path for path in obsm.rglob("*") if path.is_file()):
        if file.relative_to(source).as_posix() not in listed:
            raise InputError(f"{file}: was not written by txpert; move it out of the store")

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == leave_out and Path(folder) == obsm]

    shutil.copytree(source, built, symlinks=True, ignore=ignored, copy_function=_link_or_copy)


def _link_or_copy(source: str, destination: str) -> None:
    if Path(source).name not in _REWRITTEN:
        with contextlib.suppress(OSError):
            os.link(source, destination)
            return
    shutil.copy2(source, destination)
