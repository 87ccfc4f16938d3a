import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store import snapshot
from graph_store.expander import NOT_DRAWN, draw_expander
from graph_store.graph import Expander, GraphError, KnowledgeGraph, PositionalEncoding, Snapshot
from graph_store.index import index_graph
from graph_store.record import GraphReport, InputFile, NodesReport, read_record, to_text
from graph_store.snapshot import Draft, UnmatchedName
from graph_store.supra import supra_adjacency


def report(name: str) -> GraphReport:
    fields = dict.fromkeys(set(GraphReport.model_fields) - {"name", "details"}, 1)
    return GraphReport(name=name, **fields)


WALK = PositionalEncoding("go", "random_walk", np.array([[0, 0.5], [0, 0.25], [0, 1]], np.float32))
VECTORS = PositionalEncoding("string.v12", "laplacian", np.array([[1], [-1], [0]], np.float32))


def draft(**changes) -> Draft:
    first = KnowledgeGraph(
        "go", np.array([[1, 2, 0], [0, 0, 2]], np.int32), np.array([1, 0.5, 2], np.float32)
    )
    second = KnowledgeGraph("string.v12", np.array([[0], [1]], np.int32), np.array([-900], np.float32))
    base = Draft(
        recipe={"seed": 0, "graphs": []},
        inputs=(InputFile(role="graph go", name="go.csv", sha256="0" * 64, size=3),),
        genes=("A", "B", "\u03b1,\n"),
        graphs=(first, second),
        aliases={"OLD": "A"},
        reports=(report("go"), report("string.v12")),
        unmatched=(UnmatchedName("go", "X,Y", "ambiguous", ("A", "B")),),
        nodes=NodesReport(names=3, duplicates=1, in_graphs=1, added=1, renamed=0, ambiguous=0, unmatched=1),
        expander=draw_expander(3, 2, seed=0),
        positional=(WALK, VECTORS),
    )
    return base._replace(**changes)


def identity(one: Draft) -> str:
    content = Snapshot("", one.genes, one.graphs, one.aliases, one.expander.expander, one.positional)
    return snapshot.snapshot_id(one.recipe, content)


@pytest.fixture
def folder(tmp_path):
    return snapshot.write(tmp_path / "out", draft())


def test_round_trip(folder):
    opened = snapshot.read(folder)
    given_draft = draft()
    assert opened.id == folder.name
    assert opened.genes == given_draft.genes
    assert opened.aliases == given_draft.aliases
    for graph, expected in zip(opened.graphs, given_draft.graphs, strict=True):
        assert graph.name == expected.name
        assert (graph.edges_2E.dtype, graph.weight_E.dtype) == (np.int32, np.float32)
        assert np.array_equal(graph.edges_2E, expected.edges_2E)
        assert np.array_equal(graph.weight_E, expected.weight_E)
        assert not graph.edges_2E.flags.writeable
        assert not graph.weight_E.flags.writeable
    expander, drawn = opened.expander, given_draft.expander
    assert expander.num_cycles == 2
    assert (expander.edges_2E.dtype, expander.cycle_E.dtype) == (np.int32, np.int32)
    assert np.array_equal(expander.edges_2E, drawn.expander.edges_2E)
    assert np.array_equal(expander.cycle_E, drawn.expander.cycle_E)
    assert not expander.edges_2E.flags.writeable
    assert [part[:2] for part in opened.positional] == [("go", "random_walk"), ("string.v12", "laplacian")]
    for encoding, expected in zip(opened.positional, (WALK, VECTORS), strict=True):
        assert encoding.value_PN.dtype == np.float32
        assert np.array_equal(encoding.value_PN, expected.value_PN)
        assert not encoding.value_PN.flags.writeable
    record = read_record(folder)
    assert record.nodes == given_draft.nodes
    said = record.expander
    assert (said.cycles, said.edges, said.tries) == (2, 12, 1)
    # Two triangles on top of each other: degree 4, second eigenvalue 2 * -1.
    assert (said.lambda_2, said.gap) == (-2.0, 6.0)
    assert (folder / "unmatched.csv").read_text() == 'graph,name,reason,candidates\ngo,"X,Y",ambiguous,A B\n'
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_follows_from_the_edges_is_there(folder):
    opened = snapshot.read(folder)
    made = supra_adjacency(draft().graphs, 3)
    assert (opened.supra.num_layers, opened.supra.num_genes) == (2, 3)
    indices = [index_graph(graph, 3) for graph in draft().graphs]
    assert [index.graph for index in opened.indices] == ["go", "string.v12"]
    for read, expected in zip((opened.supra, *opened.indices), (made, *indices), strict=True):
        for array, wanted in zip(read, expected, strict=True):
            assert np.array_equal(array, wanted)
            if isinstance(wanted, np.ndarray):
                assert array.dtype == wanted.dtype
                assert not array.flags.writeable


