"""A local copy of a snapshot that lies elsewhere: fetched piece by piece, verified, complete or absent.

Enters: an ``Origin`` that hands out bytes, and a folder of copies. Leaves: ``<folder>/<id>``. Invariants:
nothing gets its final name whose hashes do not match; processes that want the same copy at the same time make
it once (a lock that the system frees when its holder dies); what a broken attempt fetched is not fetched
again.
"""

import fcntl
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from graph_store.graph import GraphError
from graph_store.hashing import file_digest
from graph_store.record import FILE_NAME, FileHash, Record, read_record

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,159}")
"""What a file of a snapshot may be called; nothing else becomes a path."""

_BLOCK_BYTES = 1 << 22


class Rest(NamedTuple):
    """What is still missing of a file."""

    file: str
    offset: int


class Origin(NamedTuple):
    """Where a snapshot is fetched from."""

    name: str
    """For messages."""
    record: Callable[[str], bytes]
    """id -> the text of its ``snapshot.json``."""
    contents: Callable[[str, Sequence[Rest]], Iterable[tuple[str, Any]]]
    """(id, what is missing) -> (file, bytes) in buffers, each file's from its offset on and in order. May end
    early: it is asked again while it brings something."""


def one_by_one(
    content: Callable[[str, str, int], Iterable[Any]],
) -> Callable[[str, Sequence[Rest]], Iterable[tuple[str, Any]]]:
    """The ``contents`` of an origin that hands out one file at a time: (id, file, offset) -> its buffers."""

    def contents(identity: str, missing: Sequence[Rest]) -> Iterator[tuple[str, Any]]:
        for rest in missing:
            for buffer in content(identity, rest.file, rest.offset):
                yield rest.file, buffer

    return contents


def folder_origin(folder: Path) -> Origin:
    """A folder of snapshots, on storage that is slow or not this machine's alone."""
    return Origin(
        name=str(folder),
        record=lambda identity: b"".join(_blocks(folder / identity / FILE_NAME, 0)),
        contents=one_by_one(lambda identity, name, offset: _blocks(folder / identity / name, offset)),
    )


def copy_snapshot(origin: Origin, identity: str, folder: Path) -> Path:
    """``folder/identity``, fetched from ``origin`` unless a whole copy is there.

    Raises ``GraphError`` when the origin's copy is damaged or ``folder`` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{identity}.lock"):
            final = folder / identity
            if not is_whole_copy(final):
                _fetch(origin, identity, folder / f".fetching-{identity}", final)
            return final
    except OSError as error:
        raise GraphError(
            f"{folder}: snapshot {identity} cannot be kept there ({error.strerror}); check space and rights"
        ) from None


def is_whole_copy(folder: Path) -> bool:
    """Whether every file that the folder's record names is there with its hash."""
    try:
        record = read_record(folder)
        return record.id == folder.name and all(
            file_digest(folder / name) == (expected.sha256, expected.size)
            for name, expected in _checked_files(record).items()
        )
    except GraphError:
        return False


def copied_record(origin: Origin, identity: str, folder: Path) -> Record:
    """The record of a snapshot, kept in ``folder``; its files are not fetched."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _record(origin, identity, folder)
    except OSError as error:
        raise GraphError(f"{folder}: cannot be written ({error.strerror}); check space and rights") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _fetch(origin: Origin, identity: str, building: Path, final: Path) -> None:
    if final.exists():  # Damaged: what is whole of it is used.
        shutil.rmtree(building, ignore_errors=True)
        final.rename(building)
    building.mkdir(exist_ok=True)
    record = _record(origin, identity, building)
    files = _checked_files(record)
    for entry in building.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != FILE_NAME and entry.name not in files:
            entry.unlink()
    damaged: list[str] = []
    for _ in range(2):  # A remainder of an earlier attempt may be what is damaged.
        damaged = _receive(origin, identity, building, files)
        for name in damaged:
            (building / name).unlink()
        if not damaged:
            break
    if damaged:
        raise GraphError(
            f"{origin.name}: file {damaged[0]} of snapshot {identity} is damaged there (its hash does not "
            "match); build the snapshot again"
        )
    # Not forced to the disk: what a crash of the machine damages, its hash shows, and it is fetched again.
    building.rename(final)


def _receive(origin: Origin, identity: str, folder: Path, files: dict[str, FileHash]) -> list[str]:
    """Bring what is missing of ``files``; the names of those whose hashes then do not match."""
    with ExitStack() as stack:
        parts = {name: stack.enter_context(_Part(folder / name)) for name in sorted(files)}
        while missing := [
            Rest(name, part.size) for name, part in parts.items() if part.size < files[name].size
        ]:
            before = sum(part.size for part in parts.values())
            for name, buffer in origin.contents(identity, missing):
                if name not in parts:
                    raise GraphError(f"{origin.name}: sends a file {name!r} that nobody asked for")
                parts[name].append(buffer)
                if parts[name].size > files[name].size:
                    break
            if sum(part.size for part in parts.values()) == before:
                break
        return [name for name, part in parts.items() if part.found != files[name]]


class _Part:
    """A file that grows, and the hash of what it holds."""

    def __init__(self, path: Path) -> None:
        self._digest = hashlib.sha256()
        self.size = 0
        self._stream = path.open("a+b", buffering=0)
        self._stream.seek(0)
        while block := self._stream.read(_BLOCK_BYTES):
            self._count(block)

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, buffer: Any) -> None:
        """Write ``buffer`` behind what is there."""
        rest = memoryview(buffer)
        while len(rest):
            rest = rest[self._stream.write(rest) :]
        self._count(buffer)

    @property
    def found(self) -> FileHash:
        """What the file is."""
        return FileHash(sha256=self._digest.hexdigest(), size=self.size)

    def _count(self, data: Any) -> None:
        self._digest.update(data)
        self.size += len(data)


def _record(origin: Origin, identity: str, folder: Path) -> Record:
    path = folder / FILE_NAME
    path.write_bytes(origin.record(identity))
    try:
        record = read_record(folder)
    except GraphError as error:
        path.unlink()
        raise GraphError(f"{origin.name}: snapshot {identity}: {_from(path, error)}") from None
    if record.id != identity:
        path.unlink()
        raise GraphError(f"{origin.name}: answers for snapshot {identity} with {record.id}")
    return record


def _from(path: Path, error: GraphError) -> str:
    """The error about the local copy, as one about the file it was copied from."""
    return str(error).replace(str(path), path.name)


def _checked_files(record: Record) -> dict[str, FileHash]:
    for name in record.files:
        if not PLAIN_NAME.fullmatch(name) or name == FILE_NAME:
            raise GraphError(f"snapshot {record.id}: its record names a file {name!r}; build it again")
    return record.files


def _blocks(path: Path, offset: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise GraphError(f"{path}: cannot be read ({error.strerror}); build the snapshot again") from None
