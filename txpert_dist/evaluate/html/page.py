"""The page of one evaluation.

Enters: the report's JSON content, its table, examples and map. Leaves: HTML. Invariants: every number is in
the JSON or the tables beside it; a section is there when there is something to show in it, and what cannot be
shown is said.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import yaml

from txpert_dist.evaluate.figures import label
from txpert_dist.evaluate.groups import GroupMean
from txpert_dist.evaluate.html import figures, model_figures
from txpert_dist.evaluate.html.drawing import Drawing
from txpert_dist.evaluate.html.render import number, render
from txpert_dist.evaluate.markdown import VARIANTS, seen_in_training
from txpert_dist.evaluate.node_map import NodeMap
from txpert_dist.evaluate.reproducibility import POOLED, SAMPLING
from txpert_dist.evaluate.tasks import TASKS

_KINDS = {"model": "Models", "baseline": "Baselines", "reproducibility": "The screen's own reproducibility"}
_GROUP_METRICS = ("pearson_delta", "retrieval")
BOXES = "Box: quartiles and median; whiskers: the farthest values within 1.5 times the interquartile range."
_ABOUT = {
    "task": "What was seen of a perturbation in training; see the definitions below. In brackets: how many.",
    "tier": "How well known the perturbed genes are, from the table that was given: 0 least, 4 best known; a "
    "combination has the level of its least known gene.",
}
_RETRIEVAL = (
    "Share of the other perturbations that resemble the prediction no more than the right one does. Random "
    "predictions lie on the dotted diagonal, their mean on the dashed line at 0.5."
)
_CALIBRATION = (
    "Observed deltas hold the noise of the cells they are means of, so that a perfect model lies below the "
    "diagonal where cells are few."
)


class Section(NamedTuple):
    """Drawings under a heading."""

    anchor: str
    name: str
    drawings: Sequence[Drawing]
    note: str = ""
    kind: str = ""


class Column(NamedTuple):
    """A column of the table of all perturbations."""

    head: str
    text: bool = False
    digits: int = 3


class Row(NamedTuple):
    """A row of it."""

    names: str
    """What the filter looks at."""
    cells: Sequence[Any]


def to_html(
    content: Mapping[str, Any],
    table: pd.DataFrame,
    examples: pd.DataFrame,
    nodes: NodeMap | None,
    configuration: Mapping[str, Any] | None,
) -> str:
    """One self-contained page."""
    rows = [*content["predictors"], *content["reproducibility"]]
    models = [row["name"] for row in rows if row["kind"] == "model"]
    sections = [part for part in _sections(content, table, examples, nodes, models) if part.drawings]
    columns, units = _units(table, content["predictors"][0]["name"], models)
    return render(
        "report.html",
        title=_title(content["provenance"]),
        content=content,
        level=f"{content['bootstrap']['level']:.0%}",
        label=label,
        seen=seen_in_training(content["provenance"]),
        verdict=_verdict(content, models),
        kinds=by_kind(rows),
        rows=rows,
        best=best_rows(content["predictors"], content),
        compared=_compared(content),
        sections=sections,
        contents=_contents(sections),
        columns=columns,
        units=units,
        variants={name: VARIANTS[name] for name in (row["name"] for row in rows) if name in VARIANTS},
        tasks={name: TASKS[name] for name in sorted(set(table["task"])) if name in TASKS},
        configuration=None if configuration is None else yaml.safe_dump(dict(configuration), sort_keys=False),
    )


def _title(provenance: Mapping[str, Any]) -> str:
    lines = provenance["held_out_cell_lines"]
    of_lines = f" in held-out {', '.join(lines)}" if lines else ""
    return f"Evaluation on the {provenance['split']} split{of_lines}"


def _verdict(content: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    """What a reader wants to know first: ahead of the best baseline, and how far from the screen's limit?"""
    metric = "pearson_delta"
    baselines = {
        row["name"]: row["metrics"][metric]["mean"]
        for row in content["predictors"]
        if row["kind"] == "baseline" and row["metrics"][metric]["mean"] is not None
    }
    wanted = [max(baselines, key=lambda name: baselines[name])] if baselines else []
    lines = []
    for comparison in content["comparisons"]:
        gain = comparison["metrics"][metric]
        if comparison["against"] not in (*wanted, POOLED) or gain["low"] is None:
            continue
        place = "the best baseline" if comparison["against"] in wanted else "the screen's own split halves"
        lines.append(
            f"{label(comparison['name'])} is {told_apart(gain)} {place} ({label(comparison['against'])}) in "
            f"Pearson delta: difference {number(gain['mean'])} ({number(gain['low'])} to "
            f"{number(gain['high'])}), better in {gain['num_better']:,} of {gain['num_values']:,}."
        )
    return lines if models else []


def told_apart(gain: Mapping[str, Any]) -> str:
    """Which side of 0 the interval of a difference is on, in words."""
    if gain["low"] > 0 or gain["high"] < 0:
        return "ahead of" if gain["mean"] > 0 else "behind"
    return "not told apart from"


