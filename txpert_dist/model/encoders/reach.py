"""What layers of message passing work on when only some nodes' embeddings are wanted.

Enters: the wanted nodes, the edges of the layers. Leaves: for the last layers the edges that the wanted nodes
depend on, and which nodes those layers read and compute. The nodes before them are found backwards: a layer
reads its targets and the sources of the edges that enter them. The layers before those work on all the nodes,
or, where workers divide them among themselves, on one worker's share. Invariants: nothing that a wanted node
depends on is left out, so values and gradients are those of the whole graph; a cut layer's nodes and edges
keep the numbers that dropout draws by.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist.model.attention import edges as plain
from txpert_dist.model.attention import pattern_edges as grouped
from txpert_dist.model.attention.compiled import Integers, compiled
from txpert_dist.model.attention.edges import EdgeTable
from txpert_dist.model.attention.layers import Gather
from txpert_dist.model.attention.pattern_edges import PatternTable
from txpert_dist.model.norm import GlobalBatchNorm, Reduce

WORTH_CUTTING = 0.9
"""Largest share of the edges that a layer is cut to: below it the edges saved cost more than the cut."""


_EDGES_A_NODE = 16
"""A node's linear maps take about as long as so many edges; the shares are cut by it."""


class Workers(NamedTuple):
    """Those who divide the nodes among themselves."""

    rank: int
    world: int
    rows_of_all: Callable[[Tensor, Sequence[int]], Tensor]
    """(sum of lengths, N) of all workers in their order from this one's (length, N), given the lengths;
    differentiable, the gradient being summed over workers."""
    reduce: Reduce
    """For statistics of all the nodes."""


class Tables(NamedTuple):
    """The edges of a layer: one table, the other, or both."""

    edges: EdgeTable | None
    patterns: PatternTable | None = None

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        if self.patterns is not None:
            return self.patterns.order.device
        return torch.device("cpu") if self.edges is None else self.edges.source.device


class Cut(NamedTuple):
    """A layer's part: some targets, and what it reads for them, which they are among."""

    nodes: Tensor
    """(T,) int64 number of each target in the whole graph, ascending."""
    place: Tensor | None
    """(T,) int64 place of each target among what the layer reads; None where it reads just them."""
    tables: Tables
    gather: Gather | None = None
    """(S, N) of all that the edges leave from (T, N) of the targets, the others' being other workers'; None
    where the layer has them all."""
    reduce: Reduce | None = None
    """Sum over those workers; None where there are none."""


class Reach(NamedTuple):
    """What one stack of layers works on."""

    rows: Tensor
    """(R,) int64 the wanted nodes, ascending."""
    first: Tensor
    """(S,) int64 the nodes that the first cut layer reads; the wanted ones where no layer is cut."""
    cuts: tuple[Cut, ...]
    """Of the last layers, in their order; those before work on all the nodes."""
    share: Cut | None = None
    """This worker's part of the layers that work on all the nodes; None where it has them to itself."""

    def uncut(self) -> "Reach":
        """For layers that every node of the graph has a part in: the wanted nodes after all of them."""
        return self._replace(first=self.rows, cuts=())


def reach_of(tables: Tables, rows: NDArray[np.int64], *, depth: int) -> Reach:
    """What layers over the same edges work on for the nodes ``rows``, which ascend, the last ``depth`` cut.

    The graph of operations depends on ``depth`` and not on the nodes: ranks that agree on the one may differ
    in the others, though they exchange gradients in the order in which they come.
    """
    cuts: list[Cut] = []
    targets = rows
    for _ in range(depth):
        sources = _sources(tables, targets)
        cuts.append(_cut(tables, targets, sources))
        targets = sources
    return Reach(_on(rows, tables.device), _on(targets, tables.device), tuple(reversed(cuts)))


