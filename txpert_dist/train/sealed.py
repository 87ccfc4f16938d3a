"""Folders that are complete or absent, and that notice damage.

Enters: a folder filled under a temporary name. Leaves: the same folder under its own name, with a manifest of
every file's SHA-256. Invariants: the manifest is written last and the folder renamed after it, so a folder
with its own name is whole unless it was damaged later, and then ``damage`` says where; two writers of one
folder never share a temporary name.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

MANIFEST = "manifest.json"
_PARTIAL, _REPLACED = ".partial-", ".replaced-"


def seal(
    folder: Path,
    fill: Callable[[Path], None],
    allowed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Let ``fill`` write files into a new folder and put it in place of ``folder``, whole.

    It gets its name within ``allowed()``, which may raise instead. A folder that is there already (a damaged
    one) is replaced. Raises ``OSError`` as the file system does; nothing half-written keeps the name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = f"{folder.name}-{secrets.token_hex(4)}"
    partial, replaced = folder.with_name(_PARTIAL + own), folder.with_name(_REPLACED + own)
    partial.mkdir()
    try:
        fill(partial)
        files = sorted(path for path in partial.iterdir() if path.is_file())
        listed = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
        (partial / MANIFEST).write_text(json.dumps({"files": listed}, indent=1), encoding="utf-8")
        for path in [*files, partial / MANIFEST, partial]:
            _to_disk(path)
        with allowed():
            if folder.exists():
                os.replace(folder, replaced)
            os.replace(partial, folder)
            _to_disk(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def adopt(folder: Path, fetch: Callable[[Path], None]) -> str | None:
    """Let ``fetch`` bring files that were sealed elsewhere, manifest and all; in place only when sound.

    Returns what is wrong with them, as ``damage`` does. Raises what ``fetch`` raises, leaving nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{_PARTIAL}{folder.name}-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        fetch(partial)
        wrong = damage(partial)
        if wrong is None:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        return wrong and wrong.replace(str(partial), folder.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what interrupted writers left in ``parent``."""
    for pattern in (_PARTIAL, _REPLACED):
        for left in parent.glob(pattern + "*"):
            shutil.rmtree(left, ignore_errors=True)


def damage(folder: Path, names: Collection[str] | None = None) -> str | None:
    """What is wrong with the files of ``folder`` (or ``names`` only), naming the file; None when sound."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        wanted = {name: listed[name] for name in (listed if names is None else names)}
        for name, entry in wanted.items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if (folder / name).stat().st_size != entry["size"]:
                return f"{folder / name} has another size than when it was written"
            if sha256(folder / name) != entry["sha256"]:
                return f"{folder / name} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / MANIFEST} cannot be read ({error!r})"
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
