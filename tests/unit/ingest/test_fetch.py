"""Fetching by name from a real HTTP server: whole and verified or not there, and resumed where it broke."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from txpert_dist.errors import InputError
from txpert_dist.ingest import fetch as fetching
from txpert_dist.ingest.catalogue import CATALOGUE, Asset, Entry
from txpert_dist.ingest.fetch import Fetched, fetch
from txpert_dist.ingest.run import no_progress

CONTENT = random.Random(0).randbytes(3_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Site(ThreadingHTTPServer):
    """Serves ``files``; the attributes say how it misbehaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, bytes] = {"/screen.h5ad": CONTENT}
        self.version = "1"
        self.ranges = True
        self.validators = True
        self.cut_after: list[int] = []
        """Bytes after which each of the next answers breaks off."""
        self.failures: list[int] = []
        """Status of each of the next answers."""
        self.hold: threading.Event | None = None
        self.asked: list[str | None] = []
        """The Range header of every request."""
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site, content = self.server, self.server.files.get(self.path)
        site.asked.append(self.headers.get("Range"))
        status = site.failures.pop(0) if site.failures else 200 if content is not None else 404
        if status != 200 or content is None:
            self.send_error(status)
            return
        start = 0
        same = self.headers.get("If-Range") == f'"{site.version}"'
        if site.ranges and same and (wanted := self.headers.get("Range")):
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
        self.send_response(status)
        if site.validators:
            self.send_header("ETag", f'"{site.version}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = start + site.cut_after.pop(0) if site.cut_after else len(content)
        body = content[start:stop]
        self.wfile.write(body)
        self.wfile.flush()
        site.sent += len(body)
        if site.hold is not None:
            site.hold.wait(60)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def entry(site: Site, checksum: str | None = MD5, **settings: Any) -> Entry:
    return Entry("a screen", (Asset(f"{site.url}/screen.h5ad", "screen.h5ad", checksum, **settings),), "")


def fetched(wanted: Entry, out: Path, *, overwrite: bool = False) -> Fetched:
    (done,) = fetch(wanted, out, overwrite=overwrite, progress=no_progress)
    return done


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_once_whole_with_its_hash_beside_it(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    fetch(entry(site), tmp_path / "data", overwrite=False, progress=lambda *args: seen.append(args))
    assert (tmp_path / "data" / "screen.h5ad").read_bytes() == CONTENT
    assert names(tmp_path / "data") == ["screen.h5ad", "screen.h5ad.sha256"]
    check = subprocess.run(["sha256sum", "-c", "screen.h5ad.sha256"], cwd=tmp_path / "data", check=False)
    assert check.returncode == 0
    assert seen[-1] == ("fetch screen.h5ad", 2, 2)
    again = fetched(entry(site), tmp_path / "data")
    assert not again.created
    assert (again.size, again.checked) == (len(CONTENT), MD5)
    assert len(site.asked) == 1


@pytest.mark.parametrize("checksum", [MD5, None])
def test_a_broken_transfer_goes_on_where_it_was(site: Site, tmp_path: Path, checksum: str | None) -> None:
    site.cut_after = [1_000_000, 500_000, 1]
    done = fetched(entry(site, checksum), tmp_path)
    assert done.path.read_bytes() == CONTENT
    assert site.sent == len(CONTENT)
    assert site.asked == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500001-"]


def test_a_file_that_changed_at_its_source_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.cut_after, site.failures = [1_000_000], [200] + [503] * fetching._TRIES
    with pytest.raises(InputError, match=r"503.*run again later"):
        fetched(entry(site, None), tmp_path)
    assert not (tmp_path / "screen.h5ad").exists()
    site.files["/screen.h5ad"], site.version = CONTENT[::-1], "2"
    assert fetched(entry(site, None), tmp_path).path.read_bytes() == CONTENT[::-1]
    assert names(tmp_path) == ["screen.h5ad", "screen.h5ad.sha256"]


@pytest.mark.parametrize("lack", ["ranges", "validators"])
def test_servers_that_cannot_resume_are_asked_from_the_start(site: Site, tmp_path: Path, lack: str) -> None:
    setattr(site, lack, False)
    site.cut_after = [1_000_000]
    assert fetched(entry(site), tmp_path).path.read_bytes() == CONTENT
    assert site.sent == len(CONTENT) + 1_000_000


def test_content_without_the_published_checksum_never_gets_the_name(site: Site, tmp_path: Path) -> None:
    site.files["/screen.h5ad"] = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=r"screen\.h5ad: what was fetched has not the published checksum"):
        fetched(entry(site), tmp_path)
    assert not (tmp_path / "screen.h5ad").exists()
    site.files["/screen.h5ad"] = CONTENT
    assert fetched(entry(site), tmp_path).created


def test_a_file_that_is_there_is_verified_and_never_replaced_unasked(site: Site, tmp_path: Path) -> None:
    for checksum in (MD5, None):
        done = fetched(entry(site, checksum), tmp_path, overwrite=True)
        done.path.write_bytes(CONTENT + b"mine")
        with pytest.raises(InputError, match="give --overwrite"):
            fetched(entry(site, checksum), tmp_path)
        assert done.path.read_bytes() == CONTENT + b"mine"
    (tmp_path / "screen.h5ad.sha256").unlink()
    (tmp_path / "screen.h5ad").write_bytes(CONTENT)
    assert not fetched(entry(site), tmp_path).created  # put there by hand, and it is the published one
    with pytest.raises(InputError, match="give --overwrite"):
        fetched(entry(site, None), tmp_path)


def test_what_cannot_be_had_says_why(site: Site, tmp_path: Path) -> None:
    missing = Entry("x", (Asset(f"{site.url}/nowhere", "x.h5ad"),), "")
    with pytest.raises(InputError, match="nowhere: the server answers 404 Not Found"):
        fetched(missing, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        fetched(entry(site), tmp_path / "file" / "in")


def test_the_wanted_file_of_a_zip_is_taken_out(site: Site, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("norman/perturb_processed.h5ad", CONTENT)
        archive.writestr("norman/../../outside", b"x")
    site.files["/screen.h5ad"] = packed.getvalue()
    wanted = entry(site, None, member="perturb_processed.h5ad")
    assert fetched(wanted, tmp_path / "data").path.read_bytes() == CONTENT
    assert names(tmp_path / "data") == ["screen.h5ad", "screen.h5ad.sha256"]
    assert names(tmp_path) == ["data"]
    assert not fetched(wanted, tmp_path / "data").created
    site.files["/screen.h5ad"] = packed.getvalue()[:-100]
    with pytest.raises(InputError, match="is no whole zip file"):
        fetched(wanted, tmp_path / "other")
    site.files["/screen.h5ad"] = packed.getvalue()
    with pytest.raises(InputError, match="0 files that end in absent"):
        fetched(entry(site, None, member="absent"), tmp_path / "other")


FETCHES = """
import sys
from pathlib import Path
from txpert_dist.ingest.catalogue import Asset, Entry
from txpert_dist.ingest.fetch import fetch

print("there", flush=True)
entry = Entry("a screen", (Asset(sys.argv[1], "screen.h5ad", sys.argv[3]),), "")
fetch(entry, Path(sys.argv[2]), overwrite=False, progress=lambda *args: print(*args, flush=True))
"""


@pytest.mark.process
def test_killed_in_the_middle_it_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.hold, site.cut_after = threading.Event(), [2_200_000]
    command = [sys.executable, "-c", FETCHES, f"{site.url}/screen.h5ad", str(tmp_path / "data"), MD5]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None
    while "fetch screen.h5ad 2 2" not in process.stdout.readline():
        pass
    with pytest.raises(InputError, match="another process is fetching"):
        fetched(entry(site), tmp_path / "data")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    site.hold.set()
    site.hold = None
    assert names(tmp_path / "data") == [".screen.h5ad.part", ".screen.h5ad.part.json"]
    assert fetched(entry(site), tmp_path / "data").path.read_bytes() == CONTENT
    assert site.asked[0] is None
    assert site.asked[1] is not None
    assert site.sent < len(CONTENT) + 2_200_000
    assert names(tmp_path / "data") == ["screen.h5ad", "screen.h5ad.sha256"]


def test_the_catalogue_is_fit_for_use() -> None:
    files = [asset.file for entry in CATALOGUE.values() for asset in entry.assets]
    assert len(set(files)) == len(files)
    for known in CATALOGUE.values():
        assert "{}" in known.then
        for asset in known.assets:
            assert asset.url.startswith("https://")
            assert "/" not in asset.file
            if asset.checksum is not None:
                algorithm, _, digest = asset.checksum.partition(":")
                assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