def share_of(tables: Tables, workers: Workers) -> Cut:
    """One worker's part of layers over ``tables``: consecutive nodes, about the same work for everybody."""
    num_nodes = len(_by_target(tables)[0][0]) - 1
    edges = np.sum([indptr for indptr, _ in _by_target(tables)], axis=0)
    work = edges + _EDGES_A_NODE * np.arange(num_nodes + 1)
    bounds = np.searchsorted(work, work[-1] * np.arange(workers.world + 1) / workers.world)
    nodes = np.arange(bounds[workers.rank], bounds[workers.rank + 1])
    cut = _cut(tables, nodes, np.arange(num_nodes))
    lengths = np.diff(bounds).tolist()
    return cut._replace(
        place=None, gather=lambda x_TN: workers.rows_of_all(x_TN, lengths), reduce=workers.reduce
    )


def own_rows(x_PN: Tensor, share: Cut | None) -> Tensor:
    """(T, N) of this worker's nodes from all of them; all where nobody shares."""
    return x_PN if share is None else x_PN.index_select(0, share.nodes)


def rows_of_all(x_TN: Tensor, share: Cut | None) -> Tensor:
    """(P, N) of all the nodes from this worker's."""
    return x_TN if share is None or share.gather is None else share.gather(x_TN)


def targets_of(x_SN: Tensor, cut: Cut | None) -> Tensor:
    """(T, N) of a layer's targets from what it reads."""
    return x_SN if cut is None or cut.place is None else x_SN.index_select(0, cut.place)


def normalised(norm: nn.Module, x_TN: Tensor, cut: Cut | None) -> Tensor:
    """What ``norm`` makes of the targets, with the statistics of all the nodes where they are shared."""
    if cut is not None and isinstance(norm, GlobalBatchNorm):
        return norm(x_TN, cut.reduce)  # type: ignore[no-any-return]
    return norm(x_TN)  # type: ignore[no-any-return]


def depth_of(
    tables: Tables, rows: NDArray[np.int64], *, layers: int, worth_cutting: float = WORTH_CUTTING
) -> int:
    """How many of the last of ``layers`` layers are worth cutting for such nodes as ``rows``."""
    depth, targets = 0, rows
    while depth < layers and _share(tables, targets) <= worth_cutting:
        targets = _sources(tables, targets)
        depth += 1
    return depth


def only(rows: NDArray[np.int64], device: torch.device) -> Reach:
    """The nodes ``rows`` after layers that are not cut."""
    wanted = _on(rows, device)
    return Reach(wanted, wanted, ())


def _share(tables: Tables, targets: NDArray[np.int64]) -> float:
    """Of the edges, those that enter ``targets``."""
    indptr, _ = _by_target(tables)[0]
    return float((indptr[targets + 1] - indptr[targets]).sum() / max(indptr[-1], 1))


def _sources(tables: Tables, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """``targets`` and the sources of the edges that enter them, ascending."""
    reached = np.zeros(len(_by_target(tables)[0][0]) - 1, np.bool_)
    reached[targets] = True
    for indptr, source in _by_target(tables):
        _mark(targets, indptr, source, reached)
    return np.flatnonzero(reached)


def _by_target(tables: Tables) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Where each target's edges begin, and their sources, on the host; the patterns' before the others."""
    found = []
    if tables.patterns is not None:
        groups = tables.patterns.by_target
        found.append((groups.node_indptr.cpu().numpy(), groups.other.cpu().numpy()))
    if tables.edges is not None:
        found.append((tables.edges.host_indptr, tables.edges.source.cpu().numpy()))
    return found


def _cut(tables: Tables, targets: NDArray[np.int64], sources: NDArray[np.int64]) -> Cut:
    edges = None if tables.edges is None else plain.restricted(tables.edges, targets, sources)
    patterns = None if tables.patterns is None else grouped.restricted(tables.patterns, targets, sources)
    place = np.searchsorted(sources, targets)
    return Cut(_on(targets, tables.device), _on(place, tables.device), Tables(edges, patterns))


def _on(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(numbers).to(device)


@compiled
def _mark(targets: Integers, indptr: Integers, source: Integers, reached: NDArray[np.bool_]) -> None:
    for target in targets:
        for edge in range(indptr[target], indptr[target + 1]):
            reached[source[edge]] = True
