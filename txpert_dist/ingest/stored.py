"""A store that is there already, as what makes another one of it needs it.

Enters: an open store. Leaves: its labels and what ingest noted in it. Invariant: nothing damaged is taken for
what was written.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import StoreError
from txpert_dist.ingest.summary import IngestSummary, from_json
from txpert_dist.store import layout
from txpert_dist.store.cells import CellStore, read_summary
from txpert_dist.store.tables import read_element
from txpert_dist.store.write import KnockdownRow, LabelRow


class Stored(NamedTuple):
    """A store and its ingest."""

    cells: CellStore
    summary: IngestSummary
    source_row: NDArray[np.int64]
    label_rows: tuple[LabelRow, ...]
    knockdown: tuple[KnockdownRow, ...]


def open_stored(cells: CellStore) -> Stored:
    """Read what ingest noted in the store ``cells``; ``StoreError`` when that is damaged."""
    path = cells.path
    try:
        summary = from_json(read_summary(path), path)
    except ValueError:
        raise StoreError(f"{path}: its summary cannot be read; ingest the screen again") from None
    table = read_element(path, f"{layout.GROUP}/{layout.LABELS}")
    labels = zip(table["label"], table["perturbation"], table["num_cells"].tolist(), strict=True)
    told = read_element(path, f"{layout.GROUP}/{layout.KNOCKDOWN}")
    columns = (told[name].tolist() for name in KnockdownRow._fields)
    source_row = np.asarray(read_element(path, f"{layout.GROUP}/{layout.SOURCE_ROW}"), np.int64)
    return Stored(
        cells,
        summary,
        source_row,
        tuple(LabelRow(str(label), str(name), number) for label, name, number in labels),
        tuple(KnockdownRow(*row) for row in zip(*columns, strict=True)),
    )
