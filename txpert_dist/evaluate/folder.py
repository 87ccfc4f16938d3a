"""A folder of results that appears complete or not at all.

Enters: a folder and what fills it. Leaves: the folder. Invariant: whatever goes wrong, the folder is as it
was before; only a folder that holds the same kind of result, or nothing, is ever replaced.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from txpert_dist.errors import InputError


def replace_folder(folder: Path, write: Callable[[Path], None], *, mark: str, what: str) -> None:
    """Let ``write`` fill a fresh folder and put it in the place of ``folder``.

    ``mark`` is the file that tells such a result; raises ``InputError``, saying ``what`` the folder is then
    ("not a report", say), when it holds anything else.
    """
    if folder.exists() and not _replaceable(folder, mark):
        raise InputError(f"{folder}: exists and is {what}; give a new folder for it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = uuid4().hex[:8]
    fresh, old = (folder.with_name(f".{folder.name}.{name}.{kind}") for kind in ("new", "old"))
    try:
        fresh.mkdir()
        write(fresh)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replaceable(folder: Path, mark: str) -> bool:
    return folder.is_dir() and ((folder / mark).exists() or not any(folder.iterdir()))
