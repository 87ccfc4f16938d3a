"""Ingest: h5ad files in, one complete cell store out.

Enters: an ``IngestConfig``. Leaves: the store at ``config.store`` and an ``IngestSummary``. Invariants: the
work is cut into tasks in bounded memory, done by this process or by Ray's; a killed ingest goes on from the
tasks that were done, and ends with the same store, byte for byte, whoever did which; a store that is there is
complete; the same inputs and settings again return at once.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from txpert_dist.errors import InputError
from txpert_dist.ingest.build import build_store
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.existing import (
    Inputs,
    existing_summary,
    read_inputs,
    reading_inputs,
    remember_inputs,
    require_unchanged,
    same_store,
    work_key,
)
from txpert_dist.ingest.expression import make_expression
from txpert_dist.ingest.find import find
from txpert_dist.ingest.inputs import open_inputs
from txpert_dist.ingest.publish import clear_abandoned, publish, restore_replaced, work_folder
from txpert_dist.ingest.source import Source
from txpert_dist.ingest.statistics import Progress
from txpert_dist.ingest.summary import IngestSummary
from txpert_dist.ingest.tasks import Runner, Task, in_this_process
from txpert_dist.ingest.work import DEFAULT_SIZES, Sizes, Work


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def ingest(
    config: IngestConfig,
    *,
    progress: Progress = no_progress,
    cluster: str = "local",
    sizes: Sizes = DEFAULT_SIZES,
) -> IngestSummary:
    """Write the cell store that ``config`` describes and say what went into it.

    ``progress`` is called with (what, done, total) in cells. With several workers, ``cluster`` is the address
    of the Ray to use, whose nodes all have to see sources and store under the same paths. Raises
    ``InputError`` for anything in the files or the configuration that cannot be used; nothing is left behind
    then. Killed or interrupted, it leaves a hidden folder beside the store, from which the same call goes on.
    """
    check_config(config)
    restore_replaced(config.store)
    known = existing_summary(config)
    if known is not None and same_store(config, read_inputs(config)):
        clear_abandoned(config.store)
        return known
    replace = config.store.exists()
    key = work_key(config, sizes)
    sources = open_inputs(config)
    try:
        with work_folder(config.store, key) as folder, task_runner(config.workers, cluster) as runner:
            with reading_inputs(config, folder / "inputs.json") as inputs:
                summary = _build(Work(config, folder, runner, progress, sizes), sources, inputs)
                require_unchanged(inputs())
                remember_inputs(folder / "store", inputs())
            publish(folder / "store", config.store, replace=replace)
    except OSError as error:
        raise InputError(
            f"{config.store}: cannot be written ({error.strerror or error}); free space, or choose another "
            "path"
        ) from error
    return summary


def check_config(config: IngestConfig) -> None:
    """``InputError`` for settings that contradict each other."""
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
    if config.hvg_flavour == "seurat_v3" and config.input_scale == "log1p":
        raise InputError(
            "--hvg-flavour seurat_v3 needs counts, but --input-scale is log1p; choose another flavour"
        )


def _build(work: Work, sources: tuple[Source, ...], inputs: Callable[[], Inputs]) -> IngestSummary:
    found = find(work, sources)
    made = make_expression(work, found)
    return build_store(work, found, made, inputs(), work.folder / "store")


@contextmanager
def task_runner(workers: int, cluster: str) -> Iterator[Runner]:
    """Does tasks in this process, or in so many processes of the Ray this one is or gets connected to."""
    if workers == 1:
        yield in_this_process
        return
    try:
        import ray
    except ImportError:
        raise InputError("--workers needs Ray; install it (pip install 'txpert-dist[train]')") from None
    started = not ray.is_initialized()
    if started:
        # "local" and not Ray's default, which attaches to whatever cluster ran here last, dead or alive.
        own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if cluster == "local" else {}
        ray.init(address=cluster, log_to_driver=False, logging_level=logging.ERROR, **own)

    def run(task: Task, job: Any, numbers: Sequence[int]) -> Iterator[int]:
        yield from _on_ray(task, job, numbers, workers)

    try:
        yield run
    finally:
        if started:
            ray.shutdown()


def _on_ray(task: Task, job: Any, numbers: Sequence[int], workers: int) -> Iterator[int]:
    import ray

    if not numbers:
        return
    remote, shared, waiting = ray.remote(num_cpus=1)(task), ray.put(job), iter(numbers)
    at_work = {remote.remote(shared, number): number for number in islice(waiting, workers)}
    try:
        while at_work:
            (done,), _others = ray.wait(list(at_work))
            number = at_work.pop(done)
            ray.get(done)
            at_work |= {remote.remote(shared, number): number for number in islice(waiting, 1)}
            yield number
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for task_at_work in at_work:
            ray.cancel(task_at_work, force=True)
        if at_work:
            ray.wait(list(at_work), num_returns=len(at_work))
