"""A small ontology and its annotations, with everything awkward in them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

GENES = tuple(f"gene{i}" for i in range(40))
"""Of the screen of these tests."""

PARENTS = {"GO:0000002": "GO:0000001", "GO:0000003": "GO:0000002", "GO:0000004": "GO:0000001"}
"""is_a, in one namespace; GO:0000011 is of another."""


class GoFiles(NamedTuple):
    obo: Path
    gaf: Path
    direct: dict[str, set[str]]
    """Gene -> terms that count, before propagation."""


def write_go(folder: Path, seed: int = 0) -> GoFiles:
    terms = ["format-version: 1.2", "data-version: releases/2026-01-01", "ontology: go", ""]
    for number in (1, 2, 3, 4):
        term = f"GO:000000{number}"
        terms += ["[Term]", f"id: {term}", f"name: process {number}", "namespace: biological_process"]
        terms += [f"alt_id: GO:999999{number}"]
        terms += [f"is_a: {PARENTS[term]} ! above"] if term in PARENTS else []
        terms += [""]
    terms += ["[Term]", "id: GO:0000011", "name: place", "namespace: cellular_component", ""]
    terms += ["[Term]", "id: GO:0000012", "name: gone", "namespace: biological_process"]
    terms += ["is_obsolete: true", ""]
    obo, gaf = folder / "go.obo", folder / "go.gaf"
    obo.write_text("\n".join(terms))
    rng = np.random.default_rng(seed)
    direct: dict[str, set[str]] = {}
    rows = ["!gaf-version: 2.2"]
    for gene in GENES[:34]:  # the last six have no annotation
        for term in rng.choice(["GO:0000002", "GO:0000003", "GO:0000004", "GO:0000011"], 2, replace=False):
            direct.setdefault(gene, set()).add(str(term))
            # half of them by their other id
            named = str(term).replace("000000", "999999") if rng.random() < 0.5 and term[-2] == "0" else term
            rows.append(_row(gene, str(named), "IDA", aspect="C" if term == "GO:0000011" else "P"))
    rows += [
        _row("gene39", "GO:0000003", "IDA", qualifier="NOT|enables"),
        _row("gene38", "GO:0000001", "ND"),
        _row("gene37", "GO:0000012", "IDA"),
        _row("OTHER", "GO:0000003", "IDA"),
    ]
    gaf.write_text("\n".join(rows) + "\n")
    return GoFiles(obo, gaf, direct)


def _row(gene: str, term: str, evidence: str, *, aspect: str = "P", qualifier: str = "involved_in") -> str:
    columns = ("UniProtKB", f"ID_{gene}", gene, qualifier, term, "PMID:1", evidence, "", aspect)
    return "\t".join([*columns, "", "", "protein", "taxon:9606", "20260101", "UniProt", "", ""])
