"""The same cells with another split: a new store, from a store.

Enters: a store's path and a seed (of ours or of GEARS' split) or a table of splits. Leaves: a store whose
rows are grouped by the new split and whose genes were selected on the new training cells. Invariants: cells,
labels, library sizes, control means and embeddings are the old store's; with a seed, rows and splits are
those of an ingest with that ``split_seed``; complete or absent, and a killed one goes on where it was.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.config import HvgFlavour, IngestConfig
from txpert_dist.ingest.embeddings import reordered, stored_blocks
from txpert_dist.ingest.existing import existing_summary
from txpert_dist.ingest.expression import make_expression
from txpert_dist.ingest.gears import Gears, split_as_gears
from txpert_dist.ingest.genes import GeneJoin
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.order import inverse, source_rows
from txpert_dist.ingest.publish import clear_abandoned, publish, restore_replaced, work_folder
from txpert_dist.ingest.run import no_progress, task_runner
from txpert_dist.ingest.screen import Contexts, Perturbations, Screen
from txpert_dist.ingest.source import Source
from txpert_dist.ingest.split_table import GivenSplit, read_split_table
from txpert_dist.ingest.statistics import Progress
from txpert_dist.ingest.stored import Stored, open_stored
from txpert_dist.ingest.summary import IngestSummary
from txpert_dist.ingest.work import DEFAULT_SIZES, Expression, Found, Sizes, Work
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.controls import build_control_index
from txpert_dist.store.gears import GearsMode
from txpert_dist.store.splits import SPLITS, split_perturbations
from txpert_dist.store.tables import read_table
from txpert_dist.store.write import Labels, RowOrder, StoreWriter

_ALGORITHM = 1
"""Raised whenever the same store and settings give another store."""
_KEY_LENGTH = 16


class Resplit(NamedTuple):
    """What to do; see ``IngestConfig`` for the meaning of the settings that both have."""

    store: Path
    out: Path
    seed: int = 0
    table: Path | None = None
    """csv or tsv file with columns perturbation and split (and subgroup), in place of the seed."""
    gears: GearsMode | None = None
    """Which of GEARS' splits the seed decides."""
    select_genes: int | None = None
    """As many as the store has selected when left out."""
    hvg_flavour: HvgFlavour = "seurat"
    select_on: Any = "train"
    held_out_cell_lines: tuple[str, ...] = ()
    row_order: RowOrder = "split"
    workers: int = 1
    memory_gib: float = 2.0
    overwrite: bool = False


def resplit(
    asked: Resplit,
    *,
    cluster: str = "local",
    progress: Progress = no_progress,
    sizes: Sizes = DEFAULT_SIZES,
) -> IngestSummary:
    """Write the store that ``asked`` describes and say what went into it.

    ``progress`` and ``cluster`` are as for ``ingest``. Raises ``InputError`` for a table, setting or path
    that cannot be used and ``StoreError`` for a damaged store; nothing is left behind then.
    """
    if asked.store.resolve() == asked.out.resolve():
        raise InputError(f"{asked.out}: is the store itself; give another path with --out")
    old = open_stored(open_store(asked.store))
    given = _split(asked, old)
    config = _config(asked, old.cells)
    fingerprint = _fingerprint(config, old.cells, given, sizes)
    restore_replaced(asked.out)
    known = existing_summary(config)
    if known is not None and _same(config, fingerprint):
        clear_abandoned(asked.out)
        return known
    replace = asked.out.exists()
    try:
        with (
            work_folder(asked.out, fingerprint[:_KEY_LENGTH]) as folder,
            task_runner(asked.workers, cluster) as runner,
        ):
            work = Work(config, folder, runner, progress, sizes)
            summary = _build(work, old, given, fingerprint)
            publish(folder / "store", asked.out, replace=replace)
    except OSError as error:
        raise InputError(
            f"{asked.out}: cannot be written ({error.strerror or error}); free space, or choose another path"
        ) from error
    return summary


def _split(asked: Resplit, old: Stored) -> GivenSplit:
    names, where = old.cells.perturbations, f"{asked.table or asked.store}"
    if asked.table is not None:
        given = read_split_table(asked.table, names)
    elif asked.gears is not None:
        given = split_as_gears(
            Gears(asked.seed, asked.gears), names, _first_seen(old), old.label_rows, where=where
        )
    else:
        given = GivenSplit(split_perturbations(names, seed=asked.seed), (), {})
    counts = np.bincount(given.split[1:], minlength=len(SPLITS))
    if not counts.all():
        lacking = SPLITS[int(np.argmin(counts))]
        raise InputError(f"{where}: no perturbation of the store is for {lacking}; every split needs one")
    return given


def _first_seen(old: Stored) -> list[str]:
    """Perturbations in the order of their first cells in the files."""
    codes, first = np.unique(old.cells.perturbation[inverse(old.source_row)], return_index=True)
    return [old.cells.perturbations[code] for code in codes[np.argsort(first)]]


def _config(asked: Resplit, cells: CellStore) -> IngestConfig:
    """The settings as the steps of an ingest read them."""
    every = len(cells.selected) == len(cells.genes)
    as_before = 0 if every else len(cells.selected)
    return IngestConfig(
        sources=(asked.store,),
        store=asked.out,
        library_size_key=layout.OBS_LIBRARY_SIZE,
        input_scale=cells.input_scale,
        select_genes=as_before if asked.select_genes is None else asked.select_genes,
        hvg_flavour=asked.hvg_flavour,
        select_on=asked.select_on,
        held_out_cell_lines=asked.held_out_cell_lines,
        split_seed=asked.seed,
        row_order=asked.row_order,
        workers=asked.workers,
        memory_gib=asked.memory_gib,
        overwrite=asked.overwrite,
    )


