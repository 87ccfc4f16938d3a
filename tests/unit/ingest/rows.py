"""Where the cells of the files are in a store."""

import numpy as np
import zarr
from numpy.typing import NDArray

from txpert_dist.store.cells import CellStore


def source_row(store: CellStore) -> NDArray[np.int64]:
    """For each row of the store, the position of its cell among the kept cells of the files."""
    return zarr.open_group(str(store.path), mode="r")["uns/txpert/source_row"][:]


def in_source_order(store: CellStore) -> NDArray[np.int64]:
    """The store's rows in the order of the files."""
    return np.argsort(source_row(store))
