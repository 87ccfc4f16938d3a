"""anndata's AnnLoader over the h5ad, left on disk; needs anndata and torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import measure
import torch
from anndata.experimental import AnnLoader


def prepare(screen: Path, store: Path, setting: measure.Setting) -> None:
    """The screen itself."""
    store.symlink_to(screen)


def open_loader(path: Path, setting: measure.Setting, share: measure.Share) -> measure.Epoch:
    """Every rank draws from all cells: AnnLoader knows no ranks."""
    torch.set_num_threads(1)
    torch.manual_seed(share.seed + share.rank)
    cells = anndata.read_h5ad(path, backed="r")

    def epoch(_number: int) -> Iterator[tuple[Any, int]]:
        for minibatch in AnnLoader([cells], batch_size=measure.MINIBATCH, shuffle=True):
            yield minibatch.X.float(), len(minibatch.X)

    return epoch


if __name__ == "__main__":
    measure.main(prepare, open_loader)
