"""The Gene Ontology as its OBO file has it: which term lies under which.

Enters: an OBO file (also .gz). Leaves: an ``Ontology`` over term ids. Invariant: an id that several terms
claim as their alternative one means none of them.
"""

import gzip
import io
import zlib
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import obonet

from graph_store.graph import GraphError

_NEEDED = (
    "[",
    "ontology:",
    "default-namespace:",
    "id:",
    "name:",
    "namespace:",
    "alt_id:",
    "is_a:",
    "relationship:",
    "is_obsolete:",
)
"""Beginnings of the lines that say what is wanted here: definitions, synonyms and references are most of the
file and take most of the time."""


class Ontology(NamedTuple):
    """Terms and what lies above them."""

    aspect: dict[str, str]
    """Id of each term that is in force -> its namespace (biological_process ...)."""
    main: dict[str, str]
    """Alternative id -> the one id it means."""
    obsolete: frozenset[str]
    parents: dict[str, tuple[str, ...]]
    """Id of a term -> the terms right above it, along the relations that were asked for."""


def read_ontology(path: Path, relations: Collection[str]) -> Ontology:
    """Read the OBO file; ``GraphError`` says what cannot be used."""
    graph = _read(path)
    default = next(iter(graph.graph.get("default-namespace", [])), "")
    # Ids that only relations mention have no attributes: the file is a subset that leaves these terms out.
    named = {term: data for term, data in graph.nodes(data=True) if data}
    obsolete = frozenset(term for term, data in named.items() if data.get("is_obsolete") == "true")
    parents: defaultdict[str, list[str]] = defaultdict(list)
    for child, parent, relation in graph.edges(keys=True):
        if relation in relations and child not in obsolete:
            parents[child].append(parent)
    if not named:
        raise GraphError(f"{path}: holds no [Term]; give the OBO file of the ontology (go-basic.obo)")
    return Ontology(
        aspect={term: data.get("namespace", default) for term, data in named.items() if term not in obsolete},
        main=_main_ids(named),
        obsolete=obsolete,
        parents={term: tuple(above) for term, above in parents.items()},
    )


def ancestors(ontology: Ontology, term: str) -> set[str]:
    """Every term above ``term``, without itself."""
    found: set[str] = set()
    waiting = [term]
    while waiting:
        new = [parent for parent in ontology.parents.get(waiting.pop(), ()) if parent not in found]
        found.update(new)
        waiting += new
    return found - {term}


def _read(path: Path) -> Any:
    """The graph of terms (networkx), children to parents, obsolete terms included."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix.lower() == ".gz"
            else path.open(encoding="utf-8-sig")
        ) as stream:
            needed = (line for line in stream if line.startswith(_NEEDED) or line.isspace())
            return obonet.read_obo(io.StringIO("".join(needed)), ignore_obsolete=False)
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file; check the path in the graph configuration") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: cannot be read ({error}); check that the file is whole") from None
    except (ValueError, KeyError, AttributeError) as error:
        # What obonet raises for lines that are no tag and value, and for terms without an id.
        reason = " ".join(str(error).split())[:200]
        raise GraphError(f"{path}: is not an OBO file ({reason}); give go-basic.obo") from None


def _main_ids(named: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    meanings: defaultdict[str, set[str]] = defaultdict(set)
    for term, data in named.items():
        for other in data.get("alt_id", ()):
            meanings[other].add(term)
    return {
        other: next(iter(terms))
        for other, terms in meanings.items()
        if len(terms) == 1 and other not in named
    }
