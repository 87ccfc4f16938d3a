"""The trials of a study while it runs: what to try next, what became of each.

Enters: the study's folder as it is, then news of trials. Leaves: configurations to run. Invariants: every
change is on disk before anything depends on it; a trial that ended is not tried again unless it failed; a
failed one is tried once by each command, for what made it fail may have been mended.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from txpert_dist.config import Config
from txpert_dist.train.graphs import graphs_folder
from txpert_dist.train.inputs import open_inputs
from txpert_dist.train.tune_search import Ending, suggest
from txpert_dist.train.tune_space import Space, configured, default_of
from txpert_dist.train.tune_study import Trial, read_scores, read_trials, trial_name, write_trial

Show = Callable[[Sequence[Trial]], None]
"""Told of all trials whenever one has changed."""

_AGAIN = ("running", "failed")


class Book:
    """The driver's knowledge of the trials."""

    def __init__(self, base: Config, whole: Config, space: Space, *, target: int, show: Show) -> None:
        self.base = base
        """Trial 0; its ``train.epochs`` are every trial's."""
        self.folder = whole.run_folder
        """The study's."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when a trial has ended."""
        self._whole, self._space, self._target, self._show = whole, space, target, show
        self._trials = {trial.number: trial for trial in read_trials(self.folder)}
        self._waiting = [trial.number for trial in self.trials if trial.ending in _AGAIN]
        for number in self._waiting:
            self._change(self._trials[number]._replace(ending="running", message=""))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All that were begun, by number."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    @property
    def remaining(self) -> int:
        """How many have to end yet."""
        return max(0, self._target - sum(trial.ending != "running" for trial in self.trials))

    @property
    def hopeless(self) -> bool:
        """The base configuration itself cannot be trained: nothing would be learned from others."""
        return 0 in self._trials and self._trials[0].ending == "failed"

    def next(self) -> tuple[int, Config] | None:
        """A trial to run: one that was interrupted, or a new one; None when there is none, or no hope."""
        if self.hopeless:
            return None
        if self._waiting:
            return self._task(self._waiting.pop(0))
        number = len(self._trials)
        if number >= self._target:
            return None
        values = default_of(self._space, self.base) if number == 0 else self._suggest(number)
        self._change(Trial(number, values, "running", {}))
        return self._task(number)

    def scored(self, number: int) -> None:
        """A trial has put another score on disk."""
        self._trials[number] = self._trials[number]._replace(scores=self._scores(number))
        self._show(self.trials)

    def ended(self, number: int, ending: Ending, message: str = "") -> None:
        """A trial is over."""
        if number in self._waiting:
            self._waiting.remove(number)
        trial = self._trials[number]._replace(ending=ending, scores=self._scores(number), message=message)
        self._change(trial)
        self.on_end()

    def winner(self) -> Trial | None:
        """The complete trial with the best validation score, the first of equals; None when there is none."""
        complete = [trial for trial in self.trials if trial.ending == "complete"]
        return max(complete, key=lambda trial: (_ranked(trial.best), -trial.number), default=None)

    def configuration(self, number: int) -> Config:
        """The base configuration with a trial's values, as a user would train it."""
        return configured(self.base, self._trials[number].values if number else {})

    def _task(self, number: int) -> tuple[int, Config]:
        """A trial's run: in the study's folder, one worker, the study's own graphs and tracking server."""
        config = self.configuration(number)
        cluster = config.cluster.model_copy(update={"num_workers": 1, "graph_service": False})
        train = config.train.model_copy(update={"checkpoint_mirror": None})
        tracking = config.tracking.model_copy(update={"uri": self.base.tracking_uri})
        graph = _with_copy(config, self._whole).graph
        update = {"cluster": cluster, "train": train, "tracking": tracking, "graph": graph}
        own = {"name": trial_name(number), "output": self.folder}
        return number, config.model_copy(update=update | own)

    def _suggest(self, number: int) -> dict[str, Any]:
        history = [trial.tried() for trial in self.trials]
        return suggest(self._space, self.base, seed=self.base.seed, number=number, history=history)

    def _scores(self, number: int) -> dict[int, float]:
        return read_scores(self.folder / trial_name(number))

    def _change(self, trial: Trial) -> None:
        write_trial(self.folder, trial)
        self._trials[trial.number] = trial
        self._show(self.trials)


def check_inputs(whole: Config, space: Space) -> None:
    """Raise what is wrong with what trials read, with every choice of graphs. ``whole`` is the study's."""
    here = _with_copy(whole, whole)
    open_inputs(here)
    for dimension in space.dimensions:
        if dimension.key.startswith("graph.") and dimension.rule == "choice":
            for value in dimension.values:
                open_inputs(configured(here, {dimension.key: value}))


def _with_copy(config: Config, whole: Config) -> Config:
    """``config`` reading the study's own copy of the graphs that a service holds."""
    location = graphs_folder(whole.graph, whole.run_folder)
    return config.model_copy(update={"graph": config.graph.model_copy(update={"location": location})})


def _ranked(score: float) -> float:
    return -math.inf if math.isnan(score) else score
