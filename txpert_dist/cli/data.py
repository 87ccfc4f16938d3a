"""Verbs about cells: simulate, ingest, store info, store verify."""

import os
import secrets
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from txpert_dist.cli import reading
from txpert_dist.cli.places import StorePlace
from txpert_dist.cli.screen import output, progress, say, table

if TYPE_CHECKING:
    from txpert_dist.ingest.summary import IngestSummary
    from txpert_dist.store.cells import CellStore

store = typer.Typer(no_args_is_help=True, help="Look into a cell store, check it.")

LABELS_SHOWN = 40
"""Longer label tables show only what changed its name, and at most this many rows."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]


def simulate(
    out: Annotated[
        Path, typer.Argument(help="h5ad to write; graphs and truth go beside it.", show_default=False)
    ],
    cells: Annotated[int, typer.Option(help="Cells, controls included.")] = 20_000,
    genes: Annotated[int, typer.Option(help="Measured genes.")] = 2_000,
    perturbations: Annotated[int, typer.Option(help="Genes perturbed one at a time.")] = 100,
    doubles: Annotated[int, typer.Option(help="Pairs of them perturbed together.")] = 0,
    cell_lines: Annotated[int, typer.Option(help="Cell lines.")] = 2,
    batches: Annotated[int, typer.Option(help="Experimental batches of each cell line.")] = 4,
    control_fraction: Annotated[float, typer.Option(help="Share of non-targeting cells.")] = 0.1,
    guide_efficiency: Annotated[float, typer.Option(help="Share of cells fully perturbed.")] = 0.85,
    graph_missing: Annotated[float, typer.Option(help="Share of true edges the graphs lack.")] = 0.3,
    graph_false: Annotated[float, typer.Option(help="Share of the graphs' edges that are false.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Same arguments, same bytes.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a screen with known truth, of any size, in bounded memory.

    Perturbation effects spread over a hidden gene network; two noisy, partial views of it are written as
    knowledge-graph files with a ready graphs.yaml, and the noise-free truth as truth.npz.

        txpert simulate demo/screen.h5ad --cells 20000 --genes 1000 --seed 1
    """
    from txpert_dist.simulate.config import SimulateConfig
    from txpert_dist.simulate.run import simulate as run

    config = SimulateConfig(
        cells=cells,
        genes=genes,
        perturbations=perturbations,
        doubles=doubles,
        cell_lines=cell_lines,
        batches=batches,
        control_fraction=control_fraction,
        guide_efficiency=guide_efficiency,
        graph_missing=graph_missing,
        graph_false=graph_false,
        seed=seed,
    )
    with progress() as show:
        done = run(config, out=out, overwrite=overwrite, progress=show)
    rows = [
        ["cells x genes", f"{done.cells:,} x {done.genes:,}"],
        ["perturbations", f"{done.perturbations:,}"],
        ["median counts of a cell", f"{done.median_counts:,.0f}"],
        ["entries above 0", f"{done.nonzeros / (done.cells * done.genes):.1%}"],
        ["knowledge-graph edges, gene sets", f"{done.interactions:,}, {done.gene_sets:,}"],
        ["truth", str(done.truth)],
        ["recipe of the graphs", str(done.graphs)],
    ]
    output.print(table(f"simulated: {done.screen}", ["what", ""], rows, texts=2))


def ingest(
    sources: reading.Sources,
    store: Annotated[Path, typer.Option(help="Cell store to write.", show_default=False)],
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
    where: reading.Where = None,
    separator: reading.Separator = None,
    genes_join: Annotated[
        Literal["intersection", "union"], typer.Option(help="Genes of several files.")
    ] = "intersection",
    select_genes: Annotated[int, typer.Option(help="Highly variable genes to train on; 0: all.")] = 5000,
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
    split: Annotated[
        Literal["random", "gears"],
        typer.Option(help="gears: as GEARS divides perturbations, with its sub-groups; its seed is 1."),
    ] = "random",
    gears_mode: reading.Gears = "simulation",
    split_seed: Annotated[int, typer.Option(help="Decides train, validation and test.")] = 0,
    min_cells: reading.MinCells = 1,
    require_knockdown: Annotated[
        float | None,
        typer.Option(
            help="Leave out perturbations that lower a measured target by a smaller share, e.g. 0.3.",
            show_default=False,
        ),
    ] = None,
    unlabelled: reading.Unlabelled = "refuse",
    empty_cells: reading.EmptyCells = "refuse",
    row_order: Annotated[
        Literal["split", "source"],
        typer.Option(help="split: cells of a split together, shuffled; source: as in the files."),
    ] = "split",
    workers: reading.Workers = 1,
    memory_gib: reading.MemoryGib = 2.0,
    overwrite: Overwrite = False,
) -> None:
    """Turn Perturb-seq files (h5ad, Zarr, 10x) into a cell store: counts, controls, splits, genes.

    Streams the files in bounded memory. Labels are canonicalised (A+ctrl = ctrl+A = A, A+B = B+A) and what
    became what is shown. The cells of each split come together, shuffled; obs follows, and
    uns/txpert/source_row has their places in the files. Killed, the same command goes on where it was. The
    store opens in anndata: anndata.read_zarr("screen.zarr").

        txpert ingest replogle.h5ad --store k562.zarr --preset replogle --cell-line K562
    """
    from txpert_dist.ingest.config import IngestConfig
    from txpert_dist.ingest.run import ingest as run

    config = IngestConfig(
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
        where=tuple(where or ()),
        separator=separator,
        genes_join=genes_join,
        select_genes=select_genes,
        hvg_flavour=hvg_flavour,
        select_on=select_on,
        held_out_cell_lines=tuple(held_out_cell_line or ()),
        split=split,
        gears_mode=gears_mode,
        split_seed=split_seed,
        min_cells=min_cells,
        require_knockdown=require_knockdown,
        unlabelled=unlabelled,
        empty_cells=empty_cells,
        row_order=row_order,
        workers=workers,
        memory_gib=memory_gib,
        overwrite=overwrite,
    )
    with progress() as show:
        summary = run(config, progress=show, cluster=cluster_for(workers))
    show_summary(summary)


