"""Options that say how files are read: the same for ingest and for store append."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Sources = Annotated[
    list[Path],
    typer.Argument(help="h5ad files, Zarr AnnData or 10x folders; one a line, say.", show_default=False),
]
Preset = Annotated[
    Literal["gears", "txpert", "replogle", "scperturb", "state", "vcc", "xatlas", "10x"] | None,
    typer.Option(help="Column names of a family of files; each key can still be given.", show_default=False),
]
PerturbationKey = Annotated[str | None, typer.Option(help="obs column of perturbations.")]
ControlLabel = Annotated[
    str | None, typer.Option(help="Label of control cells; usual spellings are recognised.")
]
ControlKey = Annotated[
    str | None, typer.Option(help="obs column, true or false, of which cells are controls.")
]
LabelTables = Annotated[
    list[Path] | None,
    typer.Option(help="csv or tsv that labels the barcodes of a 10x folder (repeatable)."),
]
BatchKey = Annotated[str | None, typer.Option(help="obs column of the experimental batch.")]
CellLineKey = Annotated[str | None, typer.Option(help="obs column of the cell line.")]
CellLine = Annotated[str | None, typer.Option(help="The cell line, when no column has it.")]
GeneNameKey = Annotated[str | None, typer.Option(help="var column of gene symbols.")]
LibrarySizeKey = Annotated[
    str | None, typer.Option(help="obs column of total counts, when the file lacks genes.")
]
Layer = Annotated[str, typer.Option(help="Where the counts are: X, raw or a layer's name.")]
Scale = Annotated[
    Literal["counts", "log1p"], typer.Option(help="log1p: the file holds only log-normalised values.")
]
Embedding = Annotated[
    list[str] | None, typer.Option(help="obsm key of an embedding to keep, e.g. X_pca (repeatable).")
]
Where = Annotated[list[str] | None, typer.Option(help="Only cells with column=value (repeatable).")]
Separator = Annotated[str | None, typer.Option(help="Between genes of one label, besides +.")]
MinCells = Annotated[int, typer.Option(help="Leave out perturbations with fewer cells.")]
Unlabelled = Annotated[
    Literal["refuse", "drop"], typer.Option(help="What to do with cells without a perturbation label.")
]
EmptyCells = Annotated[
    Literal["refuse", "drop"], typer.Option(help="What to do with cells without any count.")
]
Gears = Annotated[
    Literal["simulation", "simulation_single", "single", "combo_seen0", "combo_seen1", "combo_seen2"],
    typer.Option(help="Which of GEARS' splits; simulation is what doubles are evaluated on."),
]
Workers = Annotated[int, typer.Option(help="Processes; more than one need Ray.")]
MemoryGib = Annotated[float, typer.Option(help="Memory that each process may take.")]
