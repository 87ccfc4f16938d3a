"""The kept cells of all files, block by block, for any process to read.

Enters: opened files and the rows to keep. Leaves: sparse rows over the store's genes. Invariant: a block is
told by file and rows alone, so that every process reads the same one.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.ingest.config import IngestConfig, Key
from txpert_dist.ingest.genes import GeneJoin
from txpert_dist.ingest.matrix import read_block
from txpert_dist.ingest.source import Source, find_column


class CellBlock(NamedTuple):
    """Consecutive kept cells of one file."""

    first: int
    """Position of the first one among the kept cells of all files."""
    source: Source
    rows: NDArray[np.int64]
    """(B,) their rows in the source."""
    measured: Any
    """scipy CSR over all genes of the source."""
    stored: Any
    """scipy CSR over the genes of the store."""


class Part(NamedTuple):
    """Where a block is."""

    source: int
    start: int
    """First row of the file's block."""
    stop: int


class Cells(NamedTuple):
    """The kept cells of all files, for any process to read."""

    sources: tuple[Source, ...]
    """With no more of their tables than names and the column of library sizes."""
    library_column: tuple[str | None, ...]
    rows: tuple[NDArray[np.int64], ...]
    """Per file: rows kept, ascending."""
    genes: GeneJoin
    scratch: Path

    def read(self, part: Part) -> CellBlock:
        """The kept cells of ``part``."""
        source, kept = self.sources[part.source], self.rows[part.source]
        own = slice(*np.searchsorted(kept, (part.start, part.stop)))
        rows = np.array(kept[own])
        measured = read_block(source, part.start, part.stop, self.scratch_of(part.source)).matrix
        if len(rows) < measured.shape[0]:
            measured = measured[rows - part.start]
        number = self.genes.number_of[part.source]
        stored = select_columns(measured, number, len(self.genes.names))
        first = sum(map(len, self.rows[: part.source])) + own.start
        return CellBlock(first, source, rows, measured, stored)

    def scratch_of(self, source: int) -> Path:
        """The folder for temporary files of one source."""
        return self.scratch / str(source)


def readable_cells(
    sources: tuple[Source, ...],
    rows: list[NDArray[np.int64]],
    genes: GeneJoin,
    config: IngestConfig,
    scratch: Path,
) -> Cells:
    """The cells ``rows`` of ``sources``; ``InputError`` when a file lacks the column of library sizes."""
    columns = tuple(find_column(source, "obs", Key(config.library_size_key, True)) for source in sources)
    slim = tuple(_without_tables(source, column) for source, column in zip(sources, columns, strict=True))
    return Cells(slim, columns, tuple(rows), genes, scratch)


def _without_tables(source: Source, column: str | None) -> Source:
    """Names in one Arrow buffer each, which costs other processes nothing to read."""
    obs = source.obs[[column] if column else []]
    names = pd.Index(source.obs.index.astype(str), dtype="string[pyarrow]")
    return source._replace(obs=obs.set_axis(names), var=source.var[[]])


def select_columns(matrix: Any, number: NDArray[np.int32], num_genes: int) -> Any:
    """The CSR ``matrix`` with column j renumbered ``number[j]``, and left out where that is -1."""
    if len(number) == num_genes and np.array_equal(number, np.arange(num_genes)):
        return matrix
    gene = number[matrix.indices]
    kept = gene >= 0
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
    parts = (matrix.data[kept], gene[kept], before[matrix.indptr])
    selected = type(matrix)(parts, shape=(matrix.shape[0], num_genes))
    selected.sort_indices()
    return selected
