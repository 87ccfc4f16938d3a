"""Streaming a matrix: every layout gives the same cells, whatever the block size."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from txpert_dist.ingest.matrix import stream
from txpert_dist.ingest.source import open_source

NUM_CELLS, NUM_GENES = 61, 13


def counts(seed: int, num_cells: int = NUM_CELLS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x_BG = rng.poisson(1.0, (num_cells, NUM_GENES)) * (rng.random((num_cells, 1)) < 0.8)
    return x_BG.astype(np.float32)


def write(path: Path, x_BG: np.ndarray, layout: str, **options: object) -> Path:
    matrix = {"csr": scipy.sparse.csr_matrix, "csc": scipy.sparse.csc_matrix, "dense": np.asarray}[layout](
        x_BG
    )
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(x_BG))])
    var = pd.DataFrame(index=[f"g{i}" for i in range(x_BG.shape[1])])
    anndata.AnnData(matrix, obs, var).write_h5ad(path, **options)
    return path


@given(
    seed=st.integers(0, 3),
    layout=st.sampled_from(["csr", "csc", "dense"]),
    block=st.integers(1, 200),
    num_cells=st.integers(1, NUM_CELLS),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_layout_and_block_size_gives_the_same_cells(
    tmp_path_factory: pytest.TempPathFactory, seed: int, layout: str, block: int, num_cells: int
) -> None:
    folder = tmp_path_factory.mktemp("matrix")
    x_BG = counts(seed, num_cells)
    source = open_source(write(folder / "s.h5ad", x_BG, layout), "X")
    for _pass in range(2):  # a matrix by gene is re-bucketed once and read twice
        blocks = list(stream(source, folder / "scratch", block_entries=block))
        assert [b.start for b in blocks] == np.cumsum([0, *(b.matrix.shape[0] for b in blocks)])[:-1].tolist()
        joined = scipy.sparse.vstack([b.matrix for b in blocks]).tocsr()
        assert (joined.toarray() == x_BG).all()
        assert all(b.matrix.has_canonical_format and b.matrix.data.all() for b in blocks)


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_blocks_are_bounded(tmp_path: Path, layout: str) -> None:
    source = open_source(write(tmp_path / "s.h5ad", counts(0), layout), "X")
    sizes = [block.matrix.nnz for block in stream(source, tmp_path / "scratch", block_entries=100)]
    assert len(sizes) > 3
    assert max(sizes) <= 100 + NUM_GENES * 4


def test_unsorted_repeated_and_stored_zero_entries_are_tidied(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5ad", np.eye(3, 5, dtype=np.float32), "csr")
    with h5py.File(path, "r+") as file:
        for name, values in {"data": [1, 2, 3, 0, 5], "indices": [4, 0, 4, 2, 1]}.items():
            del file["X"][name]
            file["X"][name] = np.array(values, file["X/indptr"].dtype)
        file["X/indptr"][:] = [0, 3, 4, 5]
    (block,) = stream(open_source(path, "X"), tmp_path / "scratch")
    assert block.matrix.toarray().tolist() == [[2, 0, 0, 0, 4], [0, 0, 0, 0, 0], [0, 5, 0, 0, 0]]
    assert block.matrix.nnz == 3


def test_raw_and_layers(tmp_path: Path) -> None:
    screen = anndata.AnnData(
        scipy.sparse.csr_matrix(counts(0)), var=pd.DataFrame(index=[f"g{i}" for i in range(NUM_GENES)])
    )
    screen.raw = screen.copy()
    screen = screen[:, :4].copy()
    screen.layers["umi"] = screen.X * 2
    screen.write_h5ad(tmp_path / "s.h5ad")
    raw = open_source(tmp_path / "s.h5ad", "raw")
    assert raw.shape == (NUM_CELLS, NUM_GENES)
    assert len(raw.var) == NUM_GENES
    (block,) = stream(raw, tmp_path / "scratch")
    assert (block.matrix.toarray() == counts(0)).all()
    (layer,) = stream(open_source(tmp_path / "s.h5ad", "umi"), tmp_path / "scratch")
    assert (layer.matrix.toarray() == 2 * counts(0)[:, :4]).all()


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_compressed_files(tmp_path: Path, compression: str | None) -> None:
    path = write(tmp_path / "s.h5ad", counts(1), "csr", compression=compression)
    (block,) = stream(open_source(path, "X"), tmp_path / "scratch")
    assert (block.matrix.toarray() == counts(1)).all()
