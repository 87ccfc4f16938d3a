"""A snapshot as one page to look at in a browser: tables and figures, nothing fetched from anywhere.

Enters: a record, statistics, and coverage of a screen. Leaves: HTML text. Invariants: the same values give
the same text, byte for byte; the page runs nothing and fetches nothing (its own policy forbids both); every
name from a file is escaped.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from graph_store.drawing.figures import Picture, coverage_figure, degrees_figure, overlap_figure
from graph_store.record import Record
from graph_store.statistics import Coverage, GraphStatistics, Statistics

NAMES_SHOWN = 200
"""Longer lists of genes end in how many more there are."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 74rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; margin: .8rem 0 1.2rem; } table { border-collapse: collapse; }
caption { text-align: left; color: #555; padding-bottom: .4rem; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #888; } td { border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th.text, td.text { text-align: left; } td.wide { white-space: normal; overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; } figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; max-width: 60rem; } code { font-size: .85em; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(record: Record, statistics: Statistics, coverage: Coverage | None = None, screen: str = "") -> str:
    """The page of a snapshot; ``screen`` names what ``coverage`` is of."""
    sections = [
        ("Graphs", [_sizes_table(statistics)]),
        ("Degrees", _degrees_parts(statistics)),
        ("Overlap", _overlap_parts(statistics)),
        (f"Perturbed genes of {screen}", _coverage_parts(coverage) if coverage else []),
        ("Genes without an edge", [_isolated_text(statistics)]),
        ("Expander and encodings", [_additions_table(record)]),
        ("What became of the sources", [_sources_table(record), _details_table(record)]),
        ("Where they come from", [_origins_table(record), _inputs_table(record)]),
    ]
    title = f"Graph snapshot {record.id}"
    body = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"
        for heading, parts in sections
        if any(parts)
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{_lead(record, statistics)}</p>\n{body}\n</body>\n</html>\n"
    )


def _lead(record: Record, statistics: Statistics) -> str:
    graphs = _count(len(statistics.graphs), "graph")
    return (
        f"{_count(statistics.genes, 'gene')}, {graphs}, "
        f"{_count(statistics.together.pairs, 'pair')} of genes joined by at least one of them, "
        f"{_count(record.num_aliases, 'other name')} of genes known."
    )


def _sizes_table(statistics: Statistics) -> str:
    columns = ("graph", "genes", "without edge", "edges", "pairs", "components", "largest", "weights")
    rows = [
        [
            graph.name,
            *_whole(graph.nodes, graph.isolated, graph.edges, graph.pairs),
            *_whole(graph.components, graph.largest_component),
            _weights(graph),
        ]
        for graph in _all(statistics)
    ]
    caption = (
        "Genes are those with an edge. A pair counts once whatever its directions. Components hang together "
        "by edges of any direction. Weights: lowest, median, highest."
    )
    return _table(columns, rows, caption)


def _degrees_parts(statistics: Statistics) -> list[str]:
    return [
        _picture(degrees_figure(statistics)),
        _degrees_table(statistics),
        _hubs_table(statistics),
    ]


def _degrees_table(statistics: Statistics) -> str:
    columns = (
        "graph",
        "mean neighbours",
        "median",
        "90th percentile",
        "most",
        "most incoming",
        "most outgoing",
    )
    rows = [
        [
            graph.name,
            f"{graph.neighbours.mean:,.1f}",
            f"{graph.neighbours.median:,.0f}",
            f"{graph.neighbours.percentile_90:,.0f}",
            *_whole(graph.neighbours.largest, graph.in_degree.largest, graph.out_degree.largest),
        ]
        for graph in _all(statistics)
    ]
    return _table(columns, rows, "Over the genes with an edge; a gene's neighbours are its pairs.")


def _weights(graph: GraphStatistics) -> str:
    if graph.weights is None:
        return ""
    return " / ".join(f"{weight:.4g}" for weight in graph.weights)


def _hubs_table(statistics: Statistics) -> str:
    rows = [
        [graph.name, ", ".join(f"{hub.gene} ({hub.neighbours:,})" for hub in graph.hubs)]
        for graph in _all(statistics)
    ]
    return _table(("graph", "genes with the most neighbours"), rows, texts=2)


def _overlap_parts(statistics: Statistics) -> list[str]:
    if len(statistics.graphs) < 2:
        return []
    rows = [
        [
            f"{part.first}, {part.second}",
            *_whole(part.genes, part.pairs),
            f"{part.share_of_first:.2%}",
            f"{part.share_of_second:.2%}",
            f"{part.jaccard:.2%}",
        ]
        for part in statistics.overlaps
    ]
    columns = ("two graphs", "genes of both", "pairs of both", "of the first's", "of the second's", "of all")
    times = "; ".join(
        f"{number:,} in {_count(graphs, 'graph')}"
        for graphs, number in enumerate(statistics.pairs_by_graphs, start=1)
    )
    return [
        _picture(overlap_figure(statistics)),
        _table(columns, rows, "Pairs that two graphs both join, directions aside."),
        f'<p class="note">Pairs by the number of graphs that join them: {times}.</p>',
    ]


