"""Figures of what a model does: single perturbations gene by gene, size of effects, map of its nodes.

Enters: the examples, table and map of nodes of a report. Leaves: drawings, each small enough for a narrow
screen.
Invariants: nothing is drawn at random; what is left out is said.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from txpert_dist.evaluate.html.drawing import INK, MOST_POINTS, POINT, RULE, WIDTH, Drawing, draw, shortened
from txpert_dist.evaluate.html.scatter import diagonal_scatter, logarithmic_scatter
from txpert_dist.evaluate.node_map import NodeMap

_NAMED_GENES = 3
_PATHWAY_COLOURS = sns.color_palette("colorblind", 8).as_hex()
_DEGREE_COLOURS = LinearSegmentedColormap.from_list("degree", ["#8a5bd1", "#d6558a", "#f2a13c"])


def examples(table: pd.DataFrame) -> list[Drawing]:
    """Predicted against observed delta, a point for each gene, a figure for each example."""
    found, seen = [], dict.fromkeys(("best", "median", "worst"), 0)
    for key, part in table.groupby(["place", "perturbation", "cell_line"], sort=False, observed=True):
        place, name, line = map(str, key)
        seen[place] += 1

        def paint(figure: Figure, part: pd.DataFrame = part) -> None:
            _example(figure.subplots(), part)

        score = f"Pearson delta {part['score'].iloc[0]:.3f}"
        found.append(
            draw(
                f"example-{place}-{seen[place]}",
                f"{place}: {name} in {line}, {score}",
                f"Scatter plot of predicted against observed delta of {len(part):,} genes with the diagonal: "
                f"{name} in {line}, one of the {place} by Pearson delta ({score}).",
                size=(3.4, 3.3),
                paint=paint,
            )
        )
    return found


def _example(ax: Axes, part: pd.DataFrame) -> None:
    x, y = part["observed_delta"].to_numpy(float), part["predicted_delta"].to_numpy(float)
    diagonal_scatter(ax, x, y)
    ax.axhline(0, color=RULE, linewidth=0.8, zorder=0)
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    for gene in np.argsort(-np.abs(x), kind="stable")[:_NAMED_GENES]:
        left = x[gene] > np.mean(ax.get_xlim())
        ax.annotate(
            part["gene"].iloc[gene],
            (x[gene], y[gene]),
            xytext=(-4 if left else 4, 3),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=7.5,
        )
    ax.set(xlabel="Observed delta", ylabel="Predicted delta")


def calibration(table: pd.DataFrame, model: str) -> list[Drawing]:
    """Length of the predicted against the observed delta of each (perturbation, cell line)."""
    own = table[table["predictor"] == model]
    shown = own[(own["observed_size"] > 0) & (own["predicted_size"] > 0)]
    if shown.empty:
        return []
    x, y = shown["observed_size"].to_numpy(), shown["predicted_size"].to_numpy()
    ratio = float(np.median(shown["predicted_size"] / shown["observed_size"]))

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        logarithmic_scatter(ax, x, y)
        ax.set(xlabel="Length of observed delta", ylabel="Length of predicted delta")

    without = len(own) - len(shown)
    left_out = f" {without:,} of length 0 or undefined are not shown." if without else ""
    return [
        draw(
            "calibration",
            f"Effect size: predicted / observed {ratio:.2f} in the median",
            "Scatter plot on logarithmic axes of the Euclidean length of predicted against observed delta, "
            f"with the diagonal. Median ratio {ratio:.2f} over {len(shown):,}.{left_out}",
            size=(WIDTH, WIDTH * 0.92),
            paint=paint,
        )
    ]


def map_of_nodes(found: NodeMap) -> list[Drawing]:
    """Node embeddings in two dimensions, coloured by pathway, or by degree where there are no pathways."""

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        _by_pathway(ax, found) if found.pathways else _by_degree(figure, ax, found.points)
        ax.set(xlabel=found.axes[0], ylabel=found.axes[1], xticks=[], yticks=[])
        ax.margins(0.03)

    colour = "gene set" if found.pathways else "degree (edges of all graphs)"
    perturbed = int(found.points["perturbed"].sum())
    return [
        draw(
            "map",
            f"Node embeddings ({found.projection.upper()}) by {colour}",
            f"Map of the embeddings of {len(found.points):,} nodes, coloured by {colour}; the "
            f"{perturbed:,} genes that the screen perturbs are ringed.",
            size=(WIDTH, 0.9 * WIDTH + 0.2 * len(found.pathways)),
            paint=paint,
        )
    ]


def _by_pathway(ax: Axes, found: NodeMap) -> None:
    points = found.points
    _scatter(ax, points[points["pathway"] == ""], "#8a8f98", alpha=0.35)
    for name, colour in zip(found.pathways, _PATHWAY_COLOURS, strict=False):
        own = points[points["pathway"] == name]
        _scatter(ax, own, colour, alpha=0.9, legend=f"{shortened(name, 44)} ({len(own):,})")
    _ring(ax, points)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), fontsize=8.5, markerscale=1.6)


def _by_degree(figure: Figure, ax: Axes, points: pd.DataFrame) -> None:
    ordered = points.sort_values("degree", kind="stable")
    drawn = _scatter(ax, ordered, np.log10(1 + ordered["degree"]), alpha=0.8)
    bar = figure.colorbar(drawn, ax=ax, shrink=0.7, aspect=24)
    bar.outline.set_visible(False)
    most = int(points["degree"].max())
    ticks = [0, *(10**power for power in range(len(str(most))) if 10**power <= most)]
    bar.set_ticks(np.log10(1 + np.array(ticks)), labels=[f"{tick:,}" for tick in ticks])
    bar.set_label("Degree")
    _ring(ax, points)


def _scatter(
    ax: Axes, points: pd.DataFrame, colour: Any, *, alpha: float, legend: str | None = None
) -> Collection:
    many = len(points) > MOST_POINTS
    return ax.scatter(
        points["x"],
        points["y"],
        c=colour,
        cmap=None if isinstance(colour, str) else _DEGREE_COLOURS,
        s=7 if many else 14,
        alpha=alpha,
        linewidths=0,
        rasterized=many,
        label=legend,
    )


def _ring(ax: Axes, points: pd.DataFrame) -> None:
    own = points[points["perturbed"]]
    many = len(own) > MOST_POINTS
    colour = POINT if many else INK
    ax.scatter(
        own["x"], own["y"], s=22, facecolors="none", edgecolors=colour, linewidths=0.6, rasterized=many
    )
