"""Reactome's tables of what stands in which pathway (UniProt2Reactome, Ensembl2Reactome, NCBI2Reactome ...).

Enters: such a table, without a header: id, pathway, URL, name of the pathway, evidence, species; the ``_PE_``
tables have the id and name of a physical entity after the first column. Leaves: a ``SourceGraph`` of genes
that share enough pathways (Jaccard index). Invariant: names are the table's ids; only a table of gene names
makes them symbols.
"""

from collections import Counter
from collections.abc import Iterator

from graph_store.genes import Aliases
from graph_store.graph import GraphError
from graph_store.source_config import ReactomeSource
from graph_store.sources.lines import lines
from graph_store.sources.memberships import collect, join, resolved
from graph_store.sources.source import SourceGraph

OTHER_SPECIES = "memberships of other species"
OTHER_EVIDENCE = "memberships with other evidence"
_PATHWAY_COLUMN = {6: 1, 8: 3}
"""Number of columns -> which of them is the pathway."""
_SPECIES_SHOWN = 5


def read_reactome(spec: ReactomeSource, aliases: Aliases | None) -> SourceGraph:
    """Read memberships and join genes; ``GraphError`` names file and line of what cannot be used."""
    details: Counter[str] = Counter()
    found = collect(_memberships(spec, details))
    if not found.genes:
        reasons = ", ".join(f"{count} {what}" for what, count in details.items())
        raise GraphError(
            f"{spec.path}: no membership is left ({reasons or 'the file holds none'}); check species (here "
            f"{spec.species}; the file has {', '.join(_species(spec)) or 'none'}) and without_evidence"
        )
    return join(resolved(found, aliases), above=spec.jaccard_above, details=dict(sorted(details.items())))


def _memberships(spec: ReactomeSource, details: Counter[str]) -> Iterator[tuple[str, str]]:
    """Id and pathway of every membership that passes; the others are counted in ``details``."""
    for fields in _rows(spec):
        *_, evidence, species = fields
        if species != spec.species:
            details[OTHER_SPECIES] += 1
        elif evidence in spec.without_evidence:
            details[OTHER_EVIDENCE] += 1
        else:
            yield fields[0], fields[_PATHWAY_COLUMN[len(fields)]]


def _rows(spec: ReactomeSource) -> Iterator[list[str]]:
    for number, line in lines(spec.path):
        if line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        pathway = _PATHWAY_COLUMN.get(len(fields))
        if pathway is None or not fields[0] or not fields[pathway].startswith("R"):
            raise GraphError(
                f"{spec.path} line {number}: has {len(fields)} tab-separated field(s) and pathway "
                f"{fields[pathway or 1 : (pathway or 1) + 1]}; a *2Reactome table has 6 (or 8, with physical "
                "entities) and pathways such as R-HSA-109581"
            )
        yield fields


def _species(spec: ReactomeSource) -> list[str]:
    """Some of the species in the file, the most frequent first."""
    return [name for name, _ in Counter(fields[-1] for fields in _rows(spec)).most_common(_SPECIES_SHOWN)]