def cluster_for(workers: int) -> str:
    """The address of the Ray that does the work of ``workers`` processes, after what starting one takes."""
    if workers > 1 and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # Known to this process and those it starts; Ray would keep one where everybody here can read it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return os.environ.get("RAY_ADDRESS", "local")


def show_summary(summary: "IngestSummary") -> None:
    """Draw what went into a store."""
    splits = [
        [f"  {name}", f"{summary.perturbations_per_split[name]:,} perturbations, {cells:,} cells"]
        for name, cells in summary.cells_per_split.items()
    ]
    rows = [
        ["cells", f"{summary.num_cells:,}, of which {summary.num_control_cells:,} controls"],
        ["genes", f"{summary.num_genes:,}, of which {summary.num_selected_genes:,} selected for training"],
        ["cell lines", ", ".join(summary.cell_lines)],
        ["batches", f"{summary.num_contexts:,}"],
        ["perturbations", f"{summary.num_perturbations:,}"],
        *splits,
        *([["sub-groups of validation and test", _subgroups(summary)]] if summary.subgroups else []),
        ["batches that borrow the line's controls", f"{len(summary.fallback_contexts):,}"],
        ["cells in them", f"{summary.fallback_cells:,}"],
        ["cells left out", f"{summary.dropped_cells:,}"],
        ["perturbations left out", f"{summary.dropped_perturbations:,}"],
        ["perturbations of a single cell", f"{summary.single_cell_perturbations:,}"],
        ["perturbed genes that were measured", f"{summary.measured_targets:,}"],
        ["of these, not lowered by 30 %", f"{summary.unlowered_targets:,}"],
        *[[f"embedding {name}", f"{width:,} wide"] for name, width in summary.embeddings.items()],
    ]
    state = "written" if summary.created else "was there already, made from the same inputs"
    labels = [[row.label, row.perturbation, f"{row.num_cells:,}"] for row in summary.labels]
    shown = labels if len(labels) <= LABELS_SHOWN else [row for row in labels if row[0] != row[1]]
    if shown:
        output.print(table("labels", ["in the file", "perturbation", "cells"], shown[:LABELS_SHOWN], texts=2))
    if len(labels) > len(shown[:LABELS_SHOWN]):
        changed = sum(row[0] != row[1] for row in labels)
        say(f"{len(labels):,} labels, {changed:,} of them spelled anew; the store's uns has the whole table")
    output.print(table(f"{summary.store} {state}", ["cell store", ""], rows, texts=2))
    for row in summary.filters:
        say(f"note: {row.filter} keeps {row.kept:,} cells and leaves out {row.dropped:,}")
    for note in summary.notes:
        say(f"note: {note}")


def _subgroups(summary: "IngestSummary") -> str:
    times = Counter(summary.subgroups.values())
    return ", ".join(f"{name} {number:,}" for name, number in sorted(times.items()))


def say_changed(store: Path, before: str, after: str) -> None:
    """Say that a store is another one, by the hashes of its manifests."""
    change = f"manifest {before[:12]} -> {after[:12]}"
    say(f"{store} is another store now ({change}): runs started on the store as it was cannot go on")


@store.command()
def info(path: StorePlace) -> None:
    """Show what a cell store holds: cells, genes, batches, perturbations by split, embeddings."""
    from txpert_dist.store.cells import open_store
    from txpert_dist.store.splits import SPLITS

    cells = open_store(path)
    is_control = cells.perturbation == 0
    per_split = np.bincount(cells.split[1:], minlength=len(SPLITS))
    rows = [
        ["cells", f"{cells.num_cells:,}, of which {is_control.sum():,} controls"],
        ["genes", f"{len(cells.genes):,}, of which {len(cells.selected):,} selected for training"],
        ["cell lines", ", ".join(sorted({context.cell_line for context in cells.contexts}))],
        ["batches", f"{len(cells.contexts):,}"],
        ["batches that borrow the line's controls", f"{cells.controls.fallback.sum():,}"],
        ["perturbations", f"{len(cells.perturbations) - 1:,}"],
        *[[f"  {name}", f"{number:,}"] for name, number in zip(SPLITS, per_split, strict=True)],
        ["scale", cells.input_scale],
        *[[f"embedding {name}", _embedding(cells, name)] for name in cells.embeddings],
        ["manifest", cells.manifest_hash],
    ]
    output.print(table(str(path), ["cell store", ""], rows, texts=2))


def _embedding(cells: "CellStore", name: str) -> str:
    told = cells.embedding_origin(name).items()
    origin = ", ".join(
        f"{key} {' '.join(value) or 'none' if isinstance(value, list) else value}" for key, value in told
    )
    return f"{cells.embeddings[name]:,} wide; {origin}"


@store.command()
def verify(path: StorePlace) -> None:
    """Read every file of a cell store and compare it with the manifest. Exits with 2 at the first damage."""
    from txpert_dist.store.cells import verify as run

    run(path)
    say(f"{path}: every file is as it was written")
