"""From nothing to a complete folder in one step.

Enters: the path of a store to write. Leaves: the complete store there, or nothing. Invariants: work happens
in a hidden sibling folder that is removed on failure; what a killed process left behind is taken up by the
next one that does the same work, and removed by any other (a lock tells it from the folder of a process at
work); only a cell store is ever replaced, and a
process killed while replacing it loses neither the old store nor the new one.

Linux exchanges two folders in one step. Where the system or the file system cannot, the old store is moved
into the hidden folder first; killed at that moment, the next command on the path moves it back.
"""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from txpert_dist.errors import InputError

_SUFFIX = ".partial"
_LOCK = "lock"
_REPLACED = "replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2(2)."""


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A private folder beside ``target``, on the same file system; gone afterwards in any case."""
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(target)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def work_folder(target: Path, key: str) -> Iterator[Path]:
    """A private folder beside ``target`` for the work named by ``key`` (hexadecimal).

    It holds what a killed or interrupted process doing the same work left there. It is gone afterwards unless
    this process is interrupted. While another process is at the same work, it is another folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{key}{_SUFFIX}"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(exist_ok=True)
            stack.enter_context(_locked(folder))
        except BlockingIOError:
            folder = stack.enter_context(partial_folder(target))
        clear_abandoned(target)
        try:
            yield folder
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def publish(built: Path, target: Path, *, replace: bool) -> None:
    """Move the complete folder ``built`` to ``target``, in place of the store there only if ``replace``.

    Raises ``InputError`` when something appeared at ``target`` meanwhile.
    """
    if replace and exchange(built, target):
        return
    replaced = built.with_name(_REPLACED)
    if replace:
        os.rename(target, replaced)
    try:
        os.rename(built, target)
    except OSError as error:
        if replace and not target.exists():
            os.rename(replaced, target)
        raise InputError(f"{target}: appeared while it was written ({error.strerror}); run again") from None


def exchange(first: Path, second: Path) -> bool:
    """Swap two paths of one file system in one step; False where that is not possible."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(first), os.fsencode(second)
    if not rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def clear_abandoned(target: Path) -> None:
    """Remove what killed processes left beside ``target``; a store that one had moved away goes back."""
    for folder in _abandoned(target):
        _put_back(folder, target)
        shutil.rmtree(folder, ignore_errors=True)


def restore_replaced(target: Path) -> None:
    """Move back the store that a process killed while replacing it had moved away; remove nothing."""
    for folder in _abandoned(target):
        _put_back(folder, target)


def _abandoned(target: Path) -> Iterator[Path]:
    """Folders beside ``target`` that no process holds, each of them held meanwhile."""
    # No dot in the middle: what lies beside "a.zarr" is not beside "a".
    own = re.compile(rf"\.{re.escape(target.name)}\.[^.]+{re.escape(_SUFFIX)}")
    for folder in sorted(target.parent.glob(f".{glob.escape(target.name)}.*{_SUFFIX}")):
        if own.fullmatch(folder.name):
            with contextlib.suppress(OSError), _locked(folder):
                yield folder


def _put_back(folder: Path, target: Path) -> None:
    if (folder / _REPLACED).exists() and not target.exists():
        os.rename(folder / _REPLACED, target)