def arrays(opened: Snapshot) -> list[np.ndarray]:
    parts = (*opened.graphs, opened.expander, *opened.positional, opened.supra, *opened.indices)
    return [field for part in parts for field in part if isinstance(field, np.ndarray)]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_numbers_are_read_where_the_files_are_mapped(folder):
    opened = snapshot.read(folder)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            start, stop = (int(end, 16) for end in line.split()[0].split("-"))
            mapped.append((start, stop))
    assert len(arrays(opened)) == 2 * 2 + 2 + 2 + 3 + 2 * 6
    for array in arrays(opened):
        # An array may be a view with gaps between its rows; each row is whole.
        for row in array if array.ndim == 2 else [array]:
            assert row.flags.c_contiguous
            assert any(start <= row.ctypes.data < stop for start, stop in mapped) or not row.size
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_a_snapshot_stays_readable_when_its_folder_goes(folder):
    opened = snapshot.read(folder)
    before = [array.copy() for array in arrays(opened)]
    shutil.rmtree(folder)
    for array, copy in zip(arrays(opened), before, strict=True):
        assert np.array_equal(array, copy)


def test_files_can_be_memory_mapped(folder):
    with pa.memory_map(str(folder / "edges-go.arrow")) as mapped:
        table = pyarrow.ipc.open_file(mapped).read_all()
        assert table.column_names == ["source", "target", "weight"]
        assert table["source"].num_chunks == 1
        assert table["weight"].chunk(0).to_numpy(zero_copy_only=True).tolist() == [1.0, 0.5, 2.0]


def test_the_id_is_golden():
    # The same on every machine and with every version of the libraries; a change is a new LAYOUT.
    assert identity(draft()) == "06be72af26c1758eb50a1081a0cc4bd8"


@given(st.integers(0, 10))
def test_the_id_changes_with_everything_that_matters(change):
    one = draft()
    go, string = one.graphs
    other = [
        draft(recipe={"seed": 1, "graphs": []}),
        draft(genes=("A", "B", "D")),
        draft(aliases={}),
        draft(graphs=(go._replace(weight_E=go.weight_E + np.float32(1e-6)), string)),
        draft(graphs=(go._replace(edges_2E=go.edges_2E[:, :2], weight_E=go.weight_E[:2]), string)),
        draft(graphs=(string, go)),
        draft(graphs=(go._replace(name="GO"), string)),
        draft(expander=NOT_DRAWN),
        draft(expander=draw_expander(3, 1, seed=0)),
        draft(positional=(WALK,)),
        draft(positional=(WALK._replace(value_PN=WALK.value_PN[:, :1]), VECTORS)),
    ][change]
    assert identity(other) != identity(one)


def test_the_id_does_not_depend_on_the_last_digits_of_encodings():
    other = WALK._replace(value_PN=np.nextafter(WALK.value_PN, np.float32(1)))
    assert identity(draft(positional=(other, VECTORS))) == identity(draft())


def test_the_id_depends_on_the_edges_of_the_expander():
    drawn = [draw_expander(6, 2, seed=seed) for seed in range(4)]
    genes = tuple("ABCDEF")
    assert len({identity(draft(genes=genes, positional=(), expander=one)) for one in drawn}) == 4


def test_without_expander_and_encodings(tmp_path):
    plain = draft(expander=NOT_DRAWN, positional=(), nodes=None)
    opened = snapshot.read(snapshot.write(tmp_path, plain))
    assert opened.expander.num_cycles == 0
    assert opened.expander.edges_2E.shape == (2, 0)
    assert opened.positional == ()


def test_a_graph_without_edges_and_a_snapshot_without_genes(tmp_path):
    empty = KnowledgeGraph("go", np.zeros((2, 0), np.int32), np.zeros(0, np.float32))
    for genes in (("A", "B"), ()):
        walk = WALK._replace(value_PN=np.zeros((len(genes), 2), np.float32))
        nothing = draft(
            genes=genes,
            graphs=(empty,),
            reports=(report("go"),),
            aliases={},
            positional=(walk,),
            expander=draw_expander(len(genes), 1, seed=0),
        )
        opened = snapshot.read(snapshot.write(tmp_path, nothing))
        assert opened.genes == genes
        assert opened.graphs[0].edges_2E.shape == (2, 0)
        assert opened.positional[0].value_PN.shape == (len(genes), 2)
        assert opened.supra.edges_2M.shape == (2, 0)
        assert opened.indices[0].neighbour_VW.shape == (0, 32)
        assert opened.indices[0].indptr_P1.tolist() == [0] * (len(genes) + 1)


