"""Annotations of genes with ontology terms, as each publisher ships them.

Enters: a file. Leaves: one ``Annotation`` after another, in file order, nothing filtered but foreign taxa of
gene2go. Invariant: a line that does not have the format's shape is a ``GraphError`` naming it.

* ``gaf``: GO annotation files 1.0 to 2.2, tab-separated, ``!`` before comments, 15 or 17 columns.
* ``gene2go``: NCBI's table of all species; its gene names are Entrez ids.
* ``json``: an object gene -> list of terms (GEARS' gene2go, exported).
* ``terms``: a table with one term a row (``go_id``) and its genes (``gene_symbols``, separated by ``|``),
  perhaps with ``go_domain`` and ``tax_id``.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute

from graph_store.graph import GraphError
from graph_store.source_config import GoSource
from graph_store.sources.columns import PARQUET_SUFFIXES, batches, need, open_table
from graph_store.sources.lines import inner_suffix, lines

Format = Literal["gaf", "gene2go", "json", "terms"]

OTHER_TAXA = "annotations of other taxa"
NO_TERM = "genes without a term"

_ASPECTS = {
    "P": "biological_process",
    "F": "molecular_function",
    "C": "cellular_component",
    "Process": "biological_process",
    "Function": "molecular_function",
    "Component": "cellular_component",
}
_GAF_COLUMNS = (15, 17)
_GENE2GO_COLUMNS = 8
_NEGATED = re.compile(r"(?:^|[|\s])NOT(?:$|[|\s])")


class Annotation(NamedTuple):
    """One gene and one of its terms; None is what a format does not say."""

    gene: str
    term: str
    negated: bool = False
    evidence: str | None = None
    aspect: str | None = None
    """Namespace of the term (biological_process ...); as it stands in the file when that is none of GO's."""
    taxon: str | None = None


def recognise(path: Path) -> Format:
    """The format, from name and first line."""
    suffix = inner_suffix(path)
    if suffix in (".gaf", ".json"):
        return "gaf" if suffix == ".gaf" else "json"
    if suffix in PARQUET_SUFFIXES:
        return "terms"
    first = next((text for _, text in lines(path)), "")
    if first.startswith("!"):
        return "gaf"
    if first.startswith("#tax_id"):
        return "gene2go"
    if first.lstrip().startswith("{"):
        return "json"
    if "go_id" in first:
        return "terms"
    raise GraphError(
        f"{path}: is not recognised as annotations; set format: to gaf, gene2go, json or terms if it is one"
    )


def annotations(spec: GoSource, kind: Format, left_out: Counter[str]) -> Iterator[Annotation]:
    """Every annotation of the file; what is left out here already is counted in ``left_out``."""
    if kind == "gaf":
        return _gaf(spec.path)
    if kind == "gene2go":
        return _gene2go(spec.path, spec.taxon, left_out)
    if kind == "json":
        return _json(spec.path, left_out)
    return _terms(spec.path)


def _gaf(path: Path) -> Iterator[Annotation]:
    for number, line in lines(path):
        if line.startswith("!"):
            continue
        fields = line.split("\t")
        if len(fields) not in _GAF_COLUMNS or ":" not in fields[4] or not fields[2].strip():
            raise GraphError(
                f"{path} line {number}: is no GAF annotation ({len(fields)} tab-separated fields, symbol "
                f"{fields[2:3]}, term {fields[4:5]}); GAF has 15 or 17, the 3rd a symbol and the 5th a term"
            )
        yield Annotation(
            gene=fields[2].strip(),
            term=fields[4],
            negated=_NEGATED.search(fields[3]) is not None,
            evidence=fields[6],
            aspect=_ASPECTS.get(fields[8], fields[8]),
            # A second taxon is that of an organism the gene's product acts on.
            taxon=fields[12].split("|")[0].removeprefix("taxon:"),
        )


def _gene2go(path: Path, taxon: int | None, left_out: Counter[str]) -> Iterator[Annotation]:
    mine = "" if taxon is None else f"{taxon}\t"
    for number, line in lines(path):
        if line.startswith("#"):
            continue
        # The file has tens of millions of lines of all species: most are not worth splitting.
        if not line.startswith(mine):
            left_out[OTHER_TAXA] += 1
            continue
        fields = line.split("\t")
        if len(fields) != _GENE2GO_COLUMNS or ":" not in fields[2] or not fields[1].strip():
            raise GraphError(
                f"{path} line {number}: is no line of gene2go ({len(fields)} tab-separated fields, gene "
                f"{fields[1:2]}, term {fields[2:3]}); NCBI's has 8, the 2nd a gene's id and the 3rd a term"
            )
        yield Annotation(
            gene=fields[1].strip(),
            term=fields[2],
            negated=_NEGATED.search(fields[4]) is not None,
            evidence=fields[3],
            aspect=_ASPECTS.get(fields[7], fields[7]),
            taxon=fields[0],
        )


def _json(path: Path, left_out: Counter[str]) -> Iterator[Annotation]:
    # Pairs, not a dict: a gene that is listed twice must not lose its first list.
    try:
        tree: Any = json.loads(
            "\n".join(text for _, text in lines(path)), object_pairs_hook=lambda pairs: ("object", pairs)
        )
    except json.JSONDecodeError as error:
        raise GraphError(f"{path}: is not JSON ({error}); give an object gene -> list of terms") from None
    if not isinstance(tree, tuple):
        raise GraphError(f"{path}: holds no JSON object; give an object gene -> list of terms")
    for gene, terms in tree[1]:
        is_list = isinstance(terms, list) and all(isinstance(term, str) for term in terms)
        if not gene.strip() or not is_list:
            raise GraphError(f"{path}: gene {gene!r} has no list of terms; give gene -> list of term ids")
        left_out[NO_TERM] += not terms
        for term in terms:
            yield Annotation(gene=gene.strip(), term=term)


def _terms(path: Path) -> Iterator[Annotation]:
    table = open_table(path)
    names = [need(table, "go_id"), need(table, "gene_symbols")]
    names += [name for name in ("go_domain", "tax_id") if name in table.columns]
    for batch in batches(table, names):
        columns = dict(
            zip(
                names,
                (
                    pa.compute.utf8_trim_whitespace(array.cast(pa.string())).fill_null("").to_pylist()
                    for array in batch.columns
                ),
                strict=True,
            )
        )
        nothing = [None] * len(columns["go_id"])
        rows = zip(
            columns["go_id"],
            columns["gene_symbols"],
            columns.get("go_domain", nothing),
            columns.get("tax_id", nothing),
            strict=True,
        )
        for number, (term, genes, aspect, taxon) in enumerate(rows, start=batch.first_row):
            if not term:
                raise GraphError(f"{path} row {number}: 'go_id' is empty; give the term or remove the row")
            for gene in genes.split("|"):
                if gene.strip():
                    yield Annotation(gene=gene.strip(), term=term, aspect=aspect, taxon=taxon)
