"""The door to Ray Tune: trials side by side, the poor ones stopped early.

Enters: the book of a study's trials. Leaves: every trial ended, in the book. Invariants: what
to try and what was found are the book's; Tune's own record of the experiment is never read, so nothing is
unpickled; a trial whose process dies goes on from its checkpoint, as often as ``cluster.max_failures`` says.
"""

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from txpert_dist.config import Config
from txpert_dist.errors import TrainingError, TxPertError
from txpert_dist.train.cluster import connected
from txpert_dist.train.tune_book import Book
from txpert_dist.train.tune_search import LOWEST
from txpert_dist.train.tune_study import Trial, best_so_far

_SCRATCH = "ray"
_REDUCTION = 3  # of three trials at a rung one goes on
_RUNGS = 2  # rungs below the last epoch
_SCORE, _EPOCH, _NUMBER, _ERROR = "best", "epoch", "number", "error"
"""Keys of what a trial reports."""

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted study ends as every other verb
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # a stopped trial may send its last records
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # a tracking server that is down must cost seconds, not the minutes of MLflow's defaults
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def in_parallel(book: Book, *, parent: str, commit: str, parallel: int | None) -> None:
    """Run the book's trials until none remains, under the MLflow run ``parent``.

    ``KeyboardInterrupt`` passes through.
    """
    scheduler = Asha(book.base.train.epochs)
    for number in scheduler.replay(book.trials):
        book.ended(number, "stopped")
    if not book.remaining:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the book tells what befalls trials
    cpus = book.base.cluster.cpus_per_worker * (parallel or 1)
    with connected(cpus, {name: os.environ[name] for name in _ENVIRONMENT}), _interruptible():
        at_once = min(_room(book.base, parallel), book.remaining)
        try:
            search = _Search(book, {"parent": parent, "commit": commit})
            _tuner(book, search, scheduler, at_once=at_once).fit()
        finally:
            shutil.rmtree(book.folder / _SCRATCH, ignore_errors=True)
    if book.remaining and not book.hopeless:
        raise TrainingError(f"{book.folder}: Ray ended before the trials did; the same command goes on")


def _tuner(book: Book, search: "_Search", scheduler: "Asha", *, at_once: int) -> tune.Tuner:
    cluster = book.base.cluster
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {})
    return tune.Tuner(
        tune.with_resources(_trial, resources),
        tune_config=tune.TuneConfig(
            metric=_SCORE,
            mode="max",
            search_alg=search,
            scheduler=scheduler,
            num_samples=book.remaining,
            max_concurrent_trials=at_once,
            reuse_actors=True,  # a process has imported everything after its first trial
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(book.folder / _SCRATCH),
            failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
            callbacks=[_Watch(book)],
            stop=_GiveUp(book),
            verbose=0,
        ),
    )


def _trial(config: dict[str, Any]) -> None:
    """What a trial's process runs."""
    task = json.loads(config["task"])
    run = Config.model_validate(task["config"])
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if run.cluster.use_gpu else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even where there is one process
    from txpert_dist.train.tune_trial import run_trial

    def tell(epoch: int, best: float) -> None:
        tune.report({_NUMBER: task["number"], _EPOCH: epoch, _SCORE: best})

    try:
        run_trial(run, parent=task["parent"], commit=task["commit"], tell=tell)
    except TxPertError as error:  # trying it again would end the same way
        said = " ".join(str(error).split())
        tune.report({_NUMBER: task["number"], _EPOCH: 0, _SCORE: LOWEST, _ERROR: said})


class _Held:
    """The book in Tune's hands; where Tune writes down what it holds, for nobody to read, it is nothing."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_Held":
        return self


class _Known(NamedTuple):
    """All that the scheduler asks of a trial."""

    trial_id: str


class Asha(FIFOScheduler):  # type: ignore[misc]
    """Tune's own asynchronous successive halving, by epochs; what was reported before can be replayed.

    Trial 0, the base configuration, is never stopped.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self._epochs = epochs
        self._known: set[int] = set()
        self._halving = AsyncHyperBandScheduler(
            time_attr=_EPOCH,
            metric=_SCORE,
            mode="max",
            max_t=epochs,
            grace_period=max(1, round(epochs / _REDUCTION**_RUNGS)),
            reduction_factor=_REDUCTION,
            stop_last_trials=False,
        )

    def replay(self, trials: Sequence[Trial]) -> list[int]:
        """Hear all that was reported before; the unfinished trials that would be stopped by now."""
        stopped = []
        for trial in sorted(trials, key=lambda trial: (trial.ending == "running", trial.number)):
            best, goes_on = best_so_far(trial.scores), True
            for epoch in sorted(trial.scores):
                goes_on = self.goes_on(trial.number, epoch, best.get(epoch, LOWEST))
            if trial.ending == "running" and not goes_on:
                stopped.append(trial.number)
        return stopped

    def goes_on(self, number: int, epoch: int, best: float) -> bool:
        """Whether a trial goes on that has come to ``epoch`` with ``best`` as its best score."""
        known = _Known(str(number))
        if number not in self._known:
            self._known.add(number)
            self._halving.on_trial_add(None, known)
        action = self._halving.on_trial_result(None, known, {_EPOCH: epoch, _SCORE: best})
        return number == 0 or epoch >= self._epochs or action == FIFOScheduler.CONTINUE

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """What Tune does with the trial."""
        if _ERROR in result or self.goes_on(result[_NUMBER], result[_EPOCH], result[_SCORE]):
            return str(FIFOScheduler.CONTINUE)
        return str(FIFOScheduler.STOP)


class _Search(Searcher):  # type: ignore[misc]
    """Hands the book's trials to Tune."""

    def __init__(self, book: Book, common: dict[str, str]) -> None:
        super().__init__(metric=_SCORE, mode="max")
        self._held, self._common = _Held(book), common

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        found = self._held.book.next()
        if found is None:
            return str(Searcher.FINISHED)
        number, config = found
        task = {"number": number, "config": config.model_dump(mode="json")}
        return {"task": json.dumps(task | self._common)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The book hears of it through ``_Watch``."""


class _Watch(tune.Callback):  # type: ignore[misc]
    """Tells the book what becomes of its trials."""

    def __init__(self, book: Book) -> None:
        self._held = _Held(book)

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        self._held.book.scored(_number(trial))

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        said = trial.last_result.get(_ERROR)
        if said is not None:
            self._held.book.ended(_number(trial), "failed", said)
        elif not self._held.book.hopeless:  # else nobody decided that it is over
            complete = trial.last_result.get(_EPOCH, 0) >= self._held.book.base.train.epochs
            self._held.book.ended(_number(trial), "complete" if complete else "stopped")

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        last = (str(trial.get_error()).strip().splitlines() or ["its process died"])[-1]
        self._held.book.ended(_number(trial), "failed", last[:200])


class _GiveUp(tune.Stopper):  # type: ignore[misc]
    """Ends the study when the base configuration itself cannot be trained."""

    def __init__(self, book: Book) -> None:
        self._held = _Held(book)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._held.book.hopeless


def _number(trial: RayTrial) -> int:
    return int(json.loads(trial.config["task"])["number"])


def _room(base: Config, parallel: int | None) -> int:
    """How many trials may run at a time."""
    cluster, there = base.cluster, ray.cluster_resources()
    room = there.get("CPU", 0) // cluster.cpus_per_worker
    room = min(room, there.get("GPU", 0)) if cluster.use_gpu else room
    return parallel or max(1, int(room))


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM as an interrupt too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
