"""Templates to text: one page with its style, its script and nothing from elsewhere.

Enters: a template of this folder and what it shows. Leaves: HTML. Invariants: every value is escaped unless
it is a drawing or a file of this folder; the page's own policy forbids whatever is not inside it.
"""

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from txpert_dist.evaluate.html.drawing import Drawing

_PACKAGE = "txpert_dist.evaluate.html"


def render(template: str, **shown: Any) -> str:
    """The page that ``template`` makes of ``shown``."""
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": words, "number": number, "svg": _svg, "plain": plain}
    return environment.get_template(template).render(
        style=_own_file("style.css"), script=_own_file("table.js"), **shown
    )


def words(name: str) -> str:
    """A name of a column or key as words."""
    return name.replace("_", " ")


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading; an en dash where there is none."""
    if value is None or value != value:
        return "\u2013"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def plain(value: Any) -> str:
    """A value of the provenance."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def _svg(drawing: Drawing) -> Markup:
    return Markup(drawing.svg)  # made by matplotlib, which escapes texts


def _own_file(name: str) -> Markup:
    return Markup(resources.files(_PACKAGE).joinpath(name).read_text("utf-8"))
