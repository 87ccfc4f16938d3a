"""A study: many trials of one configuration, the best one found.

Enters: a base configuration, a search space, how many trials. Leaves: a study's folder with a run folder for
every trial, one MLflow run that holds the trials', and ``Outcome``. Invariants: trial 0 is the base
configuration itself and is never stopped early, so the best is at least as good as it; the best is chosen by
validation alone; the same command goes on after any interruption, and finished trials are not repeated; what
a user can get wrong is said before Ray starts.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from txpert_dist import config_file
from txpert_dist.config import Config
from txpert_dist.config_file import flatten
from txpert_dist.errors import TrainingError
from txpert_dist.train.graphs import with_graphs
from txpert_dist.train.run_folder import absolute, claimed, claimed_at_last, git_commit, pinned_snapshot
from txpert_dist.train.stop import Stopped
from txpert_dist.train.tracking import (
    RECORD,
    Delivery,
    MetricWriter,
    RunRecord,
    Status,
    create_run,
    deliver,
    describe_run,
    read_run_record,
    write_run_record,
)
from txpert_dist.train.tune_book import Book, Show, check_inputs
from txpert_dist.train.tune_ray import in_parallel
from txpert_dist.train.tune_search import Ending
from txpert_dist.train.tune_space import space_of
from txpert_dist.train.tune_study import Trial, check_study, study_config, trial_name

BEST_CONFIG = "best.yaml"
"""The winner's configuration, in the study's folder."""

BEST_SCORE = "best/pearson_delta"
"""Metric of the study's MLflow run: the best validation score, step by step of a trial ended."""

_STATUSES: dict[Ending, Status] = {
    "complete": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "running": "KILLED",
}


class Study(NamedTuple):
    """What is asked for."""

    base: Config
    space: dict[str, Any]
    """Key -> rule, plain."""
    trials: int
    """In all, trial 0 included."""
    parallel: int | None = None
    """Trials at a time; as many as there is room for when left out."""
    where: str = "search space"
    """Name of the space in messages."""


class Outcome(NamedTuple):
    """What a study came to."""

    trials: tuple[Trial, ...]
    winner: Trial
    best: Config
    """The winner's configuration, under a name of its own."""
    run_id: str
    """MLflow's id of the run that holds the trials'."""
    worked: bool
    """False when every trial had ended before."""
    delivery: Delivery
    """How all these runs' records came to MLflow."""


def tune(study: Study, *, show: Show = lambda _: None, graph_token: str | None = None) -> Outcome:
    """Run the study to its end on Ray: on the cluster at RAY_ADDRESS, else on this machine.

    ``graph_token`` is for the graph service of ``graph.location``. Raises what ``train`` raises, ``Stopped``
    included; and ``TrainingError`` when no trial came to an end.
    """
    base = absolute(study.base)
    space = space_of(study.space, base, where=study.where)
    whole = study_config(base)
    whole = with_graphs(whole, token=graph_token, pinned=pinned_snapshot(whole.run_folder))
    base = _with_snapshot(base, whole)
    check_inputs(whole, space)
    with claimed(whole.run_folder):
        check_study(whole.run_folder, study_config(base), study.space)
        book = Book(base, whole, space, target=study.trials, show=show)
        worked = book.remaining > 0
        if worked:
            _attended(study, base, whole, book)
        return _outcome(book, base, whole, worked)


def _attended(study: Study, base: Config, whole: Config, book: Book) -> None:
    """Run the trials, and leave the study's own MLflow run as it ended."""
    commit = git_commit()
    record = _record(study, base, whole, commit)
    writer = MetricWriter(record)

    def ended() -> None:
        best = book.winner()
        if best is not None and not math.isnan(best.best):
            writer.log({BEST_SCORE: best.best}, sum(trial.ending != "running" for trial in book.trials))

    book.on_end = ended
    status: Status = "FAILED"
    try:
        in_parallel(book, parent=record.run_id, commit=commit, parallel=study.parallel)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise Stopped(f"the study {whole.name} was told to stop; the same command goes on") from None
    finally:
        writer.close()
        _settle(book)
        write_run_record(whole.run_folder, record._replace(status=status))
        describe_run(record, status=status)


def _settle(book: Book) -> None:
    """Leave no trial's run as running whose process was ended before it could say so."""
    for trial in book.trials:
        folder = book.folder / trial_name(trial.number)
        with claimed_at_last(folder):  # its process may be ending still
            if (folder / RECORD).exists() and (record := read_run_record(folder)).status == "RUNNING":
                record = record._replace(status=_STATUSES[trial.ending])
                write_run_record(folder, record)
                describe_run(record, status=record.status)


def _outcome(book: Book, base: Config, whole: Config, worked: bool) -> Outcome:
    winner = book.winner()
    if book.hopeless or winner is None:
        why = next((f": {trial.message}" for trial in book.trials if trial.message), "")
        raise TrainingError(f"{whole.run_folder}: no trial came to an end{why}")
    best = book.configuration(winner.number).model_copy(update={"name": f"{base.name}-best"})
    path = whole.run_folder / BEST_CONFIG
    path.write_text(config_file.dump(best), encoding="utf-8")
    record = read_run_record(whole.run_folder)
    if worked:
        tags = {"best_trial": trial_name(winner.number), **_shown(winner.values, "best.")}
        describe_run(record, status=record.status, tags=tags, artefact=path)
    return Outcome(book.trials, winner, best, record.run_id, worked, _delivered(book))


def _delivered(book: Book) -> Delivery:
    """Deliver what the study's runs have left; how that stands."""
    folders = [book.folder, *(book.folder / trial_name(trial.number) for trial in book.trials)]
    done = [deliver(folder) for folder in folders if (folder / RECORD).exists()]
    return Delivery(sum(one.late for one in done), sum(one.queued for one in done))


def _record(study: Study, base: Config, whole: Config, commit: str) -> RunRecord:
    """The study's MLflow run, made when it is new."""
    kept = read_run_record(whole.run_folder) if (whole.run_folder / RECORD).exists() else None
    if kept is not None and kept.tracking_uri == base.tracking_uri:
        run_id = kept.run_id
    else:
        run_id = _create(study, base, whole, commit)
    record = RunRecord(run_id, base.tracking_uri, whole.model_dump(mode="json"), "RUNNING")
    write_run_record(whole.run_folder, record)
    describe_run(record, status="RUNNING")
    return record


def _create(study: Study, base: Config, whole: Config, commit: str) -> str:
    return create_run(
        base.tracking_uri,
        experiment=base.tracking.experiment,
        name=whole.name,
        params=flatten(base) | _shown(study.space, "space."),
        tags={"git_commit": commit, "txpert_study": whole.name},
    )


def _shown(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Values as MLflow takes them: text, a line each."""
    return {
        prefix + key: yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()
        for key, value in values.items()
    }


def _with_snapshot(base: Config, whole: Config) -> Config:
    """The base with the snapshot that the study's graphs are."""
    graph = base.graph.model_copy(update={"snapshot": whole.graph.snapshot})
    return base.model_copy(update={"graph": graph})
