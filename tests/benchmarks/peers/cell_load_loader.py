"""cell-load (STATE's loader): dense cells, each with a control of its batch; needs cell-load.

Cells counted are the perturbed side's only. consecutive: cells sorted by condition, sets of 64 read together.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import measure
import numpy as np
import torch
from cell_load.data_modules import PerturbationDataModule

CELLS = "cells.h5ad"
CONSECUTIVE = 64


def prepare(screen: Path, store: Path, setting: measure.Setting) -> None:
    """A folder with the screen and their description of it."""
    store.mkdir()
    if setting["consecutive"]:
        cells = anndata.read_h5ad(screen)
        keys = [
            cells.obs[name].astype("category").cat.codes for name in ("batch", "perturbation", "cell_line")
        ]
        cells[np.lexsort(keys)].copy().write_h5ad(store / CELLS)
    else:
        (store / CELLS).symlink_to(screen)
    text = f'[datasets]\nscreen = "{store}"\n[training]\nscreen = "train"\n[zeroshot]\n[fewshot]\n'
    (store / "screen.toml").write_text(text)


def open_loader(path: Path, setting: measure.Setting, share: measure.Share) -> measure.Epoch:
    """Every rank draws from all cells: outside Lightning it knows no ranks."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    together = CONSECUTIVE if setting["consecutive"] else 1
    module = PerturbationDataModule(
        toml_config_path=str(path / "screen.toml"),
        embed_key=None,
        output_space="all",
        num_workers=setting["workers"],
        batch_col="batch",
        pert_col="perturbation",
        cell_type_key="cell_line",
        control_pert="control",
        basal_mapping_strategy="random" if setting["consecutive"] else "batch",
        batch_size=measure.MINIBATCH // together,
        cell_sentence_len=together,
        use_consecutive_loading=setting["consecutive"],
        should_yield_control_cells=True,
        random_seed=share.seed + share.rank,
    )
    module.setup()

    def epoch(_number: int) -> Iterator[tuple[Any, int]]:
        for minibatch in module.train_dataloader():
            yield minibatch["pert_cell_emb"].float(), len(minibatch["pert_cell_emb"])

    return epoch


if __name__ == "__main__":
    measure.main(prepare, open_loader)
