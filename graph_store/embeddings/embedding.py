"""One version of node embeddings as a value: Z of a trained model, or any table of one vector a gene.

Enters: arrays. Leaves: the same arrays, checked. Invariants: one finite float32 vector a gene, no gene twice,
and a version that can be the name of a folder.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import GraphError

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a version looks like; nothing else becomes the name of a folder."""


class Embedding(NamedTuple):
    """A vector for each of some genes."""

    version: str
    genes: tuple[str, ...]
    """(P,) names, in any order."""
    z_PD: NDArray[np.float32]
    origin: dict[str, str]
    """What it was computed from (model, snapshot, ...), as plain words."""


def check_version(version: str) -> None:
    """Raise ``GraphError`` unless ``version`` can be the name of a folder."""
    if not VERSION.fullmatch(version):
        raise GraphError(
            f"{version!r} is no version of an embedding; use 1 to 100 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )


def check_embedding(embedding: Embedding) -> None:
    """Raise ``GraphError`` unless the embedding keeps this module's invariants."""
    check_version(embedding.version)
    genes, z_PD, what = embedding.genes, embedding.z_PD, f"embedding {embedding.version}"
    if z_PD.ndim != 2 or len(z_PD) != len(genes) or not z_PD.size:
        raise GraphError(f"{what}: has shape {z_PD.shape}, not one vector for each of {len(genes)} genes")
    if z_PD.dtype != np.float32:
        raise GraphError(f"{what}: holds {z_PD.dtype} numbers; convert them to float32")
    if len(set(genes)) != len(genes) or "" in genes:
        wrong = "" if "" in genes else next(gene for gene, number in Counter(genes).items() if number > 1)
        raise GraphError(
            f"{what}: gene {wrong!r} is {'listed twice' if wrong else 'no name'}; repair its list"
        )
    bad = np.flatnonzero(~np.isfinite(z_PD).all(axis=1))
    if len(bad):
        raise GraphError(f"{what}: the vector of {genes[bad[0]]} is not finite ({len(bad)} such); repair it")


def without_direction(z_PD: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which vectors are zero and therefore have no cosine."""
    zero_P: NDArray[np.bool_] = (z_PD == 0).all(axis=1)
    return zero_P


def rows_of(embedding: Embedding, genes: Sequence[str]) -> NDArray[np.int64]:
    """The row of each gene; ``GraphError`` naming the first that is not there, with close names."""
    row = {gene: number for number, gene in enumerate(embedding.genes)}
    for gene in genes:
        if gene not in row:
            near = difflib.get_close_matches(gene, embedding.genes, 3, 0.6)
            hint = f"; did you mean {', '.join(near)}?" if near else "; see which are there by exporting it"
            raise GraphError(f"embedding {embedding.version}: has no gene {gene!r}{hint}")
    return np.array([row[gene] for gene in genes], np.int64)
