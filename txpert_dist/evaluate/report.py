"""A report: scores of model, baselines and reproducibility on one split, with what they were computed from.

Enters: values per (perturbation, cell line). Leaves: a frozen ``Report``, and the folder that
``write_report`` makes of it: ``report.json``, ``report.md``, ``per_perturbation.parquet``,
``examples.parquet``, PNG figures.
Invariants: the folder appears complete or not at all; the JSON has the same keys whatever the values, and
null where undefined.
"""

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import pandas as pd

from txpert_dist.errors import InputError
from txpert_dist.evaluate.figures import draw_figures
from txpert_dist.evaluate.leakage import Check
from txpert_dist.evaluate.markdown import to_markdown
from txpert_dist.evaluate.scores import HEADLINE, METRICS
from txpert_dist.metrics.aggregate import Mean
from txpert_dist.metrics.bootstrap import BOOTSTRAP, Bootstrap, Interval

SCHEMA = 2
JSON_FILE = "report.json"
MARKDOWN_FILE = "report.md"
TABLE_FILE = "per_perturbation.parquet"
EXAMPLES_FILE = "examples.parquet"

Kind = Literal["model", "baseline", "reproducibility"]


class Origin(NamedTuple):
    """Where the evaluated model comes from; None where there is none."""

    run: str | None = None
    model_hash: str | None = None
    snapshot_id: str | None = None


class Provenance(NamedTuple):
    """Everything that names the inputs of a report."""

    run: str | None
    model_hash: str | None
    snapshot_id: str | None
    store: str
    store_hash: str
    split: str
    split_hash: str
    held_out_cell_lines: tuple[str, ...]
    """The only ones scored, their perturbed cells unknown to model and baselines; none: all are scored."""
    num_genes: int
    seed: int
    repeats: int
    """Divisions into halves that reproducibility is averaged over."""
    version: str
    """Of txpert-dist."""


class Counts(NamedTuple):
    """How much was evaluated, and what needed care."""

    perturbations: int
    groups: int
    """(perturbation, cell line): the units of the model's and baselines' means."""
    cells: int
    conditions: int
    """(perturbation, cell line, batch)."""
    conditions_without_halves: int
    """Conditions of a single cell: no per-batch reproducibility."""
    cells_with_fallback_controls: int
    """Cells whose batch has no control, so that all controls of the cell line stand in."""
    reference_perturbations: int
    """(perturbation, cell line) of every split that retrieval ranks among."""
    training_cells: int
    """Perturbed cells that the general baseline is fitted on."""
    perturbations_with_training_cells: int
    """Of the perturbations scored, those with cells among them."""


class Summary(NamedTuple):
    """One row of the report's table."""

    name: str
    unit: str
    """What each metric is the unweighted mean over."""
    metrics: dict[str, Mean]
    kind: Kind
    intervals: dict[str, Interval]
    """Bootstrap interval of each mean, perturbations resampled."""


class Gain(NamedTuple):
    """How much better a model is than another row, over the units where both are defined."""

    mean: float | None
    """Mean difference, model minus the other."""
    low: float | None
    high: float | None
    num_values: int
    num_better: int
    """Units where the model is better, as the metric counts."""


class Comparison(NamedTuple):
    """A model against another row of the report, unit by unit."""

    name: str
    against: str
    metrics: dict[str, Gain]


class Exclusion(NamedTuple):
    """Something that was not evaluated, or not as usual."""

    what: str
    number: int | None
    """How many; None where there is nothing to count."""
    why: str


EXAMPLE_COLUMNS = ("perturbation", "cell_line", "place", "score", "gene", "observed_delta", "predicted_delta")
"""Of the examples: ``place`` is best, median or worst, by Pearson delta of the first model."""


@dataclass(frozen=True, eq=False)
class Report:
    """The result of one evaluation."""

    provenance: Provenance
    counts: Counts
    predictors: tuple[Summary, ...]
    """Models first, then baselines."""
    reproducibility: tuple[Summary, ...]
    table: pd.DataFrame
    """One row for each (perturbation, cell line) and predictor or reproducibility variant."""
    comparisons: tuple[Comparison, ...] = ()
    """Every model against every other predictor and pooled reproducibility."""
    spearman_brown: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Split-half row -> correlation -> what its mean says of two whole experiments."""
    bootstrap: Bootstrap = BOOTSTRAP
    checks: tuple[Check, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    examples: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(EXAMPLE_COLUMNS)))
    """Predicted and observed delta of all genes for a few perturbations; see ``EXAMPLE_COLUMNS``."""


def with_origin(report: Report, origin: Origin) -> Report:
    """The same report, saying where the evaluated model comes from."""
    return replace(report, provenance=report.provenance._replace(**origin._asdict()))


def to_json(report: Report) -> dict[str, Any]:
    """The report without its table, as JSON-ready values."""
    return {
        "schema": SCHEMA,
        "provenance": report.provenance._asdict(),
        "counts": report.counts._asdict(),
        "metrics": {name: metric._asdict() for name, metric in METRICS.items()},
        "predictors": [_row(summary) for summary in report.predictors],
        "reproducibility": [_row(summary) for summary in report.reproducibility],
        "headline": list(HEADLINE),
        "comparisons": [_comparison(comparison) for comparison in report.comparisons],
        "spearman_brown": report.spearman_brown,
        "bootstrap": {**report.bootstrap._asdict(), "over": "perturbations"},
        "checks": [check._asdict() for check in report.checks],
        "excluded": [exclusion._asdict() for exclusion in report.exclusions],
    }


def write_report(report: Report, folder: Path) -> None:
    """Write the report into ``folder``, replacing an earlier report there.

    Raises ``InputError`` when the folder holds anything but a report.
    """
    if folder.exists() and not _replaceable(folder):
        raise InputError(f"{folder}: exists and is not a report; give a new folder for the report")
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid4().hex[:8]
    fresh, old = (folder.with_name(f".{folder.name}.{mark}.{kind}") for kind in ("new", "old"))
    try:
        fresh.mkdir()
        _write_files(report, fresh)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_files(report: Report, folder: Path) -> None:
    content = to_json(report)
    figures = draw_figures(report.table, [summary.name for summary in report.predictors], folder)
    text = json.dumps(content, indent=2, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(to_markdown(content, figures), encoding="utf-8")
    report.table.to_parquet(folder / TABLE_FILE, index=False)
    report.examples.to_parquet(folder / EXAMPLES_FILE, index=False)


def _row(summary: Summary) -> dict[str, Any]:
    return {
        "name": summary.name,
        "kind": summary.kind,
        "unit": summary.unit,
        "metrics": {name: summary.metrics[name]._asdict() for name in METRICS},
        "intervals": {name: summary.intervals[name]._asdict() for name in METRICS},
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    metrics = {name: gain._asdict() for name, gain in comparison.metrics.items()}
    return {"name": comparison.name, "against": comparison.against, "metrics": metrics}


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / JSON_FILE).exists() or not any(folder.iterdir()))
