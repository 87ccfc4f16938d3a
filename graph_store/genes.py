"""Gene names: which node a name of a source means.

Enters: names as the sources spell them, and a table of aliases. Leaves: approved symbols, and an account of
every name that could not be brought to one. Invariants: an approved symbol stays what it is; a name moves
only when the table gives it exactly one approved symbol; nothing is guessed and case is never folded.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Aliases(NamedTuple):
    """What a gene table says about names."""

    approved: frozenset[str]
    by_alias: dict[str, str]
    """Names that are no approved symbol and mean exactly one -> that symbol."""
    ambiguous: dict[str, tuple[str, ...]]
    """Names that are no approved symbol and mean several -> those, sorted."""


class Resolution(NamedTuple):
    """The names of one source, resolved."""

    names: tuple[str, ...]
    """The approved symbol (or the name as it was) for each name that came in, in the same order."""
    renamed: dict[str, str]
    ambiguous: tuple[str, ...]
    """Sorted names that mean several genes, left as they are."""
    unmatched: tuple[str, ...]
    """Sorted names that the table does not know, left as they are."""


def make_aliases(pairs: Iterable[tuple[str, str]]) -> Aliases:
    """Index (alias, approved symbol) pairs; an empty alias only tells that the symbol exists."""
    meanings: defaultdict[str, set[str]] = defaultdict(set)
    approved = set()
    for alias, symbol in pairs:
        approved.add(symbol)
        meanings[alias].add(symbol)
    others = {alias: symbols for alias, symbols in meanings.items() if alias and alias not in approved}
    return Aliases(
        frozenset(approved),
        {alias: next(iter(symbols)) for alias, symbols in others.items() if len(symbols) == 1},
        {alias: tuple(sorted(symbols)) for alias, symbols in others.items() if len(symbols) > 1},
    )


def resolve(names: Sequence[str], aliases: Aliases | None) -> Resolution:
    """Bring ``names`` to approved symbols where the table is unambiguous; without a table all stay."""
    if aliases is None:
        return Resolution(tuple(names), {}, (), ())
    renamed = {name: aliases.by_alias[name] for name in names if name in aliases.by_alias}
    ambiguous = {name for name in names if name in aliases.ambiguous}
    known = aliases.approved | ambiguous | renamed.keys()
    return Resolution(
        tuple(renamed.get(name, name) for name in names),
        renamed,
        tuple(sorted(ambiguous)),
        tuple(sorted({name for name in names if name not in known})),
    )


def node_aliases(aliases: Aliases | None, genes: Sequence[str]) -> dict[str, str]:
    """Other names of the nodes ``genes`` -> node name, sorted by alias; no alias is itself a node."""
    if aliases is None:
        return {}
    nodes = set(genes)
    return {
        alias: symbol
        for alias, symbol in sorted(aliases.by_alias.items())
        if symbol in nodes and alias not in nodes
    }


def candidates(aliases: Aliases, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each name what a person may want to check: its several symbols, or those that differ by case."""
    by_fold: defaultdict[str, list[str]] = defaultdict(list)
    for symbol in sorted(aliases.approved):
        by_fold[symbol.casefold()].append(symbol)
    return {name: aliases.ambiguous.get(name, tuple(by_fold[name.casefold()])) for name in names}
