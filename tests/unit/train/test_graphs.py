"""Where a run finds its graphs: a folder as it is, a service's snapshot in the run's own folder."""

import shutil
from pathlib import Path

import pytest

from graph_store.graph import GraphError
from graph_store.record import snapshot_ids
from graph_store.service.server import GraphService
from graph_store.service.settings import Settings
from tests.unit.train.small_screen import configuration, write_inputs, write_run, write_snapshot
from txpert_dist.errors import ConfigError
from txpert_dist.serve.registered import open_checkpoint
from txpert_dist.serve.registry import _stage
from txpert_dist.train import checkpoint
from txpert_dist.train.graphs import SNAPSHOTS, graphs_folder, with_graphs
from txpert_dist.train.inputs import open_inputs
from txpert_dist.train.run_folder import absolute, existing_record, pinned_snapshot
from txpert_dist.train.tracking import RunRecord, write_run_record

TOKEN = "long-enough-to-be-a-token"


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path / "inputs")


@pytest.fixture
def service(inputs):
    running = GraphService(Settings(blobs=str(inputs / "graphs"), port=0, token=TOKEN))
    yield running
    running.close(5)


def remote(inputs, output, location, **graph):
    model = {"latent": 8, "perturbation": {"kind": "gat", "layers": 1, "hidden": 4}}
    return configuration(inputs, output, graph={"location": location, **graph}, model=model)


def begun(config):
    """The run's folder as its first start leaves it."""
    write_run_record(config.run_folder, RunRecord("id", "uri", config.model_dump(mode="json"), "KILLED"))


def test_a_folder_is_left_as_it_is(inputs, tmp_path):
    config = configuration(inputs, tmp_path)
    assert with_graphs(config) is config
    assert graphs_folder(config.graph, config.run_folder) == config.graph.location
    assert not config.run_folder.exists()


def test_a_services_snapshot_is_the_folders_and_its_id_is_named(inputs, service, tmp_path):
    config = with_graphs(remote(inputs, tmp_path, service.location), token=TOKEN)
    (identity,) = snapshot_ids(inputs / "graphs")
    assert (config.graph.location, config.graph.snapshot) == (service.location, identity)
    assert graphs_folder(config.graph, config.run_folder) == str(config.run_folder / SNAPSHOTS)
    theirs, ours = open_inputs(config), open_inputs(configuration(inputs, tmp_path))
    assert theirs.snapshot.id == ours.snapshot.id
    assert theirs.snapshot.genes == ours.snapshot.genes
    for one, other in zip(theirs.graph.graphs, ours.graph.graphs, strict=True):
        assert one.name == other.name
        assert one.edges_2E.tobytes() == other.edges_2E.tobytes()
        assert one.weight_E.tobytes() == other.weight_E.tobytes()
    assert TOKEN not in repr(config)
    assert with_graphs(config) == config  # no token, nothing to ask for


def test_a_copy_among_others_can_be_read_in_place_of_the_runs_own(inputs, tmp_path):
    config = configuration(inputs, tmp_path)
    ours = open_inputs(config)
    shutil.copytree(inputs / "graphs", tmp_path / "node")
    write_snapshot(tmp_path / "node", ("curated", "newer"))
    (inputs / "graphs").rename(inputs / "away")
    assert open_inputs(config, tmp_path / "node" / ours.snapshot.id).snapshot.id == ours.snapshot.id


def test_a_run_goes_on_with_its_snapshot_whatever_the_service_holds_by_then(inputs, service, tmp_path):
    plain = remote(inputs, tmp_path, service.location)
    assert pinned_snapshot(plain.run_folder) is None
    first = with_graphs(plain, token=TOKEN)
    begun(first)
    write_snapshot(inputs / "graphs", ("curated", "newer"))
    new = remote(inputs, tmp_path / "new", service.location)
    with pytest.raises(GraphError, match="holds several snapshots; give one of"):
        with_graphs(new, token=TOKEN)
    again = with_graphs(plain, token=TOKEN, pinned=pinned_snapshot(plain.run_folder))
    assert again == first
    assert existing_record(again) is not None
    service.close(5)
    assert with_graphs(plain, pinned=pinned_snapshot(plain.run_folder)) == first
    (other,) = set(snapshot_ids(inputs / "graphs")) - {first.graph.snapshot}
    with pytest.raises(ConfigError, match=rf"graph\.snapshot \({first.graph.snapshot} -> {other}\)"):
        existing_record(remote(inputs, tmp_path, service.location, snapshot=other))


