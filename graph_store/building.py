"""Folders that are written under another name and then moved into place: complete or absent.

Enters: the path a folder is to have. Leaves: a locked folder beside it to write into. Invariants: what a
process that died left behind is removed by the next one that writes there; what a process at work writes is
left alone.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".building-"
"""How the name of a folder begins that is being written."""
GRACE_S = 60.0
"""A folder that changed since this long is left alone: it may not have been locked yet."""


@contextlib.contextmanager
def building(final: Path) -> Iterator[Path]:
    """A new folder beside ``final``, locked meanwhile; gone afterwards unless it was renamed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _sweep(final.parent)
    folder = final.with_name(f"{PREFIX}{final.name}-{secrets.token_hex(4)}")
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            # Not every shared file system has locks; there nothing is ever swept.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove what processes that died while they wrote left in ``parent``."""
    for folder in parent.glob(f"{PREFIX}*"):
        # Another process may publish or remove it at any moment; where folders cannot be locked, it stays.
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > GRACE_S and _is_abandoned(folder):
                shutil.rmtree(folder)


def _is_abandoned(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # The system gives up the locks of a process that ends, however it ends.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
