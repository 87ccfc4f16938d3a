"""Verbs about embeddings of the cells: embed add, embed scvi."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from txpert_dist.cli.data import Overwrite, say_changed
from txpert_dist.cli.screen import output, progress, table

embed = typer.Typer(
    no_args_is_help=True,
    help="""Give the cells of a store an embedding (scGPT, scVI, PCA ...), for model.basal.kind=embedding.

    An embedding that the h5ad holds already is kept by `txpert ingest --embedding X_pca`.""",
)

Store = Annotated[Path, typer.Argument(help="Cell store.", show_default=False)]


@embed.command()
def add(
    store: Store,
    file: Annotated[Path, typer.Argument(help="h5ad, npz, parquet, csv or tsv file.", show_default=False)],
    name: Annotated[
        str, typer.Option(help="Name in the store, e.g. X_scgpt: letters, digits, . _ -", show_default=False)
    ],
    key: Annotated[
        str | None, typer.Option(help="obsm key of an h5ad; the name when left out.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Add an embedding that was computed elsewhere, with scGPT or a PCA, say.

    Rows are matched to the cells by name: the store's are those that anndata.read_zarr(STORE).obs_names
    shows. Every cell needs exactly one row of finite numbers; rows of other cells are left out and counted.
    The store is changed in one step, and whoever reads it meanwhile is not disturbed.

    The ending says the format:

    * .h5ad: obsm KEY, dense or sparse; cells by obs index. Read block by block, expression not at all.

    * .npz: array `cell` with the names and array `embedding` (cells x width), from numpy.savez.

    * .parquet: cell names in the pandas index, or else in the first column; one column a dimension.

    * .csv, .tsv (also .gz): a line of column names, then for each cell its name and its numbers.

    To use it, set model.basal.kind=embedding and model.basal.key=X_scgpt in the run's configuration.

        txpert embed add k562.zarr scgpt.npz --name X_scgpt
    """
    from txpert_dist.embed.files import add_file

    with progress() as show:
        done = add_file(store, file, name=name, key=key, overwrite=overwrite, progress=show)
    rows = [
        ["embedding", f"{done.name}, {done.width:,} wide"],
        ["cells", f"{done.num_cells:,}"],
        ["rows of other cells, left out", f"{done.extra_cells:,}"],
    ]
    output.print(table(f"{store}: embedding added", ["what", ""], rows, texts=2))
    say_changed(store, done.manifest_before, done.manifest_after)


@embed.command()
def scvi(
    store: Store,
    name: Annotated[str, typer.Option(help="Name in the store.")] = "X_scvi",
    latent: Annotated[int, typer.Option(help="Width of the embedding.")] = 10,
    layers: Annotated[int, typer.Option(help="Hidden layers of encoder and decoder.")] = 1,
    hidden: Annotated[int, typer.Option(help="Width of a hidden layer.")] = 128,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the training cells; 400 or fewer if left out.", show_default=False),
    ] = None,
    max_training_cells: Annotated[int, typer.Option(help="More cells than these are sampled.")] = 100_000,
    genes: Annotated[
        Literal["selected", "all"], typer.Option(help="Highly variable genes, or every gene.")
    ] = "selected",
    seed: Annotated[int, typer.Option(help="Decides sample, initial weights and order of cells.")] = 0,
    held_out_cell_line: Annotated[
        list[str] | None,
        typer.Option(help="Train on controls only of this cell line (repeatable).", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train scVI on the store's training cells and controls, and embed every cell with it.

    Cells of validation and test perturbations, and perturbed cells of held-out cell lines, are never trained
    on: name the cell lines that the run will hold out. Needs counts, and pip install 'txpert-dist[scvi]'.
    The embedding is the mean of the latent distribution; the store notes how it was made. To use it, set
    model.basal.kind=embedding and model.basal.key=X_scvi in the run's configuration.

        txpert embed scvi k562.zarr --epochs 100
    """
    from txpert_dist.embed.config import ScviConfig
    from txpert_dist.embed.scvi import embed_scvi

    config = ScviConfig(
        name=name,
        latent=latent,
        layers=layers,
        hidden=hidden,
        epochs=epochs,
        max_training_cells=max_training_cells,
        genes=genes,
        seed=seed,
        held_out_cell_lines=tuple(held_out_cell_line or ()),
        overwrite=overwrite,
    )
    with progress() as show:
        done = embed_scvi(store, config, progress=show)
    rows = [
        ["embedding", f"{done.name}, {done.width:,} wide"],
        ["cells", f"{done.num_cells:,}"],
        ["cells trained on", f"{done.training_cells:,} of {done.available_cells:,} that may be"],
        ["epochs", f"{done.epochs:,}"],
    ]
    output.print(table(f"{store}: embedded with scVI", ["what", ""], rows, texts=2))
    say_changed(store, done.manifest_before, done.manifest_after)