FILES = [
    "snapshot.json",
    "genes.arrow",
    "aliases.arrow",
    "edges-go.arrow",
    "edges-string.v12.arrow",
    "pointers-go.arrow",
    "transposed-go.arrow",
    "neighbours-go.arrow",
    "supra.arrow",
    "expander.arrow",
    "positional-go-random_walk.arrow",
    "positional-string.v12-laplacian.arrow",
    "unmatched.csv",
]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found_and_the_file_named(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(GraphError, match=name) as failure:
                snapshot.read(folder)
            assert "\n" not in str(failure.value)
    path.write_bytes(whole)
    snapshot.read(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncate", "empty", "delete", "append", "folder"])
def test_every_damaged_file_is_named(folder, name, damage):
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "delete":
        path.write_bytes({"truncate": whole[:-1], "empty": b"", "append": whole + b"\0"}[damage])
    with pytest.raises(GraphError, match=name):
        snapshot.read(folder)


def test_a_snapshot_under_another_id_is_refused(folder):
    other = folder.with_name("0" * 32)
    shutil.copytree(folder, other)
    with pytest.raises(GraphError, match=r"snapshot.json: does not belong to this folder"):
        snapshot.read(other)


def test_a_record_that_was_edited_and_resealed_does_not_fit_the_content(folder):
    record = read_record(folder)
    path = folder / "snapshot.json"
    path.write_text(to_text(record.model_copy(update={"recipe": {"seed": 9, "graphs": []}})))
    with pytest.raises(GraphError, match="does not hash to its id"):
        snapshot.read(folder)
    path.write_text(
        to_text(record.model_copy(update={"files": {**record.files, "../x": record.files["genes.arrow"]}}))
    )
    with pytest.raises(GraphError, match="does not belong"):
        snapshot.read(folder)
    path.write_text(to_text(record.model_copy(update={"layout": 99})))
    with pytest.raises(GraphError, match="is of layout 99 and this software reads 3"):
        snapshot.read(folder)
    body = json.loads(to_text(record))
    path.write_text(json.dumps(body))
    with pytest.raises(GraphError, match=r"snapshot.json: is damaged or was edited"):
        snapshot.read(folder)
    for text in ("[]", "{}", "null", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(GraphError, match=r"snapshot.json"):
            snapshot.read(folder)


def test_writing_again_changes_nothing_and_repairs_damage(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert snapshot.write(folder.parent, draft()) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / "genes.arrow").write_bytes(b"damage")
    assert snapshot.write(folder.parent, draft()) == folder
    assert snapshot.read(folder).genes == draft().genes
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_builds_at_the_same_time_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: snapshot.write(tmp_path, draft()), range(32)))
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in folders]
    assert snapshot.read(folders.pop()).genes == draft().genes


WRITE_A_LARGE_ONE = """
import sys
from pathlib import Path
import numpy as np
from graph_store import snapshot
from graph_store.graph import KnowledgeGraph
from graph_store.record import GraphReport
genes = tuple(f"G{number:05d}" for number in range(20_000))
source, target = np.tile(np.arange(25), 20_000) * 799, np.repeat(np.arange(20_000), 25)
edges_2E = np.stack([source, target])[:, source != target].astype(np.int32)
graph = KnowledgeGraph("kg", edges_2E, np.ones(edges_2E.shape[1], np.float32))
report = GraphReport(name="kg", **dict.fromkeys(set(GraphReport.model_fields) - {"name", "details"}, 0))
draft = snapshot.Draft({}, (), genes, (graph,), {}, (report,), ())
print(snapshot.write(Path(sys.argv[1]), draft), flush=True)
"""


def writer_stopped_in_the_middle(out: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is writing a snapshot under ``out``, stopped; and the folder that it is writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_A_LARGE_ONE, str(out)], stdout=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 60
    while not (found := list(out.glob(".building-*/*.arrow"))):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    return process, found[0].parent


def make_old(folder: Path) -> None:
    hours_ago = time.time() - 10_000
    os.utime(folder, (hours_ago, hours_ago))


@pytest.mark.process
def test_what_a_killed_process_left_is_swept_and_a_living_one_is_left_alone(tmp_path):
    process, building = writer_stopped_in_the_middle(tmp_path)
    make_old(building)
    folder = snapshot.write(tmp_path, draft())
    assert building.exists()
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=120)
    finished = Path(said.strip())
    assert snapshot.read(finished).graphs[0].edges_2E.shape[1] > 400_000
    assert sorted(tmp_path.iterdir()) == sorted([folder, finished])

    shutil.rmtree(finished)
    process, building = writer_stopped_in_the_middle(tmp_path)
    process.kill()
    process.wait()
    assert building.exists()
    snapshot.write(tmp_path, draft(genes=("A", "B", "C")))
    assert building.exists()  # it is young: whoever makes it may not have locked it yet
    make_old(building)
    snapshot.write(tmp_path, draft(genes=("A", "B", "D")))
    assert not building.exists()
    assert not list(tmp_path.glob(".building-*"))


