"""Verbs that make something of a cell store: export, split, append."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from txpert_dist.cli.data import Overwrite, cluster_for, show_summary
from txpert_dist.cli.places import StorePlace
from txpert_dist.cli.screen import output, progress, say, table


def export(
    path: StorePlace,
    out: Annotated[Path, typer.Argument(help="h5ad to write.", show_default=False)],
    compression: Annotated[
        Literal["none", "gzip"], typer.Option(help="gzip: a third of the size, ten times slower to write.")
    ] = "none",
    overwrite: Overwrite = False,
) -> None:
    """Write a cell store as one h5ad file, in bounded memory.

    The same cells, counts, tables and embeddings, in the store's order; obs says besides how each cell was
    read: txpert_perturbation, txpert_cell_line, txpert_batch, txpert_split.

        txpert store export screen.zarr screen.h5ad
    """
    from txpert_dist.ingest.export import export as run

    with progress() as show:
        done = run(path, out, compression=compression, overwrite=overwrite, progress=show)
    rows = [
        ["cells x genes", f"{done.num_cells:,} x {done.num_genes:,}"],
        ["counts that are not zero", f"{done.num_entries:,}"],
        ["size", f"{done.size / 2**20:,.0f} MiB"],
    ]
    output.print(table(f"exported: {done.path}", ["what", ""], rows, texts=2))
    for name in done.replaced:
        say(f"note: obs column {name!r} of the store is replaced by what the store says now")


def split(
    path: StorePlace,
    out: Annotated[Path, typer.Option(help="Cell store to write.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Decides train, validation and test, as in ingest.")] = 0,
    table_: Annotated[
        Path | None,
        typer.Option(
            "--table",
            help="csv or tsv with columns perturbation and split, in place of the seed.",
            show_default=False,
        ),
    ] = None,
    select_genes: Annotated[
        int | None,
        typer.Option(help="Highly variable genes to train on; 0: all; else as many as there are."),
    ] = None,
    hvg_flavour: Annotated[
        Literal["seurat", "cell_ranger", "seurat_v3"],
        typer.Option(help="How variability is measured; as scanpy's flavour of the name."),
    ] = "seurat",
    select_on: Annotated[
        Literal["train", "all"], typer.Option(help="Cells that decide which genes vary.")
    ] = "train",
    held_out_cell_line: Annotated[
        list[str] | None,
        typer.Option(help="Line whose perturbed cells have no say in that (repeatable).", show_default=False),
    ] = None,
    row_order: Annotated[
        Literal["split", "source"],
        typer.Option(help="split: cells of a split together, shuffled; source: as in the files."),
    ] = "split",
    workers: Annotated[int, typer.Option(help="Processes; more than one need Ray.")] = 1,
    memory_gib: Annotated[float, typer.Option(help="Memory that each process may take.")] = 2.0,
    overwrite: Overwrite = False,
) -> None:
    """Write a cell store with the same cells and another split.

    Rows are grouped by the new split and genes are selected on its training cells. With --seed the result is
    what `txpert ingest --split-seed` writes; with --table somebody else's split is used.

        txpert store split screen.zarr --out screen-seed1.zarr --seed 1
        txpert store split screen.zarr --out paper.zarr --table paper-splits.csv
    """
    from txpert_dist.ingest.resplit import Resplit, resplit

    asked = Resplit(
        store=path,
        out=out,
        seed=seed,
        table=table_,
        select_genes=select_genes,
        hvg_flavour=hvg_flavour,
        select_on=select_on,
        held_out_cell_lines=tuple(held_out_cell_line or ()),
        row_order=row_order,
        workers=workers,
        memory_gib=memory_gib,
        overwrite=overwrite,
    )
    with progress() as show:
        summary = resplit(asked, progress=show, cluster=cluster_for(workers))
    # The labels are those of the old store.
    show_summary(summary.model_copy(update={"labels": ()}))


def mirror(
    url: Annotated[str, typer.Argument(help="URL of a cell store (s3://...).", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    whole: Annotated[bool, typer.Option("--whole", help="Fetch everything now.")] = False,
) -> None:
    """Make a cell store that lies elsewhere readable as a folder, for training as for every other verb.

    The metadata comes at once; a file of counts comes when it is first read, and is checked against the
    store's manifest.

        txpert store mirror s3://bucket/screen.zarr screen.zarr
        txpert train run.yaml data.store=screen.zarr
    """
    from txpert_dist.store.remote import fetch_shards, make_view

    path = make_view(url, out)
    if whole:
        with progress() as show:
            fetch_shards(path, show)
    say(f"{path}: a view of {url}{', fetched whole' if whole else ''}")
