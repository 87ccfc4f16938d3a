"""A report: scores of model, baselines and reproducibility on one split, with what they were computed from.

Enters: values per (perturbation, cell line). Leaves: a frozen ``Report``, and the folder that
``write_report`` makes of it: ``report.html``, ``report.json``, ``report.md``, ``per_perturbation.parquet``,
``examples.parquet``, ``nodes.parquet`` where there is a map, PNG figures.
Invariants: the folder appears complete or not at all; the JSON has the same keys whatever the values, and
null where undefined.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from txpert_dist.evaluate.figures import draw_figures
from txpert_dist.evaluate.folder import replace_folder
from txpert_dist.evaluate.groups import NO_GROUP, group_intervals
from txpert_dist.evaluate.html.page import to_html
from txpert_dist.evaluate.leakage import Check
from txpert_dist.evaluate.markdown import to_markdown
from txpert_dist.evaluate.node_map import NodeMap
from txpert_dist.evaluate.scores import HEADLINE, METRICS
from txpert_dist.evaluate.tiers import Tiers
from txpert_dist.metrics.aggregate import Mean
from txpert_dist.metrics.bootstrap import BOOTSTRAP, Bootstrap, Interval

SCHEMA = 3
JSON_FILE = "report.json"
HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"
TABLE_FILE = "per_perturbation.parquet"
EXAMPLES_FILE = "examples.parquet"
NODES_FILE = "nodes.parquet"

Kind = Literal["model", "baseline", "reproducibility"]


class Origin(NamedTuple):
    """Where the evaluated model comes from; None where there is none."""

    run: str | None = None
    model_hash: str | None = None
    snapshot_id: str | None = None
    git_commit: str | None = None
    """Of the code that trained it."""


class Provenance(NamedTuple):
    """Everything that names the inputs of a report."""

    run: str | None
    model_hash: str | None
    snapshot_id: str | None
    git_commit: str | None
    store: str
    store_hash: str
    split: str
    split_hash: str
    held_out_cell_lines: tuple[str, ...]
    """The only ones scored, their perturbed cells unknown to model and baselines; none: all are scored."""
    num_genes: int
    genes_hash: str
    """SHA-256 of the names of the scored genes, in order, a line each."""
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
    nodes: NodeMap | None = None
    """Where the model's node embeddings lie; None without a model or a map."""
    configuration: Mapping[str, Any] | None = None
    """Of the run that trained the model, resolved."""


def with_origin(report: Report, origin: Origin) -> Report:
    """The same report, saying where the evaluated model comes from."""
    return replace(report, provenance=report.provenance._replace(**origin._asdict()))


def with_tiers(report: Report, tiers: Tiers) -> Report:
    """The same report with the knowledge tier of every perturbation in its table."""
    levels = [tiers.level(name) for name in report.table["perturbation"]]
    tier = [NO_GROUP if level is None else str(level) for level in levels]
    return replace(report, table=report.table.assign(tier=tier))


def with_model(report: Report, configuration: Mapping[str, Any], nodes: NodeMap | None) -> Report:
    """The same report with what is known of the model: its run's configuration, a map of its nodes.

    Passwords in addresses of the configuration are left out.
    """
    return replace(report, configuration=_without_passwords(configuration), nodes=nodes)


def to_json(report: Report) -> dict[str, Any]:
    """The report without its table, as JSON-ready values."""
    return {
        "schema": SCHEMA,
        "provenance": report.provenance._asdict(),
        "counts": report.counts._asdict(),
        "metrics": {name: metric._asdict() for name, metric in METRICS.items()},
        "predictors": [summary_json(summary) for summary in report.predictors],
        "reproducibility": [summary_json(summary) for summary in report.reproducibility],
        "headline": list(HEADLINE),
        "comparisons": [comparison_json(comparison) for comparison in report.comparisons],
        "spearman_brown": report.spearman_brown,
        "bootstrap": {**report.bootstrap._asdict(), "over": "perturbations"},
        "checks": [check._asdict() for check in report.checks],
        "excluded": [exclusion._asdict() for exclusion in report.exclusions],
        "groups": {by: _groups(report, by) for by in ("task", "tier")},
        "configuration": None if report.configuration is None else dict(report.configuration),
    }


def write_report(report: Report, folder: Path) -> None:
    """Write the report into ``folder``, replacing an earlier report there.

    Raises ``InputError`` when the folder holds anything but a report.
    """
    replace_folder(folder, lambda fresh: _write_files(report, fresh), mark=JSON_FILE, what="not a report")


def _write_files(report: Report, folder: Path) -> None:
    content = to_json(report)
    figures = draw_figures(report.table, [summary.name for summary in report.predictors], folder)
    text = json.dumps(content, indent=2, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / MARKDOWN_FILE).write_text(to_markdown(content, figures), encoding="utf-8")
    report.table.to_parquet(folder / TABLE_FILE, index=False)
    report.examples.to_parquet(folder / EXAMPLES_FILE, index=False)
    if report.nodes is not None:
        report.nodes.points.to_parquet(folder / NODES_FILE, index=False)
    page = to_html(content, report.table, report.examples, report.nodes, report.configuration)
    (folder / HTML_FILE).write_text(page, encoding="utf-8")


def summary_json(summary: Summary) -> dict[str, Any]:
    """A row as JSON-ready values."""
    return {
        "name": summary.name,
        "kind": summary.kind,
        "unit": summary.unit,
        "metrics": {name: summary.metrics[name]._asdict() for name in METRICS},
        "intervals": {name: summary.intervals[name]._asdict() for name in METRICS},
    }


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON-ready values."""
    metrics = {name: gain._asdict() for name, gain in comparison.metrics.items()}
    return {"name": comparison.name, "against": comparison.against, "metrics": metrics}


def _groups(report: Report, by: str) -> list[dict[str, Any]] | None:
    """Means of the headline metrics by a column of the table; None without it."""
    if by not in report.table:
        return None
    return [row._asdict() for row in group_intervals(report.table, by, HEADLINE, report.bootstrap)]


def _without_passwords(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_passwords(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_passwords(part) for part in value]
    return re.sub(r"(://)[^/@\s]*@", r"\1", value) if isinstance(value, str) else value
