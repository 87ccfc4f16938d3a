"""What the steps of an ingest hand on to each other.

Enters, leaves: values. Invariant: none of them changes once it is made.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.ingest.columns import FilterRow
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.embeddings import EmbeddingSources
from txpert_dist.ingest.genes import GeneJoin
from txpert_dist.ingest.matrix import BLOCK_ENTRIES
from txpert_dist.ingest.screen import Screen
from txpert_dist.ingest.source import Source
from txpert_dist.ingest.statistics import Progress, Statistics
from txpert_dist.ingest.tasks import Runner
from txpert_dist.store.shard_file import DEFAULT_SHARDS, ShardSizes
from txpert_dist.store.write import KnockdownRow, ShardFiles


class Sizes(NamedTuple):
    """How the work is cut."""

    block_entries: int = BLOCK_ENTRIES
    """Entries of the files that are read together."""
    shards: ShardSizes = DEFAULT_SHARDS


DEFAULT_SIZES = Sizes()


class Work(NamedTuple):
    """What to do, how and where."""

    config: IngestConfig
    folder: Path
    runner: Runner
    progress: Progress
    sizes: Sizes

    @property
    def scratch(self) -> Path:
        """Where temporary files go."""
        return self.folder / "scratch"


class Found(NamedTuple):
    """Everything that is known before the expression is written."""

    sources: tuple[Source, ...]
    screen: Screen
    gene_names: tuple[tuple[str, ...], ...]
    """Per file: the names of its genes."""
    genes: GeneJoin
    embeddings: tuple[EmbeddingSources, ...]
    filters: tuple[FilterRow, ...]
    empty_cells: int
    notes: tuple[str, ...]
    source_row: NDArray[np.int64]
    """(cells,) position among the kept cells of each row of the store."""


class Expression(NamedTuple):
    """What the tasks made of the expression; where cells follow a store's, of all cells."""

    statistics: Statistics
    """With a number a cell of those read only."""
    dtype: np.dtype[Any]
    """Of the stored values."""
    gene_dtype: np.dtype[Any]
    """Of the stored gene numbers."""
    selected: NDArray[np.int64]
    knockdown: tuple[KnockdownRow, ...]
    indptr: NDArray[np.int64]
    """(cells + 1,) where each row's entries begin."""
    shards: tuple[ShardFiles, ...]
