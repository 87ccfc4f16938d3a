"""Two versions of node embeddings side by side: the rotation between them, and how far they agree.

Enters: two embeddings with genes in common. Leaves: the orthogonal map that brings the vectors of one closest
to those of the other (Procrustes; Schönemann, Psychometrika 1966), and measures of agreement. Invariants:
nothing is centred or scaled, since that would change cosines; genes are matched by name.

Where widths differ, the map has orthonormal rows (into more dimensions, all cosines stay) or columns (into
fewer).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.embeddings.embedding import Embedding, rows_of, without_direction
from graph_store.embeddings.neighbours import neighbourhoods
from graph_store.graph import GraphError


class Alignment(NamedTuple):
    """How ``source`` is brought to ``target``, and how well it fits over the genes of both."""

    source: str
    target: str
    rotation_DE: NDArray[np.float64]
    """Vectors of the source times this live in the target's space."""
    rank: int
    """Directions that the common genes determine; below the smaller width the rest is arbitrary."""
    scale: float
    """The factor that brings the rotated source closest to the target; ``rotated`` does not apply it."""
    residual: float
    """What is left of the target after rotation and scale, as a share of its norm: 0 to 1."""
    genes: tuple[str, ...]
    """(S,) genes of both, sorted."""
    cosine_S: NDArray[np.float64]
    """Of each gene's two vectors after rotation; NaN where one of them is zero."""
    only_source: int
    only_target: int

    @property
    def num_zero(self) -> int:
        """Common genes without a cosine."""
        return int(np.isnan(self.cosine_S).sum())

    @property
    def mean_cosine(self) -> float:
        """Over the common genes that have one; NaN when none has."""
        known = self.cosine_S[~np.isnan(self.cosine_S)]
        return float(known.mean()) if len(known) else float("nan")


class Overlap(NamedTuple):
    """How far genes keep their neighbours from one embedding to another."""

    num_neighbours: int
    """Of each gene: as many as were asked for, or all there are."""
    genes: tuple[str, ...]
    """(S,) genes of both, sorted, that have a direction in both."""
    share_S: NDArray[np.float64]
    """Share of each gene's nearest genes in one that are its nearest in the other too."""


def align(source: Embedding, target: Embedding) -> Alignment:
    """The orthogonal map of ``source`` onto ``target`` over the genes of both, and how well it fits.

    Raises ``GraphError`` when they have no gene in common, or only zero vectors.
    """
    genes = _common(source, target)
    a_SD = source.z_PD[rows_of(source, genes)].astype(np.float64)
    b_SE = target.z_PD[rows_of(target, genes)].astype(np.float64)
    left_DM, strength_M, right_ME = np.linalg.svd(a_SD.T @ b_SE, full_matrices=False)
    if not strength_M.any():
        raise GraphError(
            f"embeddings {source.version} and {target.version}: nothing can be aligned, the vectors of their "
            f"{len(genes)} common genes are zero or perpendicular throughout"
        )
    rotation_DE = left_DM @ right_ME
    turned_SE = a_SD @ rotation_DE
    scale = float((turned_SE * b_SE).sum() / (turned_SE**2).sum())
    return Alignment(
        source=source.version,
        target=target.version,
        rotation_DE=rotation_DE,
        rank=int((strength_M > strength_M[0] * len(strength_M) * np.finfo(np.float32).eps).sum()),
        scale=scale,
        residual=float(np.linalg.norm(scale * turned_SE - b_SE) / np.linalg.norm(b_SE)),
        genes=genes,
        cosine_S=_cosines(turned_SE, b_SE),
        only_source=len(source.genes) - len(genes),
        only_target=len(target.genes) - len(genes),
    )


def rotated(source: Embedding, alignment: Alignment) -> Embedding:
    """``source``, all of its genes, in the space of the alignment's target."""
    if source.version != alignment.source or source.z_PD.shape[1] != len(alignment.rotation_DE):
        raise GraphError(
            f"embedding {source.version}: the alignment is one of {alignment.source}; align this version"
        )
    turned_PE = (source.z_PD @ alignment.rotation_DE).astype(np.float32)
    return source._replace(z_PD=turned_PE)


def neighbour_overlap(first: Embedding, second: Embedding, count: int) -> Overlap:
    """Of each gene's ``count`` nearest genes in ``first``, the share that ``second`` agrees on.

    Only genes of both that have a direction in both take part, as genes and as neighbours. No alignment is
    needed. Raises ``GraphError`` when there are fewer than 2 of them.
    """
    if count < 1:
        raise GraphError(f"{count} neighbours were asked for; ask for at least 1")
    common = np.array(_common(first, second), dtype=object)
    tables = [embedding.z_PD[rows_of(embedding, list(common))] for embedding in (first, second)]
    used = ~(without_direction(tables[0]) | without_direction(tables[1]))
    genes = tuple(common[used])
    if len(genes) < 2:
        raise GraphError(
            f"embeddings {first.version} and {second.version}: {len(genes)} common genes have a direction in "
            "both; neighbours need at least 2"
        )
    own = np.arange(len(genes))
    number = min(count, len(genes) - 1)
    blocks = [neighbourhoods(table[used], table[used], genes, number, own_Q=own) for table in tables]
    shared: list[NDArray[np.int64]] = []
    for one, other in zip(*blocks, strict=True):
        # A (query, row) pair as one number; each occurs at most once in a block.
        query = np.repeat(np.arange(len(one.indptr) - 1), number)
        both = np.intersect1d(query * len(genes) + one.row, query * len(genes) + other.row)
        shared.append(np.bincount(both // len(genes), minlength=len(one.indptr) - 1))
    return Overlap(number, genes, np.concatenate(shared) / number)


def _common(first: Embedding, second: Embedding) -> tuple[str, ...]:
    genes = tuple(sorted(set(first.genes) & set(second.genes)))
    if not genes:
        raise GraphError(
            f"embeddings {first.version} and {second.version} have no gene in common; compare versions over "
            "the same gene names"
        )
    return genes


def _cosines(a_SE: NDArray[np.float64], b_SE: NDArray[np.float64]) -> NDArray[np.float64]:
    size_S = np.linalg.norm(a_SE, axis=1) * np.linalg.norm(b_SE, axis=1)
    dot_S = np.einsum("se,se->s", a_SE, b_SE)
    cosine_S = np.full(len(dot_S), np.nan)
    np.divide(dot_S, size_S, out=cosine_S, where=size_S > 0)
    return cosine_S.clip(-1, 1)
