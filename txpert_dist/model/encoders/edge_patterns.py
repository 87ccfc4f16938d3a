"""Where a sparse graph transformer attends, and which kinds of edges exist.

Enters: the options and a graph input. Leaves: edges, and for each its *pattern*: which types of edges propose
it, with which weights. Types, in this order: every knowledge graph, each followed by its reverse; self loops;
expander edges; to and from each virtual node (Exphormer, Shirzad et al. 2023, and Exphormer-MG's provenance).
Exphormer sees the union of the graphs as one. Invariants: the types depend on the options and the number of
graphs alone; each type is a set of edges; patterns are few unless weights are used; built once, on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import Expander
from txpert_dist import config
from txpert_dist.model.attention.edges import EdgeList, union_edges
from txpert_dist.model.graph_input import GraphInput

_NO_GRAPH = -1
_BITS = 32


class EdgeType(NamedTuple):
    """One kind of edges, each edge once."""

    name: str
    edges_2E: NDArray[np.int64]
    weight_E: NDArray[np.float32]
    """Scaled weights; 0 where the type has none."""
    graph: int
    """Column of the weights that these edges fill; -1 for edges of no knowledge graph."""


class EdgePatterns(NamedTuple):
    """Edges sorted by target, source and type, and the distinct features that they have."""

    num_nodes: int
    """Genes, and after them the virtual nodes."""
    edges_2E: NDArray[np.int64]
    pattern_E: NDArray[np.int64]
    """(E,) row of the tables below."""
    type_RN: NDArray[np.float32]
    """(R, types) 1 where a type proposes the edge, 0 elsewhere."""
    weight_RK: NDArray[np.float32]
    """(R, K) scaled weight in each graph; no columns when weights are not used."""
    known_R: NDArray[np.bool_]
    """(R,) whether a knowledge graph proposes the edge, forward or reversed."""
    count_R: NDArray[np.int64]
    """(R,) edges of each pattern."""


def edge_patterns(options: config.Transformer, graph: GraphInput) -> EdgePatterns:
    """The edges that ``options`` ask for over the genes of ``graph`` and the virtual nodes.

    Types that propose the same edge share it, or with ``provenance=type`` each have their own. Raises
    ``ValueError`` naming a graph whose edge ends outside the genes.
    """
    types, num_nodes = edge_types(options, graph), graph.num_nodes + options.virtual_nodes
    # one entry for each edge of each type
    key = _joined([_keys(one.edges_2E, num_nodes) for one in types])
    number = _joined([np.full(len(one.weight_E), n) for n, one in enumerate(types)])
    if isinstance(options, config.ExphormerMg) and options.provenance == "type":
        order = np.lexsort([number, key])
        edge, entry = key[order], np.argsort(order)
    else:
        edge, entry = np.unique(key, return_inverse=True)
    type_EN = np.zeros((len(edge), len(types)), np.float32)
    type_EN[entry, number] = 1
    weight_EK = _weights(types, entry, len(edge)) if options.edge_weights else np.zeros((len(edge), 0), "f4")
    first_R, pattern_E = _distinct([*_codes(type_EN), *weight_EK.T], len(edge))
    known_N = np.array([one.graph != _NO_GRAPH for one in types], bool)
    return EdgePatterns(
        num_nodes,
        _edges(edge, num_nodes),
        pattern_E,
        type_EN[first_R],
        weight_EK[first_R],
        type_EN[first_R][:, known_N].max(axis=1, initial=0) > 0,
        np.bincount(pattern_E, minlength=len(first_R)),
    )


def edge_types(options: config.Transformer, graph: GraphInput) -> tuple[EdgeType, ...]:
    """The sets of edges, in the order of the types."""
    num_genes, num_nodes = graph.num_nodes, graph.num_nodes + options.virtual_nodes
    types = []
    for number, (name, edges) in enumerate(_graphs(options, graph)):
        weight_E = _largest(np.arange(len(edges.weight_EK)), edges.weight_EK, len(edges.weight_EK))
        types.append(EdgeType(name, edges.edges_2E, weight_E, number))
        if options.reverse_edges:
            types.append(EdgeType(f"{name} reversed", edges.edges_2E[::-1], weight_E, number))
    nodes, genes = np.arange(num_nodes), np.arange(num_genes)
    if options.self_loops:
        types.append(_unweighted("self loops", np.stack([nodes, nodes])))
    if options.expander_cycles:
        types.append(_unweighted("expander", _cycles(graph.expander, options.expander_cycles, num_genes)))
    for number in range(options.virtual_nodes):
        virtual = np.full(num_genes, num_genes + number)
        types.append(_unweighted(f"to virtual node {number}", np.stack([genes, virtual])))
        types.append(_unweighted(f"from virtual node {number}", np.stack([virtual, genes])))
    return tuple(types)


def _graphs(options: config.Transformer, graph: GraphInput) -> list[tuple[str, EdgeList]]:
    """Each graph's own edges; without self loops where all nodes get one of another type."""
    if isinstance(options, config.ExphormerMg):
        chosen = [(one.name, [one]) for one in graph.graphs]
    else:
        chosen = [("union", list(graph.graphs))]
    found = []
    for name, part in chosen:
        edges = union_edges(part, graph.num_nodes, self_loops=False, reverse_edges=False)
        kept_E = (edges.edges_2E[0] != edges.edges_2E[1]) | (not options.self_loops)
        found.append((name, EdgeList(edges.edges_2E[:, kept_E], edges.weight_EK[kept_E])))
    return found


