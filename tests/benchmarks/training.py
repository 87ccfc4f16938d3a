"""Many trainings on one screen: each in a process of its own, two at a time, a thread each.

Enters: configurations as trees. Leaves: the means of each evaluation report. Ray is left out (the same loop,
one worker), so that a training costs its steps and not half a minute of starting.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.processes import run

METRICS = ("pearson_delta", "retrieval", "pseudobulk_mse")
AT_ONCE = 2
LONGEST_S = 3600.0

Tree = dict[str, Any]
Scores = dict[str, dict[str, float | None]]
"""metric -> row of the report -> mean."""


class Job(NamedTuple):
    """One training and the splits it is scored on."""

    config: Tree
    splits: tuple[str, ...] = ("test",)


class Result(NamedTuple):
    """What one training came to."""

    scores: dict[str, Scores]
    """split -> scores."""
    seconds: float
    """Of the training loop on one thread."""
    parameters: int


def merged(base: Tree, *changes: Tree) -> Tree:
    """``base`` with ``changes`` on top, section by section; a value that names a ``kind`` replaces."""
    result = dict(base)
    for change in changes:
        for key, value in change.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict) and "kind" not in value
            result[key] = merged(result[key], value) if both else value
    return result


def train_all(jobs: Sequence[Job]) -> list[Result]:
    """The results of ``jobs``, in their order."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda job: run(_train, 1, job, timeout=LONGEST_S)[0], jobs))


def _train(_rank: int, _world: int, job: Job) -> Result:
    import torch

    from txpert_dist.cli.run import evaluate
    from txpert_dist.config import Config
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    config = Config.model_validate(job.config)
    started = time.perf_counter()
    hooks = Hooks(
        progress=lambda *_: None, metrics=lambda _values, _step: None, epoch=lambda _values, _number: None
    )
    fit(config, open_inputs(config), device=torch.device("cpu"), hooks=hooks)
    seconds = time.perf_counter() - started
    scores = {}
    for split in job.splits:
        out = config.run_folder / split
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            evaluate(str(config.run_folder), split=split, report=out)  # type: ignore[arg-type]
        scores[split] = _means(out)
    return Result(scores, seconds, _num_parameters(config.run_folder))


def _means(report: Path) -> Scores:
    content = json.loads((report / "report.json").read_text())
    rows = [*content["predictors"], *content["reproducibility"]]
    return {metric: {row["name"]: row["metrics"][metric]["mean"] for row in rows} for metric in METRICS}


def _num_parameters(run_folder: Path) -> int:
    from txpert_dist.model.txpert import parameter_counts
    from txpert_dist.train.checkpoint import best_checkpoint, load_model

    return sum(parameter_counts(load_model(best_checkpoint(run_folder)).model).values())
