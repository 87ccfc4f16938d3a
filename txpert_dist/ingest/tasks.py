"""The work of an ingest, cut into tasks that any process can do.

Enters: a job, which says all there is to know, and the number of one task. Leaves: a result folder for it
(``results``). Invariants: a task depends on its job and number only; whatever order tasks are done in,
whoever does them and however often they are killed, their results are the same.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.ingest.buckets import bucket_of, collect
from txpert_dist.ingest.cells import Cells, Part
from txpert_dist.ingest.kernels import add_moments
from txpert_dist.ingest.matrix import read_block, regroup
from txpert_dist.ingest.results import is_whole, load, new_result, save
from txpert_dist.ingest.statistics import Asked, Progress, measure
from txpert_dist.store import layout
from txpert_dist.store.shard_file import FileHash, ShardSizes, write_shard
from txpert_dist.store.write import ShardFiles

Task = Callable[[Any, int], None]
"""task(job, number) leaves the result of that number."""
Runner = Callable[[Task, Any, Sequence[int]], Iterator[int]]
"""runner(task, job, numbers) does the tasks and yields the number of each that is done."""

_HASHES = "hashes.json"


class RegroupJob(NamedTuple):
    """A task: make one file ready to be read by blocks."""

    cells: Cells
    block_entries: int


class MeasureJob(NamedTuple):
    """A task: read one block, check and measure it, and sort its cells into a bucket."""

    cells: Cells
    parts: tuple[Part, ...]
    asked: Asked
    destination: NDArray[np.int64] | None
    """(kept cells,) store row of each; None to measure only."""
    folder: Path


class ClipJob(NamedTuple):
    """A task: sum up one bucket's counts, none larger than ``clip_G``."""

    buckets: tuple[Path, ...]
    chosen: NDArray[np.bool_]
    """(store rows,)."""
    clip_G: NDArray[np.float64]
    folder: Path


class ShardJob(NamedTuple):
    """A task: write some consecutive shards."""

    buckets: tuple[Path, ...]
    indptr: NDArray[np.int64]
    dtype: np.dtype[Any]
    gene_dtype: np.dtype[Any]
    shards: ShardSizes
    groups: tuple[tuple[int, ...], ...]
    """Shard numbers of each task, consecutive."""
    folder: Path


class CountJob(NamedTuple):
    """A task: count the entries of the cells of one block."""

    cells: Cells
    parts: tuple[Part, ...]
    folder: Path


def in_this_process(task: Task, job: Any, numbers: Sequence[int]) -> Iterator[int]:
    """Do the tasks one after the other."""
    for number in numbers:
        task(job, number)
        yield number


def run_stage(
    runner: Runner, task: Task, job: Any, cells_of_task: Sequence[int], what: str, progress: Progress
) -> tuple[Path, ...]:
    """Do every task of ``job`` that has no result yet; returns the folders of the results, in order."""
    folders = tuple(job.folder / str(number) for number in range(len(cells_of_task)))
    missing = [number for number, folder in enumerate(folders) if not is_whole(folder)]
    total = sum(cells_of_task)
    done = total - sum(cells_of_task[number] for number in missing)
    for number in runner(task, job, missing):
        done += cells_of_task[number]
        progress(what, done, total)
    if not missing:
        progress(what, total, total)
    return folders


def regroup_source(job: RegroupJob, number: int) -> None:
    """See ``RegroupJob``."""
    regroup(job.cells.sources[number], job.cells.scratch_of(number), job.block_entries)


def measure_block(job: MeasureJob, number: int) -> None:
    """See ``MeasureJob``; raises ``InputError`` for the first value that cannot be used."""
    part = job.parts[number]
    block = job.cells.read(part)
    sums = measure(job.cells, block, job.cells.library_column[part.source], job.asked)
    with new_result(job.folder / str(number)) as folder:
        save(folder, sums)
        if job.destination is not None:
            row = np.array(job.destination[block.first : block.first + len(block.rows)])
            save(folder, bucket_of(block.stored, row, job.asked.input_scale))


def count_entries(job: CountJob, number: int) -> None:
    """See ``CountJob``: the number of entries of every row of the block, kept or not."""
    part = job.parts[number]
    source, scratch = job.cells.sources[part.source], job.cells.scratch_of(part.source)
    block = read_block(source, part.start, part.stop, scratch)
    with new_result(job.folder / str(number)) as folder:
        save(folder, {"entries": np.diff(block.matrix.indptr).astype(np.int64)})


def clip_bucket(job: ClipJob, number: int) -> None:
    """See ``ClipJob``."""
    bucket = job.buckets[number]
    gene = load(bucket, "gene").astype(np.int32)
    value = np.minimum(load(bucket, "value").astype(np.float64), job.clip_G[gene])
    sums_2G = np.zeros((2, len(job.clip_G)))
    chosen = np.array(job.chosen[load(bucket, "row")])
    add_moments(np.array(load(bucket, "indptr")), gene, value, chosen, sums_2G[0], sums_2G[1])
    with new_result(job.folder / str(number)) as folder:
        save(folder, {"moments": sums_2G})


def write_shards(job: ShardJob, number: int) -> None:
    """See ``ShardJob``; every shard has a result of its own."""
    group, size = job.groups[number], job.shards.shard
    start, stop = group[0] * size, min((group[-1] + 1) * size, int(job.indptr[-1]))
    entries = collect(job.buckets, job.indptr, start, stop, job.dtype)
    gene = entries.gene.astype(job.gene_dtype, copy=False)
    for shard in group:
        own = slice(shard * size - start, min((shard + 1) * size, stop) - start)
        with new_result(job.folder / str(shard)) as folder:
            hashes = {
                "value": write_shard(folder / "value", entries.value[own], job.shards, 0),
                "gene": write_shard(folder / "gene", gene[own], job.shards, layout.GENE_FILL),
            }
            (folder / _HASHES).write_text(json.dumps(hashes), encoding="utf-8")


def shard_files(folder: Path) -> ShardFiles:
    """What ``write_shards`` left in the result ``folder``."""
    hashes = json.loads((folder / _HASHES).read_text(encoding="utf-8"))
    value, gene = FileHash(*hashes["value"]), FileHash(*hashes["gene"])
    return ShardFiles(folder / "value", value, folder / "gene", gene)
