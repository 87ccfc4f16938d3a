"""Jaccard similarity of genes by the sets they are in, in bounded memory.

Enters: memberships (gene, set). Leaves: the pairs above a threshold. Invariant: only pairs that share a set
are ever formed, and at most about ``max_entries`` of them (or one gene's) at a time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

MAX_ENTRIES = 2**22


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
    found, weights, num_below = [], [], 0
    for start, stop in _blocks(entries_P, max_entries):
        product = member[start:stop] @ transposed
        product.sort_indices()
        shared = product.tocoo()
        first, second = shared.row + start, shared.col
        upper = first < second
        first, second, both = first[upper], second[upper], shared.data[upper].astype(np.float64)
        index = both / (num_sets_P[first] + num_sets_P[second] - both)
        keep = index > above
        num_below += int((~keep).sum())
        found.append(np.stack([first[keep], second[keep]]).astype(np.int32))
        weights.append(index[keep].astype(np.float32))
    if not found:
        return JaccardPairs(np.zeros((2, 0), np.int32), np.zeros(0, np.float32), 0)
    return JaccardPairs(np.concatenate(found, axis=1), np.concatenate(weights), num_below)


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
