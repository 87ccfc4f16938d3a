"""The verb that looks at a screen before any model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from txpert_dist.cli.places import StorePlace
from txpert_dist.cli.screen import output, progress, say, table
from txpert_dist.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from txpert_dist.evaluate.understand.run import Understanding
    from txpert_dist.store.cells import CellStore


def understand(
    path: StorePlace,
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    go: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="OBO and GAF of the Gene Ontology: terms of the mean response.", show_default=False
        ),
    ] = None,
    tiers: Annotated[
        Path | None,
        typer.Option(help="csv or tsv with columns gene and score(s), or gene and rank.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Report of txpert evaluate: its scores by tier.", show_default=False),
    ] = None,
    split: Annotated[
        Literal["train", "all"], typer.Option(help="Perturbations that are looked at.")
    ] = "train",
    seed: Annotated[int, typer.Option(help="Draws halves and single cells.")] = 0,
) -> None:
    """Look at a screen before any model: what contexts change, what every perturbation does alike.

    Correlations of controls and of mean responses within and across batches and cell lines; the mean response
    and, with --go, its Gene Ontology terms (txpert fetch go brings both files); which metric finds single
    perturbed cells again in another cell line (or batch); with --tiers, perturbations by how well known their
    genes are. Writes understand.md, understand.json, tables (parquet) and figures.

        txpert understand screen.zarr --out understand --go go-basic.obo goa_human.gaf.gz
        txpert understand screen.zarr --out understand --tiers pharos.csv --report runs/k562/report
    """
    from txpert_dist.evaluate.tiers import read_tiers
    from txpert_dist.evaluate.understand.run import Asked
    from txpert_dist.evaluate.understand.run import understand as run
    from txpert_dist.evaluate.understand.write import write_understanding
    from txpert_dist.store.cells import open_store

    if report is not None and tiers is None:
        raise InputError("--report: its scores are averaged by knowledge tier; give --tiers too")
    cells = open_store(path)
    asked = Asked(
        which=split,
        seed=seed,
        tiers=None if tiers is None else read_tiers(tiers),
        scores=None if report is None else _scores(report, cells),
        ontology=go,
    )
    with progress() as show:
        found = run(cells, asked, progress=show)
    write_understanding(found, out)
    _show(found)
    say(f"understood: {out / 'understand.md'}")


def _scores(report: Path, cells: "CellStore") -> "pd.DataFrame":
    """The table of a report on this store's split."""
    import json

    import pandas as pd

    from txpert_dist.evaluate.report import JSON_FILE, TABLE_FILE

    try:
        of_split = json.loads((report / JSON_FILE).read_text("utf-8"))["provenance"]["split_hash"]
        found = pd.read_parquet(report / TABLE_FILE)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{report}: is no report of txpert evaluate ({error}); give its folder") from None
    if of_split != cells.split_hash:
        raise InputError(f"{report}: is a report on another split than {cells.path} has; evaluate again")
    return found


def _show(found: "Understanding") -> None:
    from txpert_dist.evaluate.understand.write import to_json

    content = to_json(found)
    rows = [
        [row["kind"], row["relation"], *(_number(row[name]) for name in ("mean", "median"))]
        for row in content["contexts"]["rows"]
    ]
    output.print(table("correlations", ["of", "", "mean", "median"], rows, texts=2))
    meta = content["meta_baseline"]
    say(f"mean response: {meta['up']:,} genes up, {meta['down']:,} down by more than {meta['threshold']}")
    chosen = content["metric_selection"]
    rows = [
        [
            *(row["representation"], row["similarity"]),
            *(_number(row[name]) for name in ("quantile", "chance_quantile", "mean")),
        ]
        for row in chosen["rows"]
    ]
    if rows:
        title = f"single cells found again in another {chosen['contexts'].replace('_', ' ')}"
        output.print(
            table(title, ["of", "by", f"{chosen['quantile']} quantile", "by chance", "mean"], rows, texts=2)
        )


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
