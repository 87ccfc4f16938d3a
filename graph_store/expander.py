"""Expander edges: a few random cycles through all nodes, which bring every node close to every other.

Enters: a number of nodes, a number of cycles, a seed. Leaves: an ``Expander`` whose spectral gap was checked.
Invariants: each cycle passes every node once, so that it gives every node two neighbours; both directions of
an edge are there; an edge that two cycles share is in both. The cycles of a draw do not depend on how many
they are: the first cycles of an expander are an expander of lower degree.

As the Hamiltonian expanders of Exphormer (Shirzad et al., ICML 2023), with its check: a union of d random
cycles is 2d-regular, the best second eigenvalue that a large 2d-regular graph can have is 2 sqrt(2d - 1)
(Alon and Boppana), random ones come close to it (Friedman), and a draw that is further off than 0.1 is drawn
again.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from graph_store.config import MAX_CYCLES
from graph_store.graph import NO_EXPANDER, Expander, GraphError
from graph_store.hashing import draws

MAX_TRIES = 100
SLACK = 0.1
DENSE_UP_TO = 400
"""Nodes up to which all eigenvalues are computed: faster there than an iteration."""
TOLERANCE = 1e-8
"""Relative, of the second eigenvalue of larger graphs."""


class DrawnExpander(NamedTuple):
    """An expander and how it was found."""

    expander: Expander
    tries: int
    """Draws it took; 0 when no cycle was asked for."""
    lambda_2: float
    """Second largest eigenvalue of the adjacency matrix (shared edges count twice); 0 under two nodes."""
    gap: float
    """Degree minus ``lambda_2``: how fast a random walk forgets where it began."""


NOT_DRAWN = DrawnExpander(NO_EXPANDER, 0, 0.0, 0.0)


def largest_lambda_2(num_cycles: int) -> float:
    """The second eigenvalue up to which a draw of ``num_cycles`` cycles is good enough."""
    return 2 * float(np.sqrt(2 * num_cycles - 1)) + SLACK


def draw_expander(
    num_nodes: int, num_cycles: int, *, seed: int, bound: float | None = None, max_tries: int = MAX_TRIES
) -> DrawnExpander:
    """Draw cycles until ``lambda_2 <= bound`` (``largest_lambda_2`` when None).

    Raises ``GraphError`` when ``max_tries`` draws are all worse.
    """
    if not num_cycles:
        return NOT_DRAWN
    bound = largest_lambda_2(num_cycles) if bound is None else bound
    best = np.inf
    for number in range(max_tries):
        expander = random_cycles(num_nodes, num_cycles, seed=seed, stream=number)
        lambda_2 = second_eigenvalue(expander, num_nodes)
        if lambda_2 <= bound:
            degree = len(expander.cycle_E) / max(num_nodes, 1)
            return DrawnExpander(expander, number + 1, lambda_2, degree - lambda_2)
        best = min(best, lambda_2)
    raise GraphError(
        f"expander: of {max_tries} draws of {num_cycles} cycles over {num_nodes} nodes the best has a second "
        f"eigenvalue of {best:.4f}, and {bound:.4f} is the most allowed; give it another seed or more cycles"
    )


def random_cycles(num_nodes: int, num_cycles: int, *, seed: int, stream: int) -> Expander:
    """``num_cycles`` random cycles over all nodes; every (seed, stream) gives its own.

    Two nodes are joined by one pair of edges, a single one has none.
    """
    drawn = [
        _cycle_keys(draws(num_nodes, seed=seed, stream=stream * MAX_CYCLES + number))
        for number in range(num_cycles)
    ]
    keys = np.concatenate([np.zeros(0, np.int64), *drawn])
    edges_2E = np.stack([keys % max(num_nodes, 1), keys // max(num_nodes, 1)]).astype(np.int32)
    cycle_E = np.repeat(np.arange(num_cycles, dtype=np.int32), [len(part) for part in drawn])
    return Expander(edges_2E, cycle_E, num_cycles)


def second_eigenvalue(expander: Expander, num_nodes: int) -> float:
    """Second largest eigenvalue of the adjacency matrix of all cycles together; 0 under two nodes."""
    if num_nodes < 2:
        return 0.0
    if expander.num_cycles == 1 and num_nodes > 2:
        # In closed form, since the eigenvalues of one long cycle lie too close for an iteration.
        return 2 * float(np.cos(2 * np.pi / num_nodes))
    source, target = expander.edges_2E
    ones_E = np.ones(len(source))
    adjacency = sparse.csr_array((ones_E, (target, source)), shape=(num_nodes, num_nodes))
    if num_nodes <= DENSE_UP_TO:
        return float(np.linalg.eigvalsh(adjacency.toarray())[-2])
    degree = len(source) / num_nodes
    # The largest eigenvalue belongs to the constant vector: subtracting twice the degree makes it the least.
    deflated = LinearOperator(
        adjacency.shape, matvec=lambda x_P: adjacency @ x_P - 2 * degree * x_P.mean(), dtype=np.float64
    )
    start_P = draws(num_nodes, seed=0, stream=0).astype(np.float64) / 2.0**64 - 0.5
    found = eigsh(deflated, k=1, which="LA", v0=start_P, ncv=64, tol=TOLERANCE, return_eigenvectors=False)
    return float(found[0])


def check_expander(expander: Expander, num_nodes: int) -> None:
    """Raise ``GraphError`` unless the expander keeps this module's invariants."""
    keys = _all_keys(expander, num_nodes)
    source, target = expander.edges_2E.astype(np.int64)
    if (np.diff(keys) <= 0).any() or (source == target).any():
        raise GraphError("expander: edges are repeated, self loops, or not sorted by cycle, target, source")
    mirrored = Expander(expander.edges_2E[::-1], expander.cycle_E, expander.num_cycles)
    if not np.array_equal(np.sort(_all_keys(mirrored, num_nodes)), keys):
        raise GraphError("expander: an edge lacks its reverse")
    if num_nodes and expander.num_cycles and not _all_hamiltonian(expander, num_nodes):
        raise GraphError(f"expander: a cycle does not pass each of the {num_nodes} nodes once")


