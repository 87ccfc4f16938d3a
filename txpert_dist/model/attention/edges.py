"""Edges in the order that the kernels read them.

Enters: knowledge graphs. Leaves: edge lists on the host and edge tables, compressed by target and once more
by source, whole or for some of the targets. Invariants: edges are sorted by target, then source; with self
loops every node has exactly one; whole tables are built once, never in a step, follow the model to its device
and stay out of its checkpoints.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graph_store.graph import COUPLING, KnowledgeGraph, Supra
from txpert_dist.model.attention.compiled import order_by
from txpert_dist.model.attention.virtual_rows import HeldRows, VirtualRows, rows_on, virtual_rows


class EdgeList(NamedTuple):
    """Edges on the host, sorted by target, then source."""

    edges_2E: NDArray[np.int64]
    """(2, E) row 0 the source, row 1 the target."""
    weight_EK: NDArray[np.float32]
    """(E, K) weight in each graph, its largest being 1 in size; 0 where the graph lacks the edge. A self
    loop has the mean of the weights that enter its node."""


class EdgeTable(NamedTuple):
    """Edges into some nodes, sorted by target; the tensors lie on the device that computes.

    Targets and sources are numbered apart, T and S of them: with all the nodes as targets both are the nodes.
    """

    indptr: Tensor
    """(T + 1,) int64: where each target's edges begin."""
    source: Tensor
    """(E,) int64 source that each edge leaves."""
    target: Tensor
    """(E,) int64 target that each edge enters, ascending."""
    host_indptr: NDArray[np.int64]
    """``indptr`` on the host, for cutting the work without asking the device."""
    source_indptr: Tensor
    """(S + 1,) int64: where each source's edges begin in ``source_order``."""
    source_order: Tensor
    """(E,) int64 numbers of the edges, sorted by source, then target."""
    source_target: Tensor
    """(E,) int64 target of each edge in that order."""
    target_rows: VirtualRows
    """The targets, cut as a CUDA device takes them."""
    source_rows: VirtualRows
    """The sources, likewise."""
    rows: Tensor | None = None
    """(T,) int64 the source that each target is, ascending; None when target n is source n."""
    edge: Tensor | None = None
    """(E,) int64 number of each edge in the table that this one was taken from; None for a whole table."""


class Edges(nn.Module):
    """Holds an edge table for a module that computes with it."""

    indptr: Tensor
    source: Tensor
    target: Tensor
    source_indptr: Tensor
    source_order: Tensor
    source_target: Tensor

    def __init__(self, edges_2E: NDArray[np.int64], num_nodes: int) -> None:
        """``edges_2E`` are sorted by target, then source."""
        super().__init__()
        self.host_indptr = np.searchsorted(edges_2E[1], np.arange(num_nodes + 1)).astype(np.int64)
        source, target = np.ascontiguousarray(edges_2E, np.int64)
        order, source_indptr = sorted_by(source, num_nodes)
        for name, values in {
            "indptr": self.host_indptr.copy(),
            "source": source,
            "target": target,
            "source_indptr": source_indptr,
            "source_order": order,
            "source_target": target[order],
        }.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        self.target_rows = HeldRows(virtual_rows(self.host_indptr))
        self.source_rows = HeldRows(virtual_rows(source_indptr))

    @property
    def table(self) -> EdgeTable:
        """The table, on the module's device."""
        return EdgeTable(
            *(self.indptr, self.source, self.target, self.host_indptr),
            *(self.source_indptr, self.source_order, self.source_target),
            *(self.target_rows.table, self.source_rows.table),
        )


