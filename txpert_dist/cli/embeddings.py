"""Verbs about published node embeddings: graph embeddings list, put, nearest, compare, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txpert_dist.cli.graph_access import Patience, TlsRoots, TokenFile, graph_access
from txpert_dist.cli.screen import output, say, table
from txpert_dist.cli.serving import TrackingUri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graph_store.client import Access
    from graph_store.embeddings.alignment import Alignment, Overlap
    from graph_store.embeddings.embedding import Embedding
    from graph_store.embeddings.neighbours import Neighbour
    from graph_store.embeddings.store import EmbeddingInfo
    from graph_store.protocol import ListedEmbedding
    from graph_store.remote import Service

embeddings = typer.Typer(
    no_args_is_help=True, help="Keep what models say of genes, find near ones, compare versions."
)

Location = Annotated[
    str, typer.Option(help="Folder of snapshots and embeddings, or grpc://HOST:PORT of a service.")
]
GRAPHS, PATIENCE_S = "graphs", 10.0
_SHOWN = 10
"""Genes that are listed of a comparison."""


@embeddings.command("list")
def list_(
    location: Location = GRAPHS,
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """List the versions there are: genes, width, content hash and the model each comes from.

    txpert graph embeddings list --location graphs
    """
    from graph_store.protocol import ListedEmbedding

    rows = []
    for info in _listed(location, graph_access(token_file, tls_roots, patience)):
        genes = info.genes if isinstance(info, ListedEmbedding) else info.num_genes
        model = info.origin.get("model_hash", "")
        rows.append([info.version, model[:12], info.sha256[:12], f"{genes:,}", f"{info.width:,}"])
    columns = ["version", "model", "content", "genes", "width"]
    output.print(table(f"embeddings in {location}", columns, rows, texts=3))


@embeddings.command()
def put(
    model: Annotated[
        str, typer.Argument(help="Run folder, checkpoint folder or models:/NAME@ALIAS.", show_default=False)
    ],
    location: Location = GRAPHS,
    version: Annotated[
        str | None,
        typer.Option(help="Version to keep it under; run name and weights' hash when left out."),
    ] = None,
    tracking_uri: TrackingUri = None,
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Compute Z, the embedding of every gene that a model can perturb, and keep it under a version.

    A version never changes: the same model again does nothing, anything else is refused.

        txpert graph embeddings put runs/k562 --location graphs
        txpert graph embeddings put models:/txpert@champion --version champion-2026-11
    """
    from graph_store import remote
    from graph_store.embeddings.embedding import Embedding, without_direction
    from graph_store.embeddings.store import put_embedding
    from txpert_dist.cli.run import open_trained
    from txpert_dist.serve.embeddings import model_embedding

    made = model_embedding(open_trained(model, tracking_uri))
    embedding = Embedding(version or made.version, made.genes, made.z_PD, made.origin)
    access = graph_access(token_file, tls_roots, patience)
    there = {info.version: info for info in _listed(location, access)}.get(embedding.version)
    # Its numbers may differ from ours in their last digits, which depend on the machine.
    if there is not None and there.origin == embedding.origin:
        say(f"embedding {there.version} was kept before: content {there.sha256}")
        return
    service = _service(location, access)
    sha256 = remote.put_embedding(service, embedding) if service else put_embedding(Path(location), embedding)
    say(
        f"embedding {embedding.version}: {len(made.genes):,} genes, {made.z_PD.shape[1]} numbers each, "
        f"content {sha256}"
    )
    zero = int(without_direction(made.z_PD).sum())
    if zero:
        say(f"genes whose vector is zero, so that they have no neighbours: {zero:,}")


