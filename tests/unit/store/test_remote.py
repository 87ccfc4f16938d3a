"""Stores at a URL: an S3 server on a socket, and files as any other file system."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anndata
import fsspec
import numpy as np
import pytest
import scipy.sparse

from tests.unit.store.small_store import (
    NUM_CELLS,
    self_describing_embedding,
    self_describing_matrix,
    write_store,
)
from txpert_dist.errors import InputError, StoreError
from txpert_dist.ingest.claim import claimed
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import open_store, verify
from txpert_dist.store.remote import cached_view, fetch_shards, is_shard, is_view, make_view
from txpert_dist.store.tables import read_table


class Distant(NamedTuple):
    url: str
    original: Path
    """The same store here."""

    def put(self, name: str, content: bytes) -> None:
        filesystem, root = fsspec.core.url_to_fs(self.url)
        filesystem.pipe_file(f"{root}/{name}", content)

    def remove(self, name: str) -> None:
        filesystem, root = fsspec.core.url_to_fs(self.url)
        filesystem.rm_file(f"{root}/{name}")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server of this process, reached over its socket."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the servers of other tests
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "screen.zarr"
    write_store(path, self_describing_matrix(), X_two=self_describing_embedding(5))
    return path


@pytest.fixture(params=["s3", "file"])
def distant(
    request: pytest.FixtureRequest, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Distant:
    if request.param == "file":
        url = f"file://{tmp_path}/distant/screen.zarr"
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
        url = f"s3://{bucket}/some/screen.zarr"
    filesystem, root = fsspec.core.url_to_fs(url)
    for file in sorted(path for path in original.rglob("*") if path.is_file()):
        target = f"{root}/{file.relative_to(original).as_posix()}"
        filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        filesystem.put_file(str(file), target)
    return Distant(url, original)


def shards(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if is_shard(name))


def test_a_view_brings_what_is_read_and_nothing_else(distant: Distant, tmp_path: Path) -> None:
    view = cached_view(distant.url, tmp_path / "cache")
    assert is_view(view)
    assert shards(view) == []
    here, there = open_store(distant.original), open_store(view)
    assert there.manifest_hash == here.manifest_hash
    assert there.genes == here.genes
    assert (there.control_mean_CG == here.control_mean_CG).all()
    assert read_table(view, "obs").equals(read_table(distant.original, "obs"))
    assert shards(view) == []
    rows = np.array([3, 1, 2, 3])
    for found, expected in zip(there.take(rows), here.take(rows), strict=True):
        assert (found == expected).all()
    assert shards(view) == ["X/data/c/0", "X/indices/c/0"]
    assert (there.take_embedding("X_two", rows) == self_describing_embedding(5)[rows]).all()
    assert shards(view) == ["X/data/c/0", "X/indices/c/0", "obsm/X_two/c/0/0"]
    whole = there.read(0, NUM_CELLS)
    expected = scipy.sparse.csr_matrix(self_describing_matrix())
    assert (whole.value == expected.data).all()
    assert shards(view) == shards(distant.original)
    # From here on the distant store is not needed: the view is the store.
    assert cached_view(distant.url, tmp_path / "cache") == view
    verify(view)
    assert (anndata.read_zarr(view).X.toarray() == self_describing_matrix()).all()


def test_verify_fetches_what_is_missing(distant: Distant, tmp_path: Path) -> None:
    view = make_view(distant.url, tmp_path / "screen.zarr")
    seen: list[tuple[str, int, int]] = []
    fetch_shards(view, lambda *args: seen.append(args))
    assert shards(view) == shards(distant.original)
    assert seen[-1][1] == seen[-1][2] == len(shards(view))
    assert make_view(distant.url, tmp_path / "screen.zarr") == view
    other = make_view(distant.url, tmp_path / "other.zarr")
    verify(other)
    assert shards(other) == shards(distant.original)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "distant") == [
        "other.zarr",
        "screen.zarr",
    ]


DAMAGES = ["flipped", "cut", "emptied", "removed", "of another store"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["X/data/c/1", "X/indices/c/0", "obsm/X_two/c/0/0"])
def test_a_shard_that_is_not_the_manifests_never_gets_into_the_view(
    distant: Distant, tmp_path: Path, name: str, damage: str
) -> None:
    view = make_view(distant.url, tmp_path / "view")
    content = (distant.original / name).read_bytes()
    if damage == "removed":
        distant.remove(name)
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        other = (distant.original / "X/data/c/0").read_bytes()
        distant.put(name, {"flipped": changed, "cut": content[:-9], "emptied": b""}.get(damage, other))
    store, rows = open_store(view), np.arange(NUM_CELLS)
    with pytest.raises(StoreError, match=name):
        store.take_embedding("X_two", rows) if "obsm" in name else store.take(rows)
    assert name not in shards(view)
    with pytest.raises(StoreError, match=name):
        verify(view)
    distant.put(name, content)  # restored, it is read
    verify(view)
    assert (open_store(view).take(rows).value == scipy.sparse.csr_matrix(self_describing_matrix()).data).all()


@pytest.mark.parametrize("name", ["zarr.json", "X/indptr/c/0", "uns/txpert/split/c/0", "obs/n/c/0"])
def test_damaged_metadata_makes_no_view(distant: Distant, tmp_path: Path, name: str) -> None:
    content = (distant.original / name).read_bytes()
    distant.put(name, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=name):
        make_view(distant.url, tmp_path / "view")
    distant.remove(name)
    with pytest.raises(StoreError, match="missing there"):
        make_view(distant.url, tmp_path / "view")
    assert not (tmp_path / "view").exists()
    distant.put(name, content)
    verify(make_view(distant.url, tmp_path / "view"))


def test_a_store_that_was_replaced_is_not_mixed_in(distant: Distant, tmp_path: Path) -> None:
    view = make_view(distant.url, tmp_path / "view")
    store = open_store(view)
    store.take(np.array([0]))
    write_store(tmp_path / "new.zarr", self_describing_matrix()[::-1])
    for record in manifest.read(tmp_path / "new.zarr").files:
        distant.put(record.path, (tmp_path / "new.zarr" / record.path).read_bytes())
    distant.put(layout.MANIFEST, (tmp_path / "new.zarr" / layout.MANIFEST).read_bytes())
    with pytest.raises(StoreError, match="the store was replaced since"):
        store.take(np.arange(NUM_CELLS))
    with pytest.raises(InputError, match="is a view of another store"):
        make_view(distant.url, tmp_path / "view")
    new = open_store(cached_view(distant.url, tmp_path / "cache"))
    expected = scipy.sparse.csr_matrix(self_describing_matrix()[::-1])
    assert (new.read(0, NUM_CELLS).value == expected.data).all()


def test_what_cannot_be_viewed_says_why(distant: Distant, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no cell store there"):
        make_view(f"{distant.url}-not", tmp_path / "view")
    with pytest.raises(InputError, match="nothing://x: cannot be used"):
        make_view("nothing://x", tmp_path / "view")
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is no view of a store"):
        make_view(distant.url, tmp_path / "mine")
    tree = json.loads((distant.original / layout.MANIFEST).read_text())
    tree["files"].append({"path": "X/data/c/../../../../escaped", "size": 1, "sha256": "0"})
    distant.put(layout.MANIFEST, json.dumps(tree).encode())
    with pytest.raises(StoreError, match="is no file of a store"):
        make_view(distant.url, tmp_path / "view")
    distant.put(layout.MANIFEST, b"{")
    with pytest.raises(StoreError, match=r"screen\.zarr/manifest\.json: damaged"):
        make_view(distant.url, tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_a_view_is_not_changed(distant: Distant, tmp_path: Path) -> None:
    view = make_view(distant.url, tmp_path / "view")
    with pytest.raises(InputError, match="a view of a store that lies elsewhere"), claimed(view):
        pass


def test_what_a_killed_process_left_does_no_harm(distant: Distant, tmp_path: Path) -> None:
    (tmp_path / ".view.fetching" / "X").mkdir(parents=True)
    view = make_view(distant.url, tmp_path / "view")
    part = view / "X" / "data" / "c" / "0.fetching"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\xff" * 10_000_000)
    verify(view)
    assert list(view.rglob("*.fetching")) == []


READS = """
import sys
import numpy as np
from pathlib import Path
from txpert_dist.store.cells import open_store

store = open_store(Path(sys.argv[1]))
sys.stdin.readline()
print(int(store.take(np.arange(store.num_cells)).value.astype(np.int64).sum()))
"""


@pytest.mark.process
def test_processes_that_read_at_the_same_time_get_the_same(distant: Distant, tmp_path: Path) -> None:
    view = make_view(distant.url, tmp_path / "view")
    command = [sys.executable, "-c", READS, str(view)]
    started = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ},
        )
        for _ in range(3)
    ]
    found = {process.communicate("go\n", timeout=120)[0].strip() for process in started}
    assert found == {str(int(self_describing_matrix().astype(np.int64).sum()))}
    assert list(view.rglob("*.fetching")) == []
    shutil.rmtree(view)
