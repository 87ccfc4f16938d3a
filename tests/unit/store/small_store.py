"""A store whose every value names its place, of several shards although it is small."""

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.store.controls import Context, build_control_index
from txpert_dist.store.splits import split_perturbations
from txpert_dist.store.write import LabelRow, Labels, ShardSizes, StoreWriter

NUM_CELLS, NUM_GENES = 4000, 60
SMALL_SHARDS = ShardSizes(chunk=1024, shard=8192)
"""So that a few thousand cells span several shards and reads cross their borders."""


def self_describing_matrix() -> NDArray[np.uint32]:
    """Every stored value names its cell and gene: value = 1 + cell * NUM_GENES + gene."""
    rng = np.random.default_rng(0)
    names = 1 + np.arange(NUM_CELLS * NUM_GENES, dtype=np.uint32).reshape(NUM_CELLS, NUM_GENES)
    kept = rng.random((NUM_CELLS, NUM_GENES)) < rng.random((NUM_CELLS, 1))
    kept[[0, 17, NUM_CELLS - 1]] = False  # cells without any entry
    return names * kept


def self_describing_embedding(width: int, sign: float = 1) -> NDArray[np.float32]:
    """(NUM_CELLS, width) value = 1 + cell + column / 2048, exactly; ``sign`` tells two apart."""
    cell, column = np.arange(NUM_CELLS)[:, None], np.arange(width)
    return (sign * (1 + cell + column / 2048)).astype(np.float32)


def write_store(folder: Path, x_BG: NDArray[np.uint32], **embeddings: NDArray[np.float32]) -> None:
    sparse = scipy.sparse.csr_matrix(x_BG)
    num_cells, num_genes = x_BG.shape
    names = ("control", "A", "B", "C", "D")
    contexts = (Context("K562", "1"), Context("K562", "2"))
    perturbation = (np.arange(num_cells) % len(names)).astype(np.int32)
    context = (np.arange(num_cells) % 2).astype(np.int32)
    labels = Labels(
        input_scale="counts",
        perturbations=names,
        contexts=contexts,
        perturbation=perturbation,
        context=context,
        library_size=np.maximum(x_BG.sum(1), 1).astype(np.float32),
        split=split_perturbations(names, seed=0),
        selected=np.array([1, 3, 8], np.int64),
        controls=build_control_index(context, perturbation == 0, contexts),
        control_mean_CG=np.ones((2, num_genes), np.float32),
        label_rows=(LabelRow("ctrl", "control", 3),),
        source_row=np.arange(num_cells),
        row_order="source",
        knockdown_rows=(),
        summary="{}",
    )
    obs = pd.DataFrame({"n": np.arange(num_cells)}, index=[f"c{i}" for i in range(num_cells)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(num_genes)])
    writer = StoreWriter(
        folder,
        num_cells=num_cells,
        num_genes=num_genes,
        num_entries=sparse.nnz,
        dtype=np.uint32,
        shards=SMALL_SHARDS,
    )
    for start in range(0, num_cells, 999):
        block = sparse[start : start + 999]
        writer.append(block.indptr.astype(np.int64), block.indices.astype(np.int32), block.data)
    for name, value_RN in embeddings.items():
        blocks = (value_RN[start : start + 700] for start in range(0, num_cells, 700))
        writer.write_embedding(name, value_RN.shape[1], blocks, origin={"made": "by a test"})
    writer.finish(obs=obs, var=var, labels=labels, fingerprint="made by a test")
