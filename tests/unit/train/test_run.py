"""A run made ready: what it says of its size, and that every basal kind and way of matching takes steps."""

import math

import numpy as np
import pytest
import torch

from tests.processes import run
from tests.unit.train.small_screen import EMBEDDING, WIDTH, configuration, write_inputs
from txpert_dist.train import checkpoint

pytestmark = pytest.mark.process

LATENT, NODES = 8, 18
CASES = {
    "embedding": {
        "model": {"basal": {"kind": "embedding", "key": EMBEDDING, "hidden": 16}},
        "data": {"control_matching": "matched", "held_out_cell_lines": ["RPE1"]},
    },
    "vae": {
        "model": {"basal": {"kind": "vae", "hidden": 16}, "fusion": {"kind": "sequential", "hidden": 4}},
        "data": {"control_matching": "random"},
    },
    "identity": {"model": {"basal": {"kind": "identity"}}, "data": {"control_matching": "mean"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def train(_rank, _world, folder, output):
    """News, metrics of step 0, losses and scores of each case."""
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    found = {}
    for name, sections in CASES.items():
        parts = {"latent": LATENT, "decoder": {"hidden": 16}, "perturbation": {"kind": "embedding"}}
        model = parts | sections["model"]
        config = configuration(folder, output, **sections | {"name": name, "model": model})
        news, metrics = [], []
        hooks = Hooks(
            progress=lambda what, done, total, news=news: news.append((what, done, total)),
            metrics=lambda values, step, metrics=metrics: metrics.append((step, dict(values))),
            epoch=lambda _values, _number: None,
        )
        fit(config, open_inputs(config), device=torch.device("cpu"), hooks=hooks)
        found[name] = news, metrics
    return found


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    (found,) = run(train, 1, folder, output)
    return found, output


@pytest.mark.parametrize("name", CASES)
def test_parameter_counts_are_told_before_the_first_step(trained, name):
    (news, metrics), output = trained[0][name], trained[1]
    what, done, total = news[0]
    assert (done, total) == (0, 0)
    step, counts = metrics[0]
    assert step == 0
    assert list(counts) == [
        f"parameters/{part}" for part in ("basal", "perturbation", "fusion", "decoder", "total")
    ]
    numbers = {part.removeprefix("parameters/"): int(number) for part, number in counts.items()}
    assert what == "parameters: " + ", ".join(f"{part} {number:,}" for part, number in numbers.items())
    weights = checkpoint.read_weights(checkpoint.checkpoints(output / name)[-1])
    for part in ("basal", "perturbation", "fusion", "decoder"):
        saved = sum(w.numel() for key, w in weights.items() if key.startswith(part) and "running" not in key)
        assert numbers[part] == saved
    assert numbers["total"] == sum(numbers[part] for part in numbers if part != "total")
    assert numbers["perturbation"] == NODES * 128 + 128 * LATENT + LATENT
    assert (numbers["basal"] == 0) is (name == "identity")
    assert (numbers["fusion"] == 0) is (name != "vae")


@pytest.mark.parametrize("name", CASES)
def test_every_kind_learns_and_is_validated(trained, name):
    (_, metrics), output = trained[0][name], trained[1]
    losses = [values["train/loss"] for _, values in metrics if "train/loss" in values]
    scores = [values[checkpoint.SCORE] for _, values in metrics if checkpoint.SCORE in values]
    assert len(scores) == 2
    assert all(math.isfinite(value) for value in [*losses, *scores])
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    state = checkpoint.read_state(checkpoint.checkpoints(output / name)[-1])
    assert state.basal_width == (WIDTH if name == "embedding" else 12)
