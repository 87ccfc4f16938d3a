"""What was put comes out, damage is noticed, and a version never changes."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graph_store.embeddings.embedding import Embedding, rows_of
from graph_store.embeddings.export import export_parquet
from graph_store.embeddings.neighbours import nearest
from graph_store.embeddings.store import (
    DATA,
    FOLDER,
    RECORD,
    describe_embedding,
    embedding_versions,
    get_embedding,
    list_embeddings,
    put_embedding,
)
from graph_store.graph import GraphError
from graph_store.source_config import EmbeddingSource
from graph_store.sources.embedding import read_embedding

ORIGIN = {"model_hash": "ab" * 32, "snapshot": "0" * 32}


def made(version="v1", genes=("TP53", "JAK2", "\u03b1,\n"), seed=0, width=4, origin=ORIGIN):
    z_PD = np.random.default_rng(seed).normal(size=(len(genes), width)).astype(np.float32)
    return Embedding(version, tuple(genes), z_PD, dict(origin))


def same(one, other):
    return one._replace(z_PD=None) == other._replace(z_PD=None) and np.array_equal(one.z_PD, other.z_PD)


@given(
    z_PD=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 5)),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    origin=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_was_put_comes_out(tmp_path_factory, z_PD, origin):
    folder = tmp_path_factory.mktemp("store")
    embedding = Embedding("v1", tuple(f"G{row}" for row in range(len(z_PD))), z_PD, origin)
    sha256 = put_embedding(folder, embedding)
    read = get_embedding(folder, "v1")
    assert same(read, embedding)
    assert read.z_PD.tobytes() == z_PD.tobytes()  # minus zero too
    assert read.z_PD.dtype == np.float32
    assert not read.z_PD.flags.writeable
    info = describe_embedding(folder, "v1")
    assert (info.sha256, info.num_genes, info.width) == (sha256, *z_PD.shape)
    assert info.num_zero == sum(not row.any() for row in z_PD)
    assert info.origin == origin


def test_the_file_is_plain_arrow(tmp_path):
    embedding = made()
    put_embedding(tmp_path, embedding)
    folder = tmp_path / FOLDER / "v1"
    assert sorted(path.name for path in folder.iterdir()) == [DATA, RECORD]
    with pyarrow.memory_map(str(folder / DATA)) as mapped:
        table = pyarrow.ipc.open_file(mapped).read_all()
    assert [str(field.type) for field in table.schema] == ["string", "fixed_size_list<item: float>[4]"]
    assert table["gene"].to_pylist() == list(embedding.genes)
    assert np.array_equal(np.array(table["z"].to_pylist(), np.float32), embedding.z_PD)


def test_the_content_hash_is_golden(tmp_path):
    # The same on every machine and with every version of Arrow.
    z_PD = np.arange(12, dtype=np.float32).reshape(3, 4)
    sha256 = put_embedding(tmp_path, made()._replace(z_PD=z_PD))
    assert sha256 == "0edeab467b611901959ef6f71dd2ca9f0d2e9927333c0c2a7a3cde2f219cc8e7"
    assert put_embedding(tmp_path, made("other")._replace(z_PD=np.asfortranarray(z_PD))) == sha256


def test_the_same_content_again_changes_nothing_and_another_is_refused(tmp_path):
    sha256 = put_embedding(tmp_path, made())
    data = tmp_path / FOLDER / "v1" / DATA
    before = data.stat()
    assert put_embedding(tmp_path, made()) == sha256
    assert (data.stat().st_ino, data.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    others = (
        made(seed=1),
        made(genes=("TP53", "JAK2", "X")),
        made(genes=("JAK2", "TP53", "\u03b1,\n")),
        made(width=3),
        made(origin={}),
    )
    for other in others:
        with pytest.raises(GraphError, match=r"v1 is there with another content.*choose another version"):
            put_embedding(tmp_path, other)
    assert same(get_embedding(tmp_path, "v1"), made())
    assert os.listdir(tmp_path / FOLDER) == ["v1"]


def test_versions_are_listed_beside_snapshots_and_leftovers(tmp_path):
    assert embedding_versions(tmp_path) == ()
    assert list_embeddings(tmp_path / "nowhere") == ()
    for version in ("v2", "v10", "a.b-c_d"):
        put_embedding(tmp_path, made(version))
    (tmp_path / FOLDER / ".building-v3-00000000").mkdir()
    (tmp_path / ("0" * 32)).mkdir()
    assert embedding_versions(tmp_path) == ("a.b-c_d", "v10", "v2")
    assert [info.version for info in list_embeddings(tmp_path)] == ["a.b-c_d", "v10", "v2"]
    with pytest.raises(GraphError, match=r"has no embedding v3; there are: a\.b-c_d, v10, v2"):
        get_embedding(tmp_path, "v3")


@pytest.mark.parametrize(
    "version", ["", ".", "..", ".hidden", "../v1", "a/b", "a\\b", "v1\n", "v 1", "x" * 101]
)
def test_a_version_that_is_a_path_is_refused_before_it_touches_one(tmp_path, version):
    (tmp_path / FOLDER).mkdir()
    for attempt in (
        lambda: put_embedding(tmp_path, made(version)),
        lambda: get_embedding(tmp_path, version),
        lambda: describe_embedding(tmp_path, version),
    ):
        with pytest.raises(GraphError, match="is no version of an embedding"):
            attempt()
    assert list((tmp_path / FOLDER).iterdir()) == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    put_embedding(folder, made())
    return folder


@given(data=st.data(), name=st.sampled_from([DATA, RECORD]))
def test_a_flipped_bit_anywhere_is_noticed(sound, tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(sound / FOLDER, folder / FOLDER)
    path = folder / FOLDER / "v1" / name
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(GraphError, match=name) as caught:
        get_embedding(folder, "v1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [DATA, RECORD])
@pytest.mark.parametrize("how", ["missing", "empty", "longer", "folder"])
def test_a_file_that_is_not_what_was_written_is_named(sound, tmp_path, name, how):
    shutil.copytree(sound / FOLDER, tmp_path / FOLDER)
    path = tmp_path / FOLDER / "v1" / name
    if how == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()
    if how == "empty":
        path.touch()
    if how == "folder":
        path.mkdir()
    with pytest.raises(GraphError, match=name):
        get_embedding(tmp_path, "v1")


def test_damaged_numbers_are_mended_by_putting_them_again_and_by_nothing_else(sound, tmp_path):
    shutil.copytree(sound / FOLDER, tmp_path / FOLDER)
    path = tmp_path / FOLDER / "v1" / DATA
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(GraphError, match="another content"):
        put_embedding(tmp_path, made(seed=1))
    put_embedding(tmp_path, made())
    assert same(get_embedding(tmp_path, "v1"), made())
    (tmp_path / FOLDER / "v1" / RECORD).write_text("{}")
    with pytest.raises(GraphError, match="is damaged; remove the folder"):
        put_embedding(tmp_path, made())


def test_a_version_renamed_by_hand_is_refused(sound, tmp_path):
    shutil.copytree(sound / FOLDER / "v1", tmp_path / FOLDER / "v2")
    with pytest.raises(GraphError, match="damaged or was edited"):
        get_embedding(tmp_path, "v2")


def test_many_writers_of_one_version(tmp_path):
    embeddings = [made(seed=number % 2, genes=[f"G{row}" for row in range(500)]) for number in range(8)]

    def attempt(embedding):
        try:
            return put_embedding(tmp_path, embedding)
        except GraphError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, embeddings))
    kept = get_embedding(tmp_path, "v1")
    winners = [same(kept, embedding) for embedding in embeddings]
    assert sum(winners) == 4
    for outcome, won in zip(outcomes, winners, strict=True):
        assert (outcome == describe_embedding(tmp_path, "v1").sha256) if won else "another" in str(outcome)
    assert os.listdir(tmp_path / FOLDER) == ["v1"]


WRITE_FOR_EVER = """
import sys, itertools
from pathlib import Path
import numpy as np
from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.store import put_embedding
genes = tuple(f"G{row}" for row in range(20000))
for number in itertools.count():
    z_PD = np.full((len(genes), 64), number + 1, np.float32)
    put_embedding(Path(sys.argv[1]), Embedding(f"v{number}", genes, z_PD, {}))
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_versions_only(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, tmp_path], stdout=subprocess.PIPE)
    for _ in range(3):
        assert writer.stdout.readline()
    writer.kill()
    writer.communicate()
    assert len(embedding_versions(tmp_path)) >= 3
    for version in embedding_versions(tmp_path):
        assert (get_embedding(tmp_path, version).z_PD == int(version[1:]) + 1).all()


