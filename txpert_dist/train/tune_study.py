"""What a study leaves on disk: one folder, one run folder a trial, everything as text.

Layout of ``<output>/<name>-tune/``: ``study.yaml`` (base configuration and search space), ``run.json`` (the
MLflow run that holds the trials'), ``trial-000/`` ... (a run's folder each, with ``trial.json`` and
``scores.jsonl`` besides). Invariants: a study's folder is never reused with another base or space; what is
here is all that a study needs to go on, so a kill costs at most the epochs since the trials' checkpoints; one
process at a time writes any of these files.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from txpert_dist.config import Config
from txpert_dist.config_file import flatten
from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.train import checkpoint
from txpert_dist.train.checkpoint import SCORE
from txpert_dist.train.run_folder import MAY_DIFFER
from txpert_dist.train.tune_search import Ending, Tried
from txpert_dist.train.tune_space import Value

STUDY, TRIAL, SCORES = "study.yaml", "trial.json", "scores.jsonl"
_SUFFIX = "-tune"
_EPOCHS = "train.epochs"


class Trial(NamedTuple):
    """One trial: what it varies and how it stands."""

    number: int
    """From 0, the base configuration itself."""
    values: dict[str, Value]
    """Key -> value; what the base has, for trial 0."""
    ending: Ending
    scores: dict[int, float]
    """Epoch -> validation Pearson delta; NaN where it is not defined."""
    message: str = ""
    """Why it failed."""

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return max(self.scores, default=0)

    @property
    def best(self) -> float:
        """The highest score so far; NaN before there is one."""
        return max((score for score in self.scores.values() if not math.isnan(score)), default=math.nan)

    def tried(self) -> Tried:
        """The trial as the search sees it: with the best score up to each epoch."""
        return Tried(self.values, self.ending, best_so_far(self.scores))


def best_so_far(scores: dict[int, float]) -> dict[int, float]:
    """Epoch -> highest score up to there, from the first epoch that has one."""
    best, found = -math.inf, {}
    for epoch in sorted(scores):
        best = best if math.isnan(scores[epoch]) else max(best, scores[epoch])
        if best > -math.inf:
            found[epoch] = best
    return found


def study_config(base: Config) -> Config:
    """The base configuration, under the study's name: its run folder is the study's."""
    return base.model_copy(update={"name": base.name + _SUFFIX})


def trial_name(number: int) -> str:
    """Name of a trial's run, and of its folder in the study's."""
    return f"trial-{number:03d}"


def check_study(folder: Path, base: Config, space: dict[str, Any]) -> None:
    """Write down what the study is, or raise ``ConfigError`` when the folder is of another one."""
    path = folder / STUDY
    content = {"run": base.model_dump(mode="json"), "space": space}
    if not path.exists():
        partial = path.with_name(f".{STUDY}.partial")
        partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        partial.replace(path)
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        kept, kept_space = flatten(Config.model_validate(before["run"])), before["space"]
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError):
        raise ConfigError(
            f"{path}: was written by another version of this software, or is damaged; choose another name="
        ) from None
    now = flatten(base)
    differing = sorted(
        key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key) and not _may_differ(key)
    )
    if differing:
        listed = ", ".join(f"{key} ({kept.get(key)} -> {now.get(key)})" for key in differing)
        raise ConfigError(
            f"{folder}: the study was begun with other values of {listed}; choose another name="
        )
    if kept_space != space:
        raise ConfigError(f"{folder}: the study was begun with another search space; choose another name=")


def read_trials(folder: Path) -> list[Trial]:
    """The study's trials, by number. Raises ``CheckpointError`` for one that cannot be read."""
    return [_read_trial(path) for path in sorted(folder.glob(f"trial-*/{TRIAL}"))]


def write_trial(folder: Path, trial: Trial) -> None:
    """Put all but the scores, which the trial writes itself, into the trial's folder, at once."""
    own = folder / trial_name(trial.number)
    own.mkdir(parents=True, exist_ok=True)
    tree = {"number": trial.number, "values": trial.values, "ending": trial.ending, "message": trial.message}
    partial = own / f".{TRIAL}.partial"
    partial.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    partial.replace(own / TRIAL)


def add_score(run_folder: Path, epoch: int, score: float) -> None:
    """Note one epoch's score, for good, unless it is there already."""
    if epoch in read_scores(run_folder):
        return
    path = run_folder / SCORES
    cut = path.exists() and not path.read_bytes().endswith(b"\n")  # by a kill
    line = json.dumps([epoch, None if math.isnan(score) else score])
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_scores(run_folder: Path) -> dict[int, float]:
    """Epoch -> score, as far as whole lines go."""
    try:
        lines = (run_folder / SCORES).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    scores = {}
    for line in lines:
        try:
            epoch, score = json.loads(line)
        except ValueError:
            continue  # cut by a kill: its epoch's checkpoint has the score, or the epoch is done again
        scores[int(epoch)] = math.nan if score is None else float(score)
    return scores


def recover_scores(run_folder: Path) -> None:
    """Add the scores that checkpoints know of: a kill may have come between a checkpoint and its score."""
    for folder in checkpoint.checkpoints(run_folder):
        try:
            state = checkpoint.read_state(folder)
        except CheckpointError:
            continue  # damaged: the run passes it over and says so
        if SCORE in state.metrics:
            add_score(run_folder, state.epoch, state.metrics[SCORE])


def _read_trial(path: Path) -> Trial:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Trial(scores=read_scores(path.parent), **tree)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error!r}); restore it or choose another name="
        ) from None


def _may_differ(key: str) -> bool:
    return key.startswith(MAY_DIFFER) and key != _EPOCHS
