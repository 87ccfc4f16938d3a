"""What a service hands out is what lies in the folder: whole snapshots, parts of them, embeddings."""

import shutil
import threading

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store import remote, snapshot
from graph_store.build import build
from graph_store.client import (
    build_remotely,
    describe,
    list_embeddings,
    list_snapshots,
    open_snapshot,
    snapshot_folder,
)
from graph_store.config import load
from graph_store.embeddings.alignment import align, rotated
from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.neighbours import nearest
from graph_store.embeddings.store import get_embedding, put_embedding
from graph_store.graph import GraphError
from graph_store.neighbourhood import neighbourhood
from graph_store.protocol import ColumnsTicket, FileTicket, NeighbourhoodTicket
from graph_store.record import read_record
from graph_store.service.settings import Limits
from graph_store.service.streams import CHUNK_BYTES
from tests.unit.graph_store.services import (
    access,
    proxy,
    random_graph,
    running,
    write_snapshot,
    write_source,
)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def identity(folder):
    return write_snapshot(folder, num_genes=2000, num_edges=200_000)


@pytest.fixture(scope="module")
def largest(folder, identity):
    """Name of the largest file, which takes several chunks."""
    files = read_record(folder / identity).files
    name = max(files, key=lambda name: files[name].size)
    assert files[name].size > CHUNK_BYTES
    return name


@pytest.fixture(scope="module")
def service(folder, identity):
    with running(folder) as service:
        yield service


def sent_bytes(service) -> float:
    return service.metrics.registry.get_sample_value("txpert_graph_sent_bytes_total")


def test_a_fetched_snapshot_is_the_same_to_the_byte(service, folder, identity, tmp_path):
    fetched = snapshot_folder(service.location, identity, access(tmp_path))
    assert fetched == tmp_path / identity
    assert content(fetched) == content(folder / identity)
    opened, local = open_snapshot(service.location, None, access(tmp_path)), open_snapshot(str(folder))
    assert opened.id == local.id
    for one, other in zip(opened.graphs, local.graphs, strict=True):
        assert np.array_equal(one.edges_2E, other.edges_2E)
        assert np.array_equal(one.weight_E, other.weight_E)
    assert describe(service.location) == read_record(folder / identity)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [identity]


def test_what_was_fetched_is_not_fetched_again_and_needs_no_service(service, identity, tmp_path):
    with running(tmp_path / "empty") as gone:
        location = gone.location
    snapshot_folder(service.location, identity, access(tmp_path / "cache"))
    before = sent_bytes(service)
    snapshot_folder(service.location, identity, access(tmp_path / "cache"))
    assert sent_bytes(service) == before
    assert snapshot_folder(location, identity, access(tmp_path / "cache", patience_s=0)).name == identity


def test_only_what_is_damaged_is_fetched_again(service, folder, identity, tmp_path):
    fetched = snapshot_folder(service.location, identity, access(tmp_path))
    damaged = bytearray((fetched / "edges-go.arrow").read_bytes())
    damaged[1000] ^= 1
    (fetched / "edges-go.arrow").write_bytes(damaged)
    (fetched / "genes.arrow").unlink()
    before = sent_bytes(service)
    assert open_snapshot(service.location, identity, access(tmp_path)).id == identity
    assert content(fetched) == content(folder / identity)
    files = read_record(fetched).files
    assert sent_bytes(service) - before == files["edges-go.arrow"].size + files["genes.arrow"].size


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_broken_off_transfer_goes_on_where_it_was(service, folder, identity, tmp_path, spoiled, largest):
    half = (folder / identity / largest).read_bytes()[: CHUNK_BYTES + 7]
    building = tmp_path / f".fetching-{identity}"
    building.mkdir()
    (building / largest).write_bytes(half[:-1] + b"?" if spoiled else half)
    (building / "of-another-layout.arrow").write_bytes(b"?")
    before = sent_bytes(service)
    fetched = snapshot_folder(service.location, identity, access(tmp_path))
    assert content(fetched) == content(folder / identity)
    files = read_record(fetched).files
    again = files[largest].size if spoiled else 0
    assert sent_bytes(service) - before == sum(file.size for file in files.values()) - len(half) + again


