"""Records on their way to a server that may be away: lines in files of a run's folder.

Enters: entries, plain values. Leaves: the same entries in the same order, writer after writer. Invariants: an
entry is in a file before anybody tries to deliver it, so a kill loses none; a file has one writer, and is
taken over only when that one has ended; what is delivered is in no file any more; a file stays below a limit,
and what does not fit is counted.
"""

import fcntl
import io
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

FOLDER = "unsent"
"""Folder in a run's that holds what its tracking server has not got yet."""

LIMIT = 64 * 2**20
"""Bytes of one file: some 600,000 metrics."""

_FSYNC_EVERY_S = 5.0
_BLOCK = 2**20
_TRIES = 3

Entry = dict[str, Any]


class Spool:
    """One file of entries, and how far they are delivered.

    One thread may append while another one delivers.
    """

    def __init__(self, file: io.FileIO | io.BytesIO, path: Path | None = None, *, limit: int = LIMIT) -> None:
        self._file, self._path, self._limit = file, path, limit
        self._delivered = 0  # bytes
        self._end = _whole_lines(file)
        self._offered: list[int] = []  # bytes of each entry that ``next`` has shown
        self._synced = time.monotonic()
        self._lock = threading.Lock()

    @property
    def pending(self) -> bool:
        """Whether there is an entry that is not delivered."""
        return self._delivered < self._end

    @property
    def survives(self) -> bool:
        """Whether what is pending outlives this process."""
        return self._path is not None

    def __len__(self) -> int:
        """Entries that are not delivered."""
        with self._lock:
            self._file.seek(self._delivered)
            return sum(block.count(b"\n") for block in iter(lambda: self._file.read(_BLOCK), b""))

    def append(self, entries: Sequence[Entry]) -> int:
        """Add entries behind the others, now and then all the way to the disk; how many did not fit.

        Raises ``OSError`` as the file system does; none of the entries is there then.
        """
        lines = [json.dumps(entry).encode() + b"\n" for entry in entries]
        with self._lock:
            ends = accumulate(map(len, lines), initial=self._end)
            lines = lines[: max(0, sum(end <= self._limit for end in ends) - 1)]
            self._write(b"".join(lines))
        if time.monotonic() - self._synced > _FSYNC_EVERY_S:
            self.to_disk()
        return len(entries) - len(lines)

    def to_disk(self) -> None:
        """All the way, where there is one."""
        self._synced = time.monotonic()
        with suppress(OSError):  # in memory, or a file system that cannot
            os.fsync(self._file.fileno())

    def next(self, most: int) -> list[Entry]:
        """The first entries that are not delivered."""
        with self._lock:
            self._file.seek(self._delivered)
            data = self._file.read(min(_BLOCK, self._end - self._delivered))
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)[:most]
        self._offered = [len(line) for line in lines]
        return [_entry(line) for line in lines]

    def delivered(self, number: int) -> None:
        """The first so many of what ``next`` gave have arrived."""
        with self._lock:
            self._delivered += sum(self._offered[:number])
            self._offered = self._offered[number:]
            if not self.pending:
                self._file.truncate(0)
                self._delivered = self._end = 0

    def close(self) -> None:
        """Let go of the file, which is gone when all is delivered."""
        if self.pending:
            self.to_disk()
        elif self._path is not None:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # others' files are in it
                self._path.parent.rmdir()
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.seek(self._end)
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        self._end += written


def new_spool(run_folder: Path | None, kind: str) -> Spool:
    """A spool of this process's own in the run's folder; in memory where there is none to write to."""
    for _ in range(_TRIES if run_folder is not None and run_folder.is_dir() else 0):
        path = Path(f"{run_folder}", FOLDER, f"{time.time_ns():020d}-{os.getpid()}.{kind}.jsonl")
        try:
            path.parent.mkdir(exist_ok=True)
            file = path.open("x+b", buffering=0)
        except OSError:
            continue  # perhaps somebody has just removed the empty folder
        if _taken(file):
            return Spool(file, path)
        file.close()
    return Spool(io.BytesIO())


def left_behind(run_folder: Path | None, kind: str = "*") -> Iterator[Spool]:
    """The spools of writers that have ended, oldest first; each is this process's until it is closed."""
    if run_folder is None:
        return
    for path in sorted((run_folder / FOLDER).glob(f"*.{kind}.jsonl")):
        try:
            file = path.open("r+b", buffering=0)
        except OSError:
            continue
        if _taken(file) and path.exists():
            yield Spool(file, path)
        else:
            file.close()


def waiting(run_folder: Path) -> int:
    """Entries in the run's folder that no server has got."""
    files = (run_folder / FOLDER).glob("*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in files)


def _taken(file: io.FileIO) -> bool:
    """Whether the file is this process's now; where there are no locks it is everybody's."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _whole_lines(file: io.FileIO | io.BytesIO) -> int:
    """Bytes up to the last whole line; a kill may have cut the one after it."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _entry(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}  # damaged on disk; the ones after it are not
    return entry if isinstance(entry, dict) else {}
