"""`txpert train` of this tree beside that of an earlier commit: cells a second, and whether losses agree.

    python -m tests.benchmarks.earlier [--quick] [--commit COMMIT] [--folder FOLDER] [--json FILE]

The screen is the simulated one of `tests.benchmarks.overhead`, as large as K562, and so are the presets, but
without dropout, whose masks were drawn otherwise. Each tree trains as a user starts it, one worker on all
cores, one after the other; both get the same cells in the same order. The default commit is the last one
before the training step was rewritten: attention in blocks of torch, all nodes in every step.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from tests.benchmarks.overhead import FULL, MINIBATCH, PRESETS, QUICK, ROOT, config_of, prepare
from tests.benchmarks.record import Case, write
from tests.benchmarks.short_run import LOG_EVERY, WARM, ShortRun, short_run
from tests.benchmarks.training import Tree

BEFORE_THE_STEP = "2fe808f"
STEPS = {"gat": 40, "exphormer_mg": 15}


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The repository as it was, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), commit], check=True, capture_output=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def config(preset: str, base: Path, folder: Path, name: str) -> Path:
    """The preset's own keys, which an earlier commit knows, on the screen."""
    now = config_of(preset, base, folder).model_dump(mode="json")
    wanted: Tree = yaml.safe_load((ROOT / "jobs" / "configs" / f"{preset}.yaml").read_text(encoding="utf-8"))
    told = yaml.safe_load(base.read_text(encoding="utf-8"))
    wanted["model"]["dropout"] = wanted["model"]["perturbation"]["dropout"] = 0
    wanted |= {
        "name": name,
        "output": str(folder / "runs"),
        "data": wanted.get("data", {}) | told["data"],
        "graph": told["graph"] | {"use": now["graph"]["use"]},
        "train": {key: now["train"][key] for key in ("epochs", "minibatch_size", "log_every")},
        "cluster": {key: now["cluster"][key] for key in ("num_workers", "cpus_per_worker")},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    return file


def cells_per_s(found: ShortRun) -> float:
    return median(found.metrics["train/cells_per_s"])


def compared(preset: str, base: Path, folder: Path, earlier: Path) -> tuple[Case, dict[str, Any]]:
    """Both trees, and how far apart the losses of the same steps are."""
    runs = {}
    for name, tree in (("earlier", earlier), ("now", ROOT)):
        file = config(preset, base, folder, f"{preset}-{name}")
        runs[name] = short_run(file, folder / "runs" / file.stem, STEPS[preset], tree=tree)
    case = Case(preset, cells_per_s(runs["now"]), "cells/s", "earlier", cells_per_s(runs["earlier"]))
    losses = zip(*(runs[name].metrics["train/loss"] for name in runs), strict=False)
    return case, {"largest_difference": max(abs(now / then - 1) for then, now in losses)}


def main() -> None:
    """Run the presets on both trees, print the ratios, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30,000 cells, 2,000 genes, 3,000 nodes")
    parser.add_argument("--commit", default=BEFORE_THE_STEP)
    parser.add_argument("--folder", type=Path, help="keep the screen there for the next time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    cases, losses = [], {}
    with tempfile.TemporaryDirectory() as temporary, tree_of(options.commit) as earlier:
        base = prepare(size, options.folder or Path(temporary))
        for preset in PRESETS:
            case, losses[preset] = compared(preset, base, Path(temporary), earlier)
            cases.append(case)
            print(f"{preset}: {case.value:.1f} cells/s, earlier {case.reference_value:.1f}", end=" ")
            print(f"({case.ratio:.1f} times); losses differ by {losses[preset]['largest_difference']:.1e}")
    if options.json:
        steps = {"minibatch": MINIBATCH, "log_every": LOG_EVERY, "left_out": WARM}
        write(options.json, cases, commit=options.commit, losses=losses, size=size._asdict(), steps=steps)


if __name__ == "__main__":
    main()
