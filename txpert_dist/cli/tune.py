"""The verb of a study: tune."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table

from txpert_dist.cli.graph_access import TOKEN
from txpert_dist.cli.screen import console, output, say, table

if TYPE_CHECKING:
    from txpert_dist.train.tune_study import Trial

_SHOWN = 20
"""Rows of the table that is drawn anew while trials run."""

_EVERY_S = 0.5

Trials = Annotated[
    int | None, typer.Option(min=1, help="Trials in all; 20 when left out.", show_default=False)
]
Space = Annotated[
    str | None,
    typer.Option(
        help="Search space: a YAML file, or a preset: default, encoders, exphormer_mg, gat, graphs.",
        show_default=False,
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        min=1, help="Trials at a time; as many as there is room for when left out.", show_default=False
    ),
]


def tune(
    file: Annotated[Path, typer.Argument(help="Run configuration, or study (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="`section.key=value` of the run, e.g. train.epochs=5.", show_default=False),
    ] = None,
    trials: Trials = None,
    space: Space = None,
    parallel: Parallel = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write the best configuration; best.yaml in the study's folder else."),
    ] = None,
) -> None:
    """Search for the configuration with the best validation Pearson delta, with Ray Tune and Optuna.

    Trial 0 is the configuration as it is. Every trial is a run of one worker with its own folder, checkpoints
    and MLflow run, in the study's folder NAME-tune; those that fall behind are stopped early (ASHA, by
    epochs). The same command again goes on where an interrupted study stopped, more --trials add to it. The
    best configuration is written as YAML for txpert train; the test split is scored for the best trial only.

    A search space maps keys to rules: {choice: [a, b]}, {uniform: [low, high]}, {log_uniform: [low, high]} or
    {integer: [low, high]}. A file may also hold the whole study: run, trials, space, parallel, out.

        txpert tune run.yaml --trials 50
        txpert tune run.yaml --space encoders --parallel 4 --out best.yaml
        txpert tune run.yaml --space space.yaml train.epochs=20
    """
    from txpert_dist.cli.tune_config import load_tuning
    from txpert_dist.config_file import dump
    from txpert_dist.train.tune import BEST_CONFIG, Study
    from txpert_dist.train.tune import tune as run
    from txpert_dist.train.tune_study import study_config, trial_name

    tuning = load_tuning(file, overrides or [], trials=trials, space=space, parallel=parallel, out=out)
    folder = study_config(tuning.run).run_folder
    console.print(f"study {folder.name}: {folder}, records in {tuning.run.tracking_uri}", soft_wrap=True)
    token = os.environ.pop(TOKEN, None) or None  # Ray's processes would inherit it
    if isinstance(tuning.space, str):
        raise AssertionError("the space is spelled out")
    study = Study(tuning.run, tuning.space, tuning.trials, tuning.parallel, where=space or f"{file}: space")
    with _watched() as show:
        done = run(study, show=show, graph_token=token)
    if not done.worked:
        say("every trial had ended before: nothing to do")
    best = tuning.out or folder / BEST_CONFIG
    if tuning.out is not None:
        tuning.out.write_text(dump(done.best), encoding="utf-8")
    output.print(_table(f"study {folder.name}", done.trials))
    winner = folder / trial_name(done.winner.number)
    say(f"best: {winner.name}, validation Pearson delta {_number(done.winner.best)}: {winner}")
    if done.delivery.late:
        say(f"MLflow was away: {done.delivery.late:,} records were delivered late")
    if done.delivery.queued:
        say(f"MLflow is away: {done.delivery.queued:,} records wait in {folder}; the same command sends them")
    _score_winner(winner)
    say(f"next: txpert train {best}")


def _score_winner(folder: Path) -> None:
    """The test split, for this trial alone."""
    from txpert_dist.cli.run import evaluate

    report = folder / "report"
    if not _reported(folder, report):
        evaluate(str(folder), split="test", report=report)


def _reported(folder: Path, report: Path) -> bool:
    from txpert_dist.evaluate.report import JSON_FILE
    from txpert_dist.train.checkpoint import best_checkpoint, read_state

    try:
        found = json.loads((report / JSON_FILE).read_text(encoding="utf-8"))["provenance"]
        same = (found["model_hash"], found["split"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same == (read_state(best_checkpoint(folder)).model_hash, "test")


@contextmanager
def _watched() -> "Iterator[Callable[[Sequence[Trial]], None]]":
    """A table that is drawn anew on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield _on_lines()
        return
    with Live(console=console, auto_refresh=False) as live:
        last = -math.inf

        def show(trials: "Sequence[Trial]") -> None:
            nonlocal last
            if time.monotonic() - last > _EVERY_S or all(trial.ending != "running" for trial in trials):
                last = time.monotonic()
                live.update(_table("trials", _latest(trials)), refresh=True)

        yield show


def _latest(trials: "Sequence[Trial]") -> "list[Trial]":
    """The running ones, the best and the newest, as many as fit a screen."""
    first = [trial for trial in trials if trial.ending == "running"]
    first += sorted((trial for trial in trials if trial.ending == "complete"), key=lambda trial: -trial.best)[
        :1
    ]
    rest = [trial for trial in reversed(trials) if trial not in first]
    return sorted([*first, *rest][:_SHOWN], key=lambda trial: trial.number)


def _on_lines() -> "Callable[[Sequence[Trial]], None]":
    told: dict[int, str] = {}

    def show(trials: "Sequence[Trial]") -> None:
        for trial in trials:
            line = _line(trial)
            if told.get(trial.number) != line:
                told[trial.number] = line
                console.print(line, soft_wrap=True)

    return show


def _line(trial: "Trial") -> str:
    where = f"trial {trial.number}: {trial.ending}, epoch {trial.epoch}, best {_number(trial.best)}"
    return f"{where}: {trial.message}" if trial.message else where


def _table(title: str, trials: "Sequence[Trial]") -> Table:
    rows = [
        [
            str(trial.number),
            trial.ending,
            ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in trial.values.items())
            if trial.number
            else "the configuration as it is",
            str(trial.epoch),
            _number(trial.best),
        ]
        for trial in trials
    ]
    return table(title, ["trial", "ending", "values", "epochs", "validation Pearson delta"], rows, texts=3)


def _short(value: object) -> str:
    """A value in a cell of a table: a section by its kind."""
    return str(value["kind"]) if isinstance(value, dict) and "kind" in value else str(value)


def _number(score: float) -> str:
    return "undefined" if math.isnan(score) else f"{score:.4f}"
