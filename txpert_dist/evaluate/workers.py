"""Scoring by several processes at once, Ray's, on this machine.

Enters: an evaluation under way and its predictors. Leaves: what ``blocks`` scores in one process. Invariants:
a block of whole perturbations (or contexts) is scored by one process, and its values depend on nothing else;
joined, they are those of one process, whatever the number of processes and blocks (but for the last digits
that a model in float32 predicts otherwise in another block); an error in a process is raised here.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.evaluate.blocks import Effort, Scored, Work, join_scored, score_conditions, score_groups
from txpert_dist.evaluate.predictor import Predictor
from txpert_dist.evaluate.scores import METRICS, Background
from txpert_dist.ingest.run import task_runner
from txpert_dist.loader.conditions import quiet, row_blocks
from txpert_dist.metrics.moments import conditions_of
from txpert_dist.store.cells import open_store

_BLOCKS_PER_WORKER = 4
"""So that processes end at about the same time."""

By = Literal["perturbation", "context"]


class ScoreJob(NamedTuple):
    """A task: score one block of rows and leave the values in a file."""

    store: Path
    """Opened by each process: an open store stays where it is."""
    genes: NDArray[np.int64]
    background: Background
    effort: Effort
    sampled_controls: tuple[NDArray[np.float64], ...]
    predictors: tuple[Predictor, ...]
    by: By
    blocks: tuple[NDArray[np.int64], ...]
    folder: Path


def score_on_workers(work: Work, predictors: Sequence[Predictor]) -> tuple[Scored, Scored]:
    """Values of (perturbation, cell line) and of (perturbation, cell line, batch), by ``effort.workers``."""
    if work.effort.workers == 1:
        return score_groups(work, predictors), score_conditions(work)
    effort = work.effort._replace(memory_bytes=work.effort.memory_bytes // work.effort.workers)
    shared = (work.store.path, work.genes, work.background, effort, work.sampled_controls, tuple(predictors))
    with TemporaryDirectory() as folder, task_runner(work.effort.workers, "local") as run:
        found = []
        stages: tuple[tuple[By, str], ...] = (
            ("perturbation", "scoring predictions"),
            ("context", "scoring reproducibility per batch"),
        )
        for by, what in stages:
            job = ScoreJob(*shared, by, _blocks(work._replace(effort=effort), by), Path(folder))
            done = 0
            for number in run(_score, job, range(len(job.blocks))):
                done += len(job.blocks[number])
                work.progress(what, done, len(work.rows))
            found.append(join_scored([_read(job, number) for number in range(len(job.blocks))]))
    return found[0], found[1]


def _blocks(work: Work, by: By) -> tuple[NDArray[np.int64], ...]:
    number = len(conditions_of(work.store.perturbation[work.rows], work.store.context[work.rows]).context_R)
    most = math.ceil(number / (_BLOCKS_PER_WORKER * work.effort.workers))
    return tuple(row_blocks(work.store, work.rows, by=by, max_conditions=min(most, work.max_conditions())))


def _score(job: ScoreJob, number: int) -> None:
    store, rows = open_store(job.store), job.blocks[number]
    work = Work(store, rows, job.genes, job.background, job.effort, quiet, job.sampled_controls)
    scored = score_groups(work, job.predictors) if job.by == "perturbation" else score_conditions(work)
    arrays: dict[str, NDArray[np.generic]] = {
        "perturbation": scored.perturbation,
        "place": scored.place,
        "num_cells": scored.num_cells,
        "observed_size": scored.observed_size,
        "names": np.array(list(scored.values)),
        "sized": np.array(list(scored.predicted_size), np.str_),
        "values": np.array([[values[m] for m in METRICS] for values in scored.values.values()]),
        "predicted_size": np.array(list(scored.predicted_size.values())),
    }
    with _file(job, number).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(job: ScoreJob, number: int) -> Scored:
    with np.load(_file(job, number), allow_pickle=False) as found:
        values = {
            str(name): dict(zip(METRICS, of_row, strict=True))
            for name, of_row in zip(found["names"], found["values"], strict=True)
        }
        sizes = dict(zip(map(str, found["sized"]), found["predicted_size"], strict=True))
        return Scored(
            *(found["perturbation"], found["place"], found["num_cells"], values),
            *(found["observed_size"], sizes),
        )


def _file(job: ScoreJob, number: int) -> Path:
    return job.folder / f"{job.by}-{number}.npz"
