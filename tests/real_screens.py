"""The two real screens of the integration tests and the science benchmark: how a user would ingest each."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

DATA = Path(os.environ.get("TXPERT_SHARED_DATA", "../shared/data"))
STRING = DATA / "string-v12-dmfind" / "string_v12_ntm_edges.parquet"
GO_SETS = DATA / "gmt-gseapy" / "enrichr.GO_Biological_Process_2021.gmt"
ALIASES = DATA / "gene-ids" / "hgnc_table.csv"


class RealScreen(NamedTuple):
    """A screen and the options of `txpert ingest` that read it."""

    name: str
    file: Path
    ingest: tuple[str, ...]
    epochs: int
    """Epochs that make about 400 optimiser steps of the small model."""


PAPALEXI = RealScreen(
    "Papalexi 2021 (THP-1, CRISPR knock-out)",
    DATA / "real_papalexi2021.h5ad",
    (
        "--perturbation-key=target",
        "--control-label=non-targeting",
        "--batch-key=bio_rep",
        "--cell-line=THP-1",
        "--select-genes=0",
    ),
    8,
)
NORMAN = RealScreen(
    "Norman 2019 (K562, CRISPRa, with doubles)",
    DATA / "real_perturbseq.h5ad",
    (
        "--where=dataset=norman19",
        "--perturbation-key=condition",
        "--batch-key=gem_group",
        "--cell-line=K562",
        "--library-size-key=libsize_recovered",
        "--select-genes=0",
    ),
    60,
)


STRING_GRAPH = {
    "name": "string",
    "source": {"kind": "edges", "path": str(STRING.absolute()), "minimum_weight": 700},
}
"""High-confidence STRING v12."""
GO_GRAPH = {
    "name": "go",
    "source": {"kind": "gmt", "path": str(GO_SETS.absolute())},
    "keep": {"kind": "top_in_edges", "count": 10},
}
"""GO biological processes: the ten genes that share most terms."""


def missing(screen: RealScreen) -> list[str]:
    """Files that the screen's journey needs and that are not there."""
    return [path.name for path in (screen.file, STRING, GO_SETS, ALIASES) if not path.exists()]


def write_recipe(folder: Path, graphs: Sequence[dict[str, Any]] = (STRING_GRAPH,)) -> Path:
    """graphs.yaml of ``graphs``, with the gene-name table."""
    file = folder / "graphs.yaml"
    file.write_text(yaml.safe_dump({"aliases": {"path": str(ALIASES.absolute())}, "graphs": list(graphs)}))
    return file


def write_nearby_recipe(folder: Path, perturbed: Iterable[str]) -> Path:
    """graphs.yaml of both graphs, cut to the perturbed genes and their direct neighbours in STRING.

    Some five thousand edges of STRING: few enough to train every encoder over and over on a CPU.
    """
    approved = pd.read_csv(ALIASES).set_index("Symbol")["Approved.Symbol"]
    genes = {approved.get(gene, gene) for gene in perturbed if isinstance(approved.get(gene, gene), str)}
    edges = pd.read_parquet(STRING, columns=["gene1", "gene2", "combined_score"])
    edges = edges[edges.combined_score >= STRING_GRAPH["source"]["minimum_weight"]]
    near = genes | set(edges.gene1[edges.gene2.isin(genes)]) | set(edges.gene2[edges.gene1.isin(genes)])
    edges[edges.gene1.isin(near) & edges.gene2.isin(near)].to_parquet(folder / "string.parquet")
    with GO_SETS.open() as sets, (folder / "go.gmt").open("w") as kept:
        for line in sets:
            name, description, *members = line.rstrip("\n").split("\t")
            members = [member for member in members if member in near]
            if len(members) > 1:
                kept.write("\t".join([name, description, *members]) + "\n")
    string = {**STRING_GRAPH, "source": {"kind": "edges", "path": "string.parquet"}}
    go = {**GO_GRAPH, "source": {"kind": "gmt", "path": "go.gmt"}}
    return write_recipe(folder, (string, go))
