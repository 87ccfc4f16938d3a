"""As many workers as there is room for: a node is killed, another comes and goes, the losses stay."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.elastic_cluster import settings
from tests.faults import losses_of, undisturbed
from txpert_dist.train import checkpoint

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]


def test_two_workers_then_one_then_two_then_one_take_the_same_steps(tmp_path):
    """The second loss is one that Ray is told of before: it costs no step."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.elastic_cluster", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["workers"] == [2, 1, 2, 1], told
    (left,) = re.findall(r"taken away: a checkpoint is written at step ([\d,]+)", told["news"])
    (back,) = re.findall(r"going on from step ([\d,]+)", told["news"])
    assert left == back
    config = settings(tmp_path)
    newest = checkpoint.read_state(checkpoint.newest_sound(config.run_folder).folder)
    assert told["ending"] == [
        f"stopped at step {newest.step:,}, with a checkpoint; the same command goes on from there"
    ]
    losses = losses_of(config.run_folder)
    assert sorted(losses) == list(range(1, newest.step + 1))
    calm, _ = undisturbed(config, tmp_path / "calm", workers=2, max_steps=newest.step)
    assert losses == pytest.approx({step: calm[step] for step in losses}, rel=1e-5)