def test_which_snapshot_when_none_is_named(tmp_path):
    with running(tmp_path / "graphs") as service:
        with pytest.raises(GraphError, match="holds no snapshot; build one"):
            describe(service.location)
        first = write_snapshot(tmp_path / "graphs", seed=1)
        assert describe(service.location).id == first
        second = write_snapshot(tmp_path / "graphs", seed=2)
        names = f"{min(first, second)}, {max(first, second)}"
        with pytest.raises(GraphError, match=f"holds several snapshots; give one of {names}"):
            open_snapshot(service.location, None, access(tmp_path))
        assert list_snapshots(service.location) == list_snapshots(str(tmp_path / "graphs"))
        shutil.rmtree(tmp_path / "graphs" / first)
        assert describe(service.location).id == second


def test_a_service_needs_a_cache_and_the_cache_must_be_writable(service, identity, tmp_path):
    with pytest.raises(GraphError, match="is a service; name a folder to keep"):
        open_snapshot(service.location, identity)
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphError, match="cannot be kept there"):
        open_snapshot(service.location, identity, access(tmp_path / "file"))


def test_damage_at_the_service_is_never_handed_out(folder, identity, tmp_path):
    copy = tmp_path / "graphs" / identity
    shutil.copytree(folder / identity, copy)
    with running(tmp_path / "graphs") as service:
        open_snapshot(service.location, identity, access(tmp_path / "first"))
        damaged = bytearray((copy / "edges-go.arrow").read_bytes())
        damaged[1000] ^= 1
        (copy / "edges-go.arrow").write_bytes(damaged)
        for ask in (
            lambda: open_snapshot(service.location, identity, access(tmp_path / "second")),
            lambda: remote.columns(
                remote.Service(service.location), ColumnsTicket(snapshot=identity, file="edges-go.arrow")
            ),
        ):
            with pytest.raises(GraphError, match=r"edges-go.arrow: is damaged .its hash does not match"):
                ask()
        assert not (tmp_path / "second" / identity).exists()
        text = (copy / "snapshot.json").read_text()
        (copy / "snapshot.json").write_text(text.replace('"num_genes"', '"num_gemes"'))
        with pytest.raises(GraphError, match=r"snapshot.json: is damaged"):
            describe(service.location, identity)
        assert list_snapshots(service.location) == ()


def test_folders_that_are_not_whole_do_not_exist(tmp_path):
    whole = write_snapshot(tmp_path / "graphs")
    (tmp_path / "graphs" / ("0" * 32)).mkdir()
    shutil.copytree(tmp_path / "graphs" / whole, tmp_path / "graphs" / f".building-{whole}-00")
    with running(tmp_path / "graphs") as service:
        assert [entry.id for entry in list_snapshots(service.location)] == [whole]
        with pytest.raises(GraphError, match=f"there is no snapshot {'0' * 32} here; there is {whole}"):
            open_snapshot(service.location, "0" * 32, access(tmp_path))


@settings(max_examples=30)
@given(offset=st.integers(0, 7_000_000))
def test_a_file_can_be_had_from_any_byte_on(service, folder, identity, largest, offset):
    whole = (folder / identity / largest).read_bytes()
    offset = min(offset, len(whole))
    ticket = FileTicket(snapshot=identity, file=largest, offset=offset)
    with flight.FlightClient(service.location) as client:
        table = client.do_get(flight.Ticket(ticket.to_bytes())).read_all()
    assert table["data"].to_numpy().tobytes() == whole[offset:]


@pytest.mark.parametrize("names", [None, ["weight"], ["target", "source"]])
def test_columns_of_a_table(service, folder, identity, names):
    with pa.memory_map(str(folder / identity / "edges-string.arrow")) as mapped:
        expected = pyarrow.ipc.open_file(mapped).read_all()
    ticket = ColumnsTicket(snapshot=identity, file="edges-string.arrow", columns=names)
    table = remote.columns(remote.Service(service.location), ticket)
    assert table.equals(expected if names is None else expected.select(names))


def test_any_flight_client_finds_its_way(service, folder, identity):
    with flight.FlightClient(service.location) as client:
        (info,) = client.list_flights()
        assert info.descriptor.path == [identity.encode()]
        data = [client.do_get(endpoint.ticket).read_all()["data"] for endpoint in info.endpoints]
        files = content(folder / identity)
        del files["snapshot.json"]
        assert sorted(part.to_numpy().tobytes() for part in data) == sorted(files.values())
        assert info.total_bytes == sum(map(len, files.values()))
        info = client.get_flight_info(flight.FlightDescriptor.for_path(identity, "genes.arrow"))
        assert client.do_get(info.endpoints[0].ticket).read_all()["name"].to_pylist()[0] == "G000000"
        assert client.get_schema(info.descriptor).schema == info.schema
        info = client.get_flight_info(
            flight.FlightDescriptor.for_command(FileTicket(snapshot=identity, file="genes.arrow").to_bytes())
        )
        assert info.total_bytes == len(files["genes.arrow"])
        assert {action.type for action in client.list_actions()} >= {"build", "describe", "nearest"}