def test_a_damaged_copy_is_fetched_again(inputs, service, tmp_path):
    config = with_graphs(remote(inputs, tmp_path, service.location), token=TOKEN)
    copy = config.run_folder / SNAPSHOTS / config.graph.snapshot
    name = next(path.name for path in copy.glob("edges-*"))
    (copy / name).write_bytes(b"x")
    with pytest.raises(GraphError, match=name):
        open_inputs(config)
    assert with_graphs(config, token=TOKEN) == config
    assert (copy / name).read_bytes() == (inputs / "graphs" / copy.name / name).read_bytes()
    open_inputs(config)


def test_models_are_loaded_and_registered_from_the_runs_folder_wherever_it_is(inputs, service, tmp_path):
    config = with_graphs(remote(inputs, tmp_path / "runs", service.location), token=TOKEN)
    write_run(config)
    service.close(5)
    shutil.rmtree(inputs / "graphs")
    config.run_folder.rename(tmp_path / "moved")
    folder = checkpoint.best_checkpoint(tmp_path / "moved")
    loaded = open_checkpoint(tmp_path / "moved").loaded
    assert loaded.snapshot.id == config.graph.snapshot
    (tmp_path / "report").mkdir()
    staged = _stage(tmp_path / "staged", folder, tmp_path / "report", loaded)
    assert snapshot_ids(staged / "snapshots") == (config.graph.snapshot,)
    shutil.copytree(folder, tmp_path / "alone" / "checkpoint")
    with pytest.raises(GraphError, match="keep checkpoints in their run's folder"):
        open_checkpoint(tmp_path / "alone" / "checkpoint")


def test_what_is_wrong_is_one_line_and_leaves_no_run(inputs, service, tmp_path):
    location, absent = service.location, "0" * 32
    for config, token, message in (
        (remote(inputs, tmp_path / "a", location), None, "asks for a token"),
        (remote(inputs, tmp_path / "b", location), "x" * 20, "does not know this token"),
        (remote(inputs, tmp_path / "c", location, snapshot=absent), TOKEN, absent),
        (remote(inputs, tmp_path / "d", location, snapshot="../x"), TOKEN, "is no snapshot id"),
        (remote(inputs, tmp_path / "e", "grpc://nowhere"), TOKEN, "grpc://nowhere: is no address"),
    ):
        with pytest.raises(GraphError, match=message) as caught:
            with_graphs(config, token=token)
        assert "\n" not in str(caught.value)
        assert TOKEN not in str(caught.value)
        assert snapshot_ids(config.run_folder / SNAPSHOTS) == ()
        with pytest.raises(GraphError):
            open_inputs(config)
    missing = remote(inputs, tmp_path / "f", location, tls_roots=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"graph\.tls_roots=.*ca\.pem: cannot be read"):
        with_graphs(missing, token=TOKEN)


def test_how_the_service_is_reached_may_differ_and_what_it_serves_may_not(inputs, tmp_path):
    config = remote(inputs, tmp_path, "grpc+tls://host:1")
    begun(config)
    assert existing_record(remote(inputs, tmp_path, "grpc+tls://host:1", tls_roots="ca.pem")) is not None
    resolved = absolute(remote(inputs, tmp_path, "grpc+tls://host:1", tls_roots="ca.pem"))
    assert resolved.graph.tls_roots == Path.cwd() / "ca.pem"
    with pytest.raises(ConfigError, match=r"graph\.location"):
        existing_record(remote(inputs, tmp_path, "grpc+tls://other:1"))
