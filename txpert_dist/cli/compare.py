"""The verb that sets several models side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txpert_dist.cli.screen import output, say, table

if TYPE_CHECKING:
    from txpert_dist.evaluate.compare import Compared


def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(help="Folders that txpert evaluate wrote, two or more.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
) -> None:
    """Set several models side by side that were evaluated on the same split.

    Every difference is paired: the same perturbations, with a bootstrap interval over them. Reports on
    another store, split, cell line, gene list or seed are refused. Writes compare.html (one page that needs
    nothing else), compare.md, compare.json and per_perturbation.parquet.

        txpert compare runs/gat/report runs/exphormer/report --out compared
    """
    from txpert_dist.evaluate.compare import compare as run
    from txpert_dist.evaluate.comparison_files import HTML_FILE, write_comparison

    found = run(reports)
    write_comparison(found, out)
    _show(found)
    say(f"compared: {out / HTML_FILE}")


def _show(found: "Compared") -> None:
    rows = []
    for difference in found.differences:
        gain = difference.metrics["pearson_delta"]
        ends, better = _interval(gain.low, gain.high), f"{gain.num_better:,} of {gain.num_values:,}"
        if gain.num_values:
            rows.append([difference.name, difference.against, _number(gain.mean), ends, better])
    heads = ["", "minus", "Pearson delta", "interval", "better in"]
    output.print(table("the same perturbations compared", heads, rows, texts=2))


def _interval(low: float | None, high: float | None) -> str:
    return "none" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.4f}"
