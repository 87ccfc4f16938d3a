"""The two real screens of the integration tests and the science benchmark: how a user would ingest each."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
GRAPHS = (STRING_GRAPH, GO_GRAPH)


def missing(screen: RealScreen) -> list[str]:
    """Files that the screen's journey needs and that are not there."""
    return [path.name for path in (screen.file, STRING, GO_SETS, ALIASES) if not path.exists()]


def write_recipe(folder: Path, graphs: Sequence[dict[str, Any]] = (STRING_GRAPH,)) -> Path:
    """graphs.yaml of ``graphs``, with the gene-name table."""
    file = folder / "graphs.yaml"
    file.write_text(yaml.safe_dump({"aliases": {"path": str(ALIASES.absolute())}, "graphs": list(graphs)}))
    return file
