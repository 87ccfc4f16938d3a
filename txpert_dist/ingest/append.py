"""New batches and cell lines behind the cells of a store that is there.

Enters: an ``AppendConfig``. Leaves: the store with the cells of the files behind its own, and ``Appended``.
Invariants: counts, labels, library sizes, controls, their means and the table of knock-downs are those of an
ingest of all files together; old cells keep their rows, names and splits, and their full shards are the same
files; of old counts only those of the last shard are read, and those of controls that a knock-down is told
from; killed at any moment, the store is as it was or complete, and processes that read it go on.
"""

from typing import NamedTuple

import numpy as np

from txpert_dist.errors import InputError
from txpert_dist.ingest.claim import claimed, put_in_place, require_ours
from txpert_dist.ingest.config import AppendConfig, IngestConfig
from txpert_dist.ingest.existing import reading_inputs, require_unchanged
from txpert_dist.ingest.find import find
from txpert_dist.ingest.follow import follow_expression, num_full_shards, shard_sizes
from txpert_dist.ingest.inputs import open_inputs
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.lengthen import build_longer, new_perturbations
from txpert_dist.ingest.run import check_config, no_progress, task_runner
from txpert_dist.ingest.screen import Screen
from txpert_dist.ingest.statistics import Progress
from txpert_dist.ingest.stored import Stored, open_stored
from txpert_dist.ingest.summary import IngestSummary
from txpert_dist.ingest.work import DEFAULT_SIZES, Found, Sizes, Work
from txpert_dist.store.cells import CellStore
from txpert_dist.store.controls import Context
from txpert_dist.store.write import LabelRow


class Appended(NamedTuple):
    """What was added, and what the store holds now."""

    summary: IngestSummary
    """Of the whole store."""
    num_cells: int
    """New ones, controls included."""
    num_control_cells: int
    contexts: tuple[Context, ...]
    known_perturbations: int
    """Perturbations of new cells that the store had."""
    new_perturbations: dict[str, int]
    """The others, by the split that they got."""
    labels: tuple[LabelRow, ...]
    """Of the new cells."""
    kept_files: int
    """Files of X that are the old ones."""
    manifest_before: str
    manifest_after: str


def append(
    config: AppendConfig,
    *,
    progress: Progress = no_progress,
    cluster: str = "local",
    sizes: Sizes = DEFAULT_SIZES,
) -> Appended:
    """Append the cells of ``config.sources`` to the store at ``config.store`` and say what was added.

    ``progress`` and ``cluster`` are as for ``ingest``; shards are as large as the store's, not as ``sizes``.
    Raises ``InputError`` for anything in the files or the configuration that cannot be used or does not fit
    the store, and ``StoreError`` for a damaged store; the store is as it was then.
    """
    with claimed(config.store) as claim:
        before = open_stored(claim.store)
        told = _told(config, before)
        check_config(told)
        require_ours(claim)
        _require_fit(config, before.cells)
        sources, cut = open_inputs(told), sizes._replace(shards=shard_sizes(before.cells))
        with (
            task_runner(told.workers, cluster) as runner,
            reading_inputs(told, claim.scratch / "inputs.json") as inputs,
        ):
            work = Work(told, claim.scratch, runner, progress, cut)
            found = find(work, sources, before)
            _require_widths(found, before.cells)
            made = follow_expression(work, found, before)
            summary = build_longer(work, claim, before, found, made, inputs())
            require_unchanged(inputs())
        after = put_in_place(claim, "cells were appended")
    return _appended(before, found.screen, summary, after)


def _told(config: AppendConfig, before: Stored) -> IngestConfig:
    """The settings as the steps of an ingest read them; selected genes stay the store's."""
    return IngestConfig(
        **config.model_dump(exclude={"drop_embeddings"}),
        select_genes=0,
        select_on="all",
        row_order=before.summary.row_order,
    )


def _require_fit(config: AppendConfig, cells: CellStore) -> None:
    if config.input_scale != cells.input_scale:
        raise InputError(
            f"{config.store}: holds {cells.input_scale}, --input-scale says {config.input_scale}; what is "
            "appended has to be on the store's scale"
        )
    if config.drop_embeddings and config.embeddings:
        raise InputError("both --embedding and --drop-embeddings are given; keep one of them")
    more = [name for name in config.embeddings if name not in cells.embeddings]
    if more:
        raise InputError(
            f"{config.store}: has no embedding {more[0]!r}; leave that out, and add it for all cells with "
            "txpert embed add"
        )
    lacking = [name for name in cells.embeddings if name not in config.embeddings]
    if lacking and not config.drop_embeddings:
        raise InputError(
            f"{config.store}: has embeddings {listing(lacking)}, which new cells need too; name their obsm "
            "keys with --embedding, or leave all embeddings out with --drop-embeddings"
        )


def _require_widths(found: Found, cells: CellStore) -> None:
    for embedding in found.embeddings:
        if embedding.width != cells.embeddings[embedding.name]:
            raise InputError(
                f"{embedding.parts[0].path}: obsm/{embedding.name} is {embedding.width} wide, but "
                f"{cells.embeddings[embedding.name]} in {cells.path}; compute it as the store's was"
            )


def _appended(before: Stored, screen: Screen, summary: IngestSummary, manifest_after: str) -> Appended:
    perturbations = np.unique(screen.perturbations.code[~screen.is_control])
    new = new_perturbations(before, screen)
    return Appended(
        summary=summary,
        num_cells=screen.num_cells,
        num_control_cells=int(screen.is_control.sum()),
        contexts=tuple(screen.contexts.names[code] for code in np.unique(screen.contexts.code)),
        known_perturbations=len(perturbations) - sum(new.values()),
        new_perturbations=new,
        labels=screen.perturbations.label_rows,
        kept_files=2 * num_full_shards(before.cells),
        manifest_before=before.cells.manifest_hash,
        manifest_after=manifest_after,
    )
