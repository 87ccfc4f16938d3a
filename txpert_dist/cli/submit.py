"""Verbs about Ray Jobs: submit, jobs list, jobs logs, jobs stop."""

import hashlib
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from txpert_dist.cli.screen import console, output, print_error, say, table
from txpert_dist.cli.tune import Parallel, Space, Trials
from txpert_dist.config_file import dump, load
from txpert_dist.errors import ConfigError, InputError

if TYPE_CHECKING:
    from txpert_dist.cli.job_server import Job, JobServer
    from txpert_dist.config import Config

Verb = Literal["train", "tune", "evaluate", "pipeline"]

jobs = typer.Typer(no_args_is_help=True, help="Jobs on a Ray cluster: list them, read their logs, stop them.")

Address = Annotated[
    str | None,
    typer.Option(
        help="Job server of the cluster; RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265 when "
        "left out.",
        show_default=False,
    ),
]
JobId = Annotated[str, typer.Argument(help="Id of the job, as submit and jobs list show it.")]

_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


class Order(NamedTuple):
    """A job to submit."""

    verb: str
    run: str
    folder: Path
    config: str
    """The resolved configuration."""
    arguments: tuple[str, ...]
    """Of the verb, on the cluster."""


class Search(NamedTuple):
    """What a study is told besides its file."""

    trials: int | None = None
    space: str | None = None
    parallel: int | None = None


def submit(
    verb: Annotated[Verb, typer.Argument(help="What to run there.", show_default=False)],
    file: Annotated[
        Path, typer.Argument(help="Run configuration, study or pipeline (YAML).", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="`section.key=value`, as for the verb.", show_default=False),
    ] = None,
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and return.")] = False,
    attempts: Annotated[
        int, typer.Option(min=1, help="Starts of the driver; each goes on from the last checkpoint.")
    ] = 3,
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a variable that the cluster must set for the job, from a Secret say (repeatable).",
            show_default=False,
        ),
    ] = None,
    trials: Trials = None,
    space: Space = None,
    parallel: Parallel = None,
) -> None:
    """Run train, tune, evaluate or pipeline as a Ray Job on a cluster; follow its log, return its exit code.

    The configuration is resolved here: what is wrong with it is said before anything is sent, and relative
    paths are those of this working directory, which the cluster must see (shared storage). This software goes
    with the job; its dependencies are the cluster's. A job for the same run that is under way is followed,
    not submitted twice; interrupted here, it goes on there. Values of secrets never travel: --env names what
    the cluster must provide. The token of a cluster that asks for one is read from
    RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.

        txpert submit train run.yaml train.epochs=40 --address http://head:8265
        txpert submit pipeline pipeline.yaml --detach
        txpert submit tune run.yaml --trials 50 --space encoders
        txpert submit train run.yaml --env MLFLOW_TRACKING_USERNAME --env MLFLOW_TRACKING_PASSWORD
    """
    order = _order(verb, file, overrides or [], Search(trials, space, parallel))
    _no_passwords(order.config, file)
    needs = _names(env or [])
    server = _connected(address)
    job, new = _submitted(server, order, needs, attempts)
    if detach:
        console.print(f"job {job} {'submitted' if new else 'is under way already'}", soft_wrap=True)
        say(job)
        return
    console.print(f"job {job} {'submitted' if new else 'is under way already'}: following", soft_wrap=True)
    try:
        _follow(server, job)
    except KeyboardInterrupt:
        console.print(f"job {job} goes on; to end it: txpert jobs stop {job}", soft_wrap=True)
        raise


@jobs.command("list")
def list_(address: Address = None) -> None:
    """List the jobs of a cluster, oldest first.

    txpert jobs list --address http://head:8265
    """
    server = _connected(address)
    from txpert_dist.cli import job_server

    rows = [
        [
            job.id,
            job.metadata.get("txpert_verb", ""),
            job.metadata.get("txpert_folder", ""),
            job.status,
            "" if job.exit_code is None else str(job.exit_code),
            _when(job.started),
            _lasted(job),
        ]
        for job in job_server.jobs(server)
    ]
    columns = ["job", "verb", "run", "status", "exit code", "started (UTC)", "lasted"]
    output.print(table(f"jobs at {server.address}", columns, rows, texts=4))


@jobs.command()
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more, until the job is over.")] = False,
    address: Address = None,
) -> None:
    """Show what a job has written; with --follow return its exit code.

    txpert jobs logs train-my-screen --follow
    """
    server = _connected(address)
    from txpert_dist.cli import job_server

    if follow:
        _follow(server, job)
    else:
        _write(job_server.log_text(server, job))


@jobs.command()
def stop(job: JobId, address: Address = None) -> None:
    """Stop a job: it may write a checkpoint first. Submitted again, the run goes on from there.

    txpert jobs stop train-my-screen
    """
    server = _connected(address)
    from txpert_dist.cli import job_server

    told = job_server.stop(server, job)
    say(f"job {job} was told to stop" if told else f"job {job} was over before")


