"""From the files' expression to the store's shards, by tasks.

Enters: what was found in the files. Leaves: ``Expression``. Invariants: the expression is read once, and
written once in between, in buckets; no process holds more of it than a block, or than the shards that its
memory allows.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.buckets import entries_of_rows, value_type
from txpert_dist.ingest.cells import Cells, Part, readable_cells
from txpert_dist.ingest.genes import GeneJoin
from txpert_dist.ingest.knockdown import find_targets, knockdown_rows
from txpert_dist.ingest.matrix import block_ranges
from txpert_dist.ingest.order import inverse
from txpert_dist.ingest.results import is_whole, load
from txpert_dist.ingest.screen import Screen
from txpert_dist.ingest.statistics import (
    SUMS,
    Asked,
    Carried,
    Statistics,
    Totals,
    cells_to_select_on,
)
from txpert_dist.ingest.tasks import (
    ClipJob,
    MeasureJob,
    RegroupJob,
    ShardJob,
    clip_bucket,
    measure_block,
    regroup_source,
    run_stage,
    shard_files,
    write_shards,
)
from txpert_dist.ingest.variable_genes import (
    Moments,
    expected_variance,
    select_by_variance,
    select_variable_genes,
    selects,
)
from txpert_dist.ingest.work import Expression, Found, Work
from txpert_dist.store.write import KnockdownRow, ShardFiles

GENE_DTYPE: np.dtype[Any] = np.dtype(np.int32)
"""Of the gene numbers in a new store."""

_FIXED_BYTES = 3 << 28
"""What a process takes before it holds any entry: libraries, tables."""
_CELL_BYTES = 200
"""What the labels and names of a cell take."""
_SHARD_BYTES = 64 << 20
"""What putting together one shard takes."""


def make_expression(work: Work, found: Found) -> Expression:
    """Check, measure and write the expression; raises ``InputError`` for the first bad value."""
    config, screen = work.config, found.screen
    cells = readable_cells(found.sources, screen.rows, found.genes, config, work.scratch)
    statistics, buckets = measure_cells(work, cells, screen, inverse(found.source_row))
    indptr = entries_of_rows(buckets, screen.num_cells)
    if not indptr[-1]:
        raise InputError(f"{config.sources[0]}: no count in any of the {len(found.genes.names)} genes kept")
    dtype = value_type(statistics.largest, config.input_scale)
    chosen = cells_to_select_on(screen, config)[found.source_row]
    selected = _select(work, statistics.moments, buckets, chosen)
    shards = write_entries(work, buckets, indptr, dtype, GENE_DTYPE)
    knockdown = find_knockdown(statistics, screen, found.genes)
    return Expression(statistics, dtype, GENE_DTYPE, selected, knockdown, indptr, shards)


def measure_cells(
    work: Work,
    cells: Cells,
    screen: Screen,
    destination: NDArray[np.int64] | None,
    carried: Carried | None = None,
) -> tuple[Statistics, tuple[Path, ...]]:
    """Check and measure ``cells``; with ``destination`` (the row of each), sort them into buckets as well.

    ``carried`` are the sums over cells that they are to follow.
    """
    config = work.config
    asked = Asked(
        input_scale=config.input_scale,
        flavour=config.hvg_flavour,
        context=screen.contexts.code,
        perturbation=screen.perturbations.code,
        chosen=cells_to_select_on(screen, config),
        targets=find_targets(screen.perturbations.names, cells.genes.names),
        value_type=carried and carried.value_type,
    )
    what, name = "check and measure", "buckets"
    if destination is None:
        what, name = "measure knock-down", "knockdown"
    parts = block_parts(work, cells)
    job = MeasureJob(cells, parts, asked, destination, work.folder / name)
    num_cells = [_num_kept(cells, part) for part in parts]
    results = run_stage(work.runner, measure_block, job, num_cells, what, work.progress)
    totals = Totals(screen, asked, len(cells.genes.names), carried)
    for result in results:
        totals.add({sums: load(result, sums) for sums in SUMS})
    return totals.result(), results


def find_knockdown(statistics: Statistics, screen: Screen, genes: GeneJoin) -> tuple[KnockdownRow, ...]:
    """How much each perturbation left of the expression of its measured targets."""
    targets = find_targets(screen.perturbations.names, genes.names)
    return knockdown_rows(targets, statistics.target_sums, screen, genes.names)


def block_parts(work: Work, cells: Cells) -> tuple[Part, ...]:
    """The blocks of all files that hold kept cells; makes them ready to be read."""
    job = RegroupJob(cells, work.sizes.block_entries)
    for _number in work.runner(regroup_source, job, range(len(cells.sources))):
        pass
    parts = [
        Part(number, start, stop)
        for number, source in enumerate(cells.sources)
        for start, stop in block_ranges(source, work.sizes.block_entries)
    ]
    return tuple(part for part in parts if _num_kept(cells, part))


def _num_kept(cells: Cells, part: Part) -> int:
    first, last = np.searchsorted(cells.rows[part.source], (part.start, part.stop))
    return int(last - first)


def _select(
    work: Work, moments: Moments, buckets: tuple[Path, ...], chosen: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The numbers of the variable genes; seurat_v3 takes a second look at the buckets."""
    config = work.config
    if config.hvg_flavour != "seurat_v3" or not selects(config.select_genes, len(moments.sum_G)):
        return select_variable_genes(moments, config.select_genes, config.hvg_flavour)
    expected = expected_variance(moments)
    job = ClipJob(buckets, chosen, expected.clip_G, work.folder / "clipped")
    num_cells = [len(load(bucket, "row")) for bucket in buckets]
    sums_2G = np.zeros((2, len(moments.sum_G)))
    for result in run_stage(work.runner, clip_bucket, job, num_cells, "find variable genes", work.progress):
        sums_2G += load(result, "moments")
    return select_by_variance(moments, Moments(moments.num_cells, *sums_2G), expected, config.select_genes)


