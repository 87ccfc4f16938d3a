"""What the actor does, in this process: take a snapshot in and serve it to readers."""

import os
import tempfile

import numpy as np
import pytest

from graph_store import remote
from graph_store.client import Access, snapshot_folder
from graph_store.embeddings.embedding import Embedding
from graph_store.graph import GraphError
from graph_store.record import snapshot_ids
from tests.unit.train.small_screen import write_snapshot
from txpert_dist.train.graph_actor import GraphStore, node_folder


def test_an_offered_snapshot_can_be_fetched_and_nothing_written(tmp_path):
    write_snapshot(tmp_path / "graphs")
    (identity,) = snapshot_ids(tmp_path / "graphs")
    store = GraphStore(tmp_path / "node", host="127.0.0.1")
    offer = store.offer(str(tmp_path / "graphs"), identity)
    assert store.offer(str(tmp_path / "graphs"), identity) == offer
    (tmp_path / "graphs").rename(tmp_path / "slow")
    fetched = snapshot_folder(offer.location, identity, Access(offer.token, cache=tmp_path / "cache"))
    for file in (tmp_path / "slow" / identity).iterdir():
        assert (fetched / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(GraphError, match="asks for a token"):
        snapshot_folder(offer.location, identity, Access(cache=tmp_path / "other"))
    service = remote.Service(offer.location, offer.token)
    with pytest.raises(GraphError, match="may only read"):
        remote.put_embedding(service, Embedding("v1", ("A",), np.ones((1, 2), np.float32), {}))


def test_a_snapshot_that_is_damaged_or_not_there_is_not_offered(tmp_path):
    write_snapshot(tmp_path / "graphs")
    (identity,) = snapshot_ids(tmp_path / "graphs")
    edges = next((tmp_path / "graphs" / identity).glob("edges-*"))
    edges.write_bytes(edges.read_bytes()[:-1] + b"x")
    store = GraphStore(tmp_path / "node", host="127.0.0.1")
    for wanted, message in ((identity, f"{edges.name} .*is damaged"), ("0" * 32, "has no snapshot 0000")):
        with pytest.raises(GraphError, match=message):
            store.offer(str(tmp_path / "graphs"), wanted)
        assert wanted not in snapshot_ids(tmp_path / "node")


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    folder = node_folder(tmp_path / "new" / "folder")
    assert folder == tmp_path / "new" / "folder"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert node_folder(folder) == folder
    folder.chmod(0o777)
    with pytest.raises(GraphError, match="other users could change the graphs in it"):
        node_folder(folder)
    (tmp_path / "file").touch()
    with pytest.raises(GraphError, match=r"cannot be used for graphs .*cluster\.graph_cache="):
        node_folder(tmp_path / "file" / "below")


def test_without_a_name_it_is_the_users_own_and_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = node_folder(None)
    assert folder == tmp_path / f"txpert-graphs-{os.getuid()}"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GraphError, match="other users could change the graphs in it"):
        node_folder(None)
    assert node_folder(folder) == folder  # who names a link means it