@embeddings.command()
def nearest(
    genes: Annotated[list[str], typer.Argument(help="Genes to start from.", show_default=False)],
    version: Annotated[str, typer.Option(help="Version they are taken from.", show_default=False)],
    location: Location = GRAPHS,
    count: Annotated[int, typer.Option(help="Neighbours of each.", min=1)] = 10,
    among: Annotated[
        str | None,
        typer.Option(help="Look in this version, after aligning with it; the same one when left out."),
    ] = None,
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Show the genes of largest cosine, exactly; ties by name.

    txpert graph embeddings nearest JAK2 STAT1 --version k562-0f3a9c --count 20
    """
    from graph_store import remote

    service = _service(location, graph_access(token_file, tls_roots, patience))
    if service:
        found = remote.nearest(service, version, genes, count, among=among)
    else:
        found = _nearest(Path(location), version, genes, count, among)
    rows = [
        [gene, neighbour.gene, f"{rank}", f"{neighbour.cosine:.4f}"]
        for gene, near in zip(genes, found, strict=True)
        for rank, neighbour in enumerate(near, start=1)
    ]
    title = f"nearest genes in {among or version}"
    output.print(table(title, ["gene", "near", "rank", "cosine"], rows, texts=2))


@embeddings.command()
def compare(
    first: Annotated[str, typer.Argument(help="A version.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    location: Location = GRAPHS,
    count: Annotated[int, typer.Option(help="Neighbours of a gene that are compared.", min=1)] = 10,
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Show how far two versions agree: after the best rotation, and in each gene's neighbours.

    txpert graph embeddings compare k562-0f3a9c k562-77b1e0
    """
    from graph_store.embeddings.alignment import align, neighbour_overlap

    access = graph_access(token_file, tls_roots, patience)
    one, other = _get(location, first, access), _get(location, second, access)
    alignment, overlap = align(one, other), neighbour_overlap(one, other, count)
    _show_alignment(alignment)
    say(
        f"neighbours: of each gene's {overlap.num_neighbours} nearest, "
        f"{overlap.share_S.mean():.1%} are the same, over {len(overlap.genes):,} genes"
    )
    _show_least(alignment, overlap)


@embeddings.command()
def export(
    version: Annotated[str, typer.Argument(help="Version to write.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Parquet file.", show_default=False)],
    location: Location = GRAPHS,
    token_file: TokenFile = None,
    tls_roots: TlsRoots = None,
    patience: Patience = PATIENCE_S,
) -> None:
    """Write a version as parquet: columns gene, 1, 2, ...; `graph build` reads it as a source of its own.

    txpert graph embeddings export k562-0f3a9c --out z.parquet
    """
    from graph_store.embeddings.export import export_parquet

    embedding = _get(location, version, graph_access(token_file, tls_roots, patience))
    export_parquet(embedding, out)
    say(f"{out}: {len(embedding.genes):,} genes, {embedding.z_PD.shape[1]} numbers each")


def _service(location: str, access: "Access") -> "Service | None":
    """The service at ``location``; None when it is a folder."""
    from graph_store.client import is_remote
    from graph_store.remote import Service

    if not is_remote(location):
        return None
    return Service(location, access.token, access.tls_roots, access.patience_s)


def _listed(location: str, access: "Access") -> "Sequence[EmbeddingInfo | ListedEmbedding]":
    from graph_store import remote
    from graph_store.embeddings.store import list_embeddings

    service = _service(location, access)
    return remote.list_embeddings(service) if service else list_embeddings(Path(location))


def _get(location: str, version: str, access: "Access") -> "Embedding":
    from graph_store import remote
    from graph_store.embeddings.store import get_embedding

    service = _service(location, access)
    return remote.get_embedding(service, version) if service else get_embedding(Path(location), version)


def _nearest(
    folder: Path, version: str, genes: list[str], count: int, among: str | None
) -> "tuple[tuple[Neighbour, ...], ...]":
    from graph_store.embeddings.alignment import align, rotated
    from graph_store.embeddings.neighbours import nearest
    from graph_store.embeddings.store import get_embedding

    embedding = get_embedding(folder, version)
    if among is None or among == version:
        return nearest(embedding, genes, count)
    other = get_embedding(folder, among)
    alignment = align(embedding, other)
    _show_alignment(alignment)
    return nearest(rotated(embedding, alignment), genes, count, among=other)


def _show_alignment(found: "Alignment") -> None:
    say(
        f"{found.source} turned to {found.target}: {len(found.genes):,} common genes "
        f"({found.only_source:,} and {found.only_target:,} are in one only), mean cosine "
        f"{found.mean_cosine:.4f}, residual {found.residual:.4f} of the norm at scale {found.scale:.4f}"
    )
    if found.num_zero:
        say(f"common genes whose vector is zero, left out of the mean: {found.num_zero:,}")
    width = min(found.rotation_DE.shape)
    if found.rank < width:
        say(
            f"the common genes determine {found.rank} of {width} directions; how the others are turned says "
            "nothing"
        )


def _show_least(alignment: "Alignment", overlap: "Overlap") -> None:
    cosine = dict(zip(alignment.genes, alignment.cosine_S.tolist(), strict=True))
    share = zip(overlap.share_S.tolist(), overlap.genes, strict=True)
    least = sorted((agreed, cosine[gene], gene) for agreed, gene in share)[:_SHOWN]
    rows = [[gene, f"{agreed:.0%}", f"{value:.4f}"] for agreed, value, gene in least]
    output.print(table("genes that changed most", ["gene", "same neighbours", "cosine after rotation"], rows))
