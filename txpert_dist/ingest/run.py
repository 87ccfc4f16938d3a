"""Ingest: h5ad files in, one complete cell store out.

Enters: an ``IngestConfig``. Leaves: the store at ``config.store`` and an ``IngestSummary``. Invariants: two
passes over the expression in bounded memory (the first checks and measures, the second writes); a store that
is there is complete; the same inputs and settings again return at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.columns import FilterRow, filter_cells
from txpert_dist.ingest.config import IngestConfig, resolve_keys
from txpert_dist.ingest.embeddings import EmbeddingSources, embedding_blocks, open_embeddings
from txpert_dist.ingest.existing import (
    Inputs,
    existing_summary,
    read_inputs,
    remember_inputs,
    require_unchanged,
    same_store,
)
from txpert_dist.ingest.frames import obs_table, var_table
from txpert_dist.ingest.genes import gene_names, join_genes
from txpert_dist.ingest.matrix import stream
from txpert_dist.ingest.publish import partial_folder, publish
from txpert_dist.ingest.screen import Screen, read_screen
from txpert_dist.ingest.source import Source, open_source
from txpert_dist.ingest.statistics import Progress, Statistics, StoreInput, gather
from txpert_dist.ingest.summary import IngestSummary
from txpert_dist.ingest.variable_genes import select_variable_genes
from txpert_dist.store.splits import SPLITS
from txpert_dist.store.write import Labels, StoreWriter


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


class _Found(NamedTuple):
    """Everything that is known before the store is written."""

    cells: StoreInput
    gene_names: list[tuple[str, ...]]
    embeddings: tuple[EmbeddingSources, ...]
    filters: tuple[FilterRow, ...]
    empty_cells: int
    notes: tuple[str, ...]


def ingest(config: IngestConfig, *, progress: Progress = no_progress) -> IngestSummary:
    """Write the cell store that ``config`` describes and say what went into it.

    ``progress`` is called with (what, done, total) in cells. Raises ``InputError`` for anything in the files
    or the configuration that cannot be used; nothing is left behind then.
    """
    _check(config)
    known = existing_summary(config)
    inputs = read_inputs(config)
    if known is not None and same_store(config, inputs):
        return known
    replace = config.store.exists()
    sources = tuple(open_source(path, config.layer) for path in config.sources)
    try:
        with partial_folder(config.store) as folder:
            found = _read(sources, config, folder / "scratch", progress)
            statistics = gather(found.cells, config, progress)
            summary = _write(found, statistics, config, inputs, folder / "store", progress)
            require_unchanged(inputs)
            remember_inputs(folder / "store", inputs)
            publish(folder / "store", config.store, replace=replace)
    except OSError as error:
        raise InputError(
            f"{config.store}: cannot be written ({error.strerror or error}); free space, or choose another "
            "path"
        ) from error
    return summary


def _check(config: IngestConfig) -> None:
    if not config.sources:
        raise InputError("no source file given; name at least one h5ad file")
    seen = [path.resolve() for path in config.sources]
    repeated = [str(path) for path in config.sources if seen.count(path.resolve()) > 1]
    if repeated:
        raise InputError(f"{repeated[0]}: given twice; its cells would count twice, name it once")
    if len(set(config.embeddings)) < len(config.embeddings):
        raise InputError(f"embeddings {', '.join(config.embeddings)}: one is named twice; name each once")
    if config.cell_line is not None and config.cell_line_key is not None:
        raise InputError("both a cell line and a column of cell lines are given; keep one of them")


def _read(sources: tuple[Source, ...], config: IngestConfig, scratch: Path, progress: Progress) -> _Found:
    keys = resolve_keys(config)
    names = [gene_names(source, keys.gene_name) for source in sources]
    genes = join_genes(sources, names, config.genes_join)
    embeddings = open_embeddings(sources, config.embeddings)
    rows, filters = filter_cells(sources, config.where)
    screen = read_screen(sources, rows, config, keys)
    empty = 0
    if config.empty_cells == "drop":
        kept = [
            _with_counts(source, part, scratch / str(number), progress)
            for number, (source, part) in enumerate(zip(sources, rows, strict=True))
        ]
        empty = sum(map(len, rows)) - sum(map(len, kept))
        screen = read_screen(sources, kept, config, keys)
    notes = (
        tuple(file.note for file in names if file.note) + screen.contexts.notes + screen.perturbations.notes
    )
    cells = StoreInput(sources, screen, genes, scratch)
    return _Found(cells, [file.names for file in names], embeddings, filters, empty, notes)


def _with_counts(
    source: Source, rows: NDArray[np.int64], scratch: Path, progress: Progress
) -> NDArray[np.int64]:
    entries = np.zeros(source.shape[0], np.int64)
    for block in stream(source, scratch):
        lengths = np.diff(block.matrix.indptr)
        entries[block.start : block.start + len(lengths)] = lengths
        progress("find cells without counts", block.start + len(lengths), source.shape[0])
    kept: NDArray[np.int64] = rows[entries[rows] > 0]
    return kept


def _write(
    found: _Found,
    statistics: Statistics,
    config: IngestConfig,
    inputs: Inputs,
    folder: Path,
    progress: Progress,
) -> IngestSummary:
    cells, screen = found.cells, found.cells.screen
    if not statistics.num_entries:
        raise InputError(f"{config.sources[0]}: no count in any of the {len(cells.genes.names)} genes kept")
    dtype = (
        np.min_scalar_type(int(statistics.largest))
        if config.input_scale == "counts"
        else np.dtype(np.float32)
    )
    selected = select_variable_genes(statistics.moments, config.select_genes)
    summary = _summarise(found, statistics, config, inputs, (len(selected), str(dtype)))
    writer = StoreWriter(
        folder,
        num_cells=screen.num_cells,
        num_genes=len(cells.genes.names),
        num_entries=statistics.num_entries,
        dtype=dtype,
    )
    for embedding in found.embeddings:
        blocks = embedding_blocks(embedding, screen.rows, cells.scratch, progress)
        writer.write_embedding(embedding.name, embedding.width, blocks, origin=embedding.origin)
    for block in cells.blocks("write", progress):
        stored = block.stored
        writer.append(stored.indptr.astype(np.int64), stored.indices, stored.data.astype(dtype))
    labels = Labels(
        input_scale=config.input_scale,
        perturbations=screen.perturbations.names,
        contexts=screen.contexts.names,
        perturbation=screen.perturbations.code,
        context=screen.contexts.code,
        library_size=statistics.library_size.astype(np.float32),
        split=screen.split,
        selected=selected,
        controls=screen.controls,
        control_mean_CG=statistics.control_mean_CG,
        label_rows=screen.perturbations.label_rows,
        summary=summary.to_json(),
    )
    writer.finish(
        obs=obs_table(cells.sources, screen.rows),
        var=var_table(cells.sources, found.gene_names, cells.genes),
        labels=labels,
        fingerprint=inputs.fingerprint,
    )
    return summary


def _summarise(
    found: _Found,
    statistics: Statistics,
    config: IngestConfig,
    inputs: Inputs,
    written: tuple[int, str],
) -> IngestSummary:
    screen = found.cells.screen
    contexts, perturbations = screen.contexts.names, screen.perturbations
    num_cells_R = np.bincount(perturbations.code, minlength=len(perturbations.names))
    borrowed = screen.controls.fallback
    return IngestSummary(
        store=config.store,
        sources=tuple(
            record.model_copy(update={"num_cells": len(rows)})
            for record, rows in zip(inputs.records, screen.rows, strict=True)
        ),
        num_cells=screen.num_cells,
        num_genes=len(found.cells.genes.names),
        num_selected_genes=written[0],
        num_entries=statistics.num_entries,
        value_type=written[1],
        num_perturbations=len(perturbations.names) - 1,
        num_control_cells=int(num_cells_R[0]),
        cell_lines=tuple(sorted({context.cell_line for context in contexts})),
        num_contexts=len(contexts),
        cells_per_split=_per_split(num_cells_R[1:], screen),
        perturbations_per_split=_per_split(np.ones_like(num_cells_R[1:]), screen),
        fallback_contexts=tuple(
            f"{c.cell_line}/{c.batch}" for c, flag in zip(contexts, borrowed, strict=True) if flag
        ),
        fallback_cells=int(borrowed[screen.contexts.code].sum()),
        filters=found.filters,
        dropped_perturbations=len(perturbations.dropped),
        dropped_cells=found.empty_cells + sum(perturbations.dropped.values()),
        single_cell_perturbations=int((num_cells_R[1:] < 2).sum()),
        embeddings={embedding.name: embedding.width for embedding in found.embeddings},
        labels=perturbations.label_rows,
        notes=found.notes,
    )


def _per_split(weight_R: Sequence[int] | NDArray[np.int64], screen: Screen) -> dict[str, int]:
    sums = np.bincount(screen.split[1:], np.asarray(weight_R), len(SPLITS))
    return {name: int(total) for name, total in zip(SPLITS, sums, strict=True)}
