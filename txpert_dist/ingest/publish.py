"""From nothing to a complete folder in one step.

Enters: the path of a store to write. Leaves: the complete store there, or nothing. Invariants: work happens
in a hidden sibling folder that is removed on failure; what a killed process left behind is removed by the
next one (a lock tells it from the folder of a process at work); only a cell store is ever replaced.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from txpert_dist.errors import InputError

_SUFFIX = ".partial"
_LOCK = "lock"


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A private folder beside ``target``, on the same file system; gone afterwards in any case."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent))
    try:
        with (folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(built: Path, target: Path, *, replace: bool) -> None:
    """Move the complete folder ``built`` to ``target``, in place of the store there only if ``replace``.

    Raises ``InputError`` when something appeared at ``target`` meanwhile.
    """
    if replace:
        os.rename(target, built.with_name("replaced"))
    try:
        os.rename(built, target)
    except OSError as error:
        raise InputError(f"{target}: appeared while it was written ({error.strerror}); run again") from None


def _remove_abandoned(target: Path) -> None:
    for folder in target.parent.glob(f".{target.name}.*{_SUFFIX}"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
