"""A run whose graphs come from a service is the run whose graphs lie in a folder, to the bit."""

import os
import signal
import subprocess
import sys

import pytest
from mlflow.tracking import MlflowClient

from graph_store.client import open_snapshot
from graph_store.record import snapshot_ids
from tests.integration.test_train_numerics import largest_difference, last_weights, train
from tests.processes import run
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.serve.registered import open_checkpoint
from txpert_dist.train import checkpoint, graph_actor
from txpert_dist.train.tracking import read_run_record
from txpert_dist.train.worker import train as train_on_ray

pytestmark = pytest.mark.process

TOKEN = "a-token-that-must-not-be-written-anywhere"
TRAIN = {"epochs": 3, "log_every": 1}
SERVE = [sys.executable, "-c", "from txpert_dist.cli.app import main; main()", "graph", "serve", "--port=0"]


@pytest.fixture
def service(tmp_path):
    """Inputs, and the address of a process that serves their graphs."""
    inputs = write_inputs(tmp_path / "inputs")
    environment = {**os.environ, "TXPERT_GRAPH_TOKEN": TOKEN}
    with subprocess.Popen(
        [*SERVE, inputs / "graphs"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield inputs, process.stdout.readline().split()[-1], process
        process.kill()


def test_a_run_with_services_is_the_run_with_a_folder(service, tmp_path):
    inputs, location, process = service
    cluster = {"num_workers": 2, "graph_service": True, "graph_cache": str(tmp_path / "node")}
    config = configuration(
        inputs, tmp_path / "runs", graph={"location": location}, train=TRAIN, cluster=cluster
    )
    result = train_on_ray(config, graph_token=TOKEN)
    process.kill()

    (calm, _, _), _ = run(train, 2, inputs, tmp_path / "calm", {"train": TRAIN, "seed": config.seed})
    assert largest_difference(last_weights(config.output), last_weights(tmp_path / "calm")) == 0
    history = MlflowClient(config.tracking_uri).get_metric_history(result.run_id, "train/loss")
    assert {point.step: point.value for point in history} == calm

    (identity,) = snapshot_ids(inputs / "graphs")
    recorded = read_run_record(config.run_folder).config["graph"]
    assert (recorded["location"], recorded["snapshot"]) == (location, identity)
    for copies in (config.run_folder / "snapshots", tmp_path / "node"):
        assert snapshot_ids(copies) == (identity,)
        for file in (inputs / "graphs" / identity).iterdir():
            assert (copies / identity / file.name).read_bytes() == file.read_bytes()

    # the service is gone, and the inputs' graphs too: the run's folder is enough
    (inputs / "graphs").rename(tmp_path / "elsewhere")
    assert open_checkpoint(config.run_folder).loaded.snapshot.id == identity
    assert train_on_ray(config) == result._replace(started_at=result.steps)
    config.run_folder.rename(tmp_path / "moved")
    assert checkpoint.load_model(checkpoint.best_checkpoint(tmp_path / "moved")).snapshot.id == identity

    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_whoever_finds_no_actor_starts_one(tmp_path):
    import ray

    inputs = write_inputs(tmp_path / "inputs")
    folders = [
        configuration(inputs, tmp_path, cluster={"graph_cache": str(tmp_path / name)})
        for name in ("actor", "one", "two", "three")
    ]
    (identity,) = snapshot_ids(inputs / "graphs")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        first = graph_actor.offered(folders[0])
        assert graph_actor.offered(folders[1]) == first
        actor = ray.get_actor(graph_actor.NAME, namespace=graph_actor.NAMESPACE)
        nodes = [graph_actor.node_snapshot(folders[1])]
        pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        nodes.append(graph_actor.node_snapshot(folders[2]))
        assert graph_actor.offered(folders[0]).token != first.token
        ray.kill(actor)
        nodes.append(graph_actor.node_snapshot(folders[3]))
    finally:
        ray.shutdown()
    assert nodes == [tmp_path / name / identity for name in ("one", "two", "three")]
    for folder in nodes:
        assert open_snapshot(str(folder.parent)).id == identity
