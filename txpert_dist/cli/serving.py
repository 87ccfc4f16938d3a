"""Verbs that put a model into the registry and use it: register, predict."""

import os
from pathlib import Path
from typing import Annotated

import typer

from txpert_dist.cli.screen import output, progress, say, table
from txpert_dist.errors import InputError


def default_tracking_uri() -> str:
    """The tracking server of MLFLOW_TRACKING_URI, else the file that `txpert train` writes by default."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('runs/mlflow.db').absolute()}"


TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow server; MLFLOW_TRACKING_URI or runs/mlflow.db when left out.", show_default=False
    ),
]


def register(
    run: Annotated[Path, typer.Argument(help="Folder of the run, e.g. runs/k562.", show_default=False)],
    name: Annotated[str, typer.Option(help="Name of the registered model.")] = "txpert",
    alias: Annotated[
        str | None, typer.Option(help="Alias to move to this version: champion, challenger.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="The run's report; RUN/report when left out.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option(help="Move the alias even if a baseline is better.")] = False,
) -> None:
    """Put a run's best model into the MLflow registry, with its graphs, genes and evaluation report.

    The alias only moves to a model that loads and predicts in a fresh process and beats every baseline of its
    report in Pearson delta.

        txpert register runs/k562 --alias champion
    """
    from txpert_dist.serve.registry import register as put

    done = put(run, report=report or run / "report", name=name, alias=alias, force=force)
    state = "registered" if done.new else "was registered before"
    say(f"models:/{done.name}/{done.version} {state}: {done.reason}")
    if alias and not done.alias:
        say(f"alias {alias} was not moved: a baseline is as good; --force moves it all the same")
        raise typer.Exit(2)
    if done.alias:
        say(f"models:/{done.name}@{done.alias} is this version")


def predict(
    model: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.", show_default=False)
    ],
    store: Annotated[
        Path, typer.Option(help="Cell store whose controls are the starting point.", show_default=False)
    ],
    perturbations: Annotated[
        str,
        typer.Option(help='Comma-separated: "JAK2,STAT1+IRF1". Any gene of the graph.', show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="h5ad to write.", show_default=False)],
    cell_line: Annotated[
        str | None, typer.Option(help="Cell line; may be left out when there is one.", show_default=False)
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(help="Only the controls of this batch (repeatable).", show_default=False),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Predict perturbations, single, combined or never measured, for the controls of a cell line.

    Writes one predicted row per perturbation and batch, and the control cells, on the scale
    log1p(4000 x count / library size): scanpy opens the file and cell-eval takes it as it is.

        txpert predict models:/txpert@champion --store screen.zarr --perturbations "JAK2,STAT1+IRF1"
            --out predicted.h5ad
    """
    from txpert_dist.serve.predict import predict_for_store
    from txpert_dist.serve.registry import open_model
    from txpert_dist.store.cells import open_store

    names = [name.strip() for name in perturbations.split(",") if name.strip()]
    if not names:
        raise InputError('--perturbations: names none; give for instance "JAK2,STAT1+IRF1"')
    cells = open_store(store)
    lines = sorted({context.cell_line for context in cells.contexts})
    if cell_line is None and len(lines) > 1:
        raise InputError(
            f"{store}: holds several cell lines; choose one with --cell-line: {', '.join(lines)}"
        )
    ready = open_model(model, tracking_uri=tracking_uri or default_tracking_uri())
    with progress() as show:
        done = predict_for_store(
            ready, cells, names, cell_line=cell_line or lines[0], batches=batch, out=out, progress=show
        )
    rows = [
        ["perturbations", f"{done.perturbations:,}"],
        ["batches", f"{done.contexts:,}"],
        ["predicted rows", f"{done.predicted_rows:,}"],
        ["control cells", f"{done.control_cells:,}"],
        ["values below 0 set to 0", f"{done.clipped:,}"],
    ]
    output.print(table(f"{done.path}", ["written", "number"], rows))