def test_reading_takes_no_copy_of_the_numbers(tmp_path):
    put_embedding(tmp_path, made(genes=[f"G{row}" for row in range(1000)], width=100))
    before = pyarrow.total_allocated_bytes()
    read = get_embedding(tmp_path, "v1")
    assert not read.z_PD.flags.owndata
    assert pyarrow.total_allocated_bytes() - before < read.z_PD.nbytes / 10


BAD = {
    "one vector for each": made()._replace(genes=("A", "B")),
    "holds float64": made()._replace(z_PD=np.ones((3, 4))),
    "'A' is listed twice": made(genes=("A", "B", "A")),
    "'' is no name": made(genes=("A", "", "B")),
    "vector of B is not finite": made(genes=("A", "B", "C"))._replace(
        z_PD=np.array([[1], [np.nan], [np.inf]], np.float32)
    ),
    "shape \\(0, 4\\)": made(genes=()),
    "shape \\(3, 0\\)": made(width=0),
    "shape \\(3,\\)": made()._replace(z_PD=np.ones(3, np.float32)),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_embedding_is_refused_in_one_line(tmp_path, message):
    with pytest.raises(GraphError, match=message) as caught:
        put_embedding(tmp_path, BAD[message])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphError, match="cannot be written"):
        put_embedding(tmp_path / "file", made())


