"""Local copies of snapshots: whole or absent, whatever their origin hands out."""

import shutil
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store import snapshot
from graph_store.graph import GraphError
from graph_store.mirror import Origin, copied_record, copy_snapshot, folder_origin, is_whole_copy
from graph_store.record import FileHash, read_record, to_text
from tests.unit.graph_store.services import write_snapshot


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return folder / write_snapshot(folder)


def stuttering(source, sizes):
    """An origin that breaks off after ever other numbers of bytes."""
    files, turns = content(source), iter(sizes)

    def contents(_identity, missing):
        left = next(turns, 1 << 30)
        for name, offset in missing:
            for start in range(offset, len(files[name]), 37):
                piece = files[name][start : start + min(37, left)]
                left -= len(piece)
                if piece:
                    yield name, piece
                if not left:
                    return

    return Origin("stuttering", lambda _identity: files["snapshot.json"], contents)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 5000), max_size=12))
def test_however_often_it_breaks_off(source, tmp_path_factory, sizes):
    copy = copy_snapshot(stuttering(source, sizes), source.name, tmp_path_factory.mktemp("copy"))
    assert content(copy) == content(source)
    assert snapshot.read(copy).id == source.name


def test_a_copy_of_a_folder(source, tmp_path):
    copy = copy_snapshot(folder_origin(source.parent), source.name, tmp_path)
    assert content(copy) == content(source)
    assert copied_record(folder_origin(source.parent), source.name, tmp_path / "record") == read_record(
        source
    )
    shutil.rmtree(copy)
    with pytest.raises(GraphError, match=r"snapshot\.json: cannot be read"):
        copy_snapshot(folder_origin(tmp_path / "nowhere"), source.name, tmp_path)
    shutil.rmtree(tmp_path / f".fetching-{source.name}")
    copy.write_text("no folder")
    with pytest.raises(GraphError, match="cannot be kept there"):
        copy_snapshot(folder_origin(source.parent), source.name, tmp_path)


def test_threads_that_want_it_at_the_same_time_make_one(source, tmp_path):
    asked, origin = [], folder_origin(source.parent)

    def record(identity):
        asked.append(identity)
        return origin.record(identity)

    counting = origin._replace(record=record)
    threads = [
        threading.Thread(target=copy_snapshot, args=(counting, source.name, tmp_path)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [source.name]
    assert content(tmp_path / source.name) == content(source)


@pytest.mark.parametrize("damage", ["flip", "short", "long", "none", "other"])
def test_an_origin_that_hands_out_other_bytes_is_refused(source, tmp_path, damage):
    files = content(source)
    edges = files["edges-go.arrow"]
    files["edges-go.arrow"] = {
        "flip": edges[:-1] + bytes([edges[-1] ^ 1]),
        "short": edges[:-1],
        "long": edges + b"\0",
        "none": b"",
        "other": np.random.default_rng(0).bytes(len(edges)),
    }[damage]

    def contents(_identity, missing):
        for name, offset in missing:
            if files[name][offset:]:
                yield name, files[name][offset:]

    origin = Origin("spoiled", lambda _identity: files["snapshot.json"], contents)
    with pytest.raises(GraphError, match=r"spoiled: file edges-go.arrow of snapshot .* is damaged there"):
        copy_snapshot(origin, source.name, tmp_path)
    assert not (tmp_path / source.name).exists()
    # What came whole is not asked for again.
    files["edges-go.arrow"] = edges
    rests = []
    good = origin._replace(
        contents=lambda identity, missing: rests.append(missing) or contents(identity, missing)
    )
    assert content(copy_snapshot(good, source.name, tmp_path)) == content(source)
    assert [rest.file for rest in rests[0]] == ["edges-go.arrow"]


def test_an_origin_that_floods_is_stopped(source, tmp_path):
    sent = []

    def contents(_identity, missing):
        while True:
            sent.append(1)
            assert len(sent) < 1000
            yield missing[0].file, b"x" * 10_000

    origin = Origin("flood", folder_origin(source.parent).record, contents)
    with pytest.raises(GraphError, match="is damaged there"):
        copy_snapshot(origin, source.name, tmp_path)


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "", "..", "snapshot.json", ".hidden", "x" * 161]
)
def test_names_in_a_record_never_become_paths(source, tmp_path, name):
    record = read_record(source)
    evil = record.model_copy(update={"files": {**record.files, name: FileHash(sha256="0" * 64, size=1)}})
    origin = folder_origin(source.parent)._replace(record=lambda _identity: to_text(evil).encode())
    with pytest.raises(GraphError, match="its record names a file"):
        copy_snapshot(origin, source.name, tmp_path / "copies")
    assert not (tmp_path / "x").exists()
    with pytest.raises(GraphError, match="that nobody asked for"):
        copy_snapshot(
            folder_origin(source.parent)._replace(contents=lambda _identity, _missing: [(name, b"x")]),
            source.name,
            tmp_path / "copies",
        )


def test_records_of_others_are_refused(source, tmp_path):
    origin = folder_origin(source.parent)
    for text, message in (
        (origin.record(source.name)[:-3], r"snapshot\.json: is damaged"),
        (b"", r"snapshot\.json: is damaged"),
    ):
        spoiled = origin._replace(record=lambda _identity, text=text: text)
        with pytest.raises(GraphError, match=message) as failure:
            copy_snapshot(spoiled, source.name, tmp_path)
        assert str(tmp_path) not in str(failure.value)
    with pytest.raises(GraphError, match=f"answers for snapshot {'0' * 32} with {source.name}"):
        copy_snapshot(
            origin._replace(record=lambda _identity: origin.record(source.name)), "0" * 32, tmp_path
        )


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "folder", "record", "renamed"])
def test_damaged_copies_are_not_whole(source, tmp_path, damage):
    copy = copy_snapshot(folder_origin(source.parent), source.name, tmp_path)
    assert is_whole_copy(copy)
    path = copy / ("snapshot.json" if damage == "record" else "genes.arrow")
    whole = path.read_bytes()
    if damage == "renamed":
        copy = copy.rename(tmp_path / ("0" * 32))
    elif damage in ("delete", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    else:
        path.write_bytes(whole[:-1] + (b"" if damage == "truncate" else b"?"))
    assert not is_whole_copy(copy)
    assert content(copy_snapshot(folder_origin(source.parent), source.name, tmp_path)) == content(source)
