"""What differs between two snapshots: recipe, input files, genes, every edge, expander, encodings.

Enters: two ``Version`` (a snapshot and its record). Leaves: a ``Difference``. Invariants: genes go by name
and graphs by theirs, so other node numbers are no difference; every edge of either snapshot is in exactly one
count: same + reweighted + turned + removed are the first's edges, same + reweighted + turned + added the
second's; snapshots of one id differ in nothing but their input files and what was counted in these.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import KnowledgeGraph, PositionalEncoding, Snapshot
from graph_store.hashing import canonical_json
from graph_store.record import InputFile, Record

COUNTED = ("num_aliases", "nodes", "graphs", "expander", "positional", "screens")
"""Parts of a record that say what became of the inputs."""
KINDS: tuple["ChangeKind", ...] = ("removed", "added", "reweighted", "turned")
ChangeKind = Literal["removed", "added", "reweighted", "turned"]
"""``turned``: the same pair in the other direction, with whatever weight; both snapshots have it one way."""

_ABSENT = object()


class Version(NamedTuple):
    """One of the two that are compared."""

    snapshot: Snapshot
    record: Record


class Change(NamedTuple):
    """A value that differs."""

    key: str
    """As ``graphs[string].keep.count``."""
    first: str | None
    """As JSON; None when there is none."""
    second: str | None


class InputChange(NamedTuple):
    """An input file of other bytes; other names and folders of the same bytes are no difference."""

    role: str
    first: InputFile | None
    second: InputFile | None


class ChangedEdges(NamedTuple):
    """The edges of a graph that are not the same in both, by kind, then largest change, then names."""

    kind_C: NDArray[np.int8]
    """(C,) position in ``KINDS``."""
    ends_2C: NDArray[np.int64]
    """(2, C) source and target as positions in the difference's ``genes``; of turned edges the second's."""
    first_C: NDArray[np.float32]
    """(C,) weight in the first snapshot, NaN where it lacks the edge."""
    second_C: NDArray[np.float32]


class EdgeChange(NamedTuple):
    """One edge that differs, in words."""

    kind: ChangeKind
    source: str
    target: str
    first: float | None
    """Weight in the first snapshot."""
    second: float | None


class GraphDifference(NamedTuple):
    """What differs in one graph; a graph that one snapshot lacks is compared with one without edges."""

    name: str
    only_in: Literal["first", "second"] | None
    edges_first: int
    edges_second: int
    same: int
    reweighted: int
    turned: int
    removed: int
    added: int
    genes_removed: tuple[str, ...]
    """Genes that have an edge of this graph in the first snapshot only, sorted."""
    genes_added: tuple[str, ...]
    changed: ChangedEdges


class AliasDifference(NamedTuple):
    """Other names of nodes."""

    removed: int
    added: int
    other_gene: int
    """Names that mean another gene than before."""


class ExpanderDifference(NamedTuple):
    """The expander's edges by cycle and names of genes."""

    edges_first: int
    edges_second: int
    same: int


class EncodingDifference(NamedTuple):
    """One positional encoding."""

    graph: str
    kind: str
    width_first: int | None
    """None when the snapshot has no such encoding."""
    width_second: int | None
    largest: float | None
    """Largest difference of a number, over the genes of both; None when the widths differ."""


class Difference(NamedTuple):
    """Everything that differs between two snapshots."""

    first: str
    """Its id."""
    second: str
    recipe: tuple[Change, ...]
    inputs: tuple[InputChange, ...]
    counted: tuple[Change, ...]
    """What building counted: rows, duplicates, unmatched names, the expander's gap ..."""
    genes: tuple[str, ...]
    """Those of either snapshot, sorted; what ``ChangedEdges`` numbers."""
    genes_removed: tuple[str, ...]
    genes_added: tuple[str, ...]
    aliases: AliasDifference
    graphs: tuple[GraphDifference, ...]
    expander: ExpanderDifference
    encodings: tuple[EncodingDifference, ...]
    """Those that are not equal to the last digit."""


