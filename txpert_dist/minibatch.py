"""What the loader hands to the training step, and the legend of shape letters.

Arrays and tensors of rank two and more carry a suffix of these letters, one a dimension:

    B  cells in a minibatch            G  genes (of the training view, unless said otherwise)
    P  perturbation nodes of the graph M  perturbations of one cell, padded with -1
    D  latent dimension                E  edges        2  source and target of an edge
    C  contexts: (cell_line, batch)    K  knowledge graphs        H  attention heads
    R  rows of any other table         N  attention input or output width

"Batch" alone is always the experimental batch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SparseRows(NamedTuple):
    """Cells as compressed sparse rows, as stored: counts (or log1p values) before any normalisation."""

    indptr: NDArray[np.int64]
    """(B + 1,) where each cell's entries begin."""
    gene: NDArray[np.integer]
    """(entries,) gene number of each entry, ascending within a cell: uint16 where that suffices, or int32."""
    value: NDArray[np.generic]
    """(entries,) unsigned integer counts, or float32 when the store's input scale is not counts."""
    library_size: NDArray[np.float32]
    """(B,) total counts of each cell over all measured genes, before any selection."""

    @property
    def num_cells(self) -> int:
        """Number of cells B."""
        return len(self.indptr) - 1


class Minibatch(NamedTuple):
    """One rank's share of one optimiser step; compact, for the device to normalise and densify."""

    cells: SparseRows
    """The observed cells y over the training view's genes."""
    control: NDArray[np.int64]
    """(B,) the row of the resident control table that each cell is paired with."""
    perturbations_BM: NDArray[np.int32]
    """(B, M) perturbation node of each perturbed gene, -1 where there is none."""