def test_unknown_genes_are_named_with_close_ones():
    assert rows_of(made(), ["JAK2", "TP53", "JAK2"]).tolist() == [1, 0, 1]
    with pytest.raises(GraphError, match=r"embedding v1: has no gene 'JAK3'; did you mean JAK2\?"):
        rows_of(made(), ["TP53", "JAK3"])


def test_an_export_is_what_pandas_reads(tmp_path):
    embedding = made()
    path = tmp_path / "new" / "z.parquet"
    export_parquet(embedding, path)
    table = pd.read_parquet(path)
    assert table.columns.tolist() == ["gene", "1", "2", "3", "4"]
    assert table["gene"].tolist() == list(embedding.genes)
    assert np.array_equal(table.drop(columns="gene").to_numpy(), embedding.z_PD)
    said = pyarrow.parquet.read_schema(path).metadata
    assert said[b"version"] == b"v1"
    assert b"model_hash" in said[b"origin"]
    assert [entry.name for entry in path.parent.iterdir()] == ["z.parquet"]
    with pytest.raises(GraphError, match="cannot be written"):
        export_parquet(embedding, path / "below.parquet")


def test_an_export_is_a_source_of_graph_build(tmp_path):
    embedding = made(genes=[f"G{row}" for row in range(30)], width=6)
    export_parquet(embedding, tmp_path / "z.parquet")
    spec = EmbeddingSource(path=tmp_path / "z.parquet")
    graph = read_embedding(spec, None, percent=10)
    assert sorted(graph.genes) == sorted(embedding.genes)
    nearest_pair = max(
        (abs(item.cosine), *sorted((gene, item.gene)))
        for gene, found in zip(embedding.genes, nearest(embedding, embedding.genes, 29), strict=True)
        for item in found
    )
    strongest = int(np.argmax(np.abs(graph.pairs.weight_E)))
    ends = sorted(graph.genes[node] for node in graph.pairs.edges_2E[:, strongest])
    assert (abs(float(graph.pairs.weight_E[strongest])), *ends) == (
        pytest.approx(nearest_pair[0], abs=1e-6),
        *nearest_pair[1:],
    )
