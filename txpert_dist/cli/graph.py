"""Verbs about knowledge graphs: graph build, graph info."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from graph_store.graph import Snapshot
from graph_store.record import Record
from txpert_dist.cli.screen import output, progress, say, table

graph = typer.Typer(no_args_is_help=True, help="Build knowledge-graph snapshots, look into them.")

Store = Annotated[
    Path | None,
    typer.Option(help="Cell store: show which perturbed genes the graphs know.", show_default=False),
]


@graph.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="graphs.yaml: sources and filters.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of snapshots.")] = Path("graphs"),
    store: Store = None,
) -> None:
    """Build a snapshot from edge lists and gene sets. Same files and recipe: same id, nothing to do.

    txpert graph build graphs.yaml --out graphs --store screen.zarr
    """
    from graph_store.build import build as run
    from graph_store.client import describe, open_snapshot
    from graph_store.config import load

    with progress() as show:
        done = run(load(recipe), out=out, progress=show)
    say(f"snapshot {done.id} {'was built before' if done.was_there else 'built'}: {done.path}")
    columns = ["graph", "rows", "self loops", "duplicates", "below minimum", "not kept", "edges", "unmatched"]
    rows = [
        [
            report.name,
            *(
                f"{number:,}"
                for number in (
                    report.rows,
                    report.self_loops,
                    report.duplicates,
                    report.below_minimum,
                    report.not_kept,
                    report.edges,
                    report.unmatched + report.ambiguous,
                )
            ),
        ]
        for report in done.graphs
    ]
    output.print(table("what became of the sources", columns, rows))
    say(f"names without one approved symbol: {done.unmatched}")
    _show(open_snapshot(str(out), done.id), describe(str(out), done.id), store)


@graph.command()
def info(
    location: Annotated[Path, typer.Argument(help="Folder of snapshots.")] = Path("graphs"),
    snapshot: Annotated[
        str | None, typer.Option(help="Snapshot id, when there are several.", show_default=False)
    ] = None,
    store: Store = None,
) -> None:
    """Show a snapshot, every file verified: nodes, edges, degrees, expander, encodings, coverage of a screen.

    txpert graph info graphs --store screen.zarr
    """
    from graph_store.client import describe, open_snapshot

    opened = open_snapshot(str(location), snapshot)
    _show(opened, describe(str(location), opened.id), store)


def _show(snapshot: Snapshot, record: Record, store: Path | None) -> None:
    rows = []
    for layer in snapshot.graphs:
        degree = np.bincount(layer.edges_2E[1], minlength=len(snapshot.genes))
        nodes = len(np.unique(layer.edges_2E))
        rows.append(
            [
                layer.name,
                f"{nodes:,}",
                f"{layer.edges_2E.shape[1]:,}",
                f"{np.median(degree[degree > 0]) if nodes else 0:.0f}",
                f"{degree.max() if nodes else 0:,}",
            ]
        )
    columns = ["graph", "genes with edges", "edges", "median in-degree", "largest in-degree"]
    output.print(table(f"snapshot {snapshot.id}: {len(snapshot.genes):,} genes", columns, rows))
    _show_additions(record)
    if store:
        _show_coverage(snapshot, store)


def _show_additions(record: Record) -> None:
    """A line each on the list of further nodes, the expander and the encodings."""
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


def _show_coverage(snapshot: Snapshot, path: Path) -> None:
    from txpert_dist.model.vocabulary import build_vocabulary, split_name
    from txpert_dist.store.cells import open_store

    perturbations = open_store(path).perturbations
    found = build_vocabulary(snapshot, perturbations)
    perturbed = {found.aliases.get(gene, gene) for name in perturbations for gene in split_name(name)}
    in_graphs = {snapshot.genes[node] for layer in snapshot.graphs for node in np.unique(layer.edges_2E)}
    listed = sorted((perturbed & set(snapshot.genes)) - in_graphs)
    rows = [
        ["by name", f"{found.exact:,}", ""],
        [
            "by another name",
            f"{len(found.by_alias):,}",
            _first(f"{a} = {b}" for a, b in found.by_alias.items()),
        ],
        ["of both, in no graph but listed", f"{len(listed):,}", _first(listed)],
        ["in no graph: isolated nodes", f"{len(found.isolated):,}", _first(found.isolated)],
    ]
    output.print(table(f"perturbed genes of {path}", ["found", "number", "which"], rows))


def _first(names: Iterable[str], limit: int = 10) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")
