"""Every preset of jobs/configs loads, builds and takes a training step, with the published sizes."""

import math
from pathlib import Path

import pytest
import torch

from tests.processes import run
from tests.unit.train.small_screen import write_snapshot, write_store
from txpert_dist.config_file import load

PRESETS = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))
PUBLISHED = {"gat", "exphormer", "exphormer_mg", "gat_mlg", "hybrid_bmp", "x_cell_gat", "norman_doubles"}


def test_the_published_presets_are_there():
    assert {path.stem for path in PRESETS} >= PUBLISHED


def take_a_step(_rank, _world, preset, folder):
    """Losses logged by one optimiser step, and the number of steps."""
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    overrides = [f"data.store={folder}/screen.zarr", f"graph.location={folder}/graphs"]
    overrides += [f"output={folder}/runs", "train.log_every=1", "cluster.num_workers=1"]
    config = load(preset, [*overrides, "train.minibatch_size=32"])
    losses = []
    hooks = Hooks(
        progress=lambda *_: None,
        metrics=lambda values, _step: losses.extend(
            values[name] for name in ("train/loss",) if name in values
        ),
        epoch=lambda _values, _number: None,
    )
    outcome = fit(config, open_inputs(config), device=torch.device("cpu"), hooks=hooks, max_steps=1)
    return losses, outcome.step


@pytest.mark.process
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_takes_a_training_step(preset, tmp_path):
    write_store(tmp_path / "screen.zarr")
    write_snapshot(tmp_path / "graphs", ("string", "go"))
    (((loss,), steps),) = run(take_a_step, 1, preset, tmp_path)
    assert steps == 1
    assert math.isfinite(loss)
    assert loss > 0
