"""The catalogue says what the blobs say, whatever becomes of its file."""

import shutil
import sqlite3

import pytest

from graph_store.graph import GraphError
from graph_store.protocol import Listed
from graph_store.service.catalogue import FILE_NAME, Catalogue
from graph_store.service.holdings import Holdings
from graph_store.service.settings import Limits
from tests.unit.graph_store.services import write_snapshot


def entry(name: str) -> Listed:
    return Listed(id=name, created=1.5, bytes=2**40, genes=3, edges=4, graphs=["go", 'a"b'], recipe="0" * 64)


NAMES = ("a" * 32, "b" * 32)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def read(asked):
    def read(name: str) -> Listed:
        asked.append(name)
        return entry(name)

    return read


def test_only_what_is_new_is_read(tmp_path, read, asked):
    catalogue = Catalogue(tmp_path)
    assert catalogue.snapshots(NAMES[:1], read) == [entry(NAMES[0])]
    assert catalogue.snapshots(NAMES, read) == [entry(name) for name in NAMES]
    assert Catalogue(tmp_path).snapshots(NAMES, read) == [entry(name) for name in NAMES]
    assert asked == list(NAMES)
    assert catalogue.snapshots(NAMES[1:], read) == [entry(NAMES[1])]
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("SELECT id, bytes, edges FROM snapshots").fetchall() == [
            (NAMES[1], 2**40, 4)
        ]


def spoil_table(path):
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE snapshots")
        connection.execute("CREATE TABLE snapshots (id PRIMARY KEY, size)")


def spoil_value(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE snapshots SET graphs = 'no json'")


def spoil_type(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE snapshots SET bytes = 'many'")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no database at all" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:5000] + b"\xff" * 3000),
        spoil_table,
        spoil_value,
        spoil_type,
    ],
)
def test_a_damaged_catalogue_is_made_anew(tmp_path, read, spoil):
    catalogue = Catalogue(tmp_path)
    catalogue.snapshots(NAMES, read)
    spoil(tmp_path / FILE_NAME)
    assert catalogue.snapshots(NAMES, read) == [entry(name) for name in NAMES]
    assert Catalogue(tmp_path).snapshots(NAMES, read) == [entry(name) for name in NAMES]


def test_damaged_entries_are_left_out_and_tried_again(tmp_path, read):
    def broken(name: str) -> Listed:
        raise GraphError(f"{name} is damaged")

    catalogue = Catalogue(tmp_path)
    assert catalogue.snapshots(NAMES, broken) == []
    assert catalogue.snapshots(NAMES, read) == [entry(name) for name in NAMES]


def test_a_catalogue_that_cannot_be_written_is_said(tmp_path, read):
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(GraphError, match=r"catalogue.sqlite: cannot be written"):
        Catalogue(tmp_path).snapshots(NAMES, read)


def test_it_follows_the_folder(tmp_path):
    holdings = Holdings(str(tmp_path), None, Limits())
    assert holdings.listed() == []
    names = sorted(write_snapshot(tmp_path, seed=seed) for seed in range(3))
    assert [entry.id for entry in holdings.listed()] == names
    shutil.rmtree(tmp_path / names[1])
    assert [entry.id for entry in holdings.listed()] == [names[0], names[2]]
    listed = holdings.listed()[0]
    assert (listed.genes, listed.graphs) == (40, ["go", "string"])
    files = [path for path in (tmp_path / names[0]).iterdir() if path.name != "snapshot.json"]
    assert listed.bytes == sum(path.stat().st_size for path in files)
