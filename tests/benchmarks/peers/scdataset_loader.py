"""scDataset over the h5ad's own sparse rows, shuffled in blocks; needs scDataset, anndata, torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import measure
import torch
from scdataset import BlockShuffling, scDataset
from torch.utils.data import DataLoader


class Rows:
    """Length and rows, as scDataset asks for them; every process opens the file for itself."""

    def __init__(self, screen: Path) -> None:
        self.screen = screen
        self.opened: Any = None
        with h5py.File(screen) as file:
            self.num_cells = len(file["X/indptr"]) - 1

    def __len__(self) -> int:
        return self.num_cells

    def fetch(self, rows: Any) -> Any:
        """Sparse rows in the order asked for."""
        if self.opened is None:
            self.opened = anndata.io.sparse_dataset(h5py.File(self.screen)["X"])
        return self.opened[rows]


def prepare(screen: Path, store: Path, setting: measure.Setting) -> None:
    """The screen itself, its cells shuffled once where the setting says so."""
    if not setting["shuffled"]:
        store.symlink_to(screen)
        return
    cells = anndata.read_h5ad(screen)
    order = torch.randperm(cells.n_obs, generator=torch.Generator().manual_seed(0)).numpy()
    cells[order].copy().write_h5ad(store)


def open_loader(path: Path, setting: measure.Setting, share: measure.Share) -> measure.Epoch:
    """One rank's loader, in this process or in workers of its own."""
    torch.set_num_threads(1)
    rows = Rows(path)
    data = scDataset(
        rows,
        BlockShuffling(block_size=setting["block"]),
        batch_size=measure.MINIBATCH,
        fetch_factor=setting["fetch_factor"],
        drop_last=True,
        rank=share.rank,
        world_size=share.world,
        seed=share.seed,
        fetch_callback=_fetch,
        batch_transform=_dense,
    )

    def epoch(_number: int) -> Iterator[tuple[Any, int]]:
        loader = DataLoader(data, batch_size=None, num_workers=setting["workers"])
        for minibatch in loader:
            yield minibatch, len(minibatch)

    return epoch


def _fetch(rows: Rows, which: Any) -> Any:
    return rows.fetch(which)


def _dense(rows: Any) -> Any:
    return torch.from_numpy(rows.toarray())


if __name__ == "__main__":
    measure.main(prepare, open_loader)
