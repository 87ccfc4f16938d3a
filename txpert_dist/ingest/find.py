"""Which cells, genes, labels and embeddings of the files go into the store, and where each cell goes.

Enters: opened files. Leaves: ``Found``. Invariant: every cell of the files is kept, or counted among those
that a filter, a threshold or a lack of counts left out.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from txpert_dist.ingest.cells import Cells, readable_cells
from txpert_dist.ingest.columns import FilterRow, filter_cells, labelled_cells
from txpert_dist.ingest.config import IngestConfig, resolve_keys
from txpert_dist.ingest.embeddings import open_embeddings
from txpert_dist.ingest.expression import block_parts, find_knockdown, measure_cells
from txpert_dist.ingest.genes import GeneJoin, GeneNames, gene_names, join_genes, join_stored
from txpert_dist.ingest.knockdown import unlowered
from txpert_dist.ingest.order import source_rows
from txpert_dist.ingest.results import load
from txpert_dist.ingest.screen import Screen, read_following, read_screen
from txpert_dist.ingest.source import Source
from txpert_dist.ingest.stored import Stored
from txpert_dist.ingest.tasks import CountJob, count_entries, run_stage
from txpert_dist.ingest.work import Found, Work


def find(work: Work, sources: tuple[Source, ...], before: Stored | None = None) -> Found:
    """Label the cells of ``sources`` and choose among them; raises ``InputError`` for what cannot be used.

    ``before`` is the store that they are to follow: it has the genes and the order of the rows.
    """
    config = work.config
    keys = resolve_keys(config)
    names = [gene_names(source, keys.gene_name) for source in sources]
    genes, gene_notes = _genes(sources, names, config, before)
    label = read_screen if before is None else partial(read_following, before=before)
    embeddings = open_embeddings(sources, config.embeddings)
    rows, filters = filter_cells(sources, config.where)
    if config.unlabelled == "drop":
        rows, row = labelled_cells(sources, rows, keys.perturbation)
        filters = (*filters, row)
    screen = label(sources, rows, config, keys)
    empty = 0
    if config.empty_cells == "drop":
        kept = _with_counts(work, readable_cells(sources, rows, genes, config, work.scratch))
        empty = sum(map(len, rows)) - sum(map(len, kept))
        screen = label(sources, kept, config, keys)
    if config.require_knockdown is not None:
        kept, row = _with_knockdown(work, sources, screen, genes)
        strong, every = label(sources, kept, config, keys), screen.perturbations
        # The table of labels, and what was left out before, are those of all cells.
        told = strong.perturbations._replace(
            label_rows=every.label_rows, dropped=every.dropped, notes=every.notes
        )
        screen, filters = strong._replace(perturbations=told), (*filters, row)
    place = source_rows(
        screen.split[screen.perturbations.code],
        screen.is_control,
        order=config.row_order,
        seed=config.split_seed,
    )
    notes = (
        *(note for source in sources for note in source.notes),
        *(file.note for file in names if file.note),
        *gene_notes,
        *screen.contexts.notes,
        *screen.perturbations.notes,
    )
    gene_lists = tuple(file.names for file in names)
    return Found(sources, screen, gene_lists, genes, embeddings, filters, empty, notes, place)


def _genes(
    sources: tuple[Source, ...], names: list[GeneNames], config: IngestConfig, before: Stored | None
) -> tuple[GeneJoin, tuple[str, ...]]:
    """The genes of the store, and what the summary should say of them."""
    if before is None:
        return join_genes(sources, names, config.genes_join), ()
    return join_stored(sources, names, before.cells.genes)


def _with_counts(work: Work, cells: Cells) -> list[NDArray[np.int64]]:
    """Rows of every file that have any count."""
    parts = block_parts(work, cells)
    job = CountJob(cells, parts, work.folder / "entries")
    num_cells = [part.stop - part.start for part in parts]
    what = "find cells without counts"
    entries = [np.zeros(source.shape[0], np.int64) for source in cells.sources]
    for part, result in zip(
        parts, run_stage(work.runner, count_entries, job, num_cells, what, work.progress), strict=True
    ):
        entries[part.source][part.start : part.stop] = load(result, "entries")
    return [rows[found[rows] > 0] for rows, found in zip(cells.rows, entries, strict=True)]


def _with_knockdown(
    work: Work, sources: tuple[Source, ...], screen: Screen, genes: GeneJoin
) -> tuple[list[NDArray[np.int64]], FilterRow]:
    """Rows of every file whose perturbation lowers all its measured targets, and what that leaves out."""
    required = work.config.require_knockdown or 0.0
    cells = readable_cells(sources, screen.rows, genes, work.config, work.scratch)
    statistics, _results = measure_cells(work, cells, screen, None)
    weak = {row.perturbation for row in unlowered(find_knockdown(statistics, screen, genes), required)}
    kept = np.array([name not in weak for name in screen.perturbations.names])[screen.perturbations.code]
    of_file = np.split(kept, np.cumsum([len(own) for own in screen.rows])[:-1])
    rows = [own[part] for own, part in zip(screen.rows, of_file, strict=True)]
    num_kept = int(kept.sum())
    what = f"knock-down of {required:g} or more ({len(weak)} perturbations have less)"
    return rows, FilterRow(what, num_kept, len(kept) - num_kept)
