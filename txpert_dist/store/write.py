"""Writing a cell store: blocks of cells in, complete folder out.

Enters: sparse rows and embeddings in store order, source tables, labels. Leaves: a folder that ``open_store``
and ``anndata.read_zarr`` open, its manifest written last. Invariants: entries leave in whole shards whatever
the size of the blocks, so memory stays bounded; every array is zstd-compressed with a CRC-32C on each chunk.
The caller writes to a temporary folder and renames it into place.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from txpert_dist.errors import InputError, StoreError
from txpert_dist.store import layout, manifest
from txpert_dist.store.appended import AppendedArray
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
        entries = (num_entries,)
        value = _sharded(self._root, layout.VALUE, entries, dtype, shards, 0)
        gene = _sharded(self._root, layout.GENE, entries, np.int32, shards, layout.GENE_FILL)
        self._value, self._gene = AppendedArray(value, shards.shard), AppendedArray(gene, shards.shard)
        self._length: list[NDArray[np.int64]] = []
        self._num_cells = num_cells

    def append(self, indptr: NDArray[np.int64], gene: NDArray[np.int32], value: NDArray[np.generic]) -> None:
        """Add cells: canonical sparse rows (genes ascending, no zeros, no repeats)."""
        self._length.append(np.diff(indptr).astype(np.int64))
        self._gene.append(gene)
        self._value.append(value)

    def write_embedding(
        self, name: str, width: int, blocks: Iterable[NDArray[np.float32]], *, origin: Mapping[str, Any]
    ) -> None:
        """Write the embedding ``name``: ``blocks`` of (rows, ``width``) finite values, all cells in order.

        ``origin`` says how it was made, in JSON values. Raises ``StoreError`` when cells are missing.
        """
        _embedding(self._root, name, (self._num_cells, width), blocks, origin)

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
        _consolidate(self._folder)
        manifest.write(self._folder, fingerprint)


def check_embedding_name(name: str) -> None:
    """``InputError`` unless an embedding may be called ``name``."""
    if not layout.EMBEDDING_NAME.fullmatch(name):
        raise InputError(
            f"embedding {name!r}: a name is letters, digits, '.', '_' and '-', for instance X_pca; rename it"
        )


def add_embedding(
    folder: Path,
    name: str,
    width: int,
    blocks: Iterable[NDArray[np.float32]],
    *,
    origin: Mapping[str, Any],
    before: manifest.Manifest,
) -> None:
    """Write one more embedding into the store in ``folder``, which nobody else may be reading or writing.

    ``blocks`` are all cells in store order, ``before`` is the manifest as it was; its records of files that
    stay are kept, so that nothing damaged is ever listed as whole.
    """
    root = zarr.open_group(str(folder), mode="r+", use_consolidated=False)
    num_cells = int(root[layout.INDPTR].shape[0]) - 1
    _embedding(root, name, (num_cells, width), blocks, origin)
    _consolidate(folder)
    own = f"{layout.OBSM}/{name}"
    metadata = (folder / "zarr.json", folder / layout.OBSM / "zarr.json")
    written = [*metadata, *(path for path in (folder / own).rglob("*") if path.is_file())]
    manifest.amend(folder, before, written, replaced=own)


def _embedding(
    root: Any,
    name: str,
    shape: tuple[int, int],
    blocks: Iterable[NDArray[np.float32]],
    origin: Mapping[str, Any],
) -> None:
    check_embedding_name(name)
    group = root.require_group(layout.OBSM)
    if "encoding-type" not in group.attrs:
        group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    chunk = max(1, layout.EMBEDDING_CHUNK_VALUES // shape[1])
    shards = ShardSizes(chunk, chunk * layout.EMBEDDING_CHUNKS_PER_SHARD)
    rows = _sharded(group, name, shape, np.float32, shards, np.nan)
    rows.attrs[layout.ORIGIN] = dict(origin)
    appended = AppendedArray(rows, shards.shard)
    for block_RN in blocks:
        if not np.isfinite(block_RN).all():
            raise StoreError(f"embedding {name}: a value is not finite; repair or recompute it")
        appended.append(block_RN)
    appended.close()


def _sharded(
    group: Any, name: str, shape: tuple[int, ...], dtype: DTypeLike, shards: ShardSizes, fill: float
) -> Any:
    array = group.create_array(
        name,
        shape=shape,
        dtype=np.dtype(dtype),
        chunks=(shards.chunk, *shape[1:]),
        shards=(shards.shard, *shape[1:]),
        compressors=_CODECS,
        fill_value=np.array(fill, dtype)[()],
        config={"write_empty_chunks": True},
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _consolidate(folder: Path) -> None:
    with warnings.catch_warnings():
        # Consolidated metadata spares one request an array; Zarr v3 readers without it ignore it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        # Files beside the hierarchy: the manifest, and what users put there.
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        zarr.consolidate_metadata(str(folder))


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
