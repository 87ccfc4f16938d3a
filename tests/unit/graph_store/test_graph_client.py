import shutil

import numpy as np
import pytest

from graph_store.build import build
from graph_store.client import describe, open_snapshot
from graph_store.config import GraphConfig, GraphSpec
from graph_store.graph import GraphError
from graph_store.source_config import EdgesSource


@pytest.fixture
def built(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("source,target,weight\nA,B,1\nB,C,2\n")
    graphs = (GraphSpec(name="a", source=EdgesSource(path=path, directed=True)),)
    return [build(GraphConfig(seed=seed, graphs=graphs), out=tmp_path / "out") for seed in (0, 1)]


def test_by_id_and_alone(built, tmp_path):
    first, second = (summary.id for summary in built)
    location = str(tmp_path / "out")
    assert open_snapshot(location, first).id == first
    with pytest.raises(
        GraphError, match=f"several snapshots; give one of {min(first, second)}, {max(first, second)}"
    ):
        open_snapshot(location)
    shutil.rmtree(built[1].path)
    opened = open_snapshot(location)
    assert opened.id == first
    assert opened.genes == ("A", "B", "C")
    assert np.array_equal(opened.graphs[0].edges_2E, [[0, 1], [1, 2]])
    with pytest.raises(GraphError, match=f"has no snapshot {second}; it has {first}"):
        open_snapshot(location, second)


def test_other_things_in_the_folder_do_not_count(built, tmp_path):
    shutil.rmtree(built[1].path)
    (tmp_path / "out" / ".building-x").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("")
    assert open_snapshot(str(tmp_path / "out")).id == built[0].id


@pytest.mark.parametrize(
    "name", ["../out", "", "A" * 32, "0" * 31, "0" * 33, "/etc", "0" * 32 + "\n", "..", "%00"]
)
def test_ids_are_validated_before_they_become_paths(built, tmp_path, name):
    with pytest.raises(GraphError, match="is no snapshot id") as failure:
        open_snapshot(str(tmp_path / "out"), name)
    assert "\n" not in str(failure.value)


def test_wrong_places(built, tmp_path):
    with pytest.raises(GraphError, match="no such folder"):
        open_snapshot(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(GraphError, match=r"holds no snapshot; build one with `txpert graph build`"):
        open_snapshot(str(tmp_path / "empty"))
    with pytest.raises(
        GraphError, match=f"is itself a snapshot; give the folder above it, and the id {built[0].id}"
    ):
        open_snapshot(str(built[0].path))


def test_describe_tells_what_it_was_built_from(built, tmp_path):
    record = describe(str(tmp_path / "out"), built[0].id)
    assert record.inputs[0].name == "a.csv"
    assert record.graphs[0].edges == 2
    assert record.recipe["graphs"][0]["name"] == "a"
    (built[0].path / "genes.arrow").unlink()
    assert describe(str(tmp_path / "out"), built[0].id) == record
    with pytest.raises(GraphError, match=r"genes.arrow: is missing"):
        open_snapshot(str(tmp_path / "out"), built[0].id)