def test_nothing_half_written_is_left_behind(tmp_path, monkeypatch):
    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(GraphError, match=r"cannot be written \(No space left on device\)"):
        snapshot.write(tmp_path, draft())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphError, match="cannot be written"):
        snapshot.write(tmp_path / "file", draft())


@pytest.mark.parametrize(
    ("edges", "weight", "message"),
    [
        ([[0], [5]], [1], "ends outside"),
        ([[-1], [0]], [1], "ends outside"),
        ([[0], [1]], [1, 2], "1 edges but 2 weights"),
        ([[0, 0], [1, 1]], [1, 1], "repeated or not sorted"),
        ([[1, 0], [2, 2]], [1, 1], "repeated or not sorted"),
        ([[1], [1]], [1], "self loop"),
        ([[0], [1]], [np.nan], "not finite"),
    ],
)
def test_graphs_that_break_the_invariants_are_never_written(tmp_path, edges, weight, message):
    graph = KnowledgeGraph("go", np.array(edges, np.int32), np.array(weight, np.float32))
    with pytest.raises(GraphError, match=message):
        snapshot.write(tmp_path, draft(graphs=(graph,)))
    assert list(tmp_path.iterdir()) == []


def spoiled(edges=None, cycle=None, num_cycles=1) -> Expander:
    """One good cycle over three nodes, changed."""
    good = draw_expander(3, 1, seed=0).expander
    return Expander(
        good.edges_2E if edges is None else np.array(edges, np.int32),
        good.cycle_E if cycle is None else np.array(cycle, np.int32),
        num_cycles,
    )


@pytest.mark.parametrize(
    ("expander", "message"),
    [
        (spoiled(cycle=[0] * 5), "6 edges but 5 cycle numbers"),
        (spoiled(edges=[[1, 2, 0, 3, 0, 1], [0, 0, 1, 1, 2, 2]]), "ends outside the 3 genes"),
        (spoiled(edges=[[-1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]), "ends outside the 3 genes"),
        (spoiled(cycle=[0, 0, 0, 0, 0, 1]), "is of none of the 1 cycles"),
        (spoiled(edges=[[2, 1, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]), "repeated, self loops, or not sorted"),
        (spoiled(edges=[[1, 1, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]), "repeated, self loops, or not sorted"),
        (spoiled(edges=[[0, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]), "repeated, self loops, or not sorted"),
        (spoiled(edges=[[1, 2, 0], [0, 0, 1]], cycle=[0] * 3), "lacks its reverse"),
        (spoiled(edges=[[1, 0], [0, 1]], cycle=[0, 0]), "does not pass each of the 3 nodes once"),
        (spoiled(num_cycles=2), "does not pass each of the 3 nodes once"),
    ],
)
def test_expanders_that_break_the_invariants_are_never_written(tmp_path, expander, message):
    with pytest.raises(GraphError, match=message):
        snapshot.write(tmp_path, draft(expander=NOT_DRAWN._replace(expander=expander)))
    assert list(tmp_path.iterdir()) == []


def test_two_short_cycles_are_no_cycle_through_all(tmp_path):
    triangles = [[1, 2, 0, 2, 0, 1, 4, 5, 3, 5, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]]
    expander = Expander(np.array(triangles, np.int32), np.zeros(12, np.int32), 1)
    other = draft(genes=tuple("ABCDEF"), positional=(), expander=NOT_DRAWN._replace(expander=expander))
    with pytest.raises(GraphError, match="does not pass each of the 6 nodes once"):
        snapshot.write(tmp_path, other)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        (WALK._replace(value_PN=WALK.value_PN[:2]), r"random_walk encoding of graph go: has shape \(2, 2\)"),
        (WALK._replace(value_PN=np.full((3, 1), 1.1, np.float32)), "a number outside 0 to 1"),
        (WALK._replace(value_PN=np.full((3, 1), -0.1, np.float32)), "a number outside 0 to 1"),
        (VECTORS._replace(value_PN=np.full((3, 1), np.nan, np.float32)), "a number outside -1 to 1"),
    ],
)
def test_encodings_that_break_the_invariants_are_never_written(tmp_path, encoding, message):
    with pytest.raises(GraphError, match=message):
        snapshot.write(tmp_path, draft(positional=(encoding,)))
    assert list(tmp_path.iterdir()) == []


def test_snapshots_of_screens_differ_by_split_and_held_out_lines():
    origin = {"store": "a", "split": "s", "cell_lines": '["K562"]'}
    ids = {
        snapshot.snapshot_id({}, Snapshot("", ("A",), (), {}), {"screen": origin | change})
        for change in ({}, {"split": "t"}, {"cell_lines": '["RPE1"]'}, {"store": "b"})
    }
    assert len(ids) == 3