def restricted(
    edges: EdgeTable, rows: NDArray[np.int64], sources: NDArray[np.int64] | None = None
) -> EdgeTable:
    """The edges of ``edges`` that enter the targets ``rows``, which ascend; target n is then ``rows[n]``.

    ``sources``, ascending, numbers the sources anew: it holds all that the edges leave, and ``rows``.
    Raises ``ValueError`` when it does not. The work is that of the edges that remain, and a pass over the
    sources.
    """
    length = edges.host_indptr[rows + 1] - edges.host_indptr[rows]
    indptr = np.append(0, np.cumsum(length))
    target = np.repeat(np.arange(len(rows)), length)
    edge = np.arange(indptr[-1]) + (edges.host_indptr[rows] - indptr[:-1])[target]
    source = edges.source.cpu().numpy()[edge]
    row_source = rows if edges.rows is None else edges.rows.cpu().numpy()[rows]
    num_sources = len(edges.source_indptr) - 1
    if sources is not None:
        source, row_source = (renumbered(part, sources, num_sources) for part in (source, row_source))
        num_sources = len(sources)
    order, source_indptr = sorted_by(source, num_sources)
    if edges.edge is not None:
        edge = edges.edge.cpu().numpy()[edge]
    device = edges.source.device

    def on_device(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return EdgeTable(
        *(on_device(indptr), on_device(source), on_device(target), indptr, on_device(source_indptr)),
        *(on_device(order), on_device(target[order])),
        *(rows_on(virtual_rows(indptr), device), rows_on(virtual_rows(source_indptr), device)),
        *(on_device(row_source), on_device(edge)),
    )


def renumbered(node: NDArray[np.int64], kept: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    """Position in ``kept`` of each node. Raises ``ValueError`` when one is not there."""
    place = np.full(num_nodes, -1)
    place[kept] = np.arange(len(kept))
    found = place[node]
    if found.min(initial=0) < 0:
        raise ValueError("an edge leaves, or a target is, none of the sources that are kept")
    return found


def sorted_by(
    key_E: NDArray[np.int64], num_keys: int, order_E: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the entries sorted by key, and where each key's begin (num_keys + 1,).

    Entries of equal keys stay in the order of ``order_E``, by default their own.
    """
    order_E = np.arange(len(key_E)) if order_E is None else order_E.copy()
    indptr = np.empty(num_keys + 1, np.int64)
    order_by(key_E, order_E, indptr, np.empty_like(order_E))
    return order_E, indptr


def union_edges(
    graphs: Sequence[KnowledgeGraph], num_nodes: int, *, self_loops: bool, reverse_edges: bool
) -> EdgeList:
    """The union of the edges of ``graphs`` over ``num_nodes`` nodes, each once.

    ``reverse_edges`` adds every edge's opposite with the same weight (of an edge that is there both ways,
    each direction takes the larger weight in size); ``self_loops`` gives every node one self loop in place of
    any that the graphs have. Raises ``ValueError`` naming the graph whose edge ends outside the nodes.
    """
    keys, values = [], []
    for graph in graphs:
        key, weight = _directed(graph, num_nodes, reverse_edges=reverse_edges)
        kept = key // num_nodes != key % num_nodes if self_loops else np.ones(len(key), bool)
        keys.append(key[kept])
        values.append(weight[kept])
    union = np.unique(np.concatenate([np.zeros(0, np.int64), *keys]))
    weight_EK = np.zeros((len(union), len(graphs)), np.float32)
    for number, (key, weight) in enumerate(zip(keys, values, strict=True)):
        weight_EK[np.searchsorted(union, key), number] = weight
    edges = EdgeList(np.stack([union % max(num_nodes, 1), union // max(num_nodes, 1)]), weight_EK)
    return with_self_loops(edges, num_nodes) if self_loops else edges


def supra_edges(supra: Supra, *, self_loops: bool, reverse_edges: bool) -> EdgeList:
    """The edges of the multilayer graph: within each layer as ``union_edges`` of its graph, then couplings.

    Node ``layer * genes + gene`` is the copy of ``gene`` in ``layer``; couplings have weight 0 in all graphs.
    """
    layers = [
        KnowledgeGraph(f"layer {layer}", supra.edges_2M[:, inside], supra.weight_M[inside])
        for layer, inside in ((layer, supra.layer_M == layer) for layer in range(supra.num_layers))
    ]
    num_nodes = supra.num_layers * supra.num_genes
    within = union_edges(layers, num_nodes, self_loops=self_loops, reverse_edges=reverse_edges)
    couplings_2E = supra.edges_2M[:, supra.layer_M == COUPLING].astype(np.int64)
    edges_2E = np.concatenate([within.edges_2E, couplings_2E], axis=1)
    none_EK = np.zeros((couplings_2E.shape[1], supra.num_layers), np.float32)
    order = np.lexsort(edges_2E)
    return EdgeList(edges_2E[:, order], np.concatenate([within.weight_EK, none_EK])[order])


def with_self_loops(edges: EdgeList, num_nodes: int) -> EdgeList:
    """``edges``, which hold no self loop, and one for every node; its weight is its incoming edges' mean."""
    source, target = edges.edges_2E
    total_PK = np.zeros((num_nodes, edges.weight_EK.shape[1]))
    np.add.at(total_PK, target, edges.weight_EK)
    degree_P = np.maximum(np.bincount(target, minlength=num_nodes), 1)
    nodes = np.arange(num_nodes)
    edges_2E = np.stack([np.append(source, nodes), np.append(target, nodes)])
    weight_EK = np.concatenate([edges.weight_EK, (total_PK / degree_P[:, None]).astype(np.float32)])
    order = np.lexsort(edges_2E)
    return EdgeList(edges_2E[:, order], weight_EK[order])


def check_shape(what: str, x: Tensor, *shape: int) -> None:
    """Raise ``ValueError`` unless ``x`` has the shape that fits the edges, which kernels trust."""
    if x.shape != shape:
        raise ValueError(f"{what} of shape {tuple(x.shape)} where {shape} fits the edges")


def row_blocks(indptr: NDArray[np.int64], max_edges: int) -> Iterator[tuple[slice, slice]]:
    """Consecutive targets and their edges: at most ``max_edges`` edges a block, or one target with more."""
    row, num_rows = 0, len(indptr) - 1
    while row < num_rows:
        fitting = int(np.searchsorted(indptr, indptr[row] + max_edges, side="right")) - 1
        stop = min(max(fitting, row + 1), num_rows)
        yield slice(row, stop), slice(int(indptr[row]), int(indptr[stop]))
        row = stop


def _directed(
    graph: KnowledgeGraph, num_nodes: int, *, reverse_edges: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Keys (target * nodes + source), ascending, each once, and scaled weights of one graph's edges."""
    edges_2E = graph.edges_2E.astype(np.int64)
    if edges_2E.size and not 0 <= edges_2E.min() <= edges_2E.max() < num_nodes:
        raise ValueError(f"knowledge graph {graph.name!r} has an edge outside its {num_nodes} nodes")
    key = edges_2E[1] * num_nodes + edges_2E[0]
    weight = graph.weight_E / np.float32(max(np.abs(graph.weight_E).max(initial=0), 1e-30))
    if reverse_edges:
        key = np.concatenate([key, edges_2E[0] * num_nodes + edges_2E[1]])
        weight = np.concatenate([weight, weight])
    order = np.lexsort([weight, -np.abs(weight), key])
    unique, first = np.unique(key[order], return_index=True)
    return unique, weight[order][first].astype(np.float32)
