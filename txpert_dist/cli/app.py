"""The `txpert` command: every verb, and how failures end.

Exit codes: 0 success; 2 something the user can mend, said in one line on stderr; 75 training was told to stop
and can go on (EX_TEMPFAIL of sysexits.h); 130 interrupted; 1 anything else.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from graph_store.graph import GraphError
from txpert_dist import __version__
from txpert_dist.cli import (
    compare,
    data,
    doctor,
    embed,
    embeddings,
    fetch,
    graph,
    graph_service,
    pipeline,
    run,
    serving,
    stores,
    submit,
    tune,
    understand,
)
from txpert_dist.cli.screen import console, output, print_error, table
from txpert_dist.config_file import describe, dump, load
from txpert_dist.errors import ConfigError, TrainingError, TxPertError
from txpert_dist.train.stop import Stopped

_INTERRUPTED, _STOPPED = 130, 75

app = typer.Typer(
    name="txpert",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Predict how gene perturbations change single-cell expression: train, evaluate and serve TxPert.

The journey, one verb each: **ingest** a Perturb-seq h5ad into a cell store, **graph build** knowledge graphs
into a snapshot, **train** from a run configuration, **evaluate** beside baselines and reproducibility,
**register** the model in MLflow, **predict** perturbations nobody measured. No data yet? **fetch** or
**simulate**. All of it from one file: **pipeline**; on a Ray cluster: **submit**.""",
)
app.command()(data.simulate)
app.command()(fetch.fetch)
app.command()(data.ingest)
data.store.command()(stores.export)
data.store.command()(stores.split)
data.store.command()(stores.append)
data.store.command()(stores.mirror)
app.add_typer(data.store, name="store")
app.add_typer(embed.embed, name="embed")
graph.graph.command()(graph_service.serve)
graph.graph.command("list")(graph_service.list_)
graph.graph.command()(graph_service.fetch)
graph.graph.add_typer(embeddings.embeddings, name="embeddings")
app.add_typer(graph.graph, name="graph")
app.command()(understand.understand)
app.command()(run.train)
app.command()(tune.tune)
app.command()(run.evaluate)
app.command()(compare.compare)
app.command()(serving.register)
app.command()(serving.predict)
app.command()(pipeline.pipeline)
app.command()(submit.submit)
app.add_typer(submit.jobs, name="jobs")
app.command()(doctor.doctor)


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(help="Run configuration (YAML).", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="`section.key=value`, as for train.", show_default=False)
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="List every key, its default and meaning.")] = False,
) -> None:
    """Print the resolved configuration: defaults, file and overrides together. Starts nothing.

    txpert config run.yaml train.epochs=5
    txpert config --keys
    """
    if keys:
        rows = [list(key) for key in describe()]
        output.print(table("run configuration", ["key", "default", "meaning"], rows, texts=3))
    elif file is None:
        raise ConfigError("config: give a run configuration, or --keys to see what can be in one")
    else:
        typer.echo(dump(load(file, overrides or [])), nl=False)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"txpert-dist {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _explain(entry: dict[str, Any]) -> str:
    """An option whose value the configuration of its verb refused."""
    option = "--" + "-".join(str(part) for part in entry["loc"][:1]).replace("_", "-")
    message = str(entry["msg"]).removeprefix("Value error, ")
    return f"{option}: {message} (got {entry['input']!r})" if entry["loc"] else message


def main() -> None:
    """Entry point of the `txpert` command."""
    # MLflow's own log of database migrations and its file-by-file bars would hide ours.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Handshakes that fail are told in our words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        app()
    except Stopped as stop:
        console.print(str(stop), style="yellow", soft_wrap=True)
        sys.exit(_STOPPED)
    except TrainingError as error:
        print_error(str(error))
        sys.exit(1)
    except (TxPertError, GraphError) as error:
        print_error(str(error))
        sys.exit(2)
    except ValidationError as error:
        print_error("; ".join(_explain(dict(entry)) for entry in error.errors()))
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"graph_store", "txpert_dist"}:
            raise
        print_error(f"{error.name} is not installed; this verb needs it: pip install 'txpert-dist[train]'")
        sys.exit(2)
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:  # typer's own answer to an interrupt says nothing
            console.print(
                "interrupted; give the same command again (training goes on from its last checkpoint)",
                style="yellow",
                soft_wrap=True,
            )
        raise


if __name__ == "__main__":
    main()
