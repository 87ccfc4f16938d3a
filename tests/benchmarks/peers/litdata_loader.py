"""litdata, a sample a cell: two-byte gene numbers and counts as bytes; needs litdata, torch, numba, h5py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import litdata
import measure
import numba
import numpy as np
import torch
from litdata.streaming.writer import BinaryWriter

BYTES_PER_CHUNK = 1 << 26


def prepare(screen: Path, store: Path, setting: measure.Setting) -> None:
    """Write the cells in shuffled order."""
    with h5py.File(screen) as file:
        gene, value = file["X/indices"][:].astype(np.uint16), file["X/data"][:].astype(np.uint16)
        indptr = file["X/indptr"][:]
        num_genes = int(file["X"].attrs["shape"][1])
    store.mkdir()
    writer = BinaryWriter(str(store), chunk_bytes=BYTES_PER_CHUNK)
    for number, cell in enumerate(np.random.default_rng(0).permutation(len(indptr) - 1)):
        entries = slice(indptr[cell], indptr[cell + 1])
        writer.add_item(number, {"gene": gene[entries].tobytes(), "value": value[entries].tobytes()})
    writer.done()
    writer.merge()
    (store / "num_genes").write_text(str(num_genes))


@numba.njit(nogil=True)
def fill(x_G: Any, gene: Any, value: Any) -> None:
    """One cell into a row of zeros."""
    for entry in range(len(gene)):
        x_G[gene[entry]] = value[entry]


class Dense:
    """Cells as bytes to a dense minibatch."""

    def __init__(self, num_genes: int) -> None:
        self.num_genes = num_genes

    def __call__(self, cells: list[dict[str, bytes]]) -> torch.Tensor:
        """float32 counts."""
        x_BG = np.zeros((len(cells), self.num_genes), np.float32)
        for x_G, cell in zip(x_BG, cells, strict=True):
            fill(x_G, np.frombuffer(cell["gene"], np.uint16), np.frombuffer(cell["value"], np.uint16))
        return torch.from_numpy(x_BG)


def open_loader(path: Path, setting: measure.Setting, share: measure.Share) -> measure.Epoch:
    """One rank's loader. Outside torch's process groups litdata knows one rank only: both read everything."""
    torch.set_num_threads(1)
    dense = Dense(int((path / "num_genes").read_text()))
    data = litdata.StreamingDataset(str(path), shuffle=True, seed=share.seed + share.rank)

    def epoch(_number: int) -> Iterator[tuple[Any, int]]:
        loader = litdata.StreamingDataLoader(
            data,
            batch_size=measure.MINIBATCH,
            collate_fn=dense,
            drop_last=True,
            num_workers=setting["workers"],
        )
        for minibatch in loader:
            yield minibatch, len(minibatch)

    return epoch


if __name__ == "__main__":
    measure.main(prepare, open_loader)
