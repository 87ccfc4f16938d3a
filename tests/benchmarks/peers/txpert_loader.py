"""Ours: every cell paired with its control, handed over sparse or dense; runs where txpert_dist is installed.

deliver: sparse (rows, and the number of each control in the resident table), counts (dense float32 as
stored), log1p (dense expression), mean and drawn (dense expression beside each cell's dense control).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np

from txpert_dist.config import Data
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.loader.loader import CellLoader
from txpert_dist.loader.memory import ReusedMemory
from txpert_dist.loader.pairing import control_table
from txpert_dist.minibatch import Minibatch
from txpert_dist.store.cells import open_store
from txpert_dist.store.expression import dense_log1p


def prepare(screen: Path, store: Path, setting: measure.Setting) -> None:
    """`txpert ingest` with its defaults, keeping all genes for training."""
    ingest(IngestConfig(sources=(screen,), store=store, preset="scperturb", select_genes=0))


def open_loader(path: Path, setting: measure.Setting, share: measure.Share) -> measure.Epoch:
    """One rank's loader over every cell and every gene."""
    store = open_store(path)
    genes = np.arange(len(store.genes))
    deliver = setting["deliver"]
    matching = "matched" if deliver == "drawn" else "matched_mean"
    table = control_table(store, matching, genes)
    loader = CellLoader(
        store,
        np.arange(len(store.perturbation)),
        genes=genes,
        nodes_RM=np.arange(len(store.perturbations), dtype=np.int32)[:, None],
        data=Data(store=path),
        table=table,
        seed=share.seed,
        rank=share.rank,
        world=share.world,
        minibatch_size=measure.MINIBATCH * share.world,
    )
    if deliver == "sparse":
        return lambda epoch: ((minibatch, minibatch.cells.num_cells) for minibatch in loader.epoch(epoch))
    if deliver in ("mean", "drawn"):
        return _paired(loader, table)
    scale = "counts" if deliver == "log1p" else "log1p"  # what is expression already is left as it is
    memory = ReusedMemory()

    def dense(minibatch: Minibatch) -> Any:
        import torch

        y_BG = memory.lend((minibatch.cells.num_cells, len(genes)), np.float32)
        dense_log1p(minibatch.cells, y_BG, input_scale=scale)
        return torch.from_numpy(y_BG)

    return _each(loader, dense)


def _paired(loader: CellLoader, table: Any) -> measure.Epoch:
    import torch

    from txpert_dist.train.batch import dense_batch, resident_controls

    device = torch.device("cpu")
    controls = resident_controls(table, num_genes=len(loader.genes), device=device)
    return _each(loader, lambda minibatch: dense_batch(minibatch, controls, device=device))


def _each(loader: CellLoader, dense: Any) -> measure.Epoch:
    """Dense minibatches, made by the thread that takes them."""
    import torch

    torch.set_num_threads(1)

    def epoch(number: int) -> Iterator[tuple[Any, int]]:
        for minibatch in loader.epoch(number):
            yield dense(minibatch), minibatch.cells.num_cells

    return epoch


if __name__ == "__main__":
    measure.main(prepare, open_loader)