def compare(first: Version, second: Version) -> Difference:
    """What became different from ``first`` to ``second``."""
    genes = tuple(sorted({*first.snapshot.genes, *second.snapshot.genes}))
    position = {gene: number for number, gene in enumerate(genes)}
    numbering = [_numbering(version.snapshot, position) for version in (first, second)]
    return Difference(
        first=first.snapshot.id,
        second=second.snapshot.id,
        recipe=tuple(_changes("", first.record.recipe, second.record.recipe)),
        inputs=tuple(_input_changes(first.record.inputs, second.record.inputs)),
        counted=tuple(_changes("", _counted(first.record), _counted(second.record))),
        genes=genes,
        genes_removed=_missing(first.snapshot.genes, second.snapshot.genes),
        genes_added=_missing(second.snapshot.genes, first.snapshot.genes),
        aliases=_alias_difference(first.snapshot.aliases, second.snapshot.aliases),
        graphs=tuple(_graph_differences(first.snapshot, second.snapshot, numbering, genes)),
        expander=_expander_difference(first.snapshot, second.snapshot, numbering, len(genes)),
        encodings=tuple(_encoding_differences(first.snapshot, second.snapshot)),
    )


def same_content(difference: Difference) -> bool:
    """Whether names, edges, weights and expander are the same, whatever recipe and files they came from.

    As for the id, of encodings only the kind and the width count.
    """
    return (
        all(_same_edges(part) and part.only_in is None for part in difference.graphs)
        and _same_edges(difference.expander)
        and not (difference.genes_removed or difference.genes_added or any(difference.aliases))
        and all(part.width_first == part.width_second for part in difference.encodings)
    )


def _same_edges(part: GraphDifference | ExpanderDifference) -> bool:
    return part.same == part.edges_first == part.edges_second


def edge_changes(difference: Difference, graph: GraphDifference) -> Iterator[EdgeChange]:
    """The edges of ``graph`` that differ, in the order of its ``changed``."""
    changed = graph.changed
    for kind, (source, target), *weights in zip(
        changed.kind_C.tolist(),
        changed.ends_2C.T.tolist(),
        changed.first_C.tolist(),
        changed.second_C.tolist(),
        strict=True,
    ):
        first, second = (None if isnan(weight) else weight for weight in weights)
        yield EdgeChange(KINDS[kind], difference.genes[source], difference.genes[target], first, second)


def _changes(key: str, first: Any, second: Any) -> Iterator[Change]:
    """Where two JSON values differ. Lists of named things go by their names, and their order counts."""
    if first is not _ABSENT and second is not _ABSENT and canonical_json(first) == canonical_json(second):
        return
    if isinstance(first, dict) and isinstance(second, dict):
        for part in (*first, *(part for part in second if part not in first)):
            path = f"{key}.{part}" if key else part
            yield from _changes(path, first.get(part, _ABSENT), second.get(part, _ABSENT))
        return
    named_first, named_second = _by_name(first), _by_name(second)
    if named_first is None or named_second is None:
        yield Change(key, _text(first), _text(second))
        return
    orders = [
        [name for name in named if name in named_first and name in named_second]
        for named in (named_first, named_second)
    ]
    if orders[0] != orders[1]:
        yield Change(f"{key} (order)", _text(orders[0]), _text(orders[1]))
    for name in (*named_first, *(name for name in named_second if name not in named_first)):
        yield from _changes(f"{key}[{name}]", named_first.get(name, _ABSENT), named_second.get(name, _ABSENT))


def _by_name(value: Any) -> dict[str, Any] | None:
    """The parts of a list by what names them, when each has a name of its own."""
    if not isinstance(value, list):
        return None
    names = [_name(part) for part in value]
    if None in names or len(set(names)) < len(names):
        return None
    return {name: part for name, part in zip(names, value, strict=True) if name is not None}


