"""Screens in parts, for the tests of append: batches to ingest, and batches to append."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse

from tests.bad_inputs import GENES
from txpert_dist.ingest.append import Appended, append
from txpert_dist.ingest.config import AppendConfig, IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.ingest.work import Sizes
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.shard_file import ShardSizes

SMALL = Sizes(block_entries=150, shards=ShardSizes(chunk=64, shard=256))
"""So that a hundred cells fill several shards and are read in several blocks."""
LABELS = ("STAT1", "IRF1", "JAK2+MYC", "CD86", "XYZ", "CUL3", "SPI1", "BRD4+KLF1")
"""XYZ was not measured."""
KEYS = {"batch_key": "batch", "cell_line_key": "line"}


class Batch(NamedTuple):
    """Some cells of one context."""

    line: str
    name: str
    num_cells: int
    controls: bool
    labels: tuple[str, ...]


FIRST = (Batch("K562", "1", 60, True, LABELS[:6]), Batch("K562", "2", 30, False, LABELS[:5]))
"""The second batch borrows controls."""
SECOND = (Batch("K562", "3", 40, True, LABELS[3:]), Batch("RPE1", "1", 25, True, LABELS[:3]))


def screen_of(batches: Sequence[Batch], seed: int = 0, most: int = 200) -> anndata.AnnData:
    """Counts of 12 genes, none above ``most``; controls, where a batch has them, are every third cell."""
    rng, parts = np.random.default_rng(seed), []
    for batch in batches:
        number = np.arange(batch.num_cells)
        label = np.array(batch.labels or ("ctrl",), object)[
            (number + number // 3) % max(1, len(batch.labels))
        ]
        label[batch.controls & (number % 3 == 0)] = "ctrl"
        columns = {"perturbation": label, "batch": batch.name, "line": batch.line}
        parts.append(pd.DataFrame(columns, index=[f"{batch.line}-{batch.name}-{i}" for i in number]))
    obs = pd.concat(parts).sample(frac=1, random_state=seed)
    counts = rng.poisson(rng.gamma(0.3, 4, (len(obs), len(GENES))))
    counts[:, 9] += 1  # no cell without counts
    x_BG = scipy.sparse.csr_matrix(np.minimum(counts, most).astype(np.float32))
    return anndata.AnnData(x_BG, obs, pd.DataFrame(index=list(GENES)))


def written(path: Path, screen: anndata.AnnData) -> Path:
    screen.write_h5ad(path)
    return path


def ingested(store: Path, *sources: Path, sizes: Sizes = SMALL, **options: object) -> CellStore:
    ingest(IngestConfig(sources=sources, store=store, **{**KEYS, **options}), sizes=sizes)
    return open_store(store)


def appended(store: Path, *sources: Path, sizes: Sizes = SMALL, **options: object) -> Appended:
    return append(AppendConfig(sources=sources, store=store, **{**KEYS, **options}), sizes=sizes)
