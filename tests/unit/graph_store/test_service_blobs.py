"""Snapshots and embeddings at a URL: an S3 server on a socket, and files as any other file system."""

import json
import shutil
import uuid

import fsspec
import numpy as np
import pytest

from graph_store import remote
from graph_store.client import open_snapshot, snapshot_folder
from graph_store.embeddings.embedding import Embedding
from graph_store.graph import GraphError
from graph_store.record import FILE_NAME, read_record
from graph_store.service import blobs
from graph_store.service.holdings import Holdings
from graph_store.service.settings import Limits
from tests.unit.graph_store.services import RECIPE, access, running, write_snapshot, write_source

EMBEDDING = Embedding("v1", ("A", "B"), np.eye(2, 3, dtype=np.float32), {"model": "m"})


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def s3():
    """Address of an S3 server of this process, reached over its socket."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they know the servers of other tests
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["s3", "file"])
def url(request, tmp_path, monkeypatch):
    """A place that nobody has written to."""
    if request.param == "file":
        return f"file://{tmp_path}/distant/graphs"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/some/graphs"


@pytest.fixture
def filled(url, tmp_path):
    """Blobs with one snapshot that was built in the folder of copies of another service."""
    place = blobs.open_blobs(url, tmp_path / "built")
    identity = write_snapshot(tmp_path / "built")
    blobs.publish_snapshot(place, identity)
    return place, identity


def test_a_service_anywhere_hands_out_what_another_built(url, tmp_path):
    sources = write_source(tmp_path / "sources")
    with running(url, cache=tmp_path / "one", sources=sources) as service:
        done = remote.build(remote.Service(service.location), RECIPE, lambda *_: None)
        remote.put_embedding(remote.Service(service.location), EMBEDDING)
    with running(url, cache=tmp_path / "other") as service:
        asked = remote.Service(service.location)
        assert [entry.id for entry in remote.list_snapshots(asked)] == [done.id]
        assert [entry.version for entry in remote.list_embeddings(asked)] == ["v1"]
        fetched = snapshot_folder(service.location, done.id, access(tmp_path / "cache"))
        assert content(fetched) == content(tmp_path / "one" / done.id)
        assert open_snapshot(service.location, done.id, access(tmp_path / "cache")).id == done.id
        assert np.array_equal(remote.get_embedding(asked, "v1", ["B"]).z_PD, EMBEDDING.z_PD[[1]])
        with pytest.raises(GraphError, match="is there with another content"):
            remote.put_embedding(asked, EMBEDDING._replace(z_PD=EMBEDDING.z_PD + 1))
        with pytest.raises(GraphError, match="there is no snapshot"):
            snapshot_folder(service.location, "0" * 32, access(tmp_path / "cache"))


def test_half_uploaded_snapshots_are_not_there(filled, url, tmp_path):
    place, identity = filled
    distant = place.distant
    distant.filesystem.rm(f"{distant.root}/{identity}/{FILE_NAME}")
    other = Holdings(url, tmp_path / "other", Limits())
    assert other.snapshot_ids() == ()
    assert other.listed() == []
    with pytest.raises(GraphError, match="there is no snapshot"):
        other.record(identity)
    blobs.publish_snapshot(place, identity)
    assert [entry.id for entry in other.listed()] == [identity]
    assert other.record(identity) == read_record(tmp_path / "built" / identity)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_blobs_are_never_handed_out(filled, url, tmp_path, damage):
    place, identity = filled
    filesystem, path = place.distant.filesystem, f"{place.distant.root}/{identity}/genes.arrow"
    data = bytearray(filesystem.cat_file(path))
    data[20] ^= 1
    if damage == "delete":
        filesystem.rm(path)
    else:
        filesystem.pipe_file(path, bytes(data) if damage == "flip" else bytes(data[:-9]))
    with running(url, cache=tmp_path / "other") as service:
        with pytest.raises(GraphError, match=r"genes\.arrow.* (is missing|is damaged)"):
            snapshot_folder(service.location, identity, access(tmp_path / "cache"))
        assert not (tmp_path / "other" / identity).exists()
        # The copy it was uploaded from repairs it.
        filesystem.put_file(str(tmp_path / "built" / identity / "genes.arrow"), path)
        assert open_snapshot(service.location, identity, access(tmp_path / "cache")).id == identity


def test_local_copies_may_be_deleted_or_damaged(filled, url, tmp_path):
    _, identity = filled
    expected = content(tmp_path / "built" / identity)
    with running(url, cache=tmp_path / "other") as service:
        remote.put_embedding(remote.Service(service.location), EMBEDDING)
        assert content(snapshot_folder(service.location, identity, access(tmp_path / "1"))) == expected
        shutil.rmtree(tmp_path / "other")
        (tmp_path / "other").mkdir()
        assert content(snapshot_folder(service.location, identity, access(tmp_path / "2"))) == expected
    for path in (tmp_path / "other" / identity / "genes.arrow", tmp_path / "other" / "catalogue.sqlite"):
        path.write_bytes(b"damage")
    with running(url, cache=tmp_path / "other") as service:
        assert [entry.id for entry in remote.list_snapshots(remote.Service(service.location))] == [identity]
        assert content(snapshot_folder(service.location, identity, access(tmp_path / "3"))) == expected
        assert remote.get_embedding(remote.Service(service.location), "v1").genes == ("A", "B")


def test_other_things_at_the_url_do_not_count(filled, url, tmp_path):
    place, identity = filled
    distant = place.distant
    for name in (
        "notes.txt",
        f"{'x' * 32}/{FILE_NAME}",
        f"embeddings/-odd/{FILE_NAME}",
        f"{'0' * 32}/genes.arrow",
    ):
        distant.filesystem.makedirs(f"{distant.root}/{name}".rpartition("/")[0], exist_ok=True)
        distant.filesystem.pipe_file(f"{distant.root}/{name}", json.dumps({}).encode())
    assert blobs.snapshot_ids(place) == (identity,)
    assert blobs.embedding_versions(place) == ()


def test_places_that_cannot_be_used(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(GraphError, match="there is no such bucket or drive"):
        blobs.open_blobs(f"s3://bucket-{uuid.uuid4().hex}/graphs", tmp_path)
    with pytest.raises(GraphError, match="cannot be used for snapshots"):
        blobs.open_blobs("no-such-protocol://x", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphError, match="cannot be used"):
        blobs.open_blobs(str(tmp_path / "file"), None)
    with pytest.raises(GraphError, match="cannot be used"):
        blobs.open_blobs(f"file://{tmp_path}/distant", tmp_path / "file" / "cache")
