"""The page that sets several models side by side.

Enters: the comparison's JSON content and table. Leaves: HTML. Invariant: every number is in the JSON or the
table beside it.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from txpert_dist.evaluate.figures import label
from txpert_dist.evaluate.groups import GroupMean
from txpert_dist.evaluate.html import figures
from txpert_dist.evaluate.html.drawing import Drawing
from txpert_dist.evaluate.html.page import BOXES, Column, Row, Section, best_rows, by_kind, told_apart, value
from txpert_dist.evaluate.html.render import render
from txpert_dist.evaluate.reproducibility import POOLED

_METRIC = "pearson_delta"
_MOST_PAIRS = 12
"""Scatter plots of pairs; beyond, only those with the first model."""


def to_html(content: Mapping[str, Any], table: pd.DataFrame, models: Sequence[str]) -> str:
    """One self-contained page."""
    sections = [part for part in _sections(content, table, models) if part.drawings]
    columns, units = _units(table, models)
    split = content["provenance"]["split"]
    differences = [row for row in content["differences"] if row["metrics"][_METRIC]["num_values"]]
    return render(
        "compare.html",
        title=f"{len(models)} models on the {split} split",
        content=content,
        level=f"{content['bootstrap']['level']:.0%}",
        label=label,
        verdict=[
            f"In Pearson delta {row['name']} is {told_apart(row['metrics'][_METRIC])} {row['against']}."
            for row in differences
            if row["against"] in models and row["metrics"][_METRIC]["low"] is not None
        ],
        kinds=by_kind(content["rows"]),
        best=best_rows([row for row in content["rows"] if row["kind"] != "reproducibility"], content),
        differences=differences,
        sections=sections,
        columns=columns,
        units=units,
    )


def _sections(content: Mapping[str, Any], table: pd.DataFrame, models: Sequence[str]) -> list[Section]:
    names = set(table["predictor"])
    shown = [*models, *(name for name in ("general", POOLED) if name in names)]
    means = [GroupMean(**row) for row in content["groups"]]
    return [
        Section("boxes", "Scores over perturbations", figures.boxes(table, content["headline"]), BOXES),
        Section(
            "pairs",
            "Model against model",
            _pairs(table, models),
            "A point for each perturbation and cell line; above the diagonal the model of the upright axis "
            "is better.",
        ),
        Section("retrieval", "Retrieval", figures.retrieval_curve(table, models)),
        Section("task", "Tasks", figures.group_bars(means, "task", shown, (_METRIC, "retrieval"), "task")),
    ]


def _pairs(table: pd.DataFrame, models: Sequence[str]) -> list[Drawing]:
    pairs = list(combinations(models, 2))
    if len(pairs) > _MOST_PAIRS:
        pairs = [(models[0], other) for other in models[1:]]
    return [
        drawing
        for place, (first, other) in enumerate(pairs)
        for drawing in figures.against(table, first, [other], _METRIC, name=f"pair-{place}")
    ]


def _units(table: pd.DataFrame, models: Sequence[str]) -> tuple[list[Column], list[Row]]:
    """A row for each (perturbation, cell line): Pearson delta and retrieval of every model."""
    index = ["perturbation", "cell_line"]
    by_row = {name: part.set_index(index) for name, part in table.groupby("predictor")}
    own = by_row[models[0]]
    numbers = {"Cells": (own["num_cells"], 0)}
    for metric, names in ((_METRIC, [*models, "general", POOLED]), ("retrieval", models)):
        numbers |= {
            f"{label(metric)}, {label(name)}": (by_row[name][metric].reindex(own.index), 3)
            for name in names
            if name in by_row
        }
    columns = [Column("Perturbation", True), Column("Cell line", True), Column("Task", True)]
    columns += [Column(name, digits=digits) for name, (_, digits) in numbers.items()]
    values = [[value(number) for number in series] for series, _ in numbers.values()]
    tasks = [task.replace("_", " ") for task in own["task"]]
    rows = [
        Row(" ".join([*names, tasks[i]]), [*names, tasks[i], *(column[i] for column in values)])
        for i, names in enumerate(own.index)
    ]
    return columns, rows
