"""Verbs about knowledge graphs: graph build, graph info, graph diff."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from txpert_dist.cli.graph_access import Patience, TlsRoots, TokenFile
from txpert_dist.cli.graph_service import build_at
from txpert_dist.cli.screen import progress, say
from txpert_dist.errors import InputError

if TYPE_CHECKING:
    from graph_store.compare import Difference, Version
    from graph_store.graph import Snapshot
    from graph_store.statistics import Coverage

graph = typer.Typer(no_args_is_help=True, help="Build knowledge-graph snapshots, look into them.")

Store = Annotated[
    Path | None,
    typer.Option(help="Cell store: show which perturbed genes the graphs know.", show_default=False),
]
Json = Annotated[Path | None, typer.Option("--json", help="File to write all of it to.", show_default=False)]


@graph.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="graphs.yaml: sources and filters.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of snapshots.")] = Path("graphs"),
    store: Store = None,
    location: Annotated[
        str | None,
        typer.Option(
            help="grpc://HOST:PORT of a service that shall build it, from its own files.", show_default=False
        ),
    ] = None,
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = 60.0,
) -> None:
    """Build a snapshot from the files that its sources publish. Same files and recipe: same id, no work.

    txpert graph build graphs.yaml --out graphs --store screen.zarr
    txpert graph build graphs.yaml --location grpc://127.0.0.1:8815
    """
    if location is not None:
        build_at(location, recipe, token_file, tls_roots, patience)
        return
    from graph_store.build import build as run
    from graph_store.client import describe, open_snapshot
    from graph_store.config import load
    from graph_store.statistics import summarise
    from txpert_dist.cli.graph_tables import show_coverage, show_snapshot, show_sources
    from txpert_dist.cli.perturb_seq import read_screen

    with progress() as show:
        done = run(load(recipe), out=out, progress=show, read_screen=read_screen)
    say(f"snapshot {done.id} {'was built before' if done.was_there else 'built'}: {done.path}")
    show_sources(done.graphs)
    say(f"names without one approved symbol: {done.unmatched}")
    opened = open_snapshot(str(out), done.id)
    show_snapshot(describe(str(out), done.id), summarise(opened))
    if store:
        show_coverage(_coverage(opened, store), str(store))


@graph.command()
def info(
    location: Annotated[str, typer.Argument(help="Folder of snapshots, or a snapshot in it.")] = "graphs",
    snapshot: Annotated[
        str | None, typer.Option(help="Snapshot id, when there are several.", show_default=False)
    ] = None,
    store: Store = None,
    html: Annotated[
        Path | None, typer.Option(help="Page to write, with figures; needs no network.", show_default=False)
    ] = None,
    json_file: Json = None,
) -> None:
    """Show a snapshot, every file verified: sizes, degrees, overlap, isolated genes, coverage of a screen.

    txpert graph info graphs --store screen.zarr --html graphs.html
    """
    from graph_store.statistics import summarise
    from txpert_dist.cli.graph_tables import show_coverage, show_snapshot

    opened, record = _open(location, snapshot)
    statistics = summarise(opened)
    show_snapshot(record, statistics)
    found = _coverage(opened, store) if store else None
    if found:
        show_coverage(found, str(store))
    if html:
        from graph_store.drawing.page import page

        _write(html, page(record, statistics, found, str(store or "")))
    if json_file:
        told = {"record": record.model_dump(mode="json"), "statistics": statistics, "coverage": found}
        _write(json_file, json.dumps(_plain(told), indent=1) + "\n")


@graph.command()
def diff(
    first: Annotated[
        str, typer.Argument(help="A snapshot: its id, its folder, or a folder with one.", show_default=False)
    ],
    second: Annotated[str, typer.Argument(help="Another.", show_default=False)],
    location: Annotated[str, typer.Option(help="Folder that ids are looked for in.")] = "graphs",
    limit: Annotated[int, typer.Option(min=0, help="Edges of each kind to spell out.")] = 5,
    edges: Annotated[
        Path | None, typer.Option(help="csv to write every edge that differs to.", show_default=False)
    ] = None,
    json_file: Json = None,
) -> None:
    """Show what differs between two snapshots: recipe, input files, genes, edges, expander, encodings.

    Genes and graphs go by their names. A turned edge joins the same pair the other way round.

        txpert graph diff graphs/8d3f... graphs/51ab... --edges changes.csv
    """
    from graph_store.compare import compare
    from txpert_dist.cli.graph_tables import show_difference

    difference = compare(_version(first, location), _version(second, location))
    show_difference(difference, limit)
    if edges:
        _write(edges, _edges_csv(difference))
    if json_file:
        _write(json_file, json.dumps(_difference_tree(difference), indent=1) + "\n")


def _version(text: str, location: str) -> "Version":
    from graph_store.record import ID

    return _open(location, text) if ID.fullmatch(text) else _open(text, None)


def _open(location: str, snapshot: str | None) -> "Version":
    """A snapshot by folder and id, or by its own folder."""
    from graph_store.client import describe, is_remote, open_snapshot
    from graph_store.compare import Version
    from graph_store.record import FILE_NAME

    if is_remote(location):
        raise InputError(f"{location}: is a service; bring the snapshot here with `txpert graph fetch` first")
    folder = Path(location).absolute()
    if snapshot is None and (folder / FILE_NAME).exists():
        location, snapshot = str(folder.parent), folder.name
    opened = open_snapshot(location, snapshot)
    return Version(opened, describe(location, opened.id))


def _coverage(snapshot: "Snapshot", store: Path) -> "Coverage":
    from graph_store.statistics import coverage
    from txpert_dist.model.vocabulary import split_name
    from txpert_dist.store.cells import open_store

    return coverage(snapshot, {gene for name in open_store(store).perturbations for gene in split_name(name)})


def _edges_csv(difference: "Difference") -> str:
    from graph_store.compare import EdgeChange, edge_changes

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["graph", *EdgeChange._fields])
    for part in difference.graphs:
        rows.writerows([part.name, *change] for change in edge_changes(difference, part))
    return text.getvalue()


def _difference_tree(difference: "Difference") -> Any:
    """The difference as JSON values; single edges are what --edges writes."""
    graphs = [
        {key: value for key, value in part._asdict().items() if key != "changed"}
        for part in difference.graphs
    ]
    rest = {key: value for key, value in difference._asdict().items() if key not in ("genes", "graphs")}
    return _plain({**rest, "graphs": graphs})


def _plain(value: Any) -> Any:
    """Named tuples, tuples and records as JSON values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); check folder and rights") from None
    say(f"written: {path}")
