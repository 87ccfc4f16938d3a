"""What ingest reports: kept in the store as JSON, returned to the caller, drawn by the command line.

Enters: values. Leaves: an ``IngestSummary``, to and from JSON. Invariant: the JSON holds no folder and no
time, so that the same inputs and settings give the same store, byte for byte, wherever it is written.
"""

import json
from pathlib import Path

from pydantic import Field

from txpert_dist.config import Section
from txpert_dist.ingest.columns import FilterRow
from txpert_dist.store.write import LabelRow, RowOrder


class SourceRecord(Section):
    """One input file as it was read."""

    name: str
    """Of the file, without its folder."""
    size: int
    sha256: str
    num_cells: int
    """Cells taken from it."""


class IngestSummary(Section):
    """What went into a store, and every choice a user should know of."""

    store: Path
    created: bool = True
    """False when the store was there already, made from the same inputs and settings."""
    sources: tuple[SourceRecord, ...]
    num_cells: int
    num_genes: int
    num_selected_genes: int
    num_entries: int
    """Counts that are not zero."""
    value_type: str
    """Number type of the stored counts."""
    num_perturbations: int
    """Without the control."""
    num_control_cells: int
    cell_lines: tuple[str, ...]
    num_contexts: int
    cells_per_split: dict[str, int]
    """Perturbed cells of train, validation and test."""
    perturbations_per_split: dict[str, int]
    fallback_contexts: tuple[str, ...]
    """cell_line/batch without own controls: the cell line's stand in."""
    fallback_cells: int
    filters: tuple[FilterRow, ...]
    dropped_perturbations: int
    """With fewer than min_cells cells."""
    dropped_cells: int
    """Cells of those perturbations, and cells without counts."""
    single_cell_perturbations: int
    """With fewer than two cells: no split-half reproducibility for these."""
    embeddings: dict[str, int] = Field(default_factory=dict)
    """Width of each embedding taken from obsm."""
    subgroups: dict[str, str] = Field(default_factory=dict)
    """Group that evaluation keeps apart (combo_seen1 ...), by perturbation, where the split has them."""
    row_order: RowOrder
    """Whether cells are grouped by split and shuffled, or as in the files."""
    measured_targets: int
    """Perturbed genes, of single and joint perturbations, whose expression was measured."""
    unlowered_targets: int
    """Of these, those that keep more than 70 % of their expression."""
    labels: tuple[LabelRow, ...]
    """Every label of the sources and the canonical perturbation it became."""
    notes: tuple[str, ...]
    """Anything else that was decided for the user."""

    def to_json(self) -> str:
        """As the store keeps it."""
        unused = {name for name in ("embeddings", "subgroups") if not getattr(self, name)}
        return self.model_dump_json(exclude={"store", "created", *unused})


def from_json(text: str, store: Path) -> IngestSummary:
    """The summary that the store at ``store`` keeps; ``ValueError`` when ``text`` is not one."""
    return IngestSummary.model_validate({**json.loads(text), "store": store, "created": False})
