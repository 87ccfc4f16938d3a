"""The pipeline: ingest, graphs, train, evaluate, register, each stage skipped when its result is there.

Enters: a ``Pipeline``. Leaves: a cell store, a snapshot, a run with its report, a registered version.
Invariants: the same call goes on after any interruption and does nothing when all is complete; every stage
says in one line whether it did something.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txpert_dist.cli.screen import progress, say
from txpert_dist.config import Config

if TYPE_CHECKING:
    from txpert_dist.cli.pipeline_config import Evaluation, Pipeline


def pipeline(
    file: Annotated[Path, typer.Argument(help="Pipeline (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="`section.key=value`, e.g. run.train.epochs=5.", show_default=False),
    ] = None,
) -> None:
    """Ingest, build graphs, train, evaluate and register, from one file; what is complete is skipped.

    The file has a section for each stage: `ingest` (the options of txpert ingest, with _ for -), `graphs`
    (`recipe`: a graphs.yaml or its content; `out`), `run` (a run configuration, which finds store and graphs
    by itself), `evaluate` (`split`, `seed`) and `registry` (`name`, `alias`, `force`). The same command goes
    on where an interrupted one stopped. An alias that a baseline keeps from moving is no failure here.

        txpert pipeline pipeline.yaml run.train.epochs=40
        txpert submit pipeline pipeline.yaml
    """
    from txpert_dist.cli.pipeline_config import load_pipeline

    run_stages(load_pipeline(file, overrides or []))


def run_stages(config: "Pipeline") -> None:
    """Do every stage that is not complete, in order."""
    worked = [_ingest(config)]
    snapshot, built = _graphs(config)
    run = config.run.model_copy(update={"graph": config.run.graph.model_copy(update={"snapshot": snapshot})})
    worked += [built, _train(run), _evaluate(run, config.evaluate), _register(config)]
    if not any(worked):
        say("pipeline: every stage was complete before, nothing to do")


def _ingest(config: "Pipeline") -> bool:
    from txpert_dist.cli.data import cluster_for, show_summary
    from txpert_dist.ingest.run import ingest

    with progress() as show:
        summary = ingest(config.ingest, progress=show, cluster=cluster_for(config.ingest.workers))
    if summary.created:
        show_summary(summary)
    _told("1/5 ingest", summary.created, f"{summary.store}, {summary.num_cells:,} cells")
    return summary.created


def _graphs(config: "Pipeline") -> tuple[str, bool]:
    """The snapshot's id, and whether it had to be built."""
    from graph_store.build import build
    from txpert_dist.cli.graph_tables import show_sources
    from txpert_dist.cli.perturb_seq import read_screen

    with progress() as show:
        done = build(config.graphs.recipe, out=config.graphs.out, progress=show, read_screen=read_screen)
    if not done.was_there:
        show_sources(done.graphs)
    _told("2/5 graphs", not done.was_there, f"snapshot {done.path}")
    return done.id, not done.was_there


def _train(config: Config) -> bool:
    from txpert_dist.cli.run import train_as_told

    worked = train_as_told(config)
    _told("3/5 train", worked, f"run {config.name}, {config.run_folder}")
    return worked


def _evaluate(config: Config, asked: "Evaluation") -> bool:
    from txpert_dist.cli.run import evaluate

    report = config.run_folder / "report"
    complete = _reported(config, report, asked)
    if not complete:
        evaluate(str(config.run_folder), split=asked.split, report=report, seed=asked.seed)
    _told("4/5 evaluate", not complete, f"report {report / 'report.html'}")
    return not complete


def _reported(config: Config, report: Path, asked: "Evaluation") -> bool:
    """Whether ``report`` is on the run's best checkpoint and the cells that are asked for."""
    from txpert_dist.evaluate.report import JSON_FILE
    from txpert_dist.train.checkpoint import best_checkpoint, read_state

    state = read_state(best_checkpoint(config.run_folder))
    try:
        found = json.loads((report / JSON_FILE).read_text(encoding="utf-8"))["provenance"]
        same = (found["model_hash"], found["split"], found["split_hash"], found["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same == (state.model_hash, asked.split, state.split_hash, asked.seed)


def _register(config: "Pipeline") -> bool:
    from txpert_dist.serve.registry import register

    asked, folder = config.registry, config.run.run_folder
    done = register(folder, report=folder / "report", name=asked.name, alias=asked.alias, force=asked.force)
    _told("5/5 register", done.new, f"models:/{done.name}/{done.version}, {done.reason}")
    if done.alias:
        say(f"models:/{done.name}@{done.alias} is this version")
    elif asked.alias:
        say(f"alias {asked.alias} was not moved: a baseline is as good; registry.force=true moves it")
    return done.new


def _told(stage: str, worked: bool, what: str) -> None:
    say(f"{stage}: {'done' if worked else 'complete before, nothing to do'}: {what}")