def _cycles(expander: Expander, num_cycles: int, num_genes: int) -> NDArray[np.int64]:
    edges_2E = expander.edges_2E[:, expander.cycle_E < num_cycles].astype(np.int64)
    return _edges(np.unique(_keys(edges_2E, num_genes)), num_genes)


def _unweighted(name: str, edges_2E: NDArray[np.int64]) -> EdgeType:
    return EdgeType(name, edges_2E, np.zeros(edges_2E.shape[1], np.float32), _NO_GRAPH)


def _weights(types: Sequence[EdgeType], entry: NDArray[np.int64], num_edges: int) -> NDArray[np.float32]:
    """(E, K); an edge that is there both ways takes the larger weight of the two in size."""
    num_graphs = 1 + max((one.graph for one in types), default=_NO_GRAPH)
    column = _joined([np.full(len(one.weight_E), one.graph) for one in types])
    weight = np.concatenate([np.zeros(0, np.float32), *(one.weight_E for one in types)])
    weight_EK = np.zeros((num_edges, num_graphs), np.float32)
    for number in range(num_graphs):
        own = column == number
        weight_EK[:, number] = _largest(entry[own], weight[own, None], num_edges)
    return weight_EK


def _largest(row: NDArray[np.int64], value_EN: NDArray[np.float32], num_rows: int) -> NDArray[np.float32]:
    """Of each row the value largest in size, the negative one of equals; 0 for a row without values."""
    low, high = np.zeros(num_rows, np.float32), np.zeros(num_rows, np.float32)
    for value in value_EN.T:
        np.minimum.at(low, row, value)
        np.maximum.at(high, row, value)
    return np.where(-low >= high, low, high)


def _codes(type_EN: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Columns of zeros and ones as few columns of integers, 32 to one."""
    starts = range(0, type_EN.shape[1], _BITS)
    parts = [type_EN[:, start : start + _BITS].astype(np.int64) for start in starts]
    return [part_EN @ (1 << np.arange(part_EN.shape[1])) for part_EN in parts]


def _distinct(
    columns: Sequence[NDArray[np.int64] | NDArray[np.float32]], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First example of each distinct row, and each row's number among them."""
    # a column at a time: sorting numbers is many times faster than sorting rows
    number_E = np.zeros(length, np.int64)
    for column in columns:
        values, value_E = np.unique(column, return_inverse=True)
        number_E = np.unique(number_E * len(values) + value_E, return_inverse=True)[1]
    return np.unique(number_E, return_index=True)[1], number_E


def _keys(edges_2E: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    key: NDArray[np.int64] = edges_2E[1] * num_nodes + edges_2E[0]
    return key


def _edges(key: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    return np.stack([key % max(num_nodes, 1), key // max(num_nodes, 1)])


def _joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *parts])
