"""A small real store whose counts tell cell and gene, ingested from an h5ad as a user would."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store import manifest
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.write import add_embedding

NUM_CELLS, NUM_GENES = 420, 40
EMBEDDING = "X_made_up"


def count(cell: np.ndarray, gene: np.ndarray) -> np.ndarray:
    """The count of a gene in a cell: distinct enough that no wrong cell or gene goes unnoticed."""
    return (cell * 7 + gene * 13 + cell // 5) % 6


def embedding(row: np.ndarray) -> np.ndarray:
    """(R, 3) what the store holds of its cells ``row``: the first value is the row itself."""
    return np.stack([row, row * row % 97, np.sin(row)], axis=1).astype(np.float32)


def write_screen(path: Path) -> None:
    """Two lines, three batches each; the last batch of the second line has no control; sorted by label."""
    cell = np.arange(NUM_CELLS)
    label = np.where(cell % 5 == 0, "control", [f"GENE{c % 23:02d}" for c in cell]).astype(object)
    label[cell % 40 == 7] = "GENE01+GENE02"
    line = np.where(cell % 7 < 4, "A549", "K562")
    batch = np.array([f"b{c % 3}" for c in cell])
    orphan = (line == "K562") & (batch == "b2") & (label == "control")
    label[orphan] = "GENE03"
    obs = pd.DataFrame({"perturbation": label, "cell_line": line, "batch": batch})
    obs.index = obs.index.astype(str)
    order = np.argsort(label, kind="stable")
    counts = count(order[:, None], np.arange(NUM_GENES)).astype(np.float32)
    obs = obs.iloc[order].assign(source=order)
    var = pd.DataFrame(index=[f"GENE{gene:02d}" for gene in range(NUM_GENES)])
    anndata.AnnData(sp.csr_matrix(counts), obs, var).write_h5ad(path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    """``write_screen`` ingested, 15 of 40 genes selected, and an embedding of 3 values."""
    folder = tmp_path_factory.mktemp("loader")
    write_screen(folder / "screen.h5ad")
    ingest(
        IngestConfig(
            sources=(folder / "screen.h5ad",),
            store=folder / "screen.zarr",
            batch_key="batch",
            cell_line_key="cell_line",
            select_genes=15,
        )
    )
    path = folder / "screen.zarr"
    num_cells = open_store(path).num_cells
    blocks = [embedding(np.arange(num_cells))]
    add_embedding(path, EMBEDDING, 3, blocks, origin={}, before=manifest.read(path))
    return open_store(path)


@pytest.fixture(scope="session")
def expected(store: CellStore) -> np.ndarray:
    """(cells, genes) every count of the store, by the formula."""
    obs = anndata.read_zarr(store.path).obs
    return count(obs["source"].to_numpy()[:, None], np.arange(NUM_GENES))
