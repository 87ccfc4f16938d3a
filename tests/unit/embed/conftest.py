"""What the tests of embeddings share."""

import shutil
from pathlib import Path

import pytest

from tests.bad_inputs import good_screen
from tests.unit.embed.bad_files import embedding_table
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of ``good_screen``, alone in its folder, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("embed")
    good_screen().write_h5ad(folder / "screen.h5ad")
    path = folder / "store" / "screen.zarr"
    config = IngestConfig(
        sources=(folder / "screen.h5ad",),
        store=path,
        batch_key="batch",
        cell_line="K562",
        row_order="source",
    )
    ingest(config)
    return path


@pytest.fixture
def store(untouched: Path, tmp_path: Path) -> Path:
    """A copy of it, alone in its folder too, the h5ad above."""
    shutil.copytree(untouched.parent, tmp_path / "store")
    shutil.copy2(untouched.parent.parent / "screen.h5ad", tmp_path)
    return tmp_path / "store" / "screen.zarr"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that fits it."""
    path = tmp_path / "a.csv"
    embedding_table().to_csv(path)
    return path
