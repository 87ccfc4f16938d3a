"""Verbs of one run: train, evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from txpert_dist.cli.screen import console, output, progress, say, table
from txpert_dist.config import load


def train(
    file: Annotated[Path, typer.Argument(help="Run configuration (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="`section.key=value`, e.g. train.epochs=5.", show_default=False),
    ] = None,
) -> None:
    """Train on Ray workers with DeepSpeed, on this machine or on the cluster at RAY_ADDRESS.

    Everything is recorded in MLflow. The same command again goes on where an interrupted run stopped, and
    does nothing when the run is complete.

        txpert train run.yaml train.epochs=40 cluster.num_workers=2
    """
    from txpert_dist.train.worker import train as run

    config = load(file, overrides or [])
    console.print(f"run {config.name}: {config.run_folder}, records in {config.tracking_uri}")
    with progress() as show:
        done = run(config, progress=show)
    rows = [
        ["epochs", f"{done.epochs:,}"],
        ["best validation Pearson delta", f"{done.validation_pearson_delta:.4f}"],
        ["best checkpoint", str(done.best)],
        ["MLflow run", done.run_id],
    ]
    output.print(table(f"run {config.name}", ["result", ""], rows))
    say(f"next: txpert evaluate {config.run_folder}")


def evaluate() -> None:
    """x"""