def _all_hamiltonian(expander: Expander, num_nodes: int) -> bool:
    # On nodes of its own, a cycle is whole when every node has its neighbours and all hang together.
    num_places = expander.num_cycles * num_nodes
    place_2E = expander.cycle_E.astype(np.int64) * num_nodes + expander.edges_2E
    ones_E = np.ones(len(expander.cycle_E))
    joined = sparse.csr_array((ones_E, tuple(place_2E)), shape=(num_places, num_places))
    num_components = sparse.csgraph.connected_components(joined, directed=False)[0]
    has_neighbours = (np.diff(joined.indptr) == min(num_nodes - 1, 2)).all()
    return bool(has_neighbours and num_components == expander.num_cycles)


def _all_keys(expander: Expander, num_nodes: int) -> NDArray[np.int64]:
    """(E,) one number an edge, ascending by cycle, target, source; ``GraphError`` for ends that are none."""
    (source, target), cycle = expander.edges_2E.astype(np.int64), expander.cycle_E.astype(np.int64)
    if len(cycle) != len(source):
        raise GraphError(f"expander: {len(source)} edges but {len(cycle)} cycle numbers")
    if len(cycle) and not (expander.edges_2E.min() >= 0 and expander.edges_2E.max() < num_nodes):
        raise GraphError(f"expander: an edge ends outside the {num_nodes} genes")
    if len(cycle) and not (cycle.min() >= 0 and cycle.max() < expander.num_cycles):
        raise GraphError(f"expander: an edge is of none of the {expander.num_cycles} cycles")
    keys: NDArray[np.int64] = (cycle * num_nodes + target) * num_nodes + source
    return keys


def _cycle_keys(numbers_P: NDArray[np.uint64]) -> NDArray[np.int64]:
    """target * P + source of both directions of the cycle that visits the nodes by their numbers; sorted."""
    order = np.argsort(numbers_P, kind="stable").astype(np.int64)
    following, count = np.roll(order, -1), len(order)
    keys = np.unique(np.concatenate([order * count + following, following * count + order]))
    # Only a single node follows itself; of two, each follows the other in both directions.
    without_loops: NDArray[np.int64] = keys[keys // max(count, 1) != keys % max(count, 1)]
    return without_loops
