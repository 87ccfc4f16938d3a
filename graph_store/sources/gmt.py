"""Gene sets (GMT): one set a line - name, description, genes - separated by tabs.

Enters: a file. Leaves: a ``SourceGraph`` whose pairs are genes that share enough sets (Jaccard index).
Invariant: lines of the same set name are one set.
"""

from collections.abc import Iterator
from pathlib import Path

from graph_store.genes import Aliases
from graph_store.graph import GraphError
from graph_store.source_config import GmtSource
from graph_store.sources.lines import lines
from graph_store.sources.memberships import collect, join, resolved
from graph_store.sources.source import SourceGraph


def read_gmt(spec: GmtSource, aliases: Aliases | None) -> SourceGraph:
    """Read gene sets and join genes; ``GraphError`` names file and line of what cannot be used."""
    found = collect(_memberships(spec.path))
    if not found.genes:
        raise GraphError(f"{spec.path}: is empty; a GMT file has one gene set a line")
    return join(resolved(found, aliases), above=spec.jaccard_above, details={})


def _memberships(path: Path) -> Iterator[tuple[str, str]]:
    """Gene and set of every membership; trailing tabs are passed over."""
    for number, line in lines(path):
        fields = [field.strip() for field in line.split("\t")]
        genes = [gene for gene in fields[2:] if gene]
        if not fields[0] or not genes:
            raise GraphError(
                f"{path} line {number}: has {len(fields)} tab-separated field(s) and {len(genes)} gene(s); "
                "a GMT line is set name, description and at least one gene"
            )
        for gene in genes:
            yield gene, fields[0]
