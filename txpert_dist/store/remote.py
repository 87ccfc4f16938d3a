"""A store that lies elsewhere, seen through a folder here.

Enters: any fsspec URL (s3://...) and a folder. Leaves: a view: a folder that every reader of stores opens,
with the store's metadata and small arrays in it, into which a shard comes when it is first read. Invariants:
no file gets its name in the view whose size and SHA-256 are not the manifest's; a view stands for the one
store whose manifest it holds, and a store that was replaced at its URL is never mixed in; processes that want
the same shard at the same time fetch it once.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from txpert_dist.errors import InputError, StoreError
from txpert_dist.store import layout, manifest

Progress = Callable[[str, int, int], None]

_SHARD = re.compile(rf"({re.escape(layout.VALUE)}|{re.escape(layout.GENE)}|{layout.OBSM}/[^/]+)/c/.+")
_PARTIAL = ".fetching"
_KEY_LENGTH = 16


class _Place(NamedTuple):
    filesystem: Any
    """An fsspec file system."""
    root: str
    url: str

    def of(self, name: str) -> str:
        return f"{self.root}/{name}"


def is_url(place: str) -> bool:
    """Whether ``place`` is a URL, not a path."""
    return "://" in place


def cached_view(url: str, cache: Path) -> Path:
    """The view of the store at ``url`` in the folder ``cache``, by content: one per manifest.

    Raises ``InputError`` when the URL cannot be reached or the cache not be written, and ``StoreError`` for
    what is no store or a damaged one.
    """
    place = _reach(url)
    text = _manifest_text(place)
    return _make(place, text, cache / hashlib.sha256(text).hexdigest()[:_KEY_LENGTH])


def make_view(url: str, folder: Path) -> Path:
    """Make ``folder`` a view of the store at ``url``; one that is there already is left as it is.

    Raises as ``cached_view``, and ``InputError`` when something else is at ``folder``.
    """
    place = _reach(url)
    text = _manifest_text(place)
    if folder.exists():
        _require_same(folder, text, url)
    return _make(place, text, folder)


def is_view(folder: Path) -> bool:
    """Whether ``folder`` is a view of a store that lies elsewhere."""
    return (folder / layout.REMOTE).is_file()


def is_shard(name: str) -> bool:
    """Whether the file ``name`` of a store is one that a view fetches when it is first read."""
    return _SHARD.fullmatch(name) is not None


def present(folder: Path, listed: manifest.Manifest) -> manifest.Manifest:
    """The files of ``listed`` that ought to be in ``folder``: all, but for shards not fetched into a view."""
    if not is_view(folder):
        return listed
    here = (f for f in listed.files if not is_shard(f.path) or (folder / f.path).exists())
    return listed._replace(files=tuple(here))


def fetch_shards(folder: Path, progress: Progress = lambda *_: None) -> None:
    """Fetch every shard that the view in ``folder`` has not got; raises as reading them would."""
    listed = manifest.read(folder)
    locate = locator(folder, listed)
    shards = [record.path for record in listed.files if is_shard(record.path)]
    for done, name in enumerate(shards):
        progress("fetch shards", done, len(shards))
        locate(name)
    progress("fetch shards", len(shards), len(shards))


def locator(folder: Path, listed: manifest.Manifest) -> Callable[[str], Path]:
    """For the view in ``folder``: where the file of a name is, fetched first if need be.

    What it gives raises ``StoreError`` when the file cannot be fetched, or is not the manifest's.
    """
    records = {record.path: record for record in listed.files}

    def locate(name: str) -> Path:
        path = folder / name
        if not path.exists() and name in records and is_shard(name):
            _fetch(folder, records[name])
        return path

    return locate


def _make(place: _Place, text: bytes, folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(folder.parent, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not is_view(folder):
                _build(place, text, folder)
        finally:
            os.close(held)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); free space, or choose another folder"
        ) from error
    return folder


def _build(place: _Place, text: bytes, folder: Path) -> None:
    building = folder.with_name(f".{folder.name}{_PARTIAL}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    (building / layout.MANIFEST).write_bytes(text)
    try:
        listed = manifest.read(building)
    except StoreError as error:
        raise StoreError(str(error).replace(str(building), place.url)) from None
    odd = [record.path for record in listed.files if not _is_inside(record.path)]
    if odd:
        raise StoreError(
            f"{place.url}: its manifest lists {odd[0]!r}, which is no file of a store; restore it"
        )
    small = [record for record in listed.files if not is_shard(record.path)]
    for record in small:
        (building / record.path).parent.mkdir(parents=True, exist_ok=True)
    targets = [str(building / record.path) for record in small]
    with _remote_failures(place.url):
        place.filesystem.get([place.of(record.path) for record in small], targets)
    for record in small:
        _require_whole(building / record.path, record, place.url)
    (building / layout.REMOTE).write_text(json.dumps({"url": place.url}), encoding="utf-8")
    os.rename(building, folder)


def _fetch(folder: Path, record: manifest.FileRecord) -> None:
    url = str(json.loads((folder / layout.REMOTE).read_text("utf-8"))["url"])
    path = folder / record.path
    part = path.with_name(f"{path.name}{_PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if path.exists():  # another process was faster
                part.unlink(missing_ok=True)
                return
            place = _reach(url)
            with _remote_failures(f"{url}/{record.path}"):
                place.filesystem.get_file(place.of(record.path), str(part))
            _require_whole(part, record, url)
            os.replace(part, path)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}); free space, or check its permissions"
        ) from error


def _require_whole(path: Path, record: manifest.FileRecord, url: str) -> None:
    if path.stat().st_size == record.size and manifest.file_sha256(path) == record.sha256:
        return
    raise StoreError(
        f"{url}/{record.path}: is not the file of the manifest; it is damaged there, or the store was "
        "replaced since: open it anew, or restore it"
    )


def _require_same(folder: Path, text: bytes, url: str) -> None:
    if not is_view(folder):
        raise InputError(f"{folder}: is there and is no view of a store; choose another path")
    if (folder / layout.MANIFEST).read_bytes() != text:
        raise InputError(
            f"{folder}: is a view of another store than the one at {url} now; remove it, or choose another "
            "path"
        )


def _reach(url: str) -> _Place:
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(url)
    except Exception as error:  # noqa: BLE001  every backend fails in its own way, and all are the user's
        raise InputError(f"{url}: cannot be used ({error or type(error).__name__}); check the URL") from None
    return _Place(filesystem, str(root).rstrip("/"), url.rstrip("/"))


def _manifest_text(place: _Place) -> bytes:
    try:
        text: bytes = place.filesystem.cat_file(place.of(layout.MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{place.url}: no cell store there ({layout.MANIFEST} is missing); copy one there"
        ) from None
    except Exception as error:  # noqa: BLE001  as above
        raise InputError(
            f"{place.url}: cannot be read ({_reason(error)}); check the URL and access"
        ) from None
    return text


@contextlib.contextmanager
def _remote_failures(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"{what}: a file of the store is missing there; restore it") from None
    except Exception as error:  # noqa: BLE001  as above
        raise StoreError(f"{what}: cannot be fetched ({_reason(error)}); try again") from None


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
