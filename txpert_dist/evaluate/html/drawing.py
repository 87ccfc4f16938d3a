"""Figures as pieces of a page: inline SVG whose ink takes its colours from the page's style.

Enters: a function that paints a figure. Leaves: a ``Drawing``. Invariants: the same data give the same text;
colours of ``INK`` and the like become the page's own, so that one figure is right in light and dark and on
paper; ids are the figure's own, so that many stand on one page; text stays text; many points become one
image inside; no plotting state is left changed.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

INK, MUTED, RULE = "#0a0a01", "#0a0a02", "#0a0a03"
MODEL, BASELINE, REPRODUCIBILITY = "#0a0a05", "#0a0a06", "#0a0a07"
"""Stand-ins for the page's own colours."""
_NAMES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    MODEL: "model",
    BASELINE: "baseline",
    REPRODUCIBILITY: "reproducibility",
}
POINT = "#3d86c6"
"""Of points in an image, which cannot follow the page: seen on white and on black."""

MOST_POINTS = 600
"""Points of a figure that are drawn one by one; more become an image."""
WIDTH = 4.6
"""Inches of a figure as wide as a narrow screen."""
_DPI = 220
_NAME_LENGTH = 30
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "font.size": 9.5,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names from data may hold dollar signs
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


class Drawing(NamedTuple):
    """A figure of a page."""

    name: str
    """Its id."""
    title: str
    alt: str
    """What it shows, for who cannot see it."""
    svg: str


def draw(
    name: str, title: str, alt: str, *, size: tuple[float, float], paint: Callable[[Figure], None]
) -> Drawing:
    """What ``paint`` draws into a figure of ``size`` (inches); ``name`` must be unique on a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # the reader's fonts draw the text, not those that lengths are guessed with
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=_DPI, metadata={"Date": None, "Creator": None})
    return Drawing(name, title, alt, _inline(buffer.getvalue(), name))


def _inline(text: str, name: str) -> str:
    """The svg element alone, sized by the page, hidden from readers that are told its alternative."""
    root = ElementTree.fromstring(text)
    for child in list(root):
        if _local(child.tag) == "metadata":
            root.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        for defs in [child for child in element if _local(child.tag) == "style"]:
            element.remove(defs)  # would hold for the whole page
        attributes = {_local(key): _owned(_local(key), value, name) for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(attributes)
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true", "focusable": "false"}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _owned(key: str, value: str, name: str) -> str:
    """An attribute's value with the figure's own ids, the page's colours and font."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if key == "clip-path":
        return value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        for colour, variable in _NAMES.items():
            value = value.replace(colour, f"var(--{variable})")
    return value


def shortened(name: str, most: int = _NAME_LENGTH) -> str:
    """A name cut to what a figure has room for."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