def _name(part: Any) -> str | None:
    if not isinstance(part, dict):
        return None
    if "graph" in part:
        return f"{part['graph']} {part.get('kind', '')}".strip()
    return part.get("name")


def _text(value: Any) -> str | None:
    return None if value is _ABSENT else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _counted(record: Record) -> dict[str, Any]:
    told = record.model_dump(mode="json")
    return {key: told[key] for key in COUNTED}


def _input_changes(first: Sequence[InputFile], second: Sequence[InputFile]) -> Iterator[InputChange]:
    files = [_by_role(first), _by_role(second)]
    for key in (*files[0], *(key for key in files[1] if key not in files[0])):
        before, after = files[0].get(key), files[1].get(key)
        if before is None or after is None or before.sha256 != after.sha256:
            yield InputChange(key[0], before, after)


def _by_role(inputs: Sequence[InputFile]) -> dict[tuple[str, int], InputFile]:
    """Files by role, and by place among those of the same role."""
    found: dict[tuple[str, int], InputFile] = {}
    for file in inputs:
        place = sum(role == file.role for role, _ in found)
        found[file.role, place] = file
    return found


def _missing(names: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
    """Those of ``names`` that ``other`` lacks, sorted."""
    return tuple(sorted(set(names).difference(other)))


def _alias_difference(first: Mapping[str, str], second: Mapping[str, str]) -> AliasDifference:
    both = first.keys() & second.keys()
    return AliasDifference(
        removed=len(first) - len(both),
        added=len(second) - len(both),
        other_gene=sum(first[alias] != second[alias] for alias in both),
    )


def _numbering(snapshot: Snapshot, position: Mapping[str, int]) -> NDArray[np.int64]:
    return np.fromiter((position[gene] for gene in snapshot.genes), np.int64, len(snapshot.genes))


def _graph_differences(
    first: Snapshot, second: Snapshot, numbering: Sequence[NDArray[np.int64]], genes: tuple[str, ...]
) -> Iterator[GraphDifference]:
    before = {graph.name: graph for graph in first.graphs}
    after = {graph.name: graph for graph in second.graphs}
    for name in (*before, *(name for name in after if name not in before)):
        none = KnowledgeGraph(name, np.zeros((2, 0), np.int32), np.zeros(0, np.float32))
        compared = _compare_graphs(before.get(name, none), after.get(name, none), numbering, genes)
        if name not in before or name not in after:
            compared = compared._replace(only_in="first" if name in before else "second")
        yield compared


def _compare_graphs(
    first: KnowledgeGraph,
    second: KnowledgeGraph,
    numbering: Sequence[NDArray[np.int64]],
    genes: tuple[str, ...],
) -> GraphDifference:
    keys_1 = _keys(numbering[0][first.edges_2E], len(genes))
    keys_2 = _keys(numbering[1][second.edges_2E], len(genes))
    both, in_first, in_second = np.intersect1d(keys_1, keys_2, assume_unique=True, return_indices=True)
    weight_1, weight_2 = first.weight_E[in_first], second.weight_E[in_second]
    other = weight_1 != weight_2
    left, left_weight = np.delete(keys_1, in_first), np.delete(first.weight_E, in_first)
    come, come_weight = np.delete(keys_2, in_second), np.delete(second.weight_E, in_second)
    turned, in_left, in_come = np.intersect1d(
        _reversed(left, len(genes)), come, assume_unique=True, return_indices=True
    )
    removed, added = np.delete(left, in_left), np.delete(come, in_come)
    parts = {
        "removed": (removed, np.delete(left_weight, in_left), np.full(len(removed), np.nan, np.float32)),
        "added": (added, np.full(len(added), np.nan, np.float32), np.delete(come_weight, in_come)),
        "reweighted": (both[other], weight_1[other], weight_2[other]),
        "turned": (turned, left_weight[in_left], come_weight[in_come]),
    }
    nodes_1, nodes_2 = _nodes(keys_1, genes), _nodes(keys_2, genes)
    return GraphDifference(
        name=first.name,
        only_in=None,
        edges_first=len(keys_1),
        edges_second=len(keys_2),
        same=len(both) - int(other.sum()),
        reweighted=int(other.sum()),
        turned=len(turned),
        removed=len(removed),
        added=len(added),
        genes_removed=tuple(sorted(nodes_1 - nodes_2)),
        genes_added=tuple(sorted(nodes_2 - nodes_1)),
        changed=_ordered([parts[kind] for kind in KINDS], len(genes)),
    )


def _ordered(
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]], num_genes: int
) -> ChangedEdges:
    kind_C = np.repeat(np.arange(len(parts), dtype=np.int8), [len(keys) for keys, _, _ in parts])
    key_C, first_C, second_C = (np.concatenate(column) for column in zip(*parts, strict=True))
    target, source = np.divmod(key_C, max(num_genes, 1))
    # An edge that is not there weighs nothing.
    size = np.abs(np.nan_to_num(second_C.astype(np.float64)) - np.nan_to_num(first_C.astype(np.float64)))
    order = np.lexsort((target, source, -size, kind_C))
    return ChangedEdges(kind_C[order], np.stack([source, target])[:, order], first_C[order], second_C[order])


