"""Jaccard similarity of genes by the sets they are in, in bounded memory.

Enters: memberships (gene, set). Leaves: the pairs above a threshold. Invariant: only pairs that share a set
are ever formed, and at most about ``max_entries`` of them (or one gene's) at a time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

MAX_ENTRIES = 2**20


class JaccardPairs(NamedTuple):
    """Pairs of genes, each once, first < second, sorted by (first, second)."""

    edges_2E: NDArray[np.int32]
    weight_E: NDArray[np.float32]
    """(E,) |sets of both| / |sets of either|."""
    num_below: int
    """Pairs that share a set but are at or under the threshold."""


def jaccard_pairs(
    gene_R: NDArray[np.int32], set_R: NDArray[np.int32], *, above: float, max_entries: int = MAX_ENTRIES
) -> JaccardPairs:
    """Pairs of genes with a Jaccard index above ``above``, from R memberships (repeats count once)."""
    member = _membership(gene_R, set_R)
    num_sets_P = np.diff(member.indptr)
    num_genes_of_set = np.bincount(member.indices, minlength=member.shape[1])
    # Upper bound of the entries in each gene's row of the product.
    entries_P = np.minimum(member @ num_genes_of_set, member.shape[0])
    transposed = member.T.tocsr()
    found, weights, num_sharing = [], [], 0
    for start, stop in _blocks(entries_P, max_entries):
        shared = member[start:stop] @ transposed[:, start:]
        num_sharing += _num_right_of_diagonal(shared)
        edges_2E, weight_E = _above(shared, num_sets_P[start:], above)
        found.append(edges_2E + np.int32(start))
        weights.append(weight_E)
    if not found:
        return JaccardPairs(np.zeros((2, 0), np.int32), np.zeros(0, np.float32), 0)
    edges_2E = np.concatenate(found, axis=1)
    return JaccardPairs(edges_2E, np.concatenate(weights), num_sharing - edges_2E.shape[1])


def _above(
    shared: sparse.csr_array, num_sets_P: NDArray[np.int32], above: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Pairs right of the diagonal with an index above ``above``, sorted; all of ``shared`` is read once only.

    ``shared`` counts the sets that each gene of a block shares with each gene from the block's first on.
    """
    length_B = np.diff(shared.indptr)
    # A union is no smaller than either part, so a pair needs this many; most pairs have fewer.
    needed_P = np.ceil(above * num_sets_P * (1 - 1e-9)).astype(shared.data.dtype)
    enough = shared.data >= np.repeat(needed_P[: len(length_B)], length_B)
    enough &= shared.data >= needed_P[shared.indices]
    possible = np.flatnonzero(enough)
    first = np.searchsorted(shared.indptr, possible, side="right") - 1
    second, both = shared.indices[possible], shared.data[possible].astype(np.float64)
    index = both / (num_sets_P[first] + num_sets_P[second] - both)
    kept = np.flatnonzero((index > above) & (first < second))
    kept = kept[np.lexsort((second[kept], first[kept]))]
    return np.stack([first[kept], second[kept]]).astype(np.int32), index[kept].astype(np.float32)


def _num_right_of_diagonal(shared: sparse.csr_array) -> int:
    """Entries of the block's rows right of the diagonal; the block is square and symmetric at its left."""
    num_rows = shared.shape[0]
    in_square = int(np.count_nonzero(shared.indices < num_rows))
    # Every gene that is in a set shares it with itself.
    on_diagonal = int(np.count_nonzero(np.diff(shared.indptr)))
    return int(shared.nnz) - in_square + (in_square - on_diagonal) // 2


def _membership(gene_R: NDArray[np.int32], set_R: NDArray[np.int32]) -> sparse.csr_array:
    shape = (int(gene_R.max(initial=-1)) + 1, int(set_R.max(initial=-1)) + 1)
    member = sparse.csr_array((np.ones(len(gene_R), np.int32), (gene_R, set_R)), shape=shape)
    member.sum_duplicates()
    member.data[:] = 1
    return member


def _blocks(entries_P: NDArray[np.int64], max_entries: int) -> list[tuple[int, int]]:
    """Runs of genes whose product rows hold at most ``max_entries`` together; at least one gene each."""
    total = np.concatenate([[0], np.cumsum(entries_P, dtype=np.int64)])
    blocks, start = [], 0
    while start < len(entries_P):
        stop = int(np.searchsorted(total, total[start] + max_entries, side="right")) - 1
        stop = max(stop, start + 1)
        blocks.append((start, stop))
        start = stop
    return blocks
