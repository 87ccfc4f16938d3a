"""A small screen with everything awkward in it, ingested, and the same cells dense and labelled by hand."""

from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import CellStore, open_store

NUM_GENES = 40
SINGLES = tuple("ABCDEFGHIJKL")
DOUBLES = ("A+B", "C+D", "E+F", "G+L", "H+I")


class DenseScreen(NamedTuple):
    """The store and, beside it, what a reader without a store would compute from the counts."""

    store: CellStore
    y_BG: NDArray[np.float64]
    """log1p(4000 x / sum) of every cell and gene, by scanpy."""
    control_BG: NDArray[np.float64]
    """Mean of the controls that each cell is centred on: its batch's, else its cell line's."""
    name: NDArray[np.str_]
    line: NDArray[np.str_]
    batch: NDArray[np.str_]

    @property
    def perturbed(self) -> NDArray[np.bool_]:
        return self.name != "control"

    def in_split(self, code: int) -> NDArray[np.bool_]:
        split = dict(zip(self.store.perturbations, self.store.split.tolist(), strict=True))
        return self.perturbed & (np.array([split[name] for name in self.name]) == code)


def simulate(seed: int = 0) -> anndata.AnnData:
    """Two lines of three batches; the last batch has no control; I is one cell, J one cell a batch."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(0.7, 1.0, NUM_GENES) + 0.05
    own = {name: rng.normal(0, 0.5, NUM_GENES) for name in SINGLES}
    counts, labels = [], []
    for line in ("K562", "RPE1"):
        for batch in ("1", "2", "3"):
            shift = rng.normal(0, 0.3, NUM_GENES)
            for name in ("control", *SINGLES, *DOUBLES):
                num = _num_cells(rng, line, batch, name)
                effect = sum((own[part] for part in name.split("+") if part in own), np.zeros(NUM_GENES))
                mean = base * np.exp(shift + effect)
                for _ in range(num):
                    counts.append(rng.multinomial(rng.integers(60, 200), mean / mean.sum()))
                    labels.append((name, line, batch))
    order = rng.permutation(len(counts))
    obs = pd.DataFrame(labels, columns=["perturbation", "cell_line", "batch"]).iloc[order]
    obs.index = [f"cell{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"gene{i}" for i in range(NUM_GENES)])
    return anndata.AnnData(scipy.sparse.csr_matrix(np.array(counts)[order].astype(np.float32)), obs, var)


def _num_cells(rng: np.random.Generator, line: str, batch: str, name: str) -> int:
    if name == "control":
        return 0 if (line, batch) == ("RPE1", "3") else 25
    if name == "I":
        return int((line, batch) == ("K562", "2"))
    return 1 if name == "J" else int(rng.integers(2, 12))


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> DenseScreen:
    folder = tmp_path_factory.mktemp("screen")
    source = simulate()
    source.write_h5ad(folder / "screen.h5ad")
    config = IngestConfig(
        sources=(folder / "screen.h5ad",),
        store=folder / "screen.zarr",
        preset="scperturb",
        select_genes=30,
        split_seed=179,
        row_order="source",
    )
    ingest(config)
    scanpy.pp.normalize_total(source, target_sum=4000)
    scanpy.pp.log1p(source)
    y_BG = source.X.toarray().astype(np.float64)
    name, line, batch = (source.obs[key].to_numpy(str) for key in ("perturbation", "cell_line", "batch"))
    control_BG = np.empty_like(y_BG)
    for cell in range(len(y_BG)):
        own = (name == "control") & (line == line[cell]) & (batch == batch[cell])
        control_BG[cell] = y_BG[own if own.any() else (name == "control") & (line == line[cell])].mean(0)
    return DenseScreen(open_store(Path(config.store)), y_BG, control_BG, name, line, batch)
