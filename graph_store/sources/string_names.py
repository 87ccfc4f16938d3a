"""STRING's own tables of protein names: protein.info (preferred names) and protein.aliases.

Enters: such a file (also .gz). Leaves: ``ProteinNames``. Invariant: a protein with several names has none; it
is not guessed which is meant.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from graph_store.graph import GraphError
from graph_store.source_config import StringSource
from graph_store.sources.lines import lines

_SOURCES_SHOWN = 8
_ALIAS_COLUMNS = 3


class ProteinNames(NamedTuple):
    """What the table says; empty without one."""

    by_protein: dict[str, str]
    several: frozenset[str]
    """Proteins that have more than one name."""


def read_protein_names(spec: StringSource) -> ProteinNames:
    """The names that the table of ``spec`` gives; ``GraphError`` names file and line of what is wrong."""
    rows: Iterator[tuple[str, str]] = iter(())
    if spec.info is not None:
        rows = _info(spec.info)
    elif spec.protein_aliases is not None:
        rows = _aliases(spec.protein_aliases, spec.alias_source)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for protein, name in rows:
        found[protein].add(name)
    return ProteinNames(
        {protein: next(iter(names)) for protein, names in found.items() if len(names) == 1},
        frozenset(protein for protein, names in found.items() if len(names) > 1),
    )


def _info(path: Path) -> Iterator[tuple[str, str]]:
    """Protein and preferred name: the first two columns, under a header."""
    has_header = False
    for number, line in lines(path):
        fields = [field.strip() for field in line.split("\t")]
        if not has_header and fields[1:2] != ["preferred_name"]:
            raise GraphError(f"{path}: its second column is not preferred_name; give STRING's protein.info")
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise GraphError(f"{path} line {number}: has no protein or no name; give STRING's whole file")
        if has_header:
            yield fields[0], fields[1]
        has_header = True
    if not has_header:
        raise GraphError(f"{path}: is empty; give STRING's protein.info")


def _aliases(path: Path, source: str) -> Iterator[tuple[str, str]]:
    """Protein and alias of the rows of ``source``; older releases list several sources in a row."""
    sources: Counter[str] = Counter()
    for number, line in lines(path):
        if line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != _ALIAS_COLUMNS or not all(fields):
            raise GraphError(
                f"{path} line {number}: has {len(fields)} tab-separated field(s) or an empty one; STRING's "
                "protein.aliases has protein, alias and source"
            )
        of_row = fields[2].split()
        sources.update(of_row)
        if source in of_row:
            yield fields[0], fields[1]
    if source not in sources:
        shown = ", ".join(name for name, _ in sources.most_common(_SOURCES_SHOWN)) or "it has none"
        raise GraphError(
            f"{path}: has no row of source {source}; set alias_source to one of its own ({shown})"
        )
