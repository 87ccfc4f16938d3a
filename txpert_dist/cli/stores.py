"""Verbs that make something of a cell store: export, split, append."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from txpert_dist.cli import reading
from txpert_dist.cli.data import Overwrite, cluster_for, say_changed, show_summary
from txpert_dist.cli.places import StorePlace
from txpert_dist.cli.screen import output, progress, say, table
from txpert_dist.errors import InputError

if TYPE_CHECKING:
    from txpert_dist.ingest.append import Appended


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
            help="csv or tsv with columns perturbation and split (and subgroup), in place of the seed.",
            show_default=False,
        ),
    ] = None,
    gears: Annotated[
        int | None,
        typer.Option(help="Seed of GEARS' split, in place of ours; 1 is its own.", show_default=False),
    ] = None,
    gears_mode: reading.Gears = "simulation",
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
    what `txpert ingest --split-seed` writes; with --table somebody else's split is used, with --gears that of
    GEARS, whose sub-groups (combo_seen0, 1, 2, unseen_single) the store keeps.

        txpert store split screen.zarr --out screen-seed1.zarr --seed 1
        txpert store split screen.zarr --out paper.zarr --table paper-splits.csv
        txpert store split norman.zarr --out norman-gears.zarr --gears 1
    """
    from txpert_dist.ingest.resplit import Resplit, resplit

    if gears is not None and table_ is not None:
        raise InputError("both --gears and --table are given; keep one of them")
    asked = Resplit(
        store=path,
        out=out,
        seed=seed if gears is None else gears,
        table=table_,
        gears=None if gears is None else gears_mode,
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


def append(
    store: StorePlace,
    sources: reading.Sources,
    preset: reading.Preset = None,
    perturbation_key: reading.PerturbationKey = None,
    control_label: reading.ControlLabel = None,
    control_key: reading.ControlKey = None,
    labels: reading.LabelTables = None,
    batch_key: reading.BatchKey = None,
    cell_line_key: reading.CellLineKey = None,
    cell_line: reading.CellLine = None,
    gene_name_key: reading.GeneNameKey = None,
    library_size_key: reading.LibrarySizeKey = None,
    layer: reading.Layer = "X",
    input_scale: reading.Scale = "counts",
    embedding: reading.Embedding = None,
    drop_embeddings: Annotated[
        bool, typer.Option("--drop-embeddings", help="Leave out the store's embeddings.")
    ] = False,
    where: reading.Where = None,
    separator: reading.Separator = None,
    split_seed: Annotated[int, typer.Option(help="Splits perturbations that the store lacks.")] = 0,
    min_cells: reading.MinCells = 1,
    unlabelled: reading.Unlabelled = "refuse",
    empty_cells: reading.EmptyCells = "refuse",
    workers: reading.Workers = 1,
    memory_gib: reading.MemoryGib = 2.0,
) -> None:
    """Append new batches or cell lines to a cell store, without writing it anew.

    Give the options of the ingest: files are read alike. Cells come behind those that are there, whose files
    stay but for the last one. Counts, controls and their means are those of an ingest of all files together;
    genes, selected genes and the split of perturbations that the store has stay, new perturbations are split
    among themselves. Batches that the store has are refused. The store is changed in one step, and whoever
    reads it meanwhile is not disturbed.

        txpert store append k562.zarr rpe1.h5ad --preset replogle --cell-line RPE1
    """
    from txpert_dist.ingest.append import append as run
    from txpert_dist.ingest.config import AppendConfig

    config = AppendConfig(
        sources=tuple(sources),
        store=store,
        preset=preset,
        perturbation_key=perturbation_key,
        control_label=control_label,
        control_key=control_key,
        labels=tuple(labels or ()),
        batch_key=batch_key,
        cell_line_key=cell_line_key,
        cell_line=cell_line,
        gene_name_key=gene_name_key,
        library_size_key=library_size_key,
        layer=layer,
        input_scale=input_scale,
        embeddings=tuple(embedding or ()),
        drop_embeddings=drop_embeddings,
        where=tuple(where or ()),
        separator=separator,
        split_seed=split_seed,
        min_cells=min_cells,
        unlabelled=unlabelled,
        empty_cells=empty_cells,
        workers=workers,
        memory_gib=memory_gib,
    )
    with progress() as show:
        done = run(config, progress=show, cluster=cluster_for(workers))
    _show_appended(done)


def _show_appended(done: "Appended") -> None:
    """Draw what was added, then what the store holds now."""
    lines = sorted({context.cell_line for context in done.contexts})
    shares = ", ".join(f"{number:,} {name}" for name, number in done.new_perturbations.items())
    new = sum(done.new_perturbations.values())
    rows = [
        ["cells", f"{done.num_cells:,}, of which {done.num_control_cells:,} controls"],
        ["batches", f"{len(done.contexts):,}"],
        ["cell lines of these", ", ".join(lines)],
        ["perturbations that were there", f"{done.known_perturbations:,}"],
        ["new perturbations", f"{new:,} ({shares})" if new else "0"],
        ["files of counts that stay", f"{done.kept_files:,}"],
    ]
    store = done.summary.store
    show_summary(done.summary.model_copy(update={"labels": done.labels}))
    output.print(table(f"appended to {store}", ["what", ""], rows, texts=2))
    say_changed(store, done.manifest_before, done.manifest_after)


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
