"""What a study is told, as one typed tree: from a run configuration and options, or from a file of its own.

Enters: a YAML file, overrides, options. Leaves: a frozen ``Tuning`` whose search space is spelled out, so
that the file that travels to a cluster needs no other. Invariant: overrides are always keys of the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import PositiveInt

from txpert_dist.config import Config, Section
from txpert_dist.config_file import load, load_as
from txpert_dist.errors import ConfigError

TRIALS = 20
"""Trials of a study that does not say how many."""


class Tuning(Section):
    """One study."""

    run: Config
    """The base configuration, which is trial 0."""
    trials: PositiveInt = TRIALS
    """Trials in all."""
    space: str | dict[str, Any] = "default"
    """A preset, a file, or the search space itself."""
    parallel: PositiveInt | None = None
    """Trials at a time; as many as there is room for when left out."""
    out: Path | None = None
    """Where the best configuration is written; best.yaml in the study's folder when left out."""


def load_tuning(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    trials: int | None = None,
    space: str | None = None,
    parallel: int | None = None,
    out: Path | None = None,
) -> Tuning:
    """Read a study's file or a run configuration; options that are given win.

    Raises ``ConfigError`` naming the file and the key.
    """
    if _is_study(file):
        tuning = load_as(Tuning, file, [f"run.{item}" for item in overrides])
    else:
        tuning = Tuning(run=load(file, overrides))
    given = {"trials": trials, "space": space, "parallel": parallel, "out": out}
    tuning = tuning.model_copy(update={key: value for key, value in given.items() if value is not None})
    return tuning.model_copy(update={"space": _spelled_out(tuning.space)})


def _is_study(file: Path) -> bool:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # load says what is wrong with it
    return isinstance(tree, dict) and "run" in tree


def _spelled_out(space: str | dict[str, Any]) -> dict[str, Any]:
    from txpert_dist.train.tune_space import read_space

    if isinstance(space, str):
        return read_space(space)
    if not space:
        raise ConfigError("space: has no key; name a preset, or give rules")
    return space
