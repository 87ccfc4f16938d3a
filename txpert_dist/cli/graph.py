"""Verbs about knowledge graphs: graph build, graph info."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from graph_store.graph import Snapshot
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
    from graph_store.client import open_snapshot
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
    _show(open_snapshot(str(out), done.id), store)


@graph.command()
def info(
    location: Annotated[Path, typer.Argument(help="Folder of snapshots.")] = Path("graphs"),
    snapshot: Annotated[
        str | None, typer.Option(help="Snapshot id, when there are several.", show_default=False)
    ] = None,
    store: Store = None,
) -> None:
    """Show a snapshot, every file verified: nodes, edges and degrees of each graph, coverage of a screen.

    txpert graph info graphs --store screen.zarr
    """
    from graph_store.client import open_snapshot

    _show(open_snapshot(str(location), snapshot), store)


def _show(snapshot: Snapshot, store: Path | None) -> None:
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
    if store:
        _show_coverage(snapshot, store)


def _show_coverage(snapshot: Snapshot, path: Path) -> None:
    from txpert_dist.model.vocabulary import build_vocabulary
    from txpert_dist.store.cells import open_store

    found = build_vocabulary(snapshot, open_store(path).perturbations)
    rows = [
        ["by name", f"{found.exact:,}", ""],
        [
            "by another name",
            f"{len(found.by_alias):,}",
            _first(f"{a} = {b}" for a, b in found.by_alias.items()),
        ],
        ["in no graph: isolated nodes", f"{len(found.isolated):,}", _first(found.isolated)],
    ]
    output.print(table(f"perturbed genes of {path}", ["found", "number", "which"], rows))


def _first(names: Iterable[str], limit: int = 10) -> str:
    listed = list(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")
