"""Writing a cell store: blocks of cells in, complete folder out.

Enters: sparse rows in store order, source tables, labels. Leaves: a folder that ``open_store`` and
``anndata.read_zarr`` open, its manifest written last. Invariants: entries leave in whole shards whatever the
size of the blocks, so memory stays bounded; every array is zstd-compressed with a CRC-32C on each chunk.
The caller writes to a temporary folder and renames it into place.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from txpert_dist.errors import StoreError
from txpert_dist.store import layout, manifest
from txpert_dist.store.controls import Context, ControlIndex
from txpert_dist.store.expression import InputScale

_CODECS = (ZstdCodec(level=1), Crc32cCodec())


class ShardSizes(NamedTuple):
    """Entries per compressed chunk, and per file (a whole number of chunks)."""

    chunk: int = layout.CHUNK_ENTRIES
    shard: int = layout.SHARD_ENTRIES


DEFAULT_SHARDS = ShardSizes()


class LabelRow(NamedTuple):
    """How one label of the source was read."""

    label: str
    perturbation: str
    num_cells: int


class Labels(NamedTuple):
    """Everything a store knows besides the expression matrix and the source's tables."""

    input_scale: InputScale
    perturbations: tuple[str, ...]
    contexts: tuple[Context, ...]
    perturbation: NDArray[np.int32]
    context: NDArray[np.int32]
    library_size: NDArray[np.float32]
    split: NDArray[np.uint8]
    selected: NDArray[np.int64]
    controls: ControlIndex
    control_mean_CG: NDArray[np.float32]
    label_rows: tuple[LabelRow, ...]
    summary: str
    """What ingest reported, as JSON."""


class StoreWriter:
    """Writes one store into a new ``folder``: ``append`` every cell in order, then ``finish``."""

    def __init__(
        self,
        folder: Path,
        *,
        num_cells: int,
        num_genes: int,
        num_entries: int,
        dtype: DTypeLike,
        shards: ShardSizes = DEFAULT_SHARDS,
    ) -> None:
        """Lay out arrays for ``num_entries`` non-zero values of type ``dtype`` in ``num_cells`` rows."""
        self._folder = folder
        self._root = zarr.open_group(str(folder), mode="w-", zarr_format=3)
        self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = self._root.create_group("X")
        shape = [num_cells, num_genes]
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        self._value = _EntryArray(self._root, layout.VALUE, num_entries, dtype, shards)
        self._gene = _EntryArray(self._root, layout.GENE, num_entries, np.int32, shards)
        self._length: list[NDArray[np.int64]] = []
        self._num_cells = num_cells

    def append(self, indptr: NDArray[np.int64], gene: NDArray[np.int32], value: NDArray[np.generic]) -> None:
        """Add cells: canonical sparse rows (genes ascending, no zeros, no repeats)."""
        self._length.append(np.diff(indptr).astype(np.int64))
        self._gene.append(gene)
        self._value.append(value)

    def finish(self, *, obs: pd.DataFrame, var: pd.DataFrame, labels: Labels, fingerprint: str) -> None:
        """Write tables, labels and, last, the manifest. Raises ``StoreError`` when cells are missing."""
        lengths = np.concatenate([np.zeros(0, np.int64), *self._length])
        if len(lengths) != self._num_cells or len(obs) != self._num_cells:
            raise StoreError(
                f"{self._folder}: {len(lengths)} cells and {len(obs)} rows of obs written, "
                f"{self._num_cells} announced; the source changed while it was read, start again"
            )
        self._gene.close()
        self._value.close()
        _element(self._root["X"], "indptr", np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
        _element(self._root, "obs", obs)
        _element(self._root, "var", var)
        _element(self._root, "uns", {"txpert": _tree(labels)})
        with warnings.catch_warnings():
            # Consolidated metadata spares one request an array; Zarr v3 readers without it ignore it.
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(str(self._folder))
        manifest.write(self._folder, fingerprint)


class _EntryArray:
    """One sharded array filled from front to back, a whole shard at a time."""

    def __init__(self, root: Any, name: str, size: int, dtype: DTypeLike, shards: ShardSizes) -> None:
        self._array = root.create_array(
            name,
            shape=(size,),
            dtype=np.dtype(dtype),
            chunks=(shards.chunk,),
            shards=(shards.shard,),
            compressors=_CODECS,
            fill_value=np.dtype(dtype).type(layout.GENE_FILL if name == layout.GENE else 0),
            config={"write_empty_chunks": True},
        )
        self._array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        self._shard = shards.shard
        self._pending: list[NDArray[Any]] = []
        self._num_pending = 0
        self._written = 0

    def append(self, entries: NDArray[Any]) -> None:
        self._pending.append(entries.astype(self._array.dtype, copy=False))
        self._num_pending += len(entries)
        whole = self._num_pending - self._num_pending % self._shard
        if whole:
            self._write(whole)

    def close(self) -> None:
        self._write(self._num_pending)
        if self._written != self._array.shape[0]:
            raise StoreError(
                f"{self._array.name}: {self._written} entries written, {self._array.shape[0]} announced; "
                "the source changed while it was read, start again"
            )

    def _write(self, count: int) -> None:
        if not count:
            return
        entries = np.concatenate(self._pending)
        self._array[self._written : self._written + count] = entries[:count]
        self._pending = [entries[count:].copy()]
        self._num_pending -= count
        self._written += count


def _tree(labels: Labels) -> dict[str, Any]:
    rows = labels.label_rows
    return {
        layout.VERSION_KEY: layout.VERSION,
        layout.INPUT_SCALE: labels.input_scale,
        layout.PERTURBATION: labels.perturbation,
        layout.CONTEXT: labels.context,
        layout.LIBRARY_SIZE: labels.library_size,
        layout.PERTURBATIONS: np.array(labels.perturbations, object),
        layout.SPLIT: labels.split,
        layout.CELL_LINE_OF_CONTEXT: np.array([c.cell_line for c in labels.contexts], object),
        layout.BATCH_OF_CONTEXT: np.array([c.batch for c in labels.contexts], object),
        layout.SELECTED: labels.selected,
        layout.CONTROL_INDPTR: labels.controls.indptr,
        layout.CONTROL_ROWS: labels.controls.rows,
        layout.CONTROL_FALLBACK: labels.controls.fallback,
        layout.CONTROL_MEAN: labels.control_mean_CG,
        layout.LABELS: {
            "label": np.array([r.label for r in rows], object),
            "perturbation": np.array([r.perturbation for r in rows], object),
            "num_cells": np.array([r.num_cells for r in rows], np.int64),
        },
        layout.SUMMARY: labels.summary,
    }


def _element(group: Any, name: str, value: Any) -> None:
    with anndata.settings.override(auto_shard_zarr_v3=False, zarr_write_format=3):
        write_elem(group, name, value, dataset_kwargs={"compressors": _CODECS})
