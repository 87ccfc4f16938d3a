"""Figures of a report.

Enters: the report's table. Leaves: PNG files. Invariants: the same table gives the same picture (no random
jitter); no global plotting state is touched or left open.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from txpert_dist.evaluate.reproducibility import POOLED

_METRIC = "pearson_delta"
LABELS = {
    "pearson_delta": "Pearson delta",
    "pearson_delta_shifted": "Pearson delta, shifted",
    "pearson_delta_de20": "Pearson delta, 20 genes",
    "retrieval": "Retrieval rank",
    "pseudobulk_rmse": "Pseudobulk RMSE",
    "general": "General baseline",
    "no_change": "No change",
    "batch_mean": "Batch mean",
    "train_mean": "Mean of training",
    "nearest_line": "Nearest cell line",
    "additive": "Additive",
    "knn_graph": "Neighbours in graph",
    "ridge": "Ridge, expression",
    "ridge_graph": "Ridge, graph",
    "sampling": "Resampled screens",
    "sampling_own_genes": "Resampled, own genes",
    "model": "Model",
    "predictions": "Predictions",
    "split_half_pooled": "Split halves, pooled",
    "split_half_per_batch": "Split halves, per batch",
}
"""What figures call a row or a metric."""
_DPI = 150


def label(name: str) -> str:
    """What figures and pages call a row or a metric."""
    return LABELS.get(name, name)


def draw_figures(table: pd.DataFrame, predictors: Sequence[str], folder: Path) -> list[str]:
    """Draw every figure into ``folder``; names of the files, in reading order.

    The first of ``predictors`` (names in the table's ``predictor`` column) is set against the general
    baseline and the split halves; all are in the box plots.
    """
    figures = {
        "pearson_delta_per_perturbation.png": _scatter(table, predictors[0]),
        "scores.png": _boxes(table),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=_DPI)
    return list(figures)


def _scatter(table: pd.DataFrame, first: str) -> Figure:
    wide = table.pivot(index=["perturbation", "cell_line"], columns="predictor", values=_METRIC)
    cells = table[table["predictor"] == first].set_index(["perturbation", "cell_line"])["num_cells"]
    others = [name for name in ("general", POOLED) if name != first and name in wide]
    figure = Figure(figsize=(4.6 * len(others), 4.4), layout="constrained")
    with sns.axes_style("ticks"):
        axes = figure.subplots(1, len(others), squeeze=False)[0]
    for ax, other in zip(axes, others, strict=True):
        shown = pd.DataFrame({"x": wide[other], "y": wide[first], "cells": cells}).dropna()
        legend = "brief" if ax is axes[-1] else False
        sns.scatterplot(
            shown, x="x", y="y", size="cells", sizes=(12, 90), alpha=0.6, linewidth=0, legend=legend, ax=ax
        )
        _diagonal(ax, shown)
        better = int((shown["y"] > shown["x"]).sum())
        ax.set(xlabel=f"{label(other)}: Pearson delta")
        ax.set(ylabel=f"{label(first)}: Pearson delta")
        ax.set_title(f"{label(first)} higher in {better:,} of {len(shown):,}", fontsize=10)
        sns.despine(ax=ax)
    return figure


def _diagonal(ax: Axes, shown: pd.DataFrame) -> None:
    values = shown[["x", "y"]].to_numpy()
    low = min(0.0, float(values.min())) - 0.05 if values.size else 0.0
    ax.set(xlim=(low, 1.02), ylim=(low, 1.02), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5]))
    ax.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    if ax.get_legend() is not None:
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        sns.move_legend(ax, title="Cells", frameon=False, fontsize=8, title_fontsize=8, **place)


def _boxes(table: pd.DataFrame) -> Figure:
    metrics = ("pearson_delta", "retrieval")
    names = list(dict.fromkeys(table["predictor"]))
    figure = Figure(figsize=(11, 1.2 + 0.5 * len(names)), layout="constrained")
    with sns.axes_style("ticks"):
        axes = figure.subplots(1, len(metrics), sharey=True)
    for ax, metric in zip(axes, metrics, strict=True):
        chance = 0.5 if metric == "retrieval" else 0.0
        shown = table.assign(row=[label(name) for name in table["predictor"]])
        order = [label(name) for name in names]
        sns.boxplot(shown, x=metric, y="row", order=order, color="0.88", fliersize=0, width=0.6, ax=ax)
        sns.stripplot(
            shown,
            x=metric,
            y="row",
            order=order,
            jitter=False,
            marker="|",
            size=9,
            linewidth=1,
            alpha=0.5,
            ax=ax,
        )
        for number, name in enumerate(names):
            if table.loc[table["predictor"] == name, metric].isna().all():
                ax.text(chance, number, " undefined", va="center", color="0.4", fontsize=9)
        ax.axvline(chance, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        ax.set(xlabel=f"{LABELS[metric]} (dashed: chance)", ylabel="")
        sns.despine(ax=ax)
    return figure
