"""Is the store that is asked for there already?

Enters: the configuration. Leaves: records of the input files, a fingerprint of inputs and settings, and
the summary of an existing store that has the same. Invariant: nothing that is not a cell store of ours, and
no store made from anything else, is ever taken for the one asked for or replaced unasked.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.config import WITHOUT_EFFECT, IngestConfig
from txpert_dist.ingest.summary import IngestSummary, SourceRecord, from_json
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import read_summary

_ALGORITHM = 2
"""Raised whenever the same inputs and settings give another store."""
_KEY_LENGTH = 16
_READ_BYTES = 1 << 23


class FileState(NamedTuple):
    """One input file at the time it was hashed."""

    path: str
    size: int
    modified_ns: int
    sha256: str


class Inputs(NamedTuple):
    """What a store is made from."""

    files: tuple[FileState, ...]
    """The sources, then the tables of labels."""
    num_sources: int
    fingerprint: str

    @property
    def records(self) -> tuple[SourceRecord, ...]:
        """The files for the summary, before any cell was taken."""
        return tuple(
            SourceRecord(name=Path(f.path).name, size=f.size, sha256=f.sha256, num_cells=0)
            for f in self.files[: self.num_sources]
        )


def read_inputs(config: IngestConfig) -> Inputs:
    """Identify the input files by content; one unchanged since the store was made is not read again."""
    return _read_inputs(config, config.store / layout.SOURCES, threading.Event())


@contextmanager
def reading_inputs(config: IngestConfig, note: Path) -> Iterator[Callable[[], Inputs]]:
    """``read_inputs`` in the background: call what this gives to wait for the result.

    A file that is noted in ``note``, and unchanged, is not read again; the result is noted there.
    """
    stop = threading.Event()

    def read() -> Inputs:
        inputs = _read_inputs(config, note, stop)
        note.write_text(json.dumps(inputs.files), encoding="utf-8")
        return inputs

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            yield reading.result
        finally:
            stop.set()


def work_key(config: IngestConfig, sizes: Sequence[Any]) -> str:
    """Names the work of ingesting these files, as they are now, with these settings, cut into ``sizes``."""
    states = [_now(path) for path in (*config.sources, *config.labels)]
    text = json.dumps([_ALGORITHM, layout.VERSION, sizes, _settings(config), states], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def existing_summary(config: IngestConfig) -> IngestSummary | None:
    """The summary of the store at ``config.store``; None when there is nothing, or it may be replaced.

    Raises ``InputError`` when something else is there, or a damaged store without ``overwrite``.
    """
    path = config.store
    if not path.exists() and not path.is_symlink():
        return None
    if not (path / layout.MANIFEST).is_file():
        raise InputError(
            f"{path}: exists and is not a cell store; choose another path, or remove it yourself"
        )
    try:
        manifest.check_sizes(path, manifest.read(path))
        return from_json(read_summary(path), path)
    except (StoreError, ValueError) as error:
        if config.overwrite:
            return None
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: holds a store that cannot be used ({reason}); give --overwrite") from None


def same_store(config: IngestConfig, inputs: Inputs) -> bool:
    """Whether the store there was made from ``inputs``; ``InputError`` when it may not be replaced."""
    if manifest.read(config.store).fingerprint == inputs.fingerprint:
        return True
    if config.overwrite:
        return False
    raise InputError(
        f"{config.store}: holds a store made from other files or settings; choose another path, or give "
        "--overwrite"
    )


def remember_inputs(folder: Path, inputs: Inputs) -> None:
    """Note in the store's ``folder`` what its input files looked like, for the next ``read_inputs``."""
    (folder / layout.SOURCES).write_text(json.dumps(inputs.files), encoding="utf-8")


def require_unchanged(inputs: Inputs) -> None:
    """``InputError`` when a file is not as it was when it was hashed."""
    for file in inputs.files:
        if _now(Path(file.path)) != (file.path, file.size, file.modified_ns):
            raise InputError(f"{file.path}: changed while it was read; start again once it is complete")


def _settings(config: IngestConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"sources", "labels", *WITHOUT_EFFECT})


def _read_inputs(config: IngestConfig, note: Path, stop: threading.Event) -> Inputs:
    known = _known_files(note)
    files = tuple(_state(path, known, stop) for path in (*config.sources, *config.labels))
    count = len(config.sources)
    named = [[Path(file.path).stem, file.sha256] for file in files[:count]]
    tables = [file.sha256 for file in files[count:]]
    text = json.dumps([_ALGORITHM, layout.VERSION, _settings(config), named, tables], sort_keys=True)
    return Inputs(files, count, hashlib.sha256(text.encode()).hexdigest())


def _known_files(note: Path) -> dict[tuple[str, int, int], str]:
    try:
        files = [FileState(*entry) for entry in json.loads(note.read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    return {(file.path, file.size, file.modified_ns): file.sha256 for file in files}


def _now(path: Path) -> tuple[str, int, int]:
    """Path, bytes and time of the last change; of a folder, those of its files together."""
    if not path.exists():
        raise InputError(f"{path}: no such file; give the path of an input that is there")
    states = [file.stat() for file in _files(path)]
    modified_ns = max((state.st_mtime_ns for state in states), default=0)
    return str(path.absolute()), sum(state.st_size for state in states), modified_ns


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _state(path: Path, known: dict[tuple[str, int, int], str], stop: threading.Event) -> FileState:
    now = _now(path)
    try:
        return FileState(*now, known.get(now) or _sha256(path, stop))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _sha256(path: Path, stop: threading.Event) -> str:
    """SHA-256 (hex) of the file, or of a folder's names and hashes; junk once nobody waits for it."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in _files(path):
            digest.update(f"{file.relative_to(path).as_posix()}\t{_sha256(file, stop)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        while (part := opened.read(_READ_BYTES)) and not stop.is_set():
            digest.update(part)
    return digest.hexdigest()
