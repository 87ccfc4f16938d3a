"""Figures of scores: over perturbations, against each other, by group.

Enters: the report's table and group means. Leaves: drawings, each small enough for a narrow screen.
Invariants: box plots are the methods' (quartiles, median, whiskers to the farthest value within 1.5 times the
interquartile range, the others as points); nothing is drawn at random; what has no value is said.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from txpert_dist.evaluate.figures import label
from txpert_dist.evaluate.groups import GroupMean
from txpert_dist.evaluate.html.drawing import (
    BASELINE,
    INK,
    MODEL,
    MOST_POINTS,
    MUTED,
    POINT,
    REPRODUCIBILITY,
    WIDTH,
    Drawing,
    draw,
    shortened,
)
from txpert_dist.evaluate.html.scatter import diagonal_scatter
from txpert_dist.evaluate.reproducibility import POOLED, SAMPLING
from txpert_dist.evaluate.scores import METRICS

_MODEL_COLOURS = (MODEL, "#b65fa5", "#7a70d8", "#2e9e9a", "#d0605e", "#8b8f3d")
_CHANCE = {"retrieval": 0.5, "direction_accuracy": 0.5}
"""What guessing earns; 0 for a correlation."""
_UNIT = ["perturbation", "cell_line"]


def boxes(table: pd.DataFrame, metrics: Sequence[str]) -> list[Drawing]:
    """A box plot for each metric that some row has values of, a box for each row of the report."""
    names = list(dict.fromkeys(table["predictor"]))
    models = list(dict.fromkeys(table.loc[table["kind"] == "model", "predictor"]))
    kind = dict(zip(table["predictor"], table["kind"], strict=True))
    found = []
    for metric in metrics:
        if table[metric].isna().all():
            continue

        def paint(figure: Figure, metric: str = metric) -> None:
            ax = figure.subplots()
            colours = [_colour(name, kind[name], models) for name in names]
            _boxes(ax, table, metric, names, colours)

        counted = table.groupby("predictor")[metric].median()
        medians = ", ".join(f"{label(name)} {counted[name]:.3f}" for name in names if pd.notna(counted[name]))
        found.append(
            draw(
                f"box-{metric}",
                label(metric),
                f"Box plot of {label(metric)} over perturbations. Medians: {medians}.",
                size=(WIDTH, 0.9 + 0.27 * len(names)),
                paint=paint,
            )
        )
    return found


def _boxes(ax: Axes, table: pd.DataFrame, metric: str, names: Sequence[str], colours: Sequence[str]) -> None:
    values = [table.loc[table["predictor"] == name, metric].dropna().to_numpy() for name in names]
    drawn = ax.boxplot(
        values,
        orientation="horizontal",
        whis=1.5,
        widths=0.62,
        patch_artist=True,
        showfliers=True,
        flierprops={"marker": "o", "markersize": 2, "markeredgewidth": 0},
        medianprops={"color": INK, "linewidth": 1.4},
        whiskerprops={"color": MUTED},
        capprops={"color": MUTED},
        boxprops={"edgecolor": MUTED},
    )
    for box, fliers, colour in zip(drawn["boxes"], drawn["fliers"], colours, strict=True):
        box.set_facecolor(colour)
        fliers.set(markerfacecolor=colour, rasterized=len(fliers.get_xdata()) > MOST_POINTS)
        if fliers.get_rasterized():
            fliers.set_markerfacecolor(POINT)
    for row, some in enumerate(values, start=1):
        if not len(some):
            ax.text(_CHANCE.get(metric, 0.0), row, " undefined", va="center", color=MUTED, fontsize=8)
    if metric in _CHANCE or metric.startswith(("pearson", "spearman")):
        ax.axvline(_CHANCE.get(metric, 0.0), color=MUTED, linewidth=0.9, linestyle="--", zorder=0)
    ax.set_yticks(range(1, len(names) + 1), [shortened(label(name)) for name in names])
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel(label(metric))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def against(
    table: pd.DataFrame, first: str, others: Sequence[str], metric: str, *, name: str = "against"
) -> list[Drawing]:
    """The row ``first`` against each of ``others``, a point for each (perturbation, cell line)."""
    wide = table.pivot(index=_UNIT, columns="predictor", values=metric)
    higher = METRICS[metric].higher_is_better
    found = []
    for place, other in enumerate(others):
        if other not in wide or wide[other].isna().all():
            continue
        shown = pd.DataFrame({"x": wide[other], "y": wide[first]}).dropna()
        better = int(((shown["y"] > shown["x"]) if higher else (shown["y"] < shown["x"])).sum())

        def paint(figure: Figure, shown: pd.DataFrame = shown, other: str = other) -> None:
            ax = figure.subplots()
            diagonal_scatter(ax, shown["x"].to_numpy(), shown["y"].to_numpy())
            ax.set_xlabel(f"{shortened(label(other))}: {label(metric)}")
            ax.set_ylabel(f"{shortened(label(first))}: {label(metric)}")

        title = f"{label(first)} against {label(other)}"
        found.append(
            draw(
                f"{name}-{place}",
                f"{title}: better in {better:,} of {len(shown):,}",
                f"Scatter plot, a point for each perturbation and cell line, with the diagonal. {title}: "
                f"{label(metric)} is better in {better:,} of {len(shown):,}.",
                size=(WIDTH, WIDTH * 0.92),
                paint=paint,
            )
        )
    return found


def retrieval_curve(table: pd.DataFrame, models: Sequence[str]) -> list[Drawing]:
    """Retrieval ranks from the best perturbation to the worst, of models, the general baseline and halves."""
    names = [name for name in (*models, "general", POOLED, SAMPLING) if name in set(table["predictor"])]
    values = {
        name: np.sort(table.loc[table["predictor"] == name, "retrieval"].dropna().to_numpy())[::-1]
        for name in names
    }
    values = {name: some for name, some in values.items() if len(some)}
    if not values:
        return []

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        for name, some in values.items():
            share, some = np.linspace(0, 1, len(some) + 1), np.append(some[:1], some)
            colour, style = _line(name, models)
            ax.step(share, some, where="pre", color=colour, linestyle=style, label=label(name), linewidth=1.6)
        ax.axhline(0.5, color=MUTED, linestyle="--", linewidth=0.9, zorder=0)
        ax.plot([0, 1], [1, 0], color=MUTED, linestyle=":", linewidth=0.9, zorder=0)
        ax.text(0.01, 0.5, "chance", va="bottom", color=MUTED, fontsize=8)
        ax.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="Share of perturbations", ylabel="Retrieval rank")
        ax.grid()
        ax.legend(loc="lower left", fontsize=8)

    over = ", ".join(f"{label(name)} {(some > 0.5).mean():.0%}" for name, some in values.items())
    return [
        draw(
            "retrieval-curve",
            "Retrieval, best to worst",
            "Retrieval rank of every perturbation in descending order, with a line at 0.5, which is chance. "
            f"Share of perturbations above chance: {over}.",
            size=(WIDTH, 3.6),
            paint=paint,
        )
    ]


def _line(name: str, models: Sequence[str]) -> tuple[str, str]:
    kind = "model" if name in models else "baseline" if name == "general" else "reproducibility"
    return _colour(name, kind, models), ":" if name == SAMPLING else "-"


def _colour(name: str, kind: str, models: Sequence[str]) -> str:
    if kind == "model":
        return _MODEL_COLOURS[models.index(name) % len(_MODEL_COLOURS)]
    return BASELINE if kind == "baseline" else REPRODUCIBILITY


def group_bars(
    means: Sequence[GroupMean], by: str, predictors: Sequence[str], metrics: Sequence[str], about: str
) -> list[Drawing]:
    """Bars of the mean of each group with its interval, for each metric; ``about`` says what groups are."""
    found = []
    for metric in metrics:
        own = [row for row in means if row.metric == metric and row.predictor in predictors]
        groups = list(dict.fromkeys(row.group for row in own))
        if not any(row.mean is not None for row in own):
            continue

        def paint(figure: Figure, own: Sequence[GroupMean] = own, metric: str = metric) -> None:
            _bars(figure.subplots(), own, predictors, metric, about)

        said = "; ".join(
            f"{row.group}, {label(row.predictor)}: {row.mean:.3f}" for row in own if row.mean is not None
        )
        found.append(
            draw(
                f"{by}-{metric}",
                f"{label(metric)} by {about}",
                f"Bars of mean {label(metric)} by {about}, with bootstrap intervals. {said}.",
                size=(WIDTH, 1.1 + 0.2 * len(groups) * (len(predictors) + 0.8)),
                paint=paint,
            )
        )
    return found


def _bars(ax: Axes, own: Sequence[GroupMean], predictors: Sequence[str], metric: str, about: str) -> None:
    groups = list(dict.fromkeys(row.group for row in own))
    number = {row.group: row.num_values for row in own if row.predictor == predictors[0]}
    height = 0.8 / len(predictors)
    models = [name for name in predictors if name not in ("general", POOLED, SAMPLING)]
    for place, name in enumerate(predictors):
        rows = {row.group: row for row in own if row.predictor == name}
        at = np.array([g - 0.4 + (place + 0.5) * height for g in range(len(groups))])
        mean = np.array([np.nan if (m := rows[g].mean) is None else m for g in groups])
        ends = np.array([(rows[g].low, rows[g].high) for g in groups], float)
        ax.barh(at, mean, height * 0.92, color=_line(name, models)[0], label=shortened(label(name)))
        ax.hlines(at, ends[:, 0], ends[:, 1], color=INK, linewidth=1)
    ax.set_yticks(
        range(len(groups)),
        [f"{shortened(group.replace('_', ' '))} ({number.get(group, 0):,})" for group in groups],
    )
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.axvline(_CHANCE.get(metric, 0.0), color=MUTED, linewidth=0.9, linestyle="--")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set(xlabel=f"{label(metric)}, mean", ylabel=about[0].upper() + about[1:])
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=8, columnspacing=1)
