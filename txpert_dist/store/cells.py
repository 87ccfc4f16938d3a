"""Reading a cell store: labels, controls and splits resident, expression by rows.

Enters: the folder that ingest wrote. Leaves: a ``CellStore``. Invariants: nothing damaged, missing or emptied
is ever returned as data (``StoreError`` instead), and ``take`` returns rows in the order asked for.
Open the store in every process that reads it: hand over the path, not the value.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from txpert_dist.errors import StoreError
from txpert_dist.minibatch import SparseRows
from txpert_dist.store import layout, manifest
from txpert_dist.store.controls import Context, ControlIndex
from txpert_dist.store.expression import InputScale
from txpert_dist.store.reads import plan_reads
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
    embeddings: dict[str, int]
    """Width of each embedding of the cells, by name."""
    indptr: NDArray[np.int64] = field(repr=False)
    """(num_cells + 1,) where each cell's entries begin."""
    _value: Any = field(repr=False)
    _gene: Any = field(repr=False)
    _embedding: dict[str, Any] = field(repr=False)

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
        rows = self._checked(rows)
        plan = plan_reads(self.indptr, np.unique(rows), _GAP)
        pieces = [self._entries(start, stop) for start, stop in plan.ranges_R2.tolist()]
        gene = _concatenate([piece[0] for piece in pieces], np.int32)
        value = _concatenate([piece[1] for piece in pieces], self._value.dtype)
        length = self.indptr[rows + 1] - self.indptr[rows]
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
        begin = plan.begin[np.searchsorted(plan.rows, rows)]
        where = np.repeat(begin - indptr[:-1], length) + np.arange(indptr[-1])
        return SparseRows(indptr, gene[where], value[where], self.library_size[rows])

    def take_embedding(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(R, width) the embedding ``name`` of the cells ``rows``, in that order, repeats allowed.

        Reads the chunks that hold these rows and no other. Raises ``IndexError`` for a row outside the store
        and ``StoreError`` for an embedding that the store does not have and for damaged data.
        """
        array = self._embedding_array(name)
        rows = self._checked(rows)
        values_RN: NDArray[np.float32] = _read(self.path, f"{layout.OBSM}/{name}", array.oindex, rows)
        # A chunk that vanished after opening reads as NaN, which no stored value is.
        if not np.isfinite(values_RN).all():
            raise StoreError(_damaged(self.path, f"{layout.OBSM}/{name}"))
        return values_RN

    def embedding_origin(self, name: str) -> dict[str, Any]:
        """How the embedding ``name`` was made, as its writer noted it."""
        return dict(self._embedding_array(name).attrs.get(layout.ORIGIN, {}))

    def training_genes(self, which: Literal["selected", "all"]) -> NDArray[np.int64]:
        """Gene numbers of the training view, ascending."""
        return self.selected if which == "selected" else np.arange(len(self.genes), dtype=np.int64)

    def _checked(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_cells):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a store of {self.num_cells} cells")
        return rows

    def _embedding_array(self, name: str) -> Any:
        if name not in self._embedding:
            there = ", ".join(self.embeddings) or "none"
            raise StoreError(
                f"{self.path}: no embedding {name!r}, there is {there}; add it with txpert embed, or ingest "
                "with --embedding"
            )
        return self._embedding[name]

    def _entries(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.generic]]:
        gene = _read(self.path, layout.GENE, self._gene, slice(start, stop))
        value = _read(self.path, layout.VALUE, self._value, slice(start, stop))
        # A chunk that vanished after opening reads as fill values, which no stored entry has.
        if len(gene) and (gene.min() < 0 or not value.all()):
            raise StoreError(_damaged(self.path, layout.GENE if gene.min() < 0 else layout.VALUE))
        return gene, value


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
        embedding = dict(sorted(root[layout.OBSM].arrays())) if layout.OBSM in root else {}
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
        embeddings={name: int(array.shape[1]) for name, array in embedding.items()},
        indptr=load("indptr", root["X"], "X"),
        _value=root[layout.VALUE],
        _gene=root[layout.GENE],
        _embedding=embedding,
    )


def read_summary(path: Path) -> str:
    """The JSON that ingest stored about itself; ``StoreError`` when it cannot be read."""
    name = f"{layout.GROUP}/{layout.SUMMARY}"
    return str(_read(path, name, zarr.open_group(str(path), mode="r")[name], ()))


def cell_names(path: Path) -> NDArray[np.object_]:
    """(num_cells,) the cells' names (obs index); ``StoreError`` when they cannot be read."""
    obs = zarr.open_group(str(path), mode="r")["obs"]
    index = str(obs.attrs["_index"])
    return np.asarray(_read(path, f"obs/{index}", obs[index], slice(None)), object)


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
