"""What `txpert ingest` and `store append` are told: which files, which columns, which choices.

Enters: values from the command line. Leaves: a frozen ``IngestConfig`` or ``AppendConfig``, and presets that
fill in the column names of common file families. Invariant: a key given by hand always wins over the preset,
and a key given by hand must exist in the file while a preset's optional keys need not.
"""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt

from txpert_dist.config import Section
from txpert_dist.store.expression import InputScale
from txpert_dist.store.gears import GearsMode
from txpert_dist.store.write import RowOrder

PresetName = Literal["gears", "txpert", "replogle", "scperturb", "state", "vcc", "xatlas", "10x"]

HvgFlavour = Literal["seurat", "cell_ranger", "seurat_v3"]

WITHOUT_EFFECT = frozenset(("store", "overwrite", "workers", "memory_gib"))
"""Settings that make no difference to the store."""


class Reading(Section):
    """Which files, and how they are read: what an ingest and an append are both told."""

    sources: tuple[Path, ...]
    """h5ad files, Zarr AnnData, 10x folders or cell stores; several are concatenated in this order."""
    store: Path
    """Folder of the store."""
    preset: PresetName | None = None
    """Column names of a family of files."""
    labels: tuple[Path, ...] = ()
    """Tables of labels by barcode, csv or tsv: one for every 10x folder, in their order, or one for all."""
    perturbation_key: str | None = None
    """obs column that names the perturbation of each cell."""
    control_label: str | None = None
    """Label of unperturbed cells; the usual spellings are recognised without it."""
    control_key: str | None = None
    """obs column (true or false, 1 or 0) that says which cells are unperturbed, whatever their label."""
    batch_key: str | None = None
    """obs column of the experimental batch; one batch per cell line without it."""
    cell_line_key: str | None = None
    """obs column of the cell line."""
    cell_line: str | None = None
    """The one cell line of all cells, when there is no column; the file's name without it."""
    gene_name_key: str | None = None
    """var column of gene symbols; the var index without it."""
    library_size_key: str | None = None
    """obs column of total counts, when genes were left out of the file; the row's sum without it."""
    layer: str = "X"
    """Where the counts are: X, raw, or the name of a layer."""
    input_scale: InputScale = "counts"
    """counts, or log1p when the file holds only log-normalised values."""
    embeddings: tuple[str, ...] = ()
    """Keys of obsm to keep: embeddings of the cells (X_pca, X_scgpt, ...), the same width in all files."""
    where: tuple[str, ...] = ()
    """Filters column=value: values of one column are alternatives, different columns must all hold."""
    separator: str | None = None
    """What stands between the genes of one label besides +, for instance _ or |."""
    split_seed: NonNegativeInt = 0
    min_cells: PositiveInt = 1
    """Perturbations with fewer cells are left out, and counted."""
    unlabelled: Literal["refuse", "drop"] = "refuse"
    """What to do with cells that have no perturbation label; those left out are counted."""
    empty_cells: Literal["refuse", "drop"] = "refuse"
    """What to do with cells that have no counts at all."""
    workers: PositiveInt = 1
    """Processes: this one, or so many of Ray's. The store is the same."""
    memory_gib: Annotated[float, Field(ge=1)] = 2.0
    """Memory that each process may take. The store is the same."""


class IngestConfig(Reading):
    """One ingest: some files into one new cell store."""

    genes_join: Literal["intersection", "union"] = "intersection"
    """Genes of several files: those that all measured, or those that any measured."""
    select_genes: NonNegativeInt = 5000
    """How many highly variable genes make up the training view; 0 for all."""
    hvg_flavour: HvgFlavour = "seurat"
    """How variability is measured; each selects scanpy's genes of the same flavour."""
    select_on: Literal["train", "all"] = "train"
    """Cells on which variability is measured: train perturbations and controls, or every cell."""
    held_out_cell_lines: tuple[str, ...] = ()
    """Cell lines to be held out: with select_on train, their perturbed cells do not count."""
    require_knockdown: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Leave out perturbations that lower a measured target by less than this share (0.3 is usual)."""
    split: Literal["random", "gears"] = "random"
    """How perturbations are divided, by the split seed; gears: as GEARS does, with its sub-groups."""
    gears_mode: GearsMode = "simulation"
    """Which of GEARS' splits; simulation is what doubles are evaluated on."""
    row_order: RowOrder = "split"
    """split: train, validation, test, then controls, each shuffled by the split seed; source: as in files."""
    overwrite: bool = False
    """Replace a store that was made from other inputs or settings."""


class AppendConfig(Reading):
    """One append: the cells of some files behind those of a store that is there."""

    drop_embeddings: bool = False
    """Leave out the store's embeddings, which the new cells lack."""


class Preset(NamedTuple):
    """Column names of one family of files; all but the perturbation are used where the file has them."""

    perturbation: str
    batch: str | None = None
    cell_line: str | None = None
    gene_name: str | None = None
    control: str | None = None


PRESETS: dict[PresetName, Preset] = {
    "gears": Preset("condition", cell_line="cell_type", gene_name="gene_name"),
    "txpert": Preset("condition", batch="batch", cell_line="cell_line", control="control"),
    "replogle": Preset("gene", batch="gem_group", gene_name="gene_name"),
    "scperturb": Preset("perturbation", batch="batch", cell_line="cell_line"),
    "state": Preset("gene", batch="gem_group", cell_line="cell_type", gene_name="gene_name"),
    "vcc": Preset("target_gene", batch="batch", cell_line="cell_type"),
    "xatlas": Preset(
        "perturbation", batch="batch", cell_line="cell_line", gene_name="gene_name", control="is_control"
    ),
    "10x": Preset("perturbation", batch="batch", cell_line="cell_line", gene_name="gene_name"),
}


class Key(NamedTuple):
    """A column to look for."""

    name: str | None
    required: bool
    """True when the user named it: its absence is an error."""


class Keys(NamedTuple):
    """The columns of one ingest, preset and hand-given ones merged."""

    perturbation: Key
    batch: Key
    cell_line: Key
    gene_name: Key
    control: Key


def resolve_keys(config: IngestConfig) -> Keys:
    """Merge the preset with what was given by hand; without either, ``perturbation`` is the column's name."""
    preset = PRESETS[config.preset] if config.preset else Preset("perturbation")
    line = None if config.cell_line is not None else preset.cell_line
    return Keys(
        perturbation=Key(config.perturbation_key or preset.perturbation, True),
        batch=_merge(config.batch_key, preset.batch),
        cell_line=_merge(config.cell_line_key, line),
        gene_name=_merge(config.gene_name_key, preset.gene_name),
        control=_merge(config.control_key, preset.control),
    )


def _merge(given: str | None, preset: str | None) -> Key:
    return Key(given, True) if given is not None else Key(preset, False)
