"""Positional encodings: numbers that tell the nodes of one knowledge graph apart by where they stand.

Enters: a graph's edges. Leaves: (P, N) float32 encodings. Invariants: directions, repeats and weights of
edges do not matter (the graph is made symmetric, each edge counts 1); a node without edges has zeros.

* ``random_walk`` (Dwivedi et al., ICLR 2022): the probability that a random walk is back after t steps,
  diag((D^-1 A)^t) for t = 1..N, exact.
* ``laplacian`` (Dwivedi et al., JMLR 2023): unit eigenvectors of I - D^-1/2 A D^-1/2 for its N smallest
  eigenvalues, ascending. Each connected component has one eigenvalue 0 that says nothing (its vector is the
  square root of the degree); these are left out. Components are solved one by one, so that every vector lives
  on one component, and the N smallest eigenvalues of all of them are kept, ties by component. Columns for
  which no eigenvector is left are zero. A vector's sign is free: its largest entry (the first of several) is
  made positive. Vectors of equal eigenvalues within a component are a basis like any other.

Floating-point sums and eigenvectors differ in the last digits between machines and versions of BLAS, so
snapshot ids do not depend on the values here, only on what was asked for and on the edges.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from graph_store.graph import GraphError, KnowledgeGraph, PositionalEncoding, PositionalKind
from graph_store.hashing import draws

BLOCK_ENTRIES = 2**19
"""Numbers in a block of columns of a matrix power: 4 MiB, which stays in cache."""
DENSE_UP_TO = 500
"""Nodes of a component up to which the eigenvectors are computed directly."""
MAX_RESTARTS = 2000

Advance = Callable[[int, int], None]
"""How much is done, how much there is."""


def _quiet(_done: int, _total: int) -> None:
    """Tell nobody."""


def encode(
    graph: KnowledgeGraph, num_nodes: int, kind: PositionalKind, width: int, advance: Advance = _quiet
) -> PositionalEncoding:
    """The encoding ``kind`` of ``graph``, (P, ``width``); ``GraphError`` when it cannot be computed."""
    if kind == "random_walk":
        return PositionalEncoding(graph.name, kind, random_walk(graph.edges_2E, num_nodes, width, advance))
    try:
        return PositionalEncoding(graph.name, kind, laplacian(graph.edges_2E, num_nodes, width, advance))
    except ArpackError:
        raise GraphError(
            f"graph {graph.name}: {width} Laplacian eigenvectors do not converge; ask for fewer under "
            "positional: laplacian, or for random_walk"
        ) from None


def random_walk(
    edges_2E: NDArray[np.int32],
    num_nodes: int,
    num_steps: int,
    advance: Advance = _quiet,
    *,
    block_entries: int = BLOCK_ENTRIES,
) -> NDArray[np.float32]:
    """(P, ``num_steps``) return probabilities after 1, 2, ... steps.

    D^-1 A and the symmetric S = D^-1/2 A D^-1/2 have powers of the same diagonal, and the diagonal of S^(a+b)
    is the column sums of S^a * S^b: half of the powers do. They are formed for a block of columns at a time,
    at most two arrays of about ``block_entries`` numbers.
    """
    normal, nodes, _ = _normalised(edges_2E, num_nodes)
    found = np.zeros((len(nodes), num_steps))
    width = max(1, block_entries // max(len(nodes), 1))
    for start in range(0, len(nodes), width):
        advance(start, len(nodes))
        block = slice(start, min(start + width, len(nodes)))
        found[block] = _returns(normal, block, num_steps)
    advance(len(nodes), len(nodes))
    value_PN = np.zeros((num_nodes, num_steps), np.float32)
    value_PN[nodes] = found
    return value_PN


def laplacian(
    edges_2E: NDArray[np.int32],
    num_nodes: int,
    num_vectors: int,
    advance: Advance = _quiet,
    *,
    dense_up_to: int = DENSE_UP_TO,
) -> NDArray[np.float32]:
    """(P, ``num_vectors``) eigenvectors, as the head of this module says.

    Raises ``ArpackError`` when the iteration for a component of more than ``dense_up_to`` nodes does not end.
    """
    normal, nodes, degree = _normalised(edges_2E, num_nodes)
    if not len(nodes):
        return np.zeros((num_nodes, num_vectors), np.float32)
    num_components, component = sparse.csgraph.connected_components(normal, directed=False)
    members = np.split(np.argsort(component, kind="stable"), np.cumsum(np.bincount(component))[:-1])
    columns: list[tuple[float, int, int, NDArray[np.int64], NDArray[np.float64]]] = []
    for number in range(num_components):
        inside = members[number]
        count = min(num_vectors, len(inside) - 1)
        values, vectors = _smallest(normal[inside][:, inside], degree[inside], count, dense_up_to)
        columns += [
            # Eigenvalues that are equal but for rounding are ordered by component.
            (round(float(values[rank]), 9), number, rank, nodes[inside], _signed(vectors[:, rank]))
            for rank in range(count)
        ]
        advance(number + 1, num_components)
    value_PN = np.zeros((num_nodes, num_vectors), np.float32)
    for column, (*_, where, vector) in enumerate(sorted(columns, key=lambda entry: entry[:3])[:num_vectors]):
        value_PN[where, column] = vector
    return value_PN


def check_positional(encoding: PositionalEncoding, num_nodes: int) -> None:
    """Raise ``GraphError`` unless there is one row a node, of numbers that such an encoding can hold."""
    value_PN = encoding.value_PN
    name = f"{encoding.kind} encoding of graph {encoding.graph}"
    if value_PN.ndim != 2 or len(value_PN) != num_nodes:
        raise GraphError(f"{name}: has shape {value_PN.shape}, not one row for each of {num_nodes} genes")
    lowest = 0.0 if encoding.kind == "random_walk" else -1.0
    # A comparison with a NaN is false. The margin is for the rounding to float32.
    if not ((value_PN >= lowest - 1e-5) & (value_PN <= 1 + 1e-5)).all():
        raise GraphError(f"{name}: holds a number outside {lowest:.0f} to 1")


def _normalised(
    edges_2E: NDArray[np.int32], num_nodes: int
) -> tuple[sparse.csr_array, NDArray[np.int64], NDArray[np.int64]]:
    """D^-1/2 A D^-1/2 over the nodes that have an edge, the numbers of these, and their degrees."""
    source, target = edges_2E
    ends = np.concatenate([edges_2E, edges_2E[::-1]], axis=1)[:, np.tile(source != target, 2)]
    adjacency = sparse.csr_array((np.ones(ends.shape[1]), tuple(ends)), shape=(num_nodes, num_nodes))
    adjacency.sum_duplicates()
    adjacency.data[:] = 1
    nodes = np.flatnonzero(np.diff(adjacency.indptr))
    connected = adjacency[nodes][:, nodes].tocsr()
    degree = np.diff(connected.indptr).astype(np.int64)
    connected.data /= np.sqrt(np.repeat(degree, degree) * degree[connected.indices])
    return connected, nodes, degree


def _returns(normal: sparse.csr_array, block: slice, num_steps: int) -> NDArray[np.float64]:
    """(columns of the block, steps) diagonals of the powers of S; a first step never returns."""
    found = np.zeros((block.stop - block.start, num_steps))
    power = normal[:, block].toarray()
    for step in range(2, num_steps + 1, 2):
        found[:, step - 1] = np.einsum("ij,ij->j", power, power)
        if step < num_steps:
            following = normal @ power
            found[:, step] = np.einsum("ij,ij->j", power, following)
            power = following
    return found


def _smallest(
    normal: sparse.csr_array, degree: NDArray[np.int64], count: int, dense_up_to: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ``count`` smallest eigenvalues of I - S above 0, ascending, and their vectors as columns."""
    size = normal.shape[0]
    if not count:
        return np.zeros(0), np.zeros((size, 0))
    if size <= dense_up_to or count >= size - 1:
        values, vectors = scipy.linalg.eigh(np.eye(size) - normal.toarray(), subset_by_index=[1, count])
        return values, vectors
    trivial = np.sqrt(degree / degree.sum())
    # S has the trivial eigenvalue 1, its largest; subtracting 2 makes it -1, its least.
    deflated = LinearOperator(
        normal.shape, matvec=lambda x_P: normal @ x_P - 2 * trivial * (trivial @ x_P), dtype=np.float64
    )
    start_P = draws(size, seed=0, stream=0).astype(np.float64) / 2.0**64 - 0.5
    room = min(size, max(4 * count, 64))
    values, vectors = eigsh(deflated, k=count, which="LA", v0=start_P, ncv=room, maxiter=MAX_RESTARTS)
    order = np.argsort(-values, kind="stable")
    return 1 - values[order], vectors[:, order]


def _signed(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.abs(vector)
    # Entries that are equal but for rounding count as equal.
    largest = int(np.argmax(size >= size.max() * (1 - 1e-6)))
    return vector if vector[largest] > 0 else -vector
