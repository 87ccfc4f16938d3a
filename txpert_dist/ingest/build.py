"""The last step of an ingest: from shards and labels to a complete store.

Enters: what was found in the files and what the tasks made. Leaves: the store's folder and the summary.
Invariant: every label follows its cell to the row that the cell got.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.ingest.embeddings import embedding_blocks, reordered
from txpert_dist.ingest.existing import Inputs
from txpert_dist.ingest.frames import obs_table, var_table
from txpert_dist.ingest.knockdown import unlowered
from txpert_dist.ingest.order import inverse
from txpert_dist.ingest.screen import Screen
from txpert_dist.ingest.statistics import Statistics
from txpert_dist.ingest.summary import IngestSummary
from txpert_dist.ingest.work import Expression, Found, Work
from txpert_dist.store import layout
from txpert_dist.store.controls import build_control_index
from txpert_dist.store.splits import SPLITS
from txpert_dist.store.write import Labels, StoreWriter


def build_store(work: Work, found: Found, made: Expression, inputs: Inputs, folder: Path) -> IngestSummary:
    """Write the store into ``folder``."""
    screen, row, config = found.screen, found.source_row, work.config
    obs, replaced = obs_of_cells(found, made.statistics)
    summary = summarise(work, found, made, inputs, replaced)
    # What a killed process had put together is put together anew: that is quick.
    shutil.rmtree(folder, ignore_errors=True)
    writer = StoreWriter(
        folder,
        num_cells=screen.num_cells,
        num_genes=len(found.genes.names),
        num_entries=int(made.indptr[-1]),
        dtype=made.dtype,
        gene_dtype=made.gene_dtype,
        shards=work.sizes.shards,
    )
    writer.adopt(np.diff(made.indptr), made.shards)
    place = inverse(row)
    for embedding in found.embeddings:
        blocks = embedding_blocks(embedding, screen.rows, work.scratch, work.progress)
        shape = (screen.num_cells, embedding.width)
        ordered = reordered(blocks, shape, place, work.scratch / f"{embedding.name}.rows")
        writer.write_embedding(embedding.name, embedding.width, ordered, origin=embedding.origin)
    perturbation, context = screen.perturbations.code[row], screen.contexts.code[row]
    labels = Labels(
        input_scale=config.input_scale,
        perturbations=screen.perturbations.names,
        contexts=screen.contexts.names,
        perturbation=perturbation,
        context=context,
        library_size=made.statistics.library_size[row].astype(np.float32),
        split=screen.split,
        selected=made.selected,
        controls=build_control_index(context, perturbation == 0, screen.contexts.names),
        control_mean_CG=made.statistics.control_mean_CG,
        label_rows=screen.perturbations.label_rows,
        source_row=row,
        row_order=config.row_order,
        knockdown_rows=made.knockdown,
        summary=summary.to_json(),
    )
    writer.finish(
        obs=obs,
        var=var_table(found.sources, found.gene_names, found.genes),
        labels=labels,
        fingerprint=inputs.fingerprint,
    )
    return summary


def obs_of_cells(found: Found, statistics: Statistics) -> tuple[pd.DataFrame, list[str]]:
    """obs in the store's order with our columns, and which of the sources' columns these replace."""
    obs = obs_table(found.sources, found.screen.rows)
    ours = {
        layout.OBS_LIBRARY_SIZE: statistics.library_size.astype(np.float32),
        layout.OBS_DETECTED_GENES: statistics.detected_genes,
    }
    replaced = [name for name in ours if name in obs.columns]
    return obs.assign(**ours).iloc[found.source_row], replaced


def summarise(
    work: Work, found: Found, made: Expression, inputs: Inputs, replaced: list[str]
) -> IngestSummary:
    """What went into the store that ``found`` and ``made`` describe; ``replaced`` are columns of its obs."""
    screen, config = found.screen, work.config
    contexts, perturbations = screen.contexts.names, screen.perturbations
    num_cells_R = np.bincount(perturbations.code, minlength=len(perturbations.names))
    borrowed = screen.controls.fallback
    notes = [f"obs column {name!r} of the files is replaced by what was counted here" for name in replaced]
    return IngestSummary(
        store=config.store,
        sources=tuple(
            record.model_copy(update={"num_cells": len(rows)})
            for record, rows in zip(inputs.records, screen.rows, strict=True)
        ),
        num_cells=screen.num_cells,
        num_genes=len(found.genes.names),
        num_selected_genes=len(made.selected),
        num_entries=int(made.indptr[-1]),
        value_type=str(made.dtype),
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
        subgroups=dict(sorted(screen.subgroups.items())),
        row_order=config.row_order,
        measured_targets=len(made.knockdown),
        unlowered_targets=len(unlowered(made.knockdown)),
        labels=perturbations.label_rows,
        notes=(*found.notes, *notes),
    )


def _per_split(weight_R: Sequence[int] | NDArray[np.int64], screen: Screen) -> dict[str, int]:
    sums = np.bincount(screen.split[1:], np.asarray(weight_R), len(SPLITS))
    return {name: int(total) for name, total in zip(SPLITS, sums, strict=True)}
