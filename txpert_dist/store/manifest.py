"""The list of a store's files, with size and SHA-256: how damage is told from data.

Enters: a folder. Leaves: ``manifest.json`` in it, or the answer that every listed file is as it was written.
Zarr reads a missing or emptied chunk as fill values without a word; so opening a store checks that every file
exists with its size, and the hash of the small metadata files; ``check_hashes`` reads every byte.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from txpert_dist.errors import StoreError
from txpert_dist.store import layout
from txpert_dist.store.shard_file import FileHash


class FileRecord(NamedTuple):
    """What the manifest knows of one file."""

    path: str
    """Relative to the store, with forward slashes."""
    size: int
    sha256: str


class Manifest(NamedTuple):
    """Every file of one store."""

    fingerprint: str
    """Stands for the inputs and settings that the store was made from."""
    files: tuple[FileRecord, ...]
    appended_to: tuple[str, ...] = ()
    """SHA-256 (hex) of the manifests of the stores that this one begins with: it grew from them, and their
    entries of X stand where they stood."""


def write(
    folder: Path, fingerprint: str, *, known: Mapping[Path, FileHash], appended_to: Sequence[str] = ()
) -> None:
    """List every file below ``folder`` in its ``manifest.json``; those not ``known`` are hashed."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != layout.MANIFEST)
    records = (
        FileRecord(path.relative_to(folder).as_posix(), *known[path])
        if path in known
        else _record(folder, path)
        for path in files
    )
    _write(folder, Manifest(fingerprint, tuple(records), tuple(appended_to)))


def amend(folder: Path, before: Manifest, written: Sequence[Path], *, replaced: str) -> None:
    """List the files ``written`` since ``before``; those that were below ``replaced`` are no longer listed.

    Every other file of ``before`` keeps its record.
    """
    new = {record.path: record for record in (_record(folder, path) for path in written)}
    kept = {record.path: record for record in before.files if not record.path.startswith(f"{replaced}/")}
    files = tuple(record for _, record in sorted((kept | new).items()))
    _write(folder, before._replace(files=files))


def _record(folder: Path, path: Path) -> FileRecord:
    return FileRecord(path.relative_to(folder).as_posix(), path.stat().st_size, file_sha256(path))


def _write(folder: Path, manifest: Manifest) -> None:
    records = [record._asdict() for record in manifest.files]
    tree = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "fingerprint": manifest.fingerprint,
        **({"appended_to": manifest.appended_to} if manifest.appended_to else {}),
        "files": records,
    }
    with (folder / layout.MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(tree, file, indent=0)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Manifest:
    """The manifest of the store in ``folder``; ``StoreError`` when there is none or it cannot be used."""
    path = folder / layout.MANIFEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{folder}: no cell store there ({layout.MANIFEST} is missing); write one with txpert ingest"
        ) from None
    except (OSError, ValueError):
        raise StoreError(f"{path}: damaged, it is not readable JSON; ingest the screen again") from None
    return _parse(path, tree)


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise ``StoreError`` naming the first file that is missing, of another size, or changed metadata."""
    for record in manifest.files:
        path = folder / record.path
        try:
            size = path.stat().st_size
        except OSError:
            raise StoreError(f"{path}: file of the cell store is missing; {_REMEDY}") from None
        if size != record.size:
            raise StoreError(f"{path}: holds {size:,} bytes instead of {record.size:,}; {_REMEDY}")
        if path.name == "zarr.json":
            _check_hash(path, record)


def check_hashes(
    folder: Path, manifest: Manifest, progress: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Raise ``StoreError`` naming the first file whose bytes are not those that were written."""
    check_sizes(folder, manifest)
    for done, record in enumerate(manifest.files):
        progress("verify files", done, len(manifest.files))
        _check_hash(folder / record.path, record)
    progress("verify files", len(manifest.files), len(manifest.files))


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_REMEDY = "restore the file or ingest the screen again"


def _check_hash(path: Path, record: FileRecord) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if found != record.sha256:
        raise StoreError(f"{path}: damaged, its SHA-256 is not the manifest's; {_REMEDY}")


def _parse(path: Path, tree: Any) -> Manifest:
    if not isinstance(tree, dict) or tree.get("format") != layout.FORMAT:
        raise StoreError(f"{path}: not the manifest of a cell store; write one with txpert ingest")
    if tree.get("version") != layout.VERSION:
        raise StoreError(
            f"{path}: cell store of version {tree.get('version')}, this software reads {layout.VERSION}; "
            "ingest the screen again"
        )
    try:
        files = tuple(FileRecord(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in tree["files"])
        return Manifest(str(tree["fingerprint"]), files, tuple(map(str, tree.get("appended_to", ()))))
    except (KeyError, TypeError, ValueError):
        raise StoreError(
            f"{path}: damaged, its list of files is incomplete; ingest the screen again"
        ) from None
