"""The door to Optuna: what to try next, as a function of what was tried.

Enters: the space, a seed, the trials so far. Leaves: values for one more trial. Invariants: there is no other
state, so a study that was killed goes on exactly as it would have; the same history and number give the same
values; values that do not fit each other are never handed out.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from txpert_dist.config import Config
from txpert_dist.errors import ConfigError
from txpert_dist.train.tune_space import Dimension, Space, Value, applies, configured, refusal

Ending = Literal["running", "complete", "stopped", "failed"]
"""How a trial stands; stopped means early, for others were better at the same epoch."""

_INFORMED, _DRAWS = 20, 220
"""Draws of one trial that heed its history, and draws after which nothing (or nearly) is said to fit."""

_DIGITS = 4
"""Significant digits of a drawn number: it will be read by people."""

LOWEST = -1.0
"""Score of a trial whose Pearson delta is undefined: no correlation is lower."""

_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Tried(NamedTuple):
    """One trial as the search sees it."""

    values: dict[str, Value]
    """What it varied; for the default trial, what the base configuration has."""
    ending: Ending
    scores: dict[int, float]
    """Epoch -> best validation Pearson delta up to there; finite numbers only."""


def suggest(
    space: Space, base: Config, *, seed: int, number: int, history: Sequence[Tried]
) -> dict[str, Value]:
    """Values of trial ``number``, given the trials before it.

    Raises ``ConfigError`` when values that fit each other cannot be found.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=_sampler(seed, number))
    study.add_trials([_frozen(space, tried) for tried in history])
    said = ""
    for draw in range(_DRAWS):
        if draw == _INFORMED:  # what scored well points where nothing fits
            study.sampler = optuna.samplers.RandomSampler(seed=_seed(seed, number))
        trial = study.ask()
        values = _draw(space, base, trial)
        try:
            configured(base, values)
        except ValidationError as error:
            said = refusal(error)
            study.tell(trial, state=TrialState.FAIL)
            continue
        return values
    raise ConfigError(f"search space: {_DRAWS} draws did not fit ({said}); take out what cannot go together")


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimators over values that depend on each other, some of them absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            # one stream a trial: nothing is left of it that a new process would lack
            seed=_seed(seed, number),
            multivariate=True,
            group=True,
            constant_liar=True,
        )


def _seed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number) % 2**32


def _draw(space: Space, base: Config, trial: optuna.Trial) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for dimension in space.dimensions:
        if applies(base, values, dimension.key):
            values[dimension.key] = _drawn(dimension, trial)
    return values


def _drawn(dimension: Dimension, trial: optuna.Trial) -> Value:
    low, high = dimension.values[0], dimension.values[-1]
    if dimension.rule == "choice":
        return dimension.values[trial.suggest_categorical(dimension.key, range(len(dimension.values)))]
    if dimension.rule == "integer":
        return trial.suggest_int(dimension.key, low, high)
    drawn = trial.suggest_float(dimension.key, low, high, log=dimension.rule == "log_uniform")
    return min(max(float(f"{drawn:.{_DIGITS}g}"), low), high)


def _frozen(space: Space, tried: Tried) -> FrozenTrial:
    values, distributions = {}, {}
    for dimension in space.dimensions:
        if dimension.key not in tried.values:
            continue
        distribution, value = _distribution(dimension), tried.values[dimension.key]
        if dimension.rule == "choice":
            value = dimension.values.index(value) if value in dimension.values else None
        # the default trial's values may lie outside the space: what the search cannot place, it does not see
        if value is not None and distribution._contains(distribution.to_internal_repr(value)):
            values[dimension.key], distributions[dimension.key] = value, distribution
    best = max(tried.scores.values(), default=LOWEST)
    return create_trial(
        state=_STATES[tried.ending],
        value=best if tried.ending in ("complete", "stopped") else None,
        params=values,
        distributions=distributions,
        intermediate_values=dict(tried.scores),
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    low, high = dimension.values[0], dimension.values[-1]
    if dimension.rule == "choice":
        return CategoricalDistribution(range(len(dimension.values)))
    if dimension.rule == "integer":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=dimension.rule == "log_uniform")
