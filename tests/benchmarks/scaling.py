"""What a second worker brings, and what ZeRO's stages take and save, all by `txpert train` on this machine.

    python -m tests.benchmarks.scaling [--quick] [--folder FOLDER] [--json FILE]

The screen is simulated; the preset is GAT. Every worker has one core; two of them talk through gloo over
loopback.

    weak scaling    cells a second of two workers of 128 cells each, beside twice what one worker of 128 does;
                    once more with the nodes divided between them (cluster.partition_nodes)
    ZeRO            two workers, hidden layers of 8,192 units: memory of a worker beside stage 0's, and the
                    step beside stage 0's
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.overhead import FULL, QUICK, config_of, prepare
from tests.benchmarks.record import Case, write
from tests.benchmarks.short_run import ShortRun, short_run
from tests.benchmarks.training import merged
from txpert_dist import config_file
from txpert_dist.config import Config

CELLS = 128
"""Of a worker's share of the minibatch."""
WIDE = 8_192
STEPS = 60


def run(base: Path, folder: Path, name: str, workers: int, **sections: Mapping[str, Any]) -> ShortRun:
    """GAT on the screen with so many workers."""
    tree = merged(
        config_of("gat", base, folder).model_dump(mode="json"),
        {"name": name, "train": {"minibatch_size": CELLS * workers}},
        {"cluster": {"num_workers": workers, "cpus_per_worker": 1}},
        dict(sections),
    )
    config = Config.model_validate(tree)
    file = folder / f"{name}.yaml"
    file.write_text(config_file.dump(config), encoding="utf-8")
    return short_run(file, config.run_folder, STEPS)


def rate(found: ShortRun) -> float:
    """Cells a second of all workers."""
    return median(found.metrics["train/cells_per_s"])


def weak_scaling(base: Path, folder: Path) -> list[Case]:
    """One worker, two, two that divide the nodes."""
    one = 2 * rate(run(base, folder, "one", 1))
    two = run(base, folder, "two", 2)
    divided = run(base, folder, "divided", 2, cluster={"partition_nodes": True})
    twice = "twice one worker"
    whole_s, divided_s = two.metrics["time/graph_whole_s"][0], two.metrics["time/graph_divided_s"][0]
    return [
        Case("two workers", rate(two), "cells/s", twice, one),
        Case("two workers, nodes divided", rate(divided), "cells/s", twice, one),
        Case("Z and its gradient, nodes divided, as told", divided_s, "s", "not divided", whole_s),
    ]


def zero(base: Path, folder: Path) -> list[Case]:
    """Two workers at every stage."""
    wide = {"basal": {"kind": "mlp", "hidden": WIDE}, "decoder": {"hidden": WIDE}}
    stages = {f"ZeRO {stage}": {"zero_stage": stage} for stage in range(4)}
    stages["ZeRO 2, offloaded"] = {"zero_stage": 2, "offload_optimizer": True}
    found = {
        name: run(base, folder, f"zero{number}", 2, model=wide, cluster=cluster)
        for number, (name, cluster) in enumerate(stages.items())
    }
    least, step = found["ZeRO 0"].worker_gib, 2 * CELLS / rate(found["ZeRO 0"])
    cases = []
    for name, one in found.items():
        cases.append(Case(f"{name}: memory of a worker", one.worker_gib, "GiB", "ZeRO 0", least))
        cases.append(Case(f"{name}: step", 2 * CELLS / rate(one), "s", "ZeRO 0", step))
    return cases


def main() -> None:
    """Run all, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30,000 cells, 2,000 genes, 3,000 nodes")
    parser.add_argument("--folder", type=Path, help="keep the screen there for the next time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as temporary:
        base = prepare(size, options.folder or Path(temporary))
        cases = [*weak_scaling(base, Path(temporary)), *zero(base, Path(temporary))]
    for case in cases:
        print(f"{case.name}: {case.value:.4g} {case.unit}; {case.reference}", end=" ")
        print(f"{case.reference_value:.4g} (ratio {case.ratio:.3f})", flush=True)
    if options.json:
        write(options.json, cases, size=size._asdict(), cells_of_a_worker=CELLS, hidden=WIDE)


if __name__ == "__main__":
    main()