def _coverage_parts(coverage: Coverage) -> list[str]:
    columns = ("graph", "perturbed genes with an edge", "share", "their median neighbours", "joined pairs")
    rows = [
        [
            part.graph,
            f"{part.genes:,}",
            f"{part.genes / max(coverage.genes, 1):.1%}",
            f"{part.median_neighbours:,.0f}",
            f"{part.pairs:,}",
        ]
        for part in (*coverage.graphs, coverage.together)
    ]
    found = [
        ["by name", f"{coverage.by_name:,}", ""],
        [
            "by another name",
            f"{len(coverage.by_alias):,}",
            _names(f"{name} = {gene}" for name, gene in coverage.by_alias.items()),
        ],
        ["of both, without an edge", f"{len(coverage.without_edges):,}", _names(coverage.without_edges)],
        ["no node: trained as isolated ones", f"{len(coverage.absent):,}", _names(coverage.absent)],
    ]
    return [
        _picture(coverage_figure(coverage)),
        _table(columns, rows, "Joined pairs are pairs of two perturbed genes."),
        _table(("found", "genes", "which"), found, f"All perturbed genes: {coverage.genes:,}.", wide=2),
    ]


def _isolated_text(statistics: Statistics) -> str:
    if not statistics.isolated:
        return "<p>None: every gene has an edge in some graph.</p>"
    listed = escape(_names(statistics.isolated))
    return f"<p>{_count(len(statistics.isolated), 'gene')} in no graph: {listed}</p>"


def _additions_table(record: Record) -> str:
    expander, nodes = record.expander, record.nodes
    rows = [
        [
            "expander",
            f"{_count(expander.cycles, 'cycle')}, {expander.edges:,} edges, spectral gap {expander.gap:.3f}, "
            f"second eigenvalue {expander.lambda_2:.3f}, draw {expander.tries}"
            if expander.cycles
            else "none",
        ],
        [
            "positional encodings",
            ", ".join(f"{part.graph} {part.kind} {part.width}" for part in record.positional) or "none",
        ],
        [
            "further nodes listed",
            f"{nodes.names:,}: {nodes.duplicates:,} repeat another, {nodes.in_graphs:,} are in a graph too, "
            f"{nodes.added:,} added"
            if nodes
            else "none",
        ],
        *[[f"screen of {graph}", _pairs(origin)] for graph, origin in record.screens.items()],
    ]
    return _table(("part", "what"), rows, texts=2, wide=1)


def _sources_table(record: Record) -> str:
    columns = ("graph", "rows", "self loops", "duplicates", "below minimum", "pairs", "not kept", "edges")
    rows = [
        [
            report.name,
            *_whole(report.rows, report.self_loops, report.duplicates, report.below_minimum),
            *_whole(report.pairs, report.not_kept, report.edges),
        ]
        for report in record.graphs
    ]
    return _table(columns, rows, "For gene sets, rows are memberships.")


def _origins_table(record: Record) -> str:
    columns = ("graph", "kind", "version", "licence", "genes", "renamed", "ambiguous", "unmatched")
    plans = {plan["name"]: plan for plan in record.recipe.get("graphs", [])}
    rows = [
        [
            report.name,
            *_origin(plans.get(report.name, {})),
            *_whole(report.genes, report.renamed, report.ambiguous, report.unmatched),
        ]
        for report in record.graphs
    ]
    caption = "Names that the table of gene names brought to another, or could not bring to one symbol."
    return _table(columns, rows, caption, texts=4)


def _origin(plan: dict[str, Any]) -> list[str]:
    kind = plan.get("source", {}).get("kind", "")
    return [kind, *(str(plan.get(key) or "not stated") for key in ("version", "licence"))]


def _details_table(record: Record) -> str:
    rows = [
        [report.name, what, f"{number:,}"]
        for report in record.graphs
        for what, number in report.details.items()
    ]
    return _table(("graph", "counted", "number"), rows, texts=2) if rows else ""


def _inputs_table(record: Record) -> str:
    rows = [[file.role, file.name, f"{file.size:,}", file.sha256] for file in record.inputs]
    return _table(("role", "file", "bytes", "SHA-256"), rows, texts=2, wide=3)


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode("ascii")
    says = escape(picture.says)
    return (
        f'<figure>\n<img alt="{says}" src="data:image/svg+xml;base64,{data}">\n'
        f"<figcaption>{says}</figcaption>\n</figure>"
    )


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    *,
    texts: int = 1,
    wide: int | None = None,
) -> str:
    """A table whose first ``texts`` columns are text; the column ``wide`` is text that may wrap."""

    def kind(place: int) -> str:
        if place == wide:
            return ' class="text wide"'
        return ' class="text"' if place < texts else ""

    head = "".join(f"<th{kind(place)}>{escape(name)}</th>" for place, name in enumerate(columns))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind(place)}>{escape(cell)}</td>" for place, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    said = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    return f'<div class="scroll"><table>\n{said}<tr>{head}</tr>\n{body}\n</table></div>'


def _all(statistics: Statistics) -> tuple[GraphStatistics, ...]:
    """The graphs, and all of them together when they are several."""
    return statistics.graphs if len(statistics.graphs) == 1 else (*statistics.graphs, statistics.together)


def _whole(*numbers: int) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    left = len(listed) - NAMES_SHOWN
    return ", ".join(listed[:NAMES_SHOWN]) + (f", and {left:,} more" if left > 0 else "")


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
