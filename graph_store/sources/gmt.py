"""Gene sets (GMT): one set a line - name, description, genes - separated by tabs.

Enters: a file. Leaves: a ``SourceGraph`` whose pairs are genes that share enough sets (Jaccard index).
Invariant: names are resolved before sets are compared, so two spellings of a gene never count as two members;
lines of the same set name are one set.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from graph_store.config import GmtSource
from graph_store.genes import Aliases, resolve
from graph_store.graph import GraphError
from graph_store.similarity import jaccard_pairs
from graph_store.sources.source import Counts, SourceGraph, sorted_genes
from graph_store.sparsify import Edges


def read_gmt(spec: GmtSource, aliases: Aliases | None) -> SourceGraph:
    """Read gene sets and join genes; ``GraphError`` names file and line of what cannot be used."""
    set_codes: dict[str, int] = {}
    gene_codes: dict[str, int] = {}
    sets: list[int] = []
    members: list[int] = []
    for name, genes_of_set in _lines(spec.path):
        sets += [set_codes.setdefault(name, len(set_codes))] * len(genes_of_set)
        members += [gene_codes.setdefault(gene, len(gene_codes)) for gene in genes_of_set]
    if not members:
        raise GraphError(f"{spec.path}: is empty; a GMT file has one gene set a line")
    resolution = resolve(tuple(gene_codes), aliases)
    genes, number = sorted_genes(resolution.names)
    memberships = np.unique(np.stack([number[np.array(members)], np.array(sets, dtype=np.int32)]), axis=1)
    pairs = jaccard_pairs(memberships[0], memberships[1], above=spec.jaccard_above)
    counts = Counts(
        rows=len(members),
        self_loops=0,
        duplicates=len(members) - memberships.shape[1],
        below_minimum=pairs.num_below,
    )
    return SourceGraph(genes, Edges(pairs.edges_2E, pairs.weight_E), counts, resolution)


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Set name and genes of each line; blank lines and trailing tabs are passed over."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield _parse(path, number, raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file; check the path in the graph configuration") from None
    except (OSError, EOFError) as error:
        raise GraphError(f"{path}: cannot be read ({error}); check that the file is whole") from None
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def _parse(path: Path, number: int, line: str) -> tuple[str, list[str]]:
    fields = [field.strip() for field in line.split("\t")]
    genes = [gene for gene in fields[2:] if gene]
    if not fields[0] or not genes:
        raise GraphError(
            f"{path} line {number}: has {len(fields)} tab-separated field(s) and {len(genes)} gene(s); "
            "a GMT line is set name, description and at least one gene"
        )
    return fields[0], genes