def walked(graphs, starts, hops, direction):
    """Edges with the step in which a walk first crosses them, by networkx's distances."""
    walks = nx.MultiDiGraph()
    walks.add_nodes_from(starts)
    for graph in graphs:
        for source, target in graph.edges_2E.T.tolist():
            if direction != "in":
                walks.add_edge(source, target)
            if direction != "out":
                walks.add_edge(target, source)
    distance = {
        node: min(lengths)
        for node in walks
        if (
            lengths := [
                nx.shortest_path_length(walks, s, node) for s in starts if nx.has_path(walks, s, node)
            ]
        )
    }
    for number, graph in enumerate(graphs):
        for source, target in graph.edges_2E.T.tolist():
            ends = {"in": [target], "out": [source], "both": [source, target]}[direction]
            step = 1 + min((distance[end] for end in ends if end in distance), default=hops)
            if step <= hops:
                yield number, source, target, step


@given(
    seed=st.integers(0, 999),
    num_edges=st.integers(0, 25),
    starts=st.lists(st.integers(0, 11), min_size=1, max_size=3),
    hops=st.integers(1, 4),
    direction=st.sampled_from(["in", "out", "both"]),
)
def test_neighbourhoods_are_what_walks_reach(seed, num_edges, starts, hops, direction):
    generator = np.random.default_rng(seed)
    graphs = tuple(random_graph(name, 12, num_edges, generator) for name in "ab")
    made = snapshot.Snapshot("", tuple("ABCDEFGHIJKL"), graphs, {})
    found = neighbourhood(
        made, np.array(starts), (0, 1), hops=hops, inwards=direction != "out", outwards=direction != "in"
    )
    rows = zip(found.graph_M.tolist(), *found.edges_2M.tolist(), found.step_M.tolist(), strict=True)
    assert sorted(rows) == sorted(walked(graphs, starts, hops, direction))
    for number, (source, target), value in zip(found.graph_M, found.edges_2M.T, found.weight_M, strict=True):
        edges_2E, weight_E = graphs[number].edges_2E, graphs[number].weight_E
        assert weight_E[(edges_2E[0] == source) & (edges_2E[1] == target)].tolist() == [value]


def test_a_neighbourhood_by_name_alias_and_graph(service, folder, identity):
    opened = open_snapshot(str(folder), identity)
    asked = NeighbourhoodTicket(snapshot=identity, genes=["OLD"], graphs=["string"], direction="in")
    table = remote.neighbourhood(remote.Service(service.location), asked)
    source, target = opened.graphs[1].edges_2E
    assert table["source"].to_pylist() == [opened.genes[node] for node in source[target == 0]]
    assert set(table["target"].to_pylist()) == {"G000000"}
    assert set(table["graph"].to_pylist()) == {"string"}
    assert table["step"].to_pylist() == [1] * len(table)
    wide = NeighbourhoodTicket(snapshot=identity, genes=["G000005"], hops=2, limit=2_000_000)
    near = np.unique(
        np.concatenate([g.edges_2E[:, (g.edges_2E == 5).any(axis=0)] for g in opened.graphs], axis=1)
    )
    number = sum(np.isin(graph.edges_2E, near).any(axis=0).sum() for graph in opened.graphs)
    assert number > 1 << 17  # several batches
    assert len(remote.neighbourhood(remote.Service(service.location), wide)) == number


