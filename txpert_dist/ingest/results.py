"""Results of tasks: folders of arrays that are complete or absent, and whole after a kill.

Enters: what a task made. Leaves: a folder that appears in one step. Invariant: a folder that ``is_whole``
holds the bytes that were written, so a task whose result is whole need not run again.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_CHECKS = "checks.json"
_READ_BYTES = 1 << 22


@contextmanager
def new_result(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; afterwards it is ``folder``, unless an exception got in between.

    A process that was given up for dead may still be at the same task: each has a folder of its own, and the
    first result, which is as good as any other, stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".new", dir=folder.parent))
    yield work
    checks = {path.name: _check(path) for path in sorted(work.iterdir())}
    (work / _CHECKS).write_text(json.dumps(checks), encoding="utf-8")
    try:
        os.rename(work, folder)
    except OSError:
        if not is_whole(folder):
            raise
        shutil.rmtree(work)


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` is a complete result; whatever else is there is removed."""
    try:
        checks = json.loads((folder / _CHECKS).read_text(encoding="utf-8"))
        whole = bool(checks) and all(_check(folder / name) == check for name, check in checks.items())
    except (OSError, ValueError, AttributeError):
        whole = False
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
    return whole


def save(folder: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Keep ``arrays`` by name in the folder of a result."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def load(folder: Path, name: str) -> NDArray[Any]:
    """The array ``name`` of a result, read when it is used."""
    array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _check(path: Path) -> list[int]:
    value = 0
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            value = google_crc32c.extend(value, part)
    return [path.stat().st_size, value]
