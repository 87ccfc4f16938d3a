"""Random graphs with the same degrees: the control of the robustness benchmark. Pure.

Enters: edges without self loops or repeats. Leaves: as many, wired at random. Invariants: every node keeps
its in-degree and its out-degree exactly; no self loop and no repeat appears; the result is a function of the
set of edges and the seed; a weight stays with the target that it enters.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from graph_store.hashing import draws

ROUNDS = 40
"""Every round proposes a swap to half of the edges, so each gets about 20 (Milo et al.,
arXiv:cond-mat/0312028, discuss how many are enough)."""
CHOICE = 2 * ROUNDS
"""The stream of random numbers that chooses edges; those before it are the rounds'."""
NO_EDGES: NDArray[np.int32] = np.zeros((2, 0), np.int32)


def rewire_share(
    edges_2E: NDArray[np.int32], weight_E: NDArray[np.float32], num_nodes: int, *, share: float, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Rewire ``share`` of destination-sorted edges (rounded), chosen at random; the others stay.

    The chosen edges keep their own in- and out-degrees and become none of the others.
    """
    chosen = np.zeros(len(weight_E), np.bool_)
    order = np.argsort(draws(len(chosen), seed=seed, stream=CHOICE), kind="stable")
    chosen[order[: num_share(len(chosen), share)]] = True
    rewired_2E = rewire(edges_2E[:, chosen], num_nodes, seed=seed, others_2E=edges_2E[:, ~chosen])
    # Sorted by target, as many of the chosen enter each node as before: weights in this order keep theirs.
    ends = np.concatenate([edges_2E[:, ~chosen], rewired_2E], axis=1)
    weights = np.concatenate([weight_E[~chosen], weight_E[chosen]])
    order = np.lexsort(ends)
    return ends[:, order], weights[order]


def num_share(num_edges: int, share: float) -> int:
    """``share`` of the edges, a half rounded up; in exact arithmetic."""
    return int(Fraction(str(float(share))) * num_edges + Fraction(1, 2))


def rewire(
    edges_2E: NDArray[np.int32], num_nodes: int, *, seed: int, others_2E: NDArray[np.int32] = NO_EDGES
) -> NDArray[np.int32]:
    """Rewire all edges (2, E) over ``num_nodes`` at random; returns destination-sorted edges.

    Double-edge swaps: a->b, c->d become a->d, c->b. A swap that would make a self loop, a repeated edge or
    one of ``others_2E`` is not done, so what is refused (a complete graph has no other wiring) stays as it
    was. The swaps of a round share no edge and are done together; a coin decides on each, since without it a
    graph of few edges would only ever be an even number of swaps away from its start.
    """
    keys, others = _keys(edges_2E, num_nodes), _keys(others_2E, num_nodes)
    num_pairs = len(keys) // 2
    for number in range(ROUNDS if num_pairs else 0):
        order = np.argsort(draws(len(keys), seed=seed, stream=2 * number), kind="stable")
        heads = draws(num_pairs, seed=seed, stream=2 * number + 1) % np.uint64(2) == 1
        first, second = order[:num_pairs][heads], order[num_pairs : 2 * num_pairs][heads]
        swapped = _swapped(keys[first], keys[second], num_nodes)
        accepted = _acceptable(swapped, num_nodes) & ~(_among(swapped, keys) | _among(swapped, others)).any(
            axis=0
        )
        keys[first[accepted]], keys[second[accepted]] = swapped[0, accepted], swapped[1, accepted]
        keys.sort()
    return np.stack([keys % num_nodes, keys // num_nodes]).astype(np.int32)


def _keys(edges_2E: NDArray[np.int32], num_nodes: int) -> NDArray[np.int64]:
    """One number an edge, ascending by target, then source."""
    source, target = edges_2E.astype(np.int64)
    return np.sort(target * num_nodes + source)


def _swapped(first: NDArray[np.int64], second: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    """(2, pairs) keys of the edges after exchanging targets."""
    return np.stack(
        [
            second // num_nodes * num_nodes + first % num_nodes,
            first // num_nodes * num_nodes + second % num_nodes,
        ]
    )


def _acceptable(swapped: NDArray[np.int64], num_nodes: int) -> NDArray[np.bool_]:
    """(pairs,) whether both new edges of a swap are no loop and proposed only once."""
    loop = swapped // num_nodes == swapped % num_nodes
    _, position, times = np.unique(swapped, return_inverse=True, return_counts=True)
    contested = times[position].reshape(swapped.shape) > 1
    refused: NDArray[np.bool_] = (loop | contested).any(axis=0)
    return ~refused


def _among(swapped: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(2, pairs) whether each new edge is one of the ascending ``keys``."""
    if not len(keys):
        return np.zeros(swapped.shape, np.bool_)
    found: NDArray[np.bool_] = keys[np.minimum(np.searchsorted(keys, swapped), len(keys) - 1)] == swapped
    return found
