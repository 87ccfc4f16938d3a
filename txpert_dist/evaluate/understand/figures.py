"""Figures of an understanding of a screen.

Enters: an ``Understanding``. Leaves: PNG files. Invariants: the same tables give the same picture; no global
plotting state is touched or left open.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from txpert_dist.evaluate.groups import NO_GROUP
from txpert_dist.evaluate.understand import selection
from txpert_dist.evaluate.understand.run import Enriched, Understanding

_KINDS = {
    "controls_batch": "Controls of batches",
    "controls_line": "Controls of cell lines",
    "mean_baseline": "Mean responses of cell lines",
}
_METRICS = {"pearson_delta": "Pearson delta", "retrieval": "Retrieval rank"}
_TERMS = 10
_NAME_LENGTH = 48
_DPI = 150


def draw_figures(found: Understanding, folder: Path) -> list[str]:
    """Draw every figure there is something for into ``folder``; names of the files, in reading order."""
    figures = {"contexts.png": _contexts(found.contexts)}
    if found.enriched is not None and found.enriched.table["enriched"].any():
        figures["enrichment.png"] = _enrichment(found.enriched)
    if len(found.ranks):
        figures["metric_selection.png"] = _metrics(found.ranks)
    if found.tiers is not None and found.tiers.table is not None:
        figures["tiers.png"] = _tiers(found.tiers.table)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=_DPI)
    return list(figures)


def _contexts(table: pd.DataFrame) -> Figure:
    kinds = [kind for kind in _KINDS if (table["kind"] == kind).any()]
    figure = Figure(figsize=(3.4 * len(kinds), 3.6), layout="constrained")
    with sns.axes_style("ticks"):
        axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for ax, kind in zip(axes, kinds, strict=True):
        shown = table[table["kind"] == kind].dropna(subset="correlation")
        order = [name for name in ("within", "across") if (shown["relation"] == name).any()]
        sns.boxplot(
            shown, x="relation", y="correlation", order=order, color="0.88", fliersize=2, width=0.5, ax=ax
        )
        ax.set(title=_KINDS[kind], xlabel="", ylabel="Pearson correlation" if ax is axes[0] else "")
        sns.despine(ax=ax)
    return figure


def _enrichment(enriched: Enriched) -> Figure:
    table = enriched.table[enriched.table["enriched"]]
    directions = [name for name in ("up", "down") if (table["direction"] == name).any()]
    figure = Figure(figsize=(8, 0.6 + 2.6 * len(directions)), layout="constrained")
    with sns.axes_style("ticks"):
        axes = figure.subplots(len(directions), 1, squeeze=False)[:, 0]
    for ax, direction in zip(axes, directions, strict=True):
        shown = table[table["direction"] == direction].nsmallest(_TERMS, "p")
        names = [f"{_short(name)} ({go})" for name, go in zip(shown["name"], shown["go"], strict=True)]
        strength = -np.log10(np.maximum(shown["p_fdr_bh"].to_numpy(), np.finfo(float).tiny))
        sns.barplot(x=strength, y=names, color="0.6", ax=ax)
        ax.axvline(-np.log10(0.05), color="0.3", linewidth=0.8, linestyle="--")
        ax.set(title=f"Genes that go {direction}", ylabel="", xlabel="")
        sns.despine(ax=ax)
    axes[-1].set(xlabel="-log10 corrected p (dashed: 0.05)")
    return figure


def _metrics(ranks: pd.DataFrame) -> Figure:
    table = selection.summarise(ranks)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    with sns.axes_style("ticks"):
        ax = figure.subplots()
    order = list(dict.fromkeys(table["similarity"]))
    sns.barplot(
        table, x="similarity", y="quantile", hue="representation", order=order, palette="Greys", ax=ax
    )
    ax.axhline(table["chance_quantile"].mean(), color="0.3", linewidth=0.8, linestyle="--")
    ax.set(
        xlabel="",
        ylabel=f"{selection.QUANTILE} quantile of mean rank\n(dashed: labels shuffled)",
        ylim=(0, 1),
    )
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), frameon=False, title="")
    sns.despine(ax=ax)
    return figure


def _tiers(table: pd.DataFrame) -> Figure:
    metrics = [name for name in _METRICS if (table["metric"] == name).any()]
    figure = Figure(figsize=(4.2 * len(metrics) + 1.6, 3.6), layout="constrained")
    with sns.axes_style("ticks"):
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    levels = sorted(set(table["group"]), key=lambda name: (name == NO_GROUP, name))
    for ax, metric in zip(axes, metrics, strict=True):
        shown = table[table["metric"] == metric]
        sns.barplot(shown, x="group", y="mean", hue="predictor", order=levels, ax=ax)
        ax.set(xlabel="Knowledge tier (0: least known)", ylabel=_METRICS[metric])
        if ax is axes[-1]:
            sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), frameon=False, title="")
        else:
            ax.get_legend().remove()
        sns.despine(ax=ax)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
