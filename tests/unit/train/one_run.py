"""One run of one worker over the small screen, without Ray.

    python -m tests.unit.train.one_run INPUTS OUTPUT DEVICE SECTIONS

Prints as JSON the loss of every step.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from tests.unit.train.small_screen import configuration
from txpert_dist.train.inputs import open_inputs
from txpert_dist.train.loop import fit
from txpert_dist.train.run import Hooks


def main() -> None:
    """Train and print."""
    inputs, output, device, sections = sys.argv[1:]
    options = configuration(Path(inputs), Path(output), **json.loads(sections))
    losses: list[float] = []
    hooks = Hooks(
        progress=lambda *_: None,
        metrics=lambda values, _: losses.extend(v for k, v in values.items() if k == "train/loss"),
        epoch=lambda *_: None,
    )
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        fit(options, open_inputs(options), device=torch.device(device), hooks=hooks)
        dist.destroy_process_group()
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