def _fingerprint(config: IngestConfig, cells: CellStore, given: GivenSplit, sizes: Sizes) -> str:
    names = ("select_genes", "hvg_flavour", "select_on", "held_out_cell_lines", "split_seed", "row_order")
    settings = config.model_dump(mode="json", include=set(names))
    parts = ["split", _ALGORITHM, layout.VERSION, cells.manifest_hash, given.split.tolist(), settings, sizes]
    parts.append(sorted(given.subgroups.items()))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _same(config: IngestConfig, fingerprint: str) -> bool:
    if manifest.read(config.store).fingerprint == fingerprint:
        return True
    if not config.overwrite:
        raise InputError(
            f"{config.store}: holds a store made from other files or settings; choose another path, or give "
            "--overwrite"
        )
    return False


def _build(work: Work, old: Stored, given: GivenSplit, fingerprint: str) -> IngestSummary:
    config, cells = work.config, old.cells
    new_source_row, place = _places(old, given.split, config)
    found = _found(work, old, given, place)
    made = make_expression(work, found)
    summary = _summary(work, old, made, given)
    writer = StoreWriter(
        work.folder / "store",
        num_cells=cells.num_cells,
        num_genes=len(cells.genes),
        num_entries=int(made.indptr[-1]),
        dtype=made.dtype,
        gene_dtype=made.gene_dtype,
        shards=work.sizes.shards,
    )
    writer.adopt(np.diff(made.indptr), made.shards)
    _write_embeddings(writer, work, cells, inverse(place))
    perturbation, context = cells.perturbation[place], cells.context[place]
    labels = Labels(
        input_scale=cells.input_scale,
        perturbations=cells.perturbations,
        contexts=cells.contexts,
        perturbation=perturbation,
        context=context,
        library_size=cells.library_size[place],
        split=given.split,
        selected=made.selected,
        controls=build_control_index(context, perturbation == 0, cells.contexts),
        control_mean_CG=cells.control_mean_CG,
        label_rows=old.label_rows,
        source_row=new_source_row,
        row_order=config.row_order,
        knockdown_rows=old.knockdown,
        summary=summary.to_json(),
    )
    (source,) = found.sources
    writer.finish(obs=source.obs.iloc[place], var=source.var, labels=labels, fingerprint=fingerprint)
    return summary


def _places(
    old: Stored, split: NDArray[np.uint8], config: IngestConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each new row: its place in the files, and its row in the old store."""
    row_of_place = inverse(old.source_row)
    perturbation = old.cells.perturbation[row_of_place]
    new_source_row = source_rows(
        split[perturbation], np.equal(perturbation, 0), order=config.row_order, seed=config.split_seed
    )
    return new_source_row, row_of_place[new_source_row]


def _found(work: Work, old: Stored, given: GivenSplit, place: NDArray[np.int64]) -> Found:
    cells, path = old.cells, old.cells.path
    rows = [np.arange(cells.num_cells, dtype=np.int64)]
    shape = (cells.num_cells, len(cells.genes))
    source = Source(path, read_table(path, "obs"), read_table(path, "var"), "X", "store", shape, ())
    screen = Screen(
        rows=rows,
        perturbations=Perturbations(rows, cells.perturbations, cells.perturbation, old.label_rows, {}, ()),
        contexts=Contexts(cells.contexts, cells.context, ()),
        controls=cells.controls,
        split=given.split,
        subgroups=given.subgroups,
    )
    genes = GeneJoin(cells.genes, (np.arange(len(cells.genes), dtype=np.int32),))
    return Found((source,), screen, (cells.genes,), genes, (), (), 0, (), place)


def _write_embeddings(writer: StoreWriter, work: Work, cells: CellStore, new_row: NDArray[np.int64]) -> None:
    for name, width in cells.embeddings.items():
        shape, scratch = (cells.num_cells, width), work.scratch / f"{name}.rows"
        ordered = reordered(stored_blocks(cells, name), shape, new_row, scratch)
        writer.write_embedding(name, width, ordered, origin=cells.embedding_origin(name))


def _summary(work: Work, old: Stored, made: Expression, given: GivenSplit) -> IngestSummary:
    num_cells_R = np.bincount(old.cells.perturbation, minlength=len(given.split))
    cells = np.bincount(given.split[1:], num_cells_R[1:], len(SPLITS)).astype(int).tolist()
    perturbations = np.bincount(given.split[1:], minlength=len(SPLITS)).tolist()
    note = f"{len(given.unknown)} perturbations of the table are not in the store: {listing(given.unknown)}"
    return old.summary.model_copy(
        update={
            "store": work.config.store,
            "created": True,
            "row_order": work.config.row_order,
            "subgroups": dict(sorted(given.subgroups.items())),
            "num_selected_genes": len(made.selected),
            "cells_per_split": dict(zip(SPLITS, cells, strict=True)),
            "perturbations_per_split": dict(zip(SPLITS, perturbations, strict=True)),
            "notes": (*old.summary.notes, *([note] if given.unknown else [])),
        }
    )
