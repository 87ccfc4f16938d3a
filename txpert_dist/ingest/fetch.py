"""Public files by name: whole and verified, or not there.

Enters: a catalogue's entry and a folder. Leaves: its files in the folder, each with a ``.sha256`` note beside
it. Invariants: nothing gets its name before its length and published checksum were checked; a transfer that
breaks off, or was killed, goes on where it was, unless the file changed at its source; a file that is there
is never replaced unasked.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import requests
from urllib3.exceptions import HTTPError

from txpert_dist.errors import InputError
from txpert_dist.ingest.catalogue import Asset, Entry
from txpert_dist.ingest.statistics import Progress

_READ_BYTES = 1 << 20
_TIMEOUT_S = (20.0, 120.0)
"""To connect, and between two reads."""
_TRIES = 5
"""In a row, without a new byte."""
_FIRST_WAIT_S = 0.5


class Fetched(NamedTuple):
    """What became of one file."""

    path: Path
    size: int
    sha256: str
    checked: str | None
    """The published checksum that it has; None when its publisher gives none."""
    created: bool
    """False when it was there already."""


class _Answer(NamedTuple):
    """What a server said of a file."""

    validator: str | None
    """ETag or date: the same as long as the file is."""
    size: int | None
    start: int
    """Where in the file the bytes that follow begin."""


def fetch(entry: Entry, out: Path, *, overwrite: bool, progress: Progress) -> tuple[Fetched, ...]:
    """Bring the files of ``entry`` into the folder ``out``, or find them there.

    ``progress`` is called with (what, done, total) in MiB. Raises ``InputError`` when a file cannot be had,
    is not what its publisher announces, or is there with another content and ``overwrite`` is not given.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        return tuple(_fetch(asset, out, overwrite, progress) for asset in entry.assets)
    except requests.RequestException as error:
        raise InputError(f"{entry.title}: cannot be fetched ({_reason(error)}); fetch it by hand") from None
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free space, or choose another folder"
        ) from error


def _fetch(asset: Asset, out: Path, overwrite: bool, progress: Progress) -> Fetched:
    path = out / asset.file
    if path.exists() and not overwrite:
        return _found(asset, path)
    part = out / f".{asset.file}.part"
    with _locked(out):
        _download(asset, part, progress)
        _check(asset, part)
        whole = part if asset.member is None else _unpacked(asset, part, out / f".{asset.file}.unpacked")
        size, sha256 = whole.stat().st_size, _digest(whole, "sha256")
        _note(path).write_text(f"{sha256}  {path.name}\n", encoding="utf-8")
        os.replace(whole, path)
        for left in (part, _state(part)):
            left.unlink(missing_ok=True)
    return Fetched(path, size, sha256, asset.checksum, True)


def _found(asset: Asset, path: Path) -> Fetched:
    """The file that is there, after checking that it is the one wanted."""
    if not path.is_file():
        raise InputError(f"{path}: is a folder; choose another --out")
    sha256 = _digest(path, "sha256")
    try:
        noted = _note(path).read_text("utf-8").split()[:1] == [sha256]
    except (OSError, UnicodeDecodeError):
        noted = False
    if asset.checksum is not None and asset.member is None:
        noted = _has(path, asset.checksum)
    if not noted:
        raise InputError(
            f"{path}: is there, but is not the file that is published or was fetched; give --overwrite, or "
            "move it"
        )
    return Fetched(path, path.stat().st_size, sha256, asset.checksum, False)


def _download(asset: Asset, part: Path, progress: Progress) -> None:
    """Fill ``part``, which may hold a beginning, with the bytes of the asset."""
    tries, wait_s = 0, _FIRST_WAIT_S
    while True:
        before = _length(part)
        try:
            if _transfer(asset, part, progress):
                return
        except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
            problem = _reason(error)
        else:
            problem = "the connection ended early"
        tries = 0 if _length(part) > before else tries + 1
        if tries >= _TRIES:
            raise InputError(
                f"{asset.url}: cannot be fetched ({problem}); run again later, it goes on where it was"
            )
        if tries:
            time.sleep(wait_s)
            wait_s *= 2
        else:
            wait_s = _FIRST_WAIT_S


def _transfer(asset: Asset, part: Path, progress: Progress) -> bool:
    """One request; whether the file is complete now."""
    state, offset = _read_state(part), _length(part)
    if state.get("url") != asset.url or not state.get("validator"):
        offset = 0  # Nothing says that the rest belongs to this beginning.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": str(state["validator"])}
    with requests.get(asset.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
            return False
        _require_success(asset, answer)
        told = _told(answer)
        if told.start not in (0, offset):
            part.unlink()
            return False
        with part.open("r+b" if told.start else "wb") as file:
            _write_state(part, {"url": asset.url, "validator": told.validator})
            file.seek(told.start)
            file.truncate()
            # As it is sent: some servers call a packed file an encoding, which would unpack it.
            for block in answer.raw.stream(_READ_BYTES, decode_content=False):
                file.write(block)
                done = file.tell()
                progress(f"fetch {asset.file}", done >> 20, max(1, (told.size or done) >> 20))
    if told.size is not None and _length(part) > told.size:
        part.unlink()
        return False
    return told.size is None or _length(part) == told.size


def _require_success(asset: Asset, answer: Any) -> None:
    if answer.status_code >= 500 or answer.status_code == requests.codes.too_many_requests:
        raise requests.ConnectionError(f"{answer.status_code} {answer.reason}")
    if answer.status_code >= 400:
        raise InputError(
            f"{asset.url}: the server answers {answer.status_code} {answer.reason}; it may have moved: fetch "
            "it by hand"
        )


def _told(answer: Any) -> _Answer:
    etag = answer.headers.get("ETag", "")
    strong = etag if etag and not etag.startswith("W/") else None
    validator = strong or answer.headers.get("Last-Modified")
    start, size = 0, answer.headers.get("Content-Length")
    if answer.status_code == requests.codes.partial_content:
        told = answer.headers.get("Content-Range", "bytes 0-/").removeprefix("bytes ")
        place, _, whole = told.partition("/")
        start, size = int(place.partition("-")[0]), whole
    return _Answer(validator, int(size) if size and size.isdigit() else None, start)


def _check(asset: Asset, part: Path) -> None:
    if asset.checksum is None or _has(part, asset.checksum):
        return
    part.unlink()
    raise InputError(
        f"{asset.url}: what was fetched has not the published checksum ({asset.checksum}); run again, and if "
        "that does not help, fetch it by hand"
    )


def _unpacked(asset: Asset, archive: Path, target: Path) -> Path:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(asset.member or "")]
            if len(names) != 1:
                raise InputError(
                    f"{asset.url}: holds {len(names)} files that end in {asset.member}; fetch it by hand"
                )
            with opened.open(names[0]) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _READ_BYTES)
    except (zipfile.BadZipFile, EOFError) as error:
        archive.unlink()
        raise InputError(f"{asset.url}: is no whole zip file ({error}); run again") from None
    return target


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"{folder}: another process is fetching into it; wait for that one") from None
    finally:
        os.close(held)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_state(part: Path) -> dict[str, Any]:
    try:
        state = json.loads(_state(part).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(part: Path, state: dict[str, Any]) -> None:
    _state(part).write_text(json.dumps(state), encoding="utf-8")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _has(path: Path, checksum: str) -> bool:
    algorithm, _, digest = checksum.partition(":")
    return _digest(path, algorithm) == digest.lower()


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
