"""Reading a cell store: labels, controls and splits resident, expression by rows.

Enters: the folder that ingest wrote. Leaves: a ``CellStore``. Invariants: nothing damaged, missing or emptied
is ever returned as data (``StoreError`` instead), and ``take`` returns rows in the order asked for.
Open the store in every process that reads it: hand over the path, not the value.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from txpert_dist.errors import StoreError
from txpert_dist.minibatch import SparseRows
from txpert_dist.store import layout, manifest
from txpert_dist.store.controls import Context, ControlIndex
from txpert_dist.store.expression import InputScale
from txpert_dist.store.splits import split_hash

_GAP = layout.CHUNK_ENTRIES
"""Entries worth reading through rather than starting another read: one compressed chunk."""


@dataclass(frozen=True, eq=False)
class CellStore:
    """One ingested screen; see ``open_store``."""

    path: Path
    manifest_hash: str
    """SHA-256 (hex) of the manifest: names the store's exact content."""
    input_scale: InputScale
    genes: tuple[str, ...]
    """Gene names in store order; the gene number is the position here."""
    selected: NDArray[np.int64]
    """Gene numbers of the selected (highly variable) genes, ascending."""
    perturbations: tuple[str, ...]
    """Names by perturbation code; the first is ``control``."""
    contexts: tuple[Context, ...]
    """(cell line, batch) by context code, sorted."""
    perturbation: NDArray[np.int32]
    """(num_cells,) perturbation codes."""
    context: NDArray[np.int32]
    """(num_cells,) context codes."""
    library_size: NDArray[np.float32]
    """(num_cells,) total counts over all measured genes, or the supplied column."""
    split: NDArray[np.uint8]
    """(num_perturbations,) split codes: positions in ``splits.SPLITS``."""
    split_hash: str
    """SHA-256 (hex) of which perturbation is in which split."""
    controls: ControlIndex
    control_mean_CG: NDArray[np.float32]
    """(C, genes) mean log1p expression of each context's controls, after fallback."""
    indptr: NDArray[np.int64] = field(repr=False)
    """(num_cells + 1,) where each cell's entries begin."""
    _value: Any = field(repr=False)
    _gene: Any = field(repr=False)

    @property
    def num_cells(self) -> int:
        """Number of cells, controls included."""
        return len(self.indptr) - 1

    def read(self, start: int, stop: int) -> SparseRows:
        """Cells ``start`` to ``stop`` (exclusive), all genes, values exactly as stored.

        Raises ``IndexError`` for a range outside the store and ``StoreError`` for damaged data.
        """
        if not 0 <= start <= stop <= self.num_cells:
            raise IndexError(f"cells {start}:{stop} of a store of {self.num_cells}")
        indptr = self.indptr[start : stop + 1]
        gene, value = self._entries(int(indptr[0]), int(indptr[-1]))
        return SparseRows(indptr - indptr[0], gene, value, self.library_size[start:stop])

    def take(self, rows: NDArray[np.int64]) -> SparseRows:
        """The cells ``rows``, in that order, repeats allowed; all genes, values exactly as stored.

        Nearby rows are fetched by one contiguous read, so sorted neighbourhoods are cheap.
        Raises ``IndexError`` for a row outside the store and ``StoreError`` for damaged data.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_cells):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a store of {self.num_cells} cells")
        plan = plan_reads(self.indptr, np.unique(rows), _GAP)
        pieces = [self._entries(start, stop) for start, stop in plan.ranges_R2.tolist()]
        gene = _concatenate([piece[0] for piece in pieces], np.int32)
        value = _concatenate([piece[1] for piece in pieces], self._value.dtype)
        length = self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
        begin = plan.begin[np.searchsorted(plan.rows, rows)]
        where = np.repeat(begin - indptr[:-1], length) + np.arange(indptr[-1])
        return SparseRows(indptr, gene[where], value[where], self.library_size[rows])

    def training_genes(self, which: Literal["selected", "all"]) -> NDArray[np.int64]:
        """Gene numbers of the training view, ascending."""
        return self.selected if which == "selected" else np.arange(len(self.genes), dtype=np.int64)

    def _entries(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.generic]]:
        gene = _read(self.path, layout.GENE, self._gene, slice(start, stop))
        value = _read(self.path, layout.VALUE, self._value, slice(start, stop))
        # A chunk that vanished after opening reads as fill values, which no stored entry has.
        if len(gene) and (gene.min() < 0 or not value.all()):
            raise StoreError(_damaged(self.path, layout.GENE if gene.min() < 0 else layout.VALUE))
        return gene, value


class ReadPlan(NamedTuple):
    """Which contiguous ranges of entries hold the wanted rows, and where each row lands."""

    rows: NDArray[np.int64]
    """Wanted rows, ascending and distinct."""
    ranges_R2: NDArray[np.int64]
    """(reads, 2) first and last (exclusive) entry of each read, ascending, disjoint."""
    begin: NDArray[np.int64]
    """(rows,) where each wanted row begins in the concatenation of all reads."""


def plan_reads(indptr: NDArray[np.int64], rows: NDArray[np.int64], gap: int) -> ReadPlan:
    """Join ascending, distinct ``rows`` into reads, bridging gaps of at most ``gap`` unwanted entries."""
    if not len(rows):
        return ReadPlan(rows, np.zeros((0, 2), np.int64), np.zeros(0, np.int64))
    start, stop = indptr[rows], indptr[rows + 1]
    first = np.concatenate([[True], start[1:] - stop[:-1] > gap])
    head = np.flatnonzero(first)
    ranges_R2 = np.stack([start[head], stop[np.append(head[1:], len(rows)) - 1]], axis=1)
    before = np.cumsum(ranges_R2[:, 1] - ranges_R2[:, 0]) - (ranges_R2[:, 1] - ranges_R2[:, 0])
    read = np.cumsum(first) - 1
    return ReadPlan(rows, ranges_R2, start - ranges_R2[read, 0] + before[read])


def open_store(path: Path) -> CellStore:
    """Open the store in ``path`` after checking that every file of its manifest is there with its size.

    Raises ``StoreError`` naming the file or array that is missing, damaged or of another version.
    """
    path = Path(path)
    listed = manifest.read(path)
    manifest.check_sizes(path, listed)
    try:
        root = zarr.open_group(str(path), mode="r")
        ours = root[layout.GROUP]
        index = str(root["var"].attrs["_index"])
    except Exception as error:  # noqa: BLE001  zarr raises many kinds for a damaged hierarchy
        raise StoreError(
            f"{path}: its Zarr metadata cannot be read ({error}); ingest the screen again"
        ) from None

    def load(name: str, group: Any = ours, prefix: str = layout.GROUP) -> NDArray[Any]:
        values: NDArray[Any] = _read(path, f"{prefix}/{name}", group[name], slice(None))
        return values

    names = load(layout.PERTURBATIONS).tolist()
    split = load(layout.SPLIT)
    lines, batches = load(layout.CELL_LINE_OF_CONTEXT).tolist(), load(layout.BATCH_OF_CONTEXT).tolist()
    return CellStore(
        path=path,
        manifest_hash=manifest.file_sha256(path / layout.MANIFEST),
        input_scale=cast(InputScale, str(_read(path, layout.INPUT_SCALE, ours[layout.INPUT_SCALE], ()))),
        genes=tuple(load(index, root["var"], "var").tolist()),
        selected=load(layout.SELECTED),
        perturbations=tuple(names),
        contexts=tuple(Context(line, batch) for line, batch in zip(lines, batches, strict=True)),
        perturbation=load(layout.PERTURBATION),
        context=load(layout.CONTEXT),
        library_size=load(layout.LIBRARY_SIZE),
        split=split,
        split_hash=split_hash(names, split),
        controls=ControlIndex(
            load(layout.CONTROL_INDPTR), load(layout.CONTROL_ROWS), load(layout.CONTROL_FALLBACK)
        ),
        control_mean_CG=load(layout.CONTROL_MEAN),
        indptr=load("indptr", root["X"], "X"),
        _value=root[layout.VALUE],
        _gene=root[layout.GENE],
    )


def read_summary(path: Path) -> str:
    """The JSON that ingest stored about itself; ``StoreError`` when it cannot be read."""
    name = f"{layout.GROUP}/{layout.SUMMARY}"
    return str(_read(path, name, zarr.open_group(str(path), mode="r")[name], ()))


def verify(path: Path, progress: Callable[[str, int, int], None] = lambda *_: None) -> None:
    """Read every file of the store; ``StoreError`` naming the first one that is not as it was written."""
    manifest.check_hashes(Path(path), manifest.read(Path(path)), progress)


def _read(path: Path, name: str, array: Any, where: Any) -> Any:
    try:
        return array[where]
    except Exception:  # noqa: BLE001  every codec raises its own kind; all of them mean damage here
        raise StoreError(_damaged(path, name)) from None


def _damaged(path: Path, name: str) -> str:
    return (
        f"{path / name}: chunks are damaged or missing; "
        f"`txpert store verify {path}` names the file; restore it or ingest again"
    )


def _concatenate(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])
