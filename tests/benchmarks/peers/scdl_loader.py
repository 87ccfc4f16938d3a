"""BioNeMo SCDL: memory-mapped rows through torch's DataLoader; needs bionemo-scdl, torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import torch
from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset
from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch
from torch.utils.data import DataLoader, DistributedSampler


class Dense:
    """Their own collation, which is as wide as the last gene seen, to the screen's width."""

    def __init__(self, num_genes: int) -> None:
        self.num_genes = num_genes

    def __call__(self, cells: list[torch.Tensor]) -> torch.Tensor:
        """float32 counts."""
        rows = collate_sparse_matrix_batch(cells)
        parts = (rows.crow_indices(), rows.col_indices(), rows.values())
        return torch.sparse_csr_tensor(*parts, (len(cells), self.num_genes)).to_dense().float()


def prepare(screen: Path, store: Path, setting: measure.Setting) -> None:
    """Their conversion."""
    SingleCellMemMapDataset(str(store), str(screen), use_X_not_raw=True).save()


def open_loader(path: Path, setting: measure.Setting, share: measure.Share) -> measure.Epoch:
    """One rank's loader."""
    torch.set_num_threads(1)
    data = SingleCellMemMapDataset(str(path))
    dense = Dense(data.number_of_variables()[0])
    sampler = DistributedSampler(data, share.world, share.rank, shuffle=True, seed=share.seed)

    def epoch(number: int) -> Iterator[tuple[Any, int]]:
        sampler.set_epoch(number)
        loader = DataLoader(
            data,
            batch_size=measure.MINIBATCH,
            sampler=sampler,
            collate_fn=dense,
            drop_last=True,
            num_workers=setting["workers"],
        )
        for minibatch in loader:
            yield minibatch, len(minibatch)

    return epoch


if __name__ == "__main__":
    measure.main(prepare, open_loader)
