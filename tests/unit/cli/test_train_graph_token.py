"""`txpert train` shows the token of the environment to the graph service, and to nobody else."""

import os

import pytest

from graph_store.graph import GraphError
from graph_store.service.server import GraphService
from graph_store.service.settings import Settings
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.cli.app import app
from txpert_dist.config_file import dump
from txpert_dist.errors import ConfigError

TOKEN = "long-enough-to-be-a-token"


@pytest.mark.parametrize(
    ("token", "kind", "message"),
    [
        (TOKEN, ConfigError, "did you mean curated"),  # let in; stopped by what is asked of the graphs
        ("another-token-altogether", GraphError, "does not know this token"),
        (None, GraphError, "asks for a token"),
    ],
)
def test_the_token_is_shown_to_the_service_and_leaves_the_environment(
    tmp_path, monkeypatch, token, kind, message
):
    inputs = write_inputs(tmp_path / "inputs")
    service = GraphService(Settings(blobs=str(inputs / "graphs"), port=0, token=TOKEN))
    config = configuration(inputs, tmp_path / "runs", graph={"location": service.location, "use": ["curatd"]})
    (tmp_path / "run.yaml").write_text(dump(config))
    monkeypatch.delenv("TXPERT_GRAPH_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("TXPERT_GRAPH_TOKEN", token)
    with pytest.raises(kind, match=message) as caught:
        app(["train", str(tmp_path / "run.yaml")], standalone_mode=False)
    service.close(5)
    assert "TXPERT_GRAPH_TOKEN" not in os.environ
    assert TOKEN not in str(caught.value)