def _keys(ends_2E: NDArray[np.int64], num_genes: int) -> NDArray[np.int64]:
    keys: NDArray[np.int64] = ends_2E[1] * num_genes + ends_2E[0]
    return keys


def _nodes(keys: NDArray[np.int64], genes: tuple[str, ...]) -> set[str]:
    """Names of the genes that the edges join."""
    ends = np.concatenate(np.divmod(keys, max(len(genes), 1)))
    return {genes[number] for number in np.flatnonzero(np.bincount(ends))}


def _reversed(keys: NDArray[np.int64], num_genes: int) -> NDArray[np.int64]:
    target, source = np.divmod(keys, max(num_genes, 1))
    turned: NDArray[np.int64] = source * num_genes + target
    return turned


def _expander_difference(
    first: Snapshot, second: Snapshot, numbering: Sequence[NDArray[np.int64]], num_genes: int
) -> ExpanderDifference:
    keys = [
        snapshot.expander.cycle_E.astype(np.int64) * num_genes**2
        + _keys(numbers[snapshot.expander.edges_2E], num_genes)
        for snapshot, numbers in zip((first, second), numbering, strict=True)
    ]
    same = len(np.intersect1d(keys[0], keys[1], assume_unique=True))
    return ExpanderDifference(len(keys[0]), len(keys[1]), same)


def _encoding_differences(first: Snapshot, second: Snapshot) -> Iterator[EncodingDifference]:
    before = {(part.graph, part.kind): part for part in first.positional}
    after = {(part.graph, part.kind): part for part in second.positional}
    shared = sorted(set(first.genes).intersection(second.genes))
    rows = [_rows(snapshot.genes, shared) for snapshot in (first, second)]
    for key in (*before, *(key for key in after if key not in before)):
        width_first, width_second = _width(before.get(key)), _width(after.get(key))
        largest = None
        if width_first == width_second:
            gaps = before[key].value_PN[rows[0]] - after[key].value_PN[rows[1]]
            largest = float(np.abs(gaps).max(initial=0.0))
        if largest != 0.0:
            yield EncodingDifference(*key, width_first, width_second, largest)


def _width(encoding: PositionalEncoding | None) -> int | None:
    return None if encoding is None else encoding.value_PN.shape[1]


def _rows(genes: Sequence[str], wanted: Sequence[str]) -> NDArray[np.int64]:
    position = {gene: number for number, gene in enumerate(genes)}
    return np.fromiter((position[gene] for gene in wanted), np.int64, len(wanted))