def _connected(address: str | None) -> "JobServer":
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read once, when Ray is imported
    from txpert_dist.cli.job_server import connect

    return connect(address)


def _order(verb: Verb, file: Path, overrides: Sequence[str], search: Search) -> Order:
    """Resolve the configuration as the verb itself would."""
    from txpert_dist.cli.job_package import CONFIG
    from txpert_dist.cli.pipeline_config import load_pipeline

    if verb != "tune" and search != Search():
        raise InputError(f"--trials, --space and --parallel are for tune, not {verb}; leave them out")
    if verb == "tune":
        return _tune_order(file, overrides, search)
    if verb == "pipeline":
        pipeline = load_pipeline(file, overrides)
        run = _everywhere(pipeline.run)
        text = dump(pipeline.model_copy(update={"run": run}))
    else:
        run = _everywhere(load(file, overrides))
        text = dump(run)
    target = str(run.run_folder) if verb == "evaluate" else CONFIG
    return Order(verb, run.name, run.run_folder, text, (verb, target))


def _tune_order(file: Path, overrides: Sequence[str], search: Search) -> Order:
    """A study, its search space spelled out and checked."""
    from txpert_dist.cli.job_package import CONFIG
    from txpert_dist.cli.tune_config import load_tuning
    from txpert_dist.train.tune_space import space_of
    from txpert_dist.train.tune_study import study_config

    tuning = load_tuning(file, overrides, **search._asdict())
    run = _everywhere(tuning.run)
    if isinstance(tuning.space, dict):
        space_of(tuning.space, run, where=search.space or f"{file}: space")
    out = tuning.out.absolute() if tuning.out else None
    text = dump(tuning.model_copy(update={"run": run, "out": out}))
    return Order("tune", run.name, study_config(run).run_folder, text, ("tune", CONFIG))


def _everywhere(config: "Config") -> "Config":
    """The run with paths that hold in any working directory, the tracking database's included."""
    from txpert_dist.train.run_folder import absolute

    config = absolute(config)
    scheme, separator, path = (config.tracking.uri or "").partition("sqlite:///")
    if scheme or not separator or Path(path).is_absolute():
        return config
    uri = separator + str(Path(path).absolute())
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})})


def _no_passwords(config: str, file: Path) -> None:
    if _PASSWORD.search(config):
        raise ConfigError(
            f"{file}: an address in it holds a password, which everybody at the cluster could read; take it "
            "out, and let the cluster set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, say (--env)"
        )


def _names(env: Sequence[str]) -> tuple[str, ...]:
    for name in env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError("--env: give the name of a variable only, never its value: --env NAME")
    return tuple(env)


def _submitted(server: "JobServer", order: Order, needs: Sequence[str], attempts: int) -> tuple[str, bool]:
    """The id of the run's job, and whether it is a new one."""
    from txpert_dist import __version__
    from txpert_dist.cli import attempts as driver
    from txpert_dist.cli import job_server
    from txpert_dist.cli.job_package import write_package
    from txpert_dist.train.run_folder import git_commit

    commit = git_commit()
    digest = hashlib.sha256(order.config.encode()).hexdigest()[:16]
    metadata = {
        "txpert_verb": order.verb,
        "txpert_run": order.run,
        "txpert_folder": str(order.folder),
        "txpert_config": digest,
        "txpert_version": __version__,
        "git_commit": commit,
    }
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "job.zip"
        write_package(package, order.config, commit)
        entrypoint = shlex.join(driver.command(attempts, needs, order.arguments))
        job, new = job_server.submit(server, f"{order.verb}-{order.run}", entrypoint, package, metadata)
    if job.metadata.get("txpert_config") != digest:
        raise InputError(
            f"job {job.id} is running {order.run} with another configuration; wait for it, stop it (txpert "
            f"jobs stop {job.id}) or choose another name="
        )
    return job.id, new


def _follow(server: "JobServer", job_id: str) -> None:
    """Show a job's log to its end, and end as it ended."""
    from txpert_dist.cli.job_server import follow

    job = follow(server, job_id, _write)
    if job.status == "SUCCEEDED":
        console.print(f"job {job.id} succeeded", soft_wrap=True)
        return
    if job.status == "STOPPED":
        print_error(f"job {job.id} was stopped; submitted again, it goes on from what is there")
        raise typer.Exit(1)
    if job.exit_code is None:  # it never ran, or died with the node it ran on
        print_error(f"job {job.id} failed: {(job.message.strip().splitlines() or ['no reason given'])[0]}")
        raise typer.Exit(1)
    print_error(f"job {job.id} failed with exit code {job.exit_code}; its log above says why")
    raise typer.Exit(job.exit_code if job.exit_code > 0 else 1)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _when(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _lasted(job: "Job") -> str:
    if job.started is None:
        return ""
    seconds = round((job.ended or time.time()) - job.started)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
