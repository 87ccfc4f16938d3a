"""Verbs of one run: train, evaluate."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

from txpert_dist.cli.graph_access import TOKEN
from txpert_dist.cli.screen import console, output, progress, say, table
from txpert_dist.cli.serving import TrackingUri, default_tracking_uri
from txpert_dist.config import Config
from txpert_dist.config_file import load
from txpert_dist.errors import InputError

if TYPE_CHECKING:
    from txpert_dist.evaluate.blocks import Effort
    from txpert_dist.evaluate.node_map import NodeMap
    from txpert_dist.evaluate.report import Report
    from txpert_dist.serve.registered import Registered
    from txpert_dist.store.cells import CellStore


def train(
    file: Annotated[Path, typer.Argument(help="Run configuration (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="`section.key=value`, e.g. train.epochs=5.", show_default=False),
    ] = None,
) -> None:
    """Train on Ray workers with DeepSpeed, on this machine or on the cluster at RAY_ADDRESS.

    Everything is recorded in MLflow. The same command again goes on where an interrupted run stopped, and
    does nothing when the run is complete. `txpert config --keys` lists what can be configured. When
    graph.location is a graph service (grpc://HOST:PORT), its snapshot is fetched once, into the run's folder;
    TXPERT_GRAPH_TOKEN in the environment is the token that lets this command in. Told to stop (SIGTERM,
    Ctrl-C) it writes a checkpoint first and exits with 75; told twice it stops at once.

        txpert train run.yaml train.epochs=40 cluster.num_workers=2
        txpert train run.yaml cluster.num_workers=[1,8] train.checkpoint_mirror=s3://bucket/runs
    """
    config = load(file, overrides or [])
    train_as_told(config)
    say(f"next: txpert evaluate {config.run_folder}")


def train_as_told(config: Config) -> bool:
    """Train, and show what came of it; False when the run was complete before."""
    from txpert_dist.train.tracking import deliver
    from txpert_dist.train.worker import train as run

    console.print(f"run {config.name}: {config.run_folder}, records in {config.tracking_uri}", soft_wrap=True)
    token = os.environ.pop(TOKEN, None) or None  # Ray's processes would inherit it
    with progress() as show:
        done = run(config, progress=show, graph_token=token)
    if done.started_at == done.steps:
        say("the run was complete before: nothing to do")
    elif done.started_at:
        say(f"went on from step {done.started_at:,}")
    for line in done.damaged:
        say(f"a damaged checkpoint was passed over: {line}")
    if done.lost_metrics:
        say(f"MLflow did not take {done.lost_metrics:,} metrics; the model is not affected")
    delivery = deliver(config.run_folder)
    if delivery.late:
        say(f"MLflow was away: {delivery.late:,} records were delivered late")
    if delivery.queued:
        say(
            f"MLflow is away: {delivery.queued:,} records wait in {config.run_folder}; the command sends them"
        )
    rows = [
        ["epochs, steps", f"{done.epochs:,}, {done.steps:,}"],
        ["best validation Pearson delta", f"{done.validation_pearson_delta:.4f}"],
        ["best checkpoint", str(done.best)],
        ["MLflow run", done.run_id],
    ]
    output.print(table(f"run {config.name}", ["result", ""], rows, texts=2))
    return done.started_at < done.steps


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="Run folder, checkpoint folder or models:/NAME@ALIAS.", show_default=False),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Cell store; the run's own when left out.", show_default=False)
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Perturbations to score.")
    ] = "test",
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; RUN/report for a run's folder when left out.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws halves, resampled screens, references, intervals.")] = 0,
    tracking_uri: TrackingUri = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="h5ad that any program predicted, in place of a model: obs perturbation, cell_line and, if "
            "known, batch; cells or means on the scale log1p(4000 x count / library size).",
            show_default=False,
        ),
    ] = None,
    genes: Annotated[
        Literal["selected", "all", "file"],
        typer.Option(help="Genes to score --predictions on: the store's selected ones, all, or the file's."),
    ] = "selected",
    held_out_cell_line: Annotated[
        list[str] | None,
        typer.Option(help="Score --predictions on this cell line only (repeatable).", show_default=False),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option(help="Count what --predictions lack as undefined, rather than refuse.")
    ] = False,
    genes_selected_on: Annotated[
        Literal["train", "all"],
        typer.Option(help="all: allow a store whose genes were selected on held-out cells."),
    ] = "train",
    energy_cells: Annotated[
        int, typer.Option(help="Cells of a perturbation for the energy distance; 0 leaves it out.", min=0)
    ] = 0,
    workers: Annotated[int, typer.Option(help="Processes that score; more than one need Ray.", min=1)] = 1,
    reselect: Annotated[
        bool,
        typer.Option(
            "--reselect", help="Also let resampled screens select their variable genes anew; draws all cells."
        ),
    ] = False,
    tiers: Annotated[
        Path | None,
        typer.Option(
            help="csv or tsv with columns gene and score(s), or gene and rank: scores by knowledge tier.",
            show_default=False,
        ),
    ] = None,
    pathways: Annotated[
        Path | None,
        typer.Option(help="GMT of gene sets that colour the map of the model's genes.", show_default=False),
    ] = None,
    node_map: Annotated[
        Literal["pca", "umap", "none"],
        typer.Option("--map", help="How the model's embeddings of genes are drawn."),
    ] = "pca",
) -> None:
    """Score a model beside baselines and the screen's own reproducibility: same cells, same code.

    Writes report.html (one page that needs nothing else), report.md, report.json, per_perturbation.parquet
    and figures; `txpert compare` sets several side by side. For a run's folder the report is added to the
    MLflow run, and `txpert register` asks for it. A model that was trained with data.held_out_cell_lines is
    scored on these: --split train scores perturbations seen in other cell lines, test and validation unseen
    ones.

        txpert evaluate runs/k562
        txpert evaluate models:/txpert@champion --store other.zarr --report report
        txpert evaluate --predictions other_tool.h5ad --store screen.zarr --report report
    """
    from txpert_dist.evaluate.blocks import Effort
    from txpert_dist.evaluate.gene_sets import read_gene_sets
    from txpert_dist.evaluate.report import with_model, with_tiers, write_report
    from txpert_dist.evaluate.tiers import read_tiers
    from txpert_dist.store.cells import open_store

    options: _Options = {"seed": seed, "genes_selected_on": genes_selected_on}
    options["effort"] = Effort(energy_cells=energy_cells, workers=workers, reselect=reselect)
    known = None if tiers is None else read_tiers(tiers)
    gene_sets = None if pathways is None else read_gene_sets(pathways)
    if (model is None) == (predictions is None):
        raise InputError("give either a model (a run's folder, say) or --predictions FILE")
    if model is None:
        if predictions is None or store is None or report is None:
            raise InputError(f"{predictions}: say what it predicts and where to write: --store, --report")
        if gene_sets is not None:
            raise InputError(
                "--pathways: colours a model's genes, and predictions have no model; leave it out"
            )
        lines = tuple(held_out_cell_line or ())
        result = _score_file(predictions, store, split, genes, lines, allow_missing, options)
        write_report(result if known is None else with_tiers(result, known), report)
        _show(result)
        say(f"report: {report / 'report.html'}")
        return
    folder = Path(model)
    out = report or folder / "report"
    if report is None and model.startswith("models:/"):
        raise InputError(f"{model}: say where the report goes: --report FOLDER")
    ready = open_trained(model, tracking_uri)
    cells = open_store(store or ready.loaded.config.data.store)
    if cells.split_hash != ready.loaded.state.split_hash:
        console.print(
            f"warning: {cells.path} has another split than the model was trained on; perturbations of its "
            f"{split} split may have been seen in training",
            style="yellow",
            soft_wrap=True,
        )
    nodes = None if node_map == "none" else _map_of_nodes(ready, cells, node_map, gene_sets)
    result = _score(ready, cells.path, split, model, options)
    result = with_model(result, ready.loaded.config.model_dump(mode="json"), nodes)
    write_report(result if known is None else with_tiers(result, known), out)
    _log(folder, result, out, step=ready.loaded.state.step)
    _show(result)
    say(f"report: {out / 'report.html'}")


def open_trained(model: str, tracking_uri: str | None) -> "Registered":
    """The model of a run folder, a checkpoint folder or the registry, ready to predict."""
    from txpert_dist.serve.registered import open_checkpoint
    from txpert_dist.serve.registry import open_model

    if model.startswith("models:/"):
        return open_model(model, tracking_uri=tracking_uri or default_tracking_uri())
    return open_checkpoint(Path(model))


class _Options(TypedDict, total=False):
    """What every evaluation is told."""

    seed: int
    genes_selected_on: Literal["train", "all"]
    effort: "Effort"


def _score_file(
    file: Path,
    path: Path,
    split: str,
    which: Literal["selected", "all", "file"],
    lines: tuple[str, ...],
    allow_missing: bool,
    options: _Options,
) -> "Report":
    from txpert_dist.evaluate.predictions import genes_in_file, read_predictions
    from txpert_dist.evaluate.report import Origin, with_origin
    from txpert_dist.evaluate.run import evaluate as run
    from txpert_dist.store.cells import open_store

    cells = open_store(path)
    view = genes_in_file(file, cells) if which == "file" else cells.training_genes(which)
    found = read_predictions(
        file, cells, split=split, genes=view, held_out_cell_lines=lines, allow_missing=allow_missing
    )
    with progress() as show:
        result = run(
            cells,
            [found.predictor],
            split=split,
            genes=view,
            held_out_cell_lines=lines,
            exclusions=found.exclusions,
            progress=show,
            **options,
        )
    return with_origin(result, Origin(run=str(file)))


def _score(ready: "Registered", path: Path, split: str, name: str, options: _Options) -> "Report":
    from txpert_dist.evaluate.predict import predictor_of_store
    from txpert_dist.evaluate.report import Origin, with_origin
    from txpert_dist.evaluate.run import evaluate as run
    from txpert_dist.serve.predict import genes_in_store
    from txpert_dist.store.cells import open_store

    cells, loaded = open_store(path), ready.loaded
    genes = genes_in_store(loaded, cells)
    predictor = predictor_of_store(loaded, cells, genes)
    there = {context.cell_line for context in cells.contexts}
    held_out = [line for line in loaded.config.data.held_out_cell_lines if line in there]
    with progress() as show:
        result = run(
            cells,
            [predictor],
            split=split,
            genes=genes,
            held_out_cell_lines=held_out,
            snapshot=loaded.snapshot,
            progress=show,
            **options,
        )
    origin = Origin(name, loaded.state.model_hash, loaded.snapshot.id, loaded.state.git_commit)
    return with_origin(result, origin)


def _map_of_nodes(
    ready: "Registered",
    cells: "CellStore",
    projection: Literal["pca", "umap"],
    gene_sets: dict[str, frozenset[str]] | None,
) -> "NodeMap":
    from txpert_dist.evaluate.node_map import node_map

    known = ready.loaded.vocabulary
    genes = {gene for name in cells.perturbations[1:] for gene in name.split("+")}
    return node_map(
        ready.z_PD.numpy(),
        known.genes,
        ready.loaded.snapshot.graphs,
        frozenset(known.by_alias.get(gene, gene) for gene in genes),
        projection=projection,
        gene_sets=gene_sets,
    )


def _log(folder: Path, report: "Report", files: Path, *, step: int) -> None:
    """Add the report to the MLflow run that the folder belongs to, if it is a run's."""
    from txpert_dist.train.tracking import RECORD, MetricWriter, describe_run, read_run_record

    if not (folder / RECORD).exists():
        return
    record = read_run_record(folder)
    writer = MetricWriter(record)
    for row in (*report.predictors, *report.reproducibility):
        means = {name: value.mean for name, value in row.metrics.items() if value.mean is not None}
        writer.log(
            {f"{report.provenance.split}/{row.name}/{name}": mean for name, mean in means.items()}, step
        )
    writer.close()
    describe_run(record, status=record.status, artefact=files)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _show(report: "Report") -> None:
    from txpert_dist.evaluate.scores import HEADLINE

    rows = [*report.predictors, *report.reproducibility]
    metrics = list(HEADLINE)
    numbers = [[row.name, *(_number(row.metrics[metric].mean) for metric in metrics)] for row in rows]
    counts = report.counts
    held_out = report.provenance.held_out_cell_lines
    of_lines = f" of held-out {', '.join(held_out)}" if held_out else ""
    title = (
        f"{report.provenance.split} split{of_lines}: {counts.perturbations:,} perturbations, "
        f"{counts.cells:,} cells"
    )
    output.print(table(title, ["", *metrics], numbers))
