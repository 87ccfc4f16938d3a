"""What the verbs about graphs print: tables and lines about snapshots and their differences."""

from collections.abc import Iterable, Sequence
from itertools import groupby, islice

from graph_store.compare import Change, Difference, EdgeChange, GraphDifference, edge_changes, same_content
from graph_store.record import GraphReport, InputFile, Record
from graph_store.statistics import Coverage, GraphStatistics, Statistics
from txpert_dist.cli.screen import output, say, table

NAMES_SHOWN = 10
VALUE_SHOWN = 48
"""Characters of a recipe's value."""


def show_sources(reports: Sequence[GraphReport]) -> None:
    """What became of the rows of every source."""
    columns = ["graph", "rows", "self loops", "duplicates", "below minimum", "not kept", "edges", "unmatched"]
    rows = [
        [
            report.name,
            *_whole(
                report.rows,
                report.self_loops,
                report.duplicates,
                report.below_minimum,
                report.not_kept,
                report.edges,
                report.unmatched + report.ambiguous,
            ),
        ]
        for report in reports
    ]
    output.print(table("what became of the sources", columns, rows))
    for report in reports:
        if report.details:
            counted = "; ".join(f"{number:,} {what}" for what, number in report.details.items())
            say(f"{report.name}: {counted}")


def show_snapshot(record: Record, statistics: Statistics) -> None:
    """Sizes, degrees and overlap of the graphs, and what is there besides."""
    graphs = _with_together(statistics)
    columns = [
        "graph",
        "genes",
        "without edge",
        "edges",
        "pairs",
        "components",
        "largest",
        "median neighbours",
        "most",
        "largest in-degree",
    ]
    rows = [
        [
            graph.name,
            *_whole(graph.nodes, graph.isolated, graph.edges, graph.pairs),
            *_whole(graph.components, graph.largest_component),
            f"{graph.neighbours.median:,.0f}",
            *_whole(graph.neighbours.largest, graph.in_degree.largest),
        ]
        for graph in graphs
    ]
    output.print(table(f"snapshot {record.id}: {statistics.genes:,} genes", columns, rows))
    output.print(
        table(
            "genes by number of neighbours", ["neighbours", *[graph.name for graph in graphs]], _bins(graphs)
        )
    )
    if len(statistics.graphs) > 1:
        _show_overlap(statistics)
    say(_listed("genes without an edge in any graph", statistics.isolated))
    _show_additions(record)


def show_coverage(coverage: Coverage, of: str) -> None:
    """Which perturbed genes of a screen the graphs know."""
    rows = [
        ["by name", f"{coverage.by_name:,}", ""],
        [
            "by another name",
            f"{len(coverage.by_alias):,}",
            _first(f"{name} = {gene}" for name, gene in coverage.by_alias.items()),
        ],
        [
            "of both, in no graph but listed",
            f"{len(coverage.without_edges):,}",
            _first(coverage.without_edges),
        ],
        ["in no graph: isolated nodes", f"{len(coverage.absent):,}", _first(coverage.absent)],
    ]
    output.print(table(f"perturbed genes of {of}", ["found", "number", "which"], rows))
    several = len(coverage.graphs) > 1
    rows = [
        [
            part.graph,
            f"{part.genes:,}",
            f"{part.genes / max(coverage.genes, 1):.1%}",
            f"{part.median_neighbours:,.0f}",
            f"{part.pairs:,}",
        ]
        for part in (*coverage.graphs, *([coverage.together] if several else []))
    ]
    columns = ["graph", "perturbed genes with an edge", "share", "median neighbours", "pairs of them joined"]
    output.print(table(f"coverage of {coverage.genes:,} perturbed genes", columns, rows))


def show_difference(difference: Difference, limit: int) -> None:
    """What differs, with at most ``limit`` edges of each kind and graph spelt out."""
    say(f"first:  {difference.first}")
    say(f"second: {difference.second}")
    say(_verdict(difference))
    _show_changes("recipe", difference.recipe)
    if difference.inputs:
        rows = [[part.role, _file(part.first), _file(part.second)] for part in difference.inputs]
        output.print(table("input files", ["role", "first", "second"], rows, texts=3))
    _show_changes("counted while building", difference.counted)
    if not same_content(difference):
        _show_content(difference, limit)
    for part in difference.encodings:
        widths = (
            f"{part.width_first or 'none'} wide in the first, {part.width_second or 'none'} in the second"
        )
        numbers = f"numbers differ by at most {part.largest:.3g}" if part.largest is not None else widths
        say(f"positional encoding {part.graph} {part.kind}: {numbers}")


def _verdict(difference: Difference) -> str:
    if difference.first == difference.second:
        files = f"; {len(difference.inputs)} input files have other bytes" if difference.inputs else ""
        return f"same: the two are one snapshot{files}"
    if same_content(difference):
        return "same genes, edges, weights and expander; the ids differ because the recipes do"
    return "different"


