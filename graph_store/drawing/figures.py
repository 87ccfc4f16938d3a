"""The figures of a snapshot's page.

Enters: statistics, coverage. Leaves: figures as SVG text, with a sentence each on what they show. Invariants:
the same values give the same bytes (no time, version or random identifier in them); no global plotting state
is touched or left open.
"""

import io
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from graph_store.statistics import Coverage, Degrees, Statistics

DASHES = ("-", "--", ":")
FEW = 50
"""Up to this much, a logarithmic axis has numbers between the powers of ten."""


class Picture(NamedTuple):
    """A figure and what it shows."""

    svg: bytes
    says: str
    """Its caption, also for those who cannot see it."""


def degrees_figure(statistics: Statistics) -> Picture:
    """How many genes have at least so many neighbours, and edges each way, by graph."""
    panels = [("neighbours", "Neighbours"), ("in_degree", "Incoming edges"), ("out_degree", "Outgoing edges")]
    figure = Figure(figsize=(11.5, 3.9), layout="constrained")
    with sns.axes_style("ticks"):
        axes = figure.subplots(1, len(panels), sharey=True)
    most_genes = max((graph.nodes for graph in statistics.graphs), default=1)
    for ax, (field, label) in zip(axes, panels, strict=True):
        for graph, style in zip(statistics.graphs, _styles(len(statistics.graphs)), strict=True):
            _survival(ax, getattr(graph, field), graph.name, style)
        largest = max((getattr(graph, field).largest for graph in statistics.graphs), default=1)
        # Limits are said, since of nothing no logarithmic scale can be found.
        ax.set(xscale="log", xlim=(0.9, 1.2 * max(largest, 2)), xlabel=f"{label}: at least")
        ax.set(yscale="log", ylim=(0.8, 1.4 * max(most_genes, 2)))
        _whole_numbers(ax.xaxis, largest)
        _whole_numbers(ax.yaxis, most_genes)
        sns.despine(ax=ax)
    axes[0].set(ylabel="Genes")
    axes[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return Picture(
        _svg(figure),
        "How many genes have at least so many neighbours, incoming and outgoing edges, by graph; both scales "
        "are logarithmic, so genes without any are not drawn.",
    )


def _whole_numbers(axis: Axis, largest: int) -> None:
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if largest < FEW else (1.0,)))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def _survival(ax: Axes, degrees: Degrees, name: str, style: dict[str, Any]) -> None:
    counts = [(degree, count) for degree, count in degrees.counts if degree]
    at_least = np.cumsum([count for _, count in reversed(counts)])[::-1]
    # From the degree before it up to its own, each has as many genes at or above; all have at least 1.
    values = [1, *(degree for degree, _ in counts)] if counts else []
    ax.step(values, [*at_least[:1], *at_least], where="pre", label=name, linewidth=1.5, **style)
    ax.plot(values[-1:], at_least[-1:], "o", color=style["color"], markersize=4)


def overlap_figure(statistics: Statistics) -> Picture:
    """What share of each graph's pairs each other graph joins too."""
    names = [graph.name for graph in statistics.graphs]
    shares = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for part in statistics.overlaps:
        shares.loc[part.first, part.second] = part.share_of_first
        shares.loc[part.second, part.first] = part.share_of_second
    figure = Figure(figsize=(2.6 + 0.95 * len(names), 1.4 + 0.6 * len(names)), layout="constrained")
    ax = figure.subplots()
    itself = np.eye(len(names), dtype=np.bool_)
    largest = max((max(part.share_of_first, part.share_of_second) for part in statistics.overlaps), default=0)
    sns.heatmap(
        shares,
        mask=itself,
        vmin=0.0,
        vmax=max(largest, 0.01),
        cmap="Blues",
        annot=True,
        fmt=".1%",
        linewidths=1,
        cbar_kws={"format": PercentFormatter(1.0, decimals=None)},
        ax=ax,
    )
    ax.tick_params(length=0)
    ax.set_yticklabels(ax.get_yticklabels(), rotation=0)
    ax.set_xticklabels(ax.get_xticklabels(), rotation=30, ha="right")
    return Picture(_svg(figure), "Share of the pairs of the row's graph that the column's graph joins too.")


def coverage_figure(coverage: Coverage) -> Picture:
    """What share of a screen's perturbed genes each graph knows."""
    parts = (*coverage.graphs, coverage.together)
    shown = pd.DataFrame(
        {
            "graph": [part.graph for part in parts],
            "share": [part.genes / max(coverage.genes, 1) for part in parts],
        }
    )
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(parts)), layout="constrained")
    with sns.axes_style("ticks"):
        ax = figure.subplots()
    sns.barplot(shown, x="share", y="graph", color="0.6", ax=ax)
    for row, part in enumerate(parts):
        ax.text(shown["share"][row], row, f" {part.genes:,}", va="center", fontsize=9)
    ax.set(xlim=(0, 1.08), xlabel="Share of the perturbed genes that have an edge", ylabel="")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    sns.despine(ax=ax)
    return Picture(_svg(figure), f"Perturbed genes ({coverage.genes:,} in all) that have an edge, by graph.")


def _styles(count: int) -> list[dict[str, Any]]:
    """Colours that everybody can tell apart, again with dashes when they are used up."""
    colours = sns.color_palette("colorblind")
    return [
        {"color": colours[place % len(colours)], "linestyle": DASHES[place // len(colours) % len(DASHES)]}
        for place in range(count)
    ]


def _svg(figure: Figure) -> bytes:
    sink = io.BytesIO()
    # Without these, the file would hold the time, the version and random identifiers.
    with mpl.rc_context({"svg.hashsalt": "graph_store", "svg.fonttype": "path"}):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return sink.getvalue()