def test_embeddings_are_kept_and_searched_as_in_a_folder(tmp_path):
    generator = np.random.default_rng(0)
    genes = tuple(f"G{number}" for number in range(300))
    first = Embedding("first", genes, generator.normal(size=(300, 16)).astype(np.float32), {"model": "m"})
    second = first._replace(version="second-0.1", z_PD=first.z_PD[:, ::-1].copy(), origin={})
    with running(tmp_path / "graphs") as service:
        asked = remote.Service(service.location)
        for embedding in (first, second):
            assert remote.put_embedding(asked, embedding) == put_embedding(tmp_path / "local", embedding)
        assert remote.put_embedding(asked, first) == put_embedding(tmp_path / "local", first)
        for name in ("first", "second-0.1"):
            for file in ("embedding.arrow", "embedding.json"):
                path = f"embeddings/{name}/{file}"
                assert (tmp_path / "graphs" / path).read_bytes() == (tmp_path / "local" / path).read_bytes()
        assert [entry.version for entry in remote.list_embeddings(asked)] == ["first", "second-0.1"]
        assert list_embeddings(service.location) == list_embeddings(str(tmp_path / "local"))
        part = remote.get_embedding(asked, "first", ["G7", "G3", "G7"])
        assert part.genes == ("G7", "G3", "G7")
        assert np.array_equal(part.z_PD, first.z_PD[[7, 3, 7]])
        assert part.origin == {"model": "m"}
        assert np.array_equal(remote.get_embedding(asked, "first").z_PD, first.z_PD)
        local = get_embedding(tmp_path / "local", "first")
        assert remote.nearest(asked, "first", ["G1", "G2"], 5) == nearest(local, ["G1", "G2"], 5)
        turned = rotated(local, align(local, second))
        expected = nearest(turned, ["G1"], 3, among=second)
        assert remote.nearest(asked, "first", ["G1"], 3, among="second-0.1") == expected
        assert expected[0][0].gene == "G1"
        with pytest.raises(GraphError, match="version first is there with another content"):
            remote.put_embedding(asked, first._replace(z_PD=first.z_PD + 1))
        with pytest.raises(GraphError, match=r"there is no embedding third here; there is first, second-0.1"):
            remote.get_embedding(asked, "third")
        with pytest.raises(GraphError, match="has no gene 'G999'"):
            remote.nearest(asked, "first", ["G999"], 5)


def test_a_snapshot_built_by_a_service_is_the_one_built_here(tmp_path):
    source = write_source(tmp_path / "sources")
    recipe = source / "graphs.yaml"
    recipe.write_text(
        "graphs: [{name: a, source: {kind: edges, path: a.csv, directed: true}}]\n"
        "positional: {random_walk: 3}\n"
    )
    here = build(load(recipe), out=tmp_path / "here")
    with running(tmp_path / "there", sources=source) as service:
        told = []
        done = build_remotely(service.location, recipe, lambda *news: told.append(news))
        assert (done.id, done.was_there) == (here.id, False)
        assert content(tmp_path / "there" / here.id) == content(here.path)
        assert told
        assert build_remotely(service.location, recipe, lambda *_: None).was_there
        for text, message in (
            ("graphs: [{name: a}]", "graphs.yaml line 1: graphs.0.source: is needed and has no default"),
            (
                "graphs: [{name: a, source: {kind: edges, path: b.csv}}]",
                "b.csv: is not in the service's sources",
            ),
        ):
            recipe.write_text(text)
            with pytest.raises(GraphError, match=message):
                build_remotely(service.location, recipe, lambda *_: None)


def test_fifty_clients_at_once(tmp_path):
    small = write_snapshot(tmp_path / "graphs", num_genes=500, num_edges=20_000)
    expected = content(tmp_path / "graphs" / small)
    problems, barrier = [], threading.Barrier(50)

    def client(number: int) -> None:
        try:
            barrier.wait()
            cache = tmp_path / f"cache-{number}"
            if content(snapshot_folder(service.location, small, access(cache))) != expected:
                problems.append(f"{number}: other bytes")
        except Exception as error:  # noqa: BLE001 - shown below
            problems.append(f"{number}: {error!r}")

    # Fewer places than clients: who is told to come again does.
    with running(tmp_path / "graphs", limits=Limits(streams=8)) as service:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert service.metrics.registry.get_sample_value("txpert_graph_active_requests") == 0


def test_a_client_that_leaves_gives_its_place_back(folder, identity, largest):
    ticket = FileTicket(snapshot=identity, file=largest).to_bytes()
    ended = []

    def client() -> None:
        with flight.FlightClient(between.location) as line:
            try:
                line.do_get(flight.Ticket(ticket)).read_all()
            except flight.FlightUnavailableError as error:
                ended.append(error)

    with running(folder, limits=Limits(streams=1)) as service, proxy(service.port, 300_000) as between:
        thread = threading.Thread(target=client)
        thread.start()
        assert between.held.wait(20)
        with pytest.raises(GraphError, match="as many requests as it may"):
            describe(service.location, identity, access(None, patience_s=0.3))
        between.close()
        thread.join()
        assert ended
        assert describe(service.location, identity, access(None)).id == identity
