"""Is the store that is asked for there already?

Enters: the configuration. Leaves: records of the input files, a fingerprint of inputs and settings, and
the summary of an existing store that has the same. Invariant: nothing that is not a cell store of ours, and
no store made from anything else, is ever taken for the one asked for or replaced unasked.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.source import require_file
from txpert_dist.ingest.summary import IngestSummary, SourceRecord, from_json
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import read_summary

_ALGORITHM = 1
"""Raised whenever the same inputs and settings give another store."""


class FileState(NamedTuple):
    """One input file at the time it was hashed."""

    path: str
    size: int
    modified_ns: int
    sha256: str


class Inputs(NamedTuple):
    """What a store is made from."""

    files: tuple[FileState, ...]
    fingerprint: str

    @property
    def records(self) -> tuple[SourceRecord, ...]:
        """The files for the summary, before any cell was taken."""
        return tuple(
            SourceRecord(name=Path(f.path).name, size=f.size, sha256=f.sha256, num_cells=0)
            for f in self.files
        )


def read_inputs(config: IngestConfig) -> Inputs:
    """Identify the input files by content; one unchanged since the store was made is not read again."""
    known = _known_files(config.store)
    files = tuple(_state(path, known) for path in config.sources)
    settings = config.model_dump(mode="json", exclude={"sources", "store", "overwrite"})
    named = [[Path(file.path).stem, file.sha256] for file in files]
    text = json.dumps([_ALGORITHM, layout.VERSION, settings, named], sort_keys=True)
    return Inputs(files, hashlib.sha256(text.encode()).hexdigest())


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
        require_file(Path(file.path))
        stat = Path(file.path).stat()
        if (stat.st_size, stat.st_mtime_ns) != (file.size, file.modified_ns):
            raise InputError(f"{file.path}: changed while it was read; start again once it is complete")


def _known_files(store: Path) -> dict[tuple[str, int, int], str]:
    try:
        files = [FileState(*entry) for entry in json.loads((store / layout.SOURCES).read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return {}
    return {(file.path, file.size, file.modified_ns): file.sha256 for file in files}


def _state(path: Path, known: dict[tuple[str, int, int], str]) -> FileState:
    require_file(path)
    stat = path.stat()
    now = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
    try:
        return FileState(*now, known.get(now) or manifest.file_sha256(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
