"""What the ingest tests share."""

from collections.abc import Callable
from pathlib import Path

import anndata
import pytest

from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import CellStore, open_store


@pytest.fixture(scope="session")
def run() -> Callable[..., CellStore]:
    """run(folder, *screens, **settings): write the screens into folder, ingest them, open the store."""

    def run(folder: Path, *screens: anndata.AnnData, **settings: object) -> CellStore:
        folder.mkdir(exist_ok=True)
        paths = []
        for number, screen in enumerate(screens):
            paths.append(folder / f"file{number}.h5ad")
            screen.write_h5ad(paths[-1])
        store = folder / "screen.zarr"
        ingest(IngestConfig(sources=tuple(paths), store=store, **settings))
        return open_store(store)

    return run
