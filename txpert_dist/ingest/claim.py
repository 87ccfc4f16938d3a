"""The right to change a store that is there, and putting the changed one in its place in one step.

Enters: a store's path. Leaves: the store changed, or as it was. Invariants: killed at any moment, the store
is as it was or complete; one process at a time changes a store; processes that read it meanwhile go on, for
no file of theirs is touched.

The new store is built beside the old one. As far as they stay, its files are hard links to those of the old
one (copies where the file system has none), so nothing big is written twice; then the folders are exchanged.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from txpert_dist.errors import InputError
from txpert_dist.ingest.publish import clear_abandoned, partial_folder, publish
from txpert_dist.store import layout, manifest, remote
from txpert_dist.store.cells import CellStore, open_store


class Claim(NamedTuple):
    """The right to change a store, and where to work."""

    store: CellStore
    target: Path
    """The store's folder, links resolved."""
    scratch: Path
    """A private folder beside it."""

    @property
    def built(self) -> Path:
        """Where the changed store is to be built."""
        return self.scratch / "store"


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


def require_ours(claim: Claim, part: str = "") -> None:
    """``InputError`` naming a file below ``part`` of the store that txpert did not write.

    What is built anew holds the store's own files only: nobody else's are to vanish.
    """
    listed = {record.path for record in manifest.read(claim.target).files}
    about = {layout.MANIFEST, layout.SOURCES}
    for file in sorted(path for path in (claim.target / part).rglob("*") if path.is_file()):
        if file.relative_to(claim.target).as_posix() not in listed | about:
            raise InputError(f"{file}: was not written by txpert; move it out of the store")


def put_in_place(claim: Claim, what: str) -> str:
    """Exchange the store for the one that was built while ``what``; returns the new manifest's hash.

    Raises ``InputError`` when the store was replaced meanwhile.
    """
    after = manifest.file_sha256(claim.built / layout.MANIFEST)
    if manifest.file_sha256(claim.target / layout.MANIFEST) != claim.store.manifest_hash:
        raise InputError(f"{claim.store.path}: was replaced while {what}; run again")
    publish(claim.built, claim.target, replace=True)
    return after


def _lock(descriptor: int, manifest_path: Path, store: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(descriptor).st_ino == manifest_path.stat().st_ino
    except BlockingIOError:
        mine = False
    if not mine:
        raise InputError(f"{store}: another process is changing this store; run again when it is done")