def by_kind(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Rows under what they are."""
    found = [(name, [row for row in rows if row["kind"] == kind]) for kind, name in _KINDS.items()]
    return [(name, own) for name, own in found if own]


def best_rows(rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Of ``rows``, those with the best mean of each headline metric: (row, metric)."""
    best = set()
    for metric in content["headline"]:
        means = {row["name"]: row["metrics"][metric]["mean"] for row in rows}
        values = [mean for mean in means.values() if mean is not None]
        if values:
            wanted = max(values) if content["metrics"][metric]["higher_is_better"] else min(values)
            best |= {(name, metric) for name, mean in means.items() if mean == wanted}
    return best


def _compared(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [
        {"name": row["name"], "against": row["against"], "gain": row["metrics"]["pearson_delta"]}
        for row in content["comparisons"]
    ]
    return [row for row in found if row["gain"]["num_values"]]


def _sections(
    content: Mapping[str, Any],
    table: pd.DataFrame,
    examples: pd.DataFrame,
    nodes: NodeMap | None,
    models: Sequence[str],
) -> list[Section]:
    first = content["predictors"][0]["name"]
    there = set(table["predictor"])
    shown = [name for name in dict.fromkeys((first, *models, "general", POOLED)) if name in there]
    others = [name for name in ("general", POOLED, SAMPLING) if name != first and name in there]
    return [
        Section("boxes", "Scores over perturbations", figures.boxes(table, content["headline"]), BOXES),
        Section(
            "reproducibility",
            "Model against baseline and reproducibility",
            figures.against(table, first, others, "pearson_delta"),
            "A point for each perturbation and cell line; above the diagonal the model is better.",
        ),
        Section(
            "retrieval",
            "Retrieval",
            figures.retrieval_curve(table, models),
            _RETRIEVAL,
        ),
        *(_groups(content, by, shown) for by in ("task", "tier")),
        Section(
            "examples",
            "Best, median and worst perturbations",
            model_figures.examples(examples),
            "Predicted against observed delta, a point for each gene; the most changed genes are named.",
            "small",
        ),
        Section("calibration", "Size of the effect", model_figures.calibration(table, first), _CALIBRATION),
        Section(
            "map",
            "Map of the perturbation encoder",
            [] if nodes is None else model_figures.map_of_nodes(nodes),
            kind="wide",
        ),
    ]


def _groups(content: Mapping[str, Any], by: str, shown: Sequence[str]) -> Section:
    means = [GroupMean(**row) for row in content["groups"][by] or ()]
    name = {"task": "Tasks", "tier": "Knowledge tiers"}[by]
    about = {"task": "task", "tier": "knowledge tier"}[by]
    return Section(by, name, figures.group_bars(means, by, shown, _GROUP_METRICS, about), _ABOUT[by])


def _contents(sections: Sequence[Section]) -> list[tuple[str, str]]:
    rest = {"perturbations": "Every perturbation", "all": "All metrics", "excluded": "Left out"}
    rest |= {"definitions": "Definitions", "provenance": "Made from"}
    return [("headline", "Headline"), *((part.anchor, part.name) for part in sections), *rest.items()]


def _units(table: pd.DataFrame, first: str, models: Sequence[str]) -> tuple[list[Column], list[Row]]:
    """A row for each (perturbation, cell line): labels, scores of the first model and of what it is up to."""
    index = ["perturbation", "cell_line"]
    by_row = {name: part.set_index(index) for name, part in table.groupby("predictor")}
    own = by_row[first].sort_values("pearson_delta", ascending=False, kind="stable")
    labels = [name for name in ("task", "tier") if name in own and own[name].nunique() > 1]
    metrics = ("pearson_delta", "pearson_delta_shifted", "retrieval")
    others = [name for name in (*models[1:], "general", POOLED) if name in by_row and name != first]
    numbers = {
        "Cells": (own["num_cells"], 0),
        **{label(metric): (own[metric], 3) for metric in metrics},
        "Observed size": (own["observed_size"], 3),
        "Predicted size": (own["predicted_size"], 3),
        **{
            f"Pearson delta, {label(name)}": (by_row[name]["pearson_delta"].reindex(own.index), 3)
            for name in others
        },
    }
    columns = [Column("Perturbation", True), Column("Cell line", True)]
    columns += [Column(name.capitalize(), True) for name in labels]
    columns += [Column(name, digits=digits) for name, (_, digits) in numbers.items()]
    values = [[value(number) for number in series] for series, _ in numbers.values()]
    texts = [[str(value).replace("_", " ") for value in own[name]] for name in labels]
    rows = []
    for i, names in enumerate(own.index):
        words = [*names, *(text[i] for text in texts)]
        rows.append(Row(" ".join(words), [*words, *(column[i] for column in values)]))
    return columns, rows


def value(number: float) -> float | int | None:
    """A number of the table of all perturbations."""
    if math.isnan(number):
        return None
    return int(number) if float(number).is_integer() else round(float(number), 6)
