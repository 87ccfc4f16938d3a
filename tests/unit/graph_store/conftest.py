import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_file():
    """Path of a file of the shared data folder; skips, naming the file, when it is absent."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("TXPERT_SHARED_DATA", "../shared/data")).absolute() / name
        if not path.exists():
            pytest.skip(f"{name} is not in TXPERT_SHARED_DATA")
        return path

    return find
