"""Gene Ontology annotations: genes are joined by the Jaccard index of the terms they have.

Enters: a file of annotations, perhaps the ontology. Leaves: a ``SourceGraph``. Invariants: what an annotation
is left out for is counted under the first reason of this order: taxon, negated, evidence, obsolete term,
aspect; the rows of the result are the annotations that are left. GEARS' GO graph is the default setting:
direct annotations, index above 0.1.
"""

from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from graph_store.genes import Aliases
from graph_store.graph import GraphError
from graph_store.ontology import Ontology, ancestors, read_ontology
from graph_store.source_config import GoSource
from graph_store.sources.annotations import OTHER_TAXA, Annotation, Format, annotations, recognise
from graph_store.sources.memberships import Members, collect, join, resolved
from graph_store.sources.source import SourceGraph

NEGATED = "negated annotations"
OTHER_EVIDENCE = "annotations with other evidence"
OBSOLETE = "annotations with obsolete terms"
OTHER_ASPECTS = "annotations of other aspects"
ALTERNATIVE = "annotations with alternative term ids"
UNKNOWN = "annotations with terms that the ontology lacks"
PROPAGATED = "memberships added by propagation"


def read_go(spec: GoSource, aliases: Aliases | None) -> SourceGraph:
    """Read annotations and join genes; ``GraphError`` names file and place of what cannot be used."""
    kind = spec.format or recognise(spec.path)
    ontology = read_ontology(spec.ontology, spec.relations) if spec.ontology is not None else None
    details: Counter[str] = Counter()
    kept = _kept(annotations(spec, kind, details), spec, kind, ontology, details)
    found = collect((annotation.gene, annotation.term) for annotation in kept)
    if not found.genes:
        reasons = ", ".join(f"{count} {what}" for what, count in details.items() if count)
        raise GraphError(
            f"{spec.path}: no annotation is left ({reasons or 'the file holds none'}); check taxon, evidence "
            "and aspects"
        )
    members = resolved(found, aliases)
    if spec.propagate and ontology is not None:
        direct = len(members.gene_M)
        members = _propagated(members, found.sets, ontology, spec)
        details[PROPAGATED] = len(members.gene_M) - direct
    # In an order that does not depend on that of the rows.
    counted = {what: count for what, count in sorted(details.items()) if count}
    return join(members, above=spec.jaccard_above, details=counted)


def _check_filters(annotation: Annotation, spec: GoSource, kind: Format, ontology: Ontology | None) -> None:
    """Refuse filters that the file (and the ontology) cannot answer."""
    missing = None
    if annotation.evidence is None and (spec.evidence is not None or spec.without_evidence):
        missing = "evidence codes"
    elif annotation.taxon is None and spec.taxon is not None:
        missing = "taxa"
    elif annotation.aspect is None and spec.aspects is not None and ontology is None:
        missing = "aspects (ontology, an OBO file, would)"
    if missing is not None:
        raise GraphError(f"{spec.path}: {kind} does not say {missing}; leave that filter out or give a GAF")


def _kept(
    found: Iterator[Annotation],
    spec: GoSource,
    kind: Format,
    ontology: Ontology | None,
    details: Counter[str],
) -> Iterator[Annotation]:
    """The annotations that pass, by main term ids; the others are counted in ``details``."""
    taxa: set[str] = set()
    for annotation in found:
        _check_filters(annotation, spec, kind, ontology)
        if annotation.taxon is not None and annotation.taxon not in taxa:
            _check_taxon(annotation.taxon, taxa, spec)
        if spec.taxon is not None and annotation.taxon is not None and annotation.taxon != str(spec.taxon):
            details[OTHER_TAXA] += 1
        elif annotation.negated:
            details[NEGATED] += 1
        elif not _has_evidence(annotation, spec):
            details[OTHER_EVIDENCE] += 1
        else:
            main = _by_ontology(annotation, ontology, details)
            if main is None:
                continue
            if spec.aspects is not None and main.aspect not in spec.aspects:
                details[OTHER_ASPECTS] += 1
            else:
                yield main


def _check_taxon(taxon: str, taxa: set[str], spec: GoSource) -> None:
    """Add a taxon not seen before; several need the reader to say which is meant."""
    taxa.add(taxon)
    if spec.taxon is None and len(taxa) > 1:
        raise GraphError(
            f"{spec.path}: has annotations of several taxa ({' and '.join(sorted(taxa))}); set taxon: "
            "to the one you want (9606: human)"
        )


def _has_evidence(annotation: Annotation, spec: GoSource) -> bool:
    return annotation.evidence not in spec.without_evidence and (
        spec.evidence is None or annotation.evidence in spec.evidence
    )


def _by_ontology(
    annotation: Annotation, ontology: Ontology | None, details: Counter[str]
) -> Annotation | None:
    """The annotation with its term's main id, and its aspect when the file has none; None when obsolete."""
    if ontology is None:
        return annotation
    term = ontology.main.get(annotation.term, annotation.term)
    if term in ontology.obsolete:
        details[OBSOLETE] += 1
        return None
    details[ALTERNATIVE] += term != annotation.term
    details[UNKNOWN] += term not in ontology.aspect
    aspect = annotation.aspect if annotation.aspect is not None else ontology.aspect.get(term)
    return annotation._replace(term=term, aspect=aspect)


def _propagated(members: Members, terms: tuple[str, ...], ontology: Ontology, spec: GoSource) -> Members:
    """Genes also have the ancestors of their terms (of the aspects that are asked for)."""
    codes = {term: code for code, term in enumerate(terms)}
    below, above = array("i"), array("i")
    for code, term in enumerate(terms):
        for ancestor in (term, *sorted(ancestors(ontology, term))):
            if ancestor == term or spec.aspects is None or ontology.aspect.get(ancestor) in spec.aspects:
                below.append(code)
                above.append(codes.setdefault(ancestor, len(codes)))
    closure = sparse.csr_array(
        (np.ones(len(below), np.int32), (np.array(below), np.array(above))), shape=(len(terms), len(codes))
    )
    direct = sparse.csr_array(
        (np.ones(len(members.gene_M), np.int32), (members.gene_M, members.set_M)),
        shape=(len(members.genes), len(terms)),
    )
    every = (direct @ closure).tocoo()
    return members._replace(gene_M=every.row.astype(np.int32), set_M=every.col.astype(np.int32))
