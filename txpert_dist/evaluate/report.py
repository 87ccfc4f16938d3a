"""A report: scores of model, baselines and reproducibility on one split, with what they were computed from.

Enters: values per (perturbation, cell line). Leaves: a frozen ``Report``, and the folder that
``write_report`` makes of it: ``report.json``, ``report.md``, ``per_perturbation.parquet``, PNG figures.
Invariants: the folder appears complete or not at all; the JSON has the same keys whatever the values, and
null where undefined.
"""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pandas as pd

from txpert_dist.errors import InputError
from txpert_dist.evaluate.figures import draw_figures
from txpert_dist.evaluate.markdown import to_markdown
from txpert_dist.evaluate.scores import METRICS
from txpert_dist.metrics.aggregate import Mean

SCHEMA = 1
JSON_FILE = "report.json"
MARKDOWN_FILE = "report.md"
TABLE_FILE = "per_perturbation.parquet"


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


def _row(summary: Summary) -> dict[str, Any]:
    metrics = {name: summary.metrics[name]._asdict() for name in METRICS}
    return {"name": summary.name, "unit": summary.unit, "metrics": metrics}


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / JSON_FILE).exists() or not any(folder.iterdir()))
