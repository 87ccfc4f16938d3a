"""Random graphs with the same degrees: the control of the robustness benchmark. Pure.

Enters: edges without self loops or repeats. Leaves: as many, wired at random. Invariants: every node keeps
its in-degree and its out-degree exactly; no self loop and no repeat appears; the result is a function of the
set of edges and the seed.
"""

import numpy as np
from numpy.typing import NDArray

from graph_store.hashing import draws

ROUNDS = 40
"""Every round proposes a swap to half of the edges, so each gets about 20 (Milo et al.,
arXiv:cond-mat/0312028, discuss how many are enough)."""


def rewire(edges_2E: NDArray[np.int32], num_nodes: int, *, seed: int) -> NDArray[np.int32]:
    """Rewire all edges (2, E) over ``num_nodes`` at random; returns destination-sorted edges.

    Double-edge swaps: a->b, c->d become a->d, c->b. A swap that would make a self loop or a repeated edge is
    not done, so what is refused (a complete graph has no other wiring) stays as it was. The swaps of a round
    share no edge and are done together; a coin decides on each, since without it a graph of few edges would
    only ever be an even number of swaps away from its start.
    """
    source, target = edges_2E.astype(np.int64)
    keys = np.sort(target * num_nodes + source)
    num_pairs = len(keys) // 2
    for number in range(ROUNDS if num_pairs else 0):
        order = np.argsort(draws(len(keys), seed=seed, stream=2 * number), kind="stable")
        heads = draws(num_pairs, seed=seed, stream=2 * number + 1) % np.uint64(2) == 1
        first, second = order[:num_pairs][heads], order[num_pairs : 2 * num_pairs][heads]
        swapped = _swapped(keys[first], keys[second], num_nodes)
        accepted = _acceptable(swapped, keys, num_nodes)
        keys[first[accepted]], keys[second[accepted]] = swapped[0, accepted], swapped[1, accepted]
        keys.sort()
    return np.stack([keys % num_nodes, keys // num_nodes]).astype(np.int32)


def _swapped(first: NDArray[np.int64], second: NDArray[np.int64], num_nodes: int) -> NDArray[np.int64]:
    """(2, pairs) keys of the edges after exchanging targets."""
    return np.stack(
        [
            second // num_nodes * num_nodes + first % num_nodes,
            first // num_nodes * num_nodes + second % num_nodes,
        ]
    )


def _acceptable(swapped: NDArray[np.int64], keys: NDArray[np.int64], num_nodes: int) -> NDArray[np.bool_]:
    """(pairs,) whether both new edges of a swap are no loop, not there yet and proposed only once."""
    loop = swapped // num_nodes == swapped % num_nodes
    there = keys[np.minimum(np.searchsorted(keys, swapped), len(keys) - 1)] == swapped
    _, position, times = np.unique(swapped, return_inverse=True, return_counts=True)
    contested = times[position].reshape(swapped.shape) > 1
    refused: NDArray[np.bool_] = (loop | there | contested).any(axis=0)
    return ~refused