def _show_content(difference: Difference, limit: int) -> None:
    columns = ["graph", "edges first", "second", "same", "reweighted", "turned", "removed", "added"]
    rows = [
        [
            part.name if part.only_in is None else f"{part.name} (only in {part.only_in})",
            *_whole(part.edges_first, part.edges_second, part.same, part.reweighted),
            *_whole(part.turned, part.removed, part.added),
        ]
        for part in difference.graphs
    ]
    output.print(table("edges", columns, rows))
    for part in difference.graphs:
        _show_graph_difference(difference, part, limit)
    say(_listed("genes removed", difference.genes_removed))
    say(_listed("genes added", difference.genes_added))
    aliases, expander = difference.aliases, difference.expander
    say(
        f"other names of genes: {aliases.removed:,} removed, {aliases.added:,} added, "
        f"{aliases.other_gene:,} mean another gene"
    )
    say(
        f"expander edges: {expander.edges_first:,} in the first, {expander.edges_second:,} in the second, "
        f"{expander.same:,} in both"
    )


def _show_graph_difference(difference: Difference, graph: GraphDifference, limit: int) -> None:
    if graph.genes_removed:
        say(_listed(f"{graph.name}: genes that lost their last edge", graph.genes_removed))
    if graph.genes_added:
        say(_listed(f"{graph.name}: genes that got their first edge", graph.genes_added))
    for kind, changes in groupby(edge_changes(difference, graph), key=lambda change: change.kind):
        listed = [_edge(change) for change in islice(changes, limit)]
        if listed:
            rest = getattr(graph, kind) - len(listed)
            more = f", and {rest:,} more" if rest else ""
            say(f"{graph.name} {kind}: {', '.join(listed)}{more}")


def _edge(change: EdgeChange) -> str:
    weights = [f"{weight:.4g}" for weight in (change.first, change.second) if weight is not None]
    return f"{change.source} -> {change.target} ({' to '.join(dict.fromkeys(weights))})"


def _show_changes(title: str, changes: Sequence[Change]) -> None:
    if changes:
        rows = [[change.key, _value(change.first), _value(change.second)] for change in changes]
        output.print(table(title, ["key", "first", "second"], rows, texts=3))


def _value(text: str | None) -> str:
    if text is None:
        return "(none)"
    return text if len(text) <= VALUE_SHOWN else text[:VALUE_SHOWN] + " ..."


def _file(file: InputFile | None) -> str:
    return "(none)" if file is None else f"{file.name}, {file.size:,} bytes, {file.sha256[:12]}"


def _show_overlap(statistics: Statistics) -> None:
    names = [graph.name for graph in statistics.graphs]
    cells = {(name, name): "" for name in names}
    for part in statistics.overlaps:
        cells[part.first, part.second] = f"{part.share_of_first:.1%}"
        cells[part.second, part.first] = f"{part.share_of_second:.1%}"
    rows = [[name, *(cells[name, other] for other in names)] for name in names]
    output.print(table("share of a graph's pairs that another has too", ["of the pairs of", *names], rows))
    times = "; ".join(
        f"{number:,} in {graphs}" for graphs, number in enumerate(statistics.pairs_by_graphs, start=1)
    )
    say(f"pairs by the number of graphs that have them: {times}")


def _show_additions(record: Record) -> None:
    """A line each on the list of further nodes, the expander, the encodings and screens."""
    nodes, expander = record.nodes, record.expander
    if nodes is not None:
        say(
            f"nodes listed: {nodes.names:,}; {nodes.duplicates:,} repeat another, {nodes.in_graphs:,} are in "
            f"a graph too, {nodes.added:,} are added; {nodes.renamed:,} are renamed, "
            f"{nodes.ambiguous + nodes.unmatched:,} are without one approved symbol"
        )
    if expander.cycles:
        say(
            f"expander: {expander.cycles} cycles, {expander.edges:,} edges, spectral gap {expander.gap:.3f} "
            f"(second eigenvalue {expander.lambda_2:.3f}) in draw {expander.tries}"
        )
    else:
        say("expander: none")
    encodings = ", ".join(f"{part.graph} {part.kind} {part.width}" for part in record.positional)
    say(f"positional encodings: {encodings or 'none'}")
    for graph, origin in record.screens.items():
        say(f"screen of {graph}: {', '.join(f'{key} {value}' for key, value in origin.items())}")


def _bins(graphs: Sequence[GraphStatistics]) -> list[list[str]]:
    """Genes of each graph by number of neighbours: 0, 1, 2 to 3, 4 to 7 ..."""
    counted = [_by_power_of_two(graph) for graph in graphs]
    last = max((max(counts, default=0) for counts in counted), default=0)
    return [
        [_range(place), *_whole(*(counts.get(place, 0) for counts in counted))] for place in range(last + 1)
    ]


def _by_power_of_two(graph: GraphStatistics) -> dict[int, int]:
    counts = {0: graph.isolated}
    for degree, genes in graph.neighbours.counts:
        counts[degree.bit_length()] = counts.get(degree.bit_length(), 0) + genes
    return counts


def _range(place: int) -> str:
    low, high = 2**place // 2, 2**place - 1
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _with_together(statistics: Statistics) -> tuple[GraphStatistics, ...]:
    """The graphs, and all of them together when they are several."""
    several = len(statistics.graphs) > 1
    return (*statistics.graphs, statistics.together) if several else statistics.graphs


def _whole(*numbers: int) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {len(names):,}" + (f" ({_first(names)})" if names else "")


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMES_SHOWN]) + (", ..." if len(listed) > NAMES_SHOWN else "")
