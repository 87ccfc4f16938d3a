"""Progress across processes: rank 0 appends lines to a file, the driver follows them.

Enters: (what, done, total) on one side. Leaves: the same on the other, while the run goes on. Invariant: only
whole lines are read, and a file is all it takes, so any cluster with a shared run folder will do.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Progress = Callable[[str, int, int], None]

_WRITE_EVERY_S = 0.2
_READ_EVERY_S = 0.3


class ProgressFile:
    """Appends progress to ``path``, at most a few lines a second but always the last of a stage."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Write one line, or skip it when the last one is recent."""
        now = time.monotonic()
        if done < total and now < self._next:
            return
        self._next = now + _WRITE_EVERY_S
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([what, done, total]) + "\n")


@contextmanager
def followed(path: Path, progress: Progress) -> Iterator[None]:
    """While the context lasts, hand every line that is appended to ``path`` to ``progress``.

    The file is emptied first. ``progress`` is called from a thread.
    """
    path.write_text("", encoding="utf-8")
    ended = threading.Event()

    def follow() -> None:
        position = 0
        while True:
            last = ended.wait(_READ_EVERY_S)
            position = _read_from(path, position, progress)
            if last:
                return

    thread = threading.Thread(target=follow, name="txpert-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read_from(path: Path, position: int, progress: Progress) -> int:
    with path.open("rb") as file:
        file.seek(position)
        whole, newline, _ = file.read().rpartition(b"\n")
    for line in whole.splitlines():
        what, done, total = json.loads(line)
        progress(what, done, total)
    return position + len(whole) + len(newline)
