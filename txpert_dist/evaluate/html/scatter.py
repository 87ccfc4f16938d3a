"""Scatter plots of two numbers that should be equal.

Enters: axes and two rows of numbers. Leaves: points and the diagonal. Invariant: both axes have the same
limits; many points become an image.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from txpert_dist.evaluate.html.drawing import MODEL, MOST_POINTS, MUTED, POINT

Floats = NDArray[np.floating]


def diagonal_scatter(ax: Axes, x: Floats, y: Floats) -> None:
    """Points on equal axes with the diagonal; an image when there are many."""
    _points(ax, x, y)
    ends = np.concatenate([x, y]) if len(x) else np.array([0.0, 1.0])
    room = 0.04 * max(float(np.ptp(ends)), 1e-9)
    limits = float(ends.min()) - room, float(ends.max()) + room
    ax.set(xlim=limits, ylim=limits)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def logarithmic_scatter(ax: Axes, x: Floats, y: Floats) -> None:
    """The same of positive numbers on logarithmic axes."""
    _points(ax, x, y)
    ends = np.concatenate([x, y])
    limits = float(ends.min()) / 1.15, float(ends.max()) * 1.15
    ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if limits[1] / limits[0] < 100 else (1,)))
        axis.set_major_formatter(lambda value, _place: f"{value:g}")
        axis.set_minor_locator(NullLocator())


def _points(ax: Axes, x: Floats, y: Floats) -> None:
    many = len(x) > MOST_POINTS
    size, colour, alpha = (7, POINT, 0.5) if many else (18, MODEL, 0.75)
    ax.scatter(x, y, s=size, color=colour, alpha=alpha, linewidths=0, rasterized=many, zorder=2)
    ax.set_box_aspect(1)
    ax.axline((1, 1), (2, 2), color=MUTED, linewidth=0.9, zorder=1)
    ax.grid()
