"""annbatch over its own shuffled collection, zarrs pipeline; needs annbatch[zarrs] (Python 3.12), no torch.

setting: chunk and preload (cells read together, and how many such pieces), deliver sparse or dense, labels
(hand over each cell's perturbation and batch too), narrow (counts stored as the smallest unsigned integers,
which annbatch does not do by itself).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import measure
import numpy as np
import pandas as pd
import zarr
from annbatch import DatasetCollection, Loader
from annbatch.samplers import DistributedSampler, RandomSampler

LABELS = ("perturbation", "batch")


def prepare(screen: Path, store: Path, setting: measure.Setting) -> None:
    """annbatch's shuffled collection with its defaults."""
    _use_zarrs()
    if not setting.get("narrow"):
        DatasetCollection(str(store)).add_adatas([str(screen)])
        return
    narrowed = screen.with_name(f".{screen.name}")
    cells = anndata.read_h5ad(screen)
    cells.X = cells.X.astype(np.min_scalar_type(int(cells.X.data.max())))
    cells.write_h5ad(narrowed)
    del cells
    DatasetCollection(str(store)).add_adatas([str(narrowed)])
    narrowed.unlink()


def open_loader(path: Path, setting: measure.Setting, share: measure.Share) -> measure.Epoch:
    """One rank's loader."""
    _use_zarrs()

    def load(group: Any) -> Any:
        columns = {name: anndata.io.read_elem(group["obs"][name]) for name in LABELS}
        obs = pd.DataFrame(columns) if setting["labels"] else None
        return anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=obs)

    def epoch(number: int) -> Iterator[tuple[Any, int]]:
        sampler = RandomSampler(
            chunk_size=setting["chunk"],
            preload_nchunks=setting["preload"],
            batch_size=measure.MINIBATCH,
            drop_last=True,
            rng=np.random.default_rng((share.seed, number)),
        )
        if share.world > 1:
            sampler = DistributedSampler(sampler, dist_info=lambda: (share.rank, share.world))
        loader = Loader(batch_sampler=sampler, to=None, preload_to_gpu=False)
        for minibatch in loader.use_collection(DatasetCollection(str(path)), load_adata=load):
            rows = minibatch["X"]
            dense = setting["deliver"] == "dense"
            yield (rows.astype(np.float32, copy=False).toarray() if dense else rows), rows.shape[0]

    return epoch


def _use_zarrs() -> None:
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


if __name__ == "__main__":
    measure.main(prepare, open_loader)