def write_entries(
    work: Work,
    buckets: tuple[Path, ...],
    indptr: NDArray[np.int64],
    dtype: np.dtype[Any],
    gene_dtype: np.dtype[Any],
) -> tuple[ShardFiles, ...]:
    """Write the shards that are not there yet; returns all, in order."""
    folder, size = work.folder / "shards", work.sizes.shards.shard
    results = tuple(folder / str(number) for number in range(-(-int(indptr[-1]) // size)))
    missing = [number for number, result in enumerate(results) if not is_whole(result)]
    groups = _groups(missing, _shards_at_once(work, len(indptr), len(missing)))
    edges = np.searchsorted(indptr, np.minimum(np.arange(len(results) + 1) * size, indptr[-1]))
    num_cells = np.diff(edges)
    num_cells[-1] += len(indptr) - 1 - edges[-1]  # cells without entries at the end
    done, total = int(num_cells.sum() - num_cells[missing].sum()), len(indptr) - 1
    job = ShardJob(buckets, indptr, dtype, gene_dtype, work.sizes.shards, groups, folder)
    for number in work.runner(write_shards, job, range(len(groups))):
        done += int(num_cells[list(groups[number])].sum())
        work.progress("write", done, total)
    if not missing:
        work.progress("write", total, total)
    return tuple(map(shard_files, results))


def _shards_at_once(work: Work, num_cells: int, num_shards: int) -> int:
    """As many as fit into a process's memory, but so few that every worker has several tasks."""
    free = work.config.memory_gib * 2**30 - _FIXED_BYTES - _CELL_BYTES * num_cells
    share = -(-num_shards // (2 * work.config.workers))
    return max(1, min(int(free / _SHARD_BYTES), share))


def _groups(numbers: list[int], most: int) -> tuple[tuple[int, ...], ...]:
    """Ascending ``numbers`` cut into runs of consecutive ones, of at most ``most``."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1 and len(groups[-1]) < most:
            groups[-1].append(number)
        else:
            groups.append([number])
    return tuple(map(tuple, groups))
