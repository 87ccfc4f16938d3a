"""Writing a cell store: blocks of cells in, complete folder out.

Enters: sparse rows and embeddings in store order, source tables, labels. Leaves: a folder that ``open_store``
and ``anndata.read_zarr`` open, its manifest written last. Invariants: entries leave in whole shards whatever
the size of the blocks, so memory stays bounded; every array is compressed with a CRC-32C on each chunk.
The caller writes to a temporary folder and renames it into place. zarr writes metadata and small arrays; the
shards of the big ones are written by ``shard_file``.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anndata
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from txpert_dist.errors import InputError, StoreError
from txpert_dist.store import layout, manifest
from txpert_dist.store.appended import AppendedArray
from txpert_dist.store.controls import Context, ControlIndex
from txpert_dist.store.expression import InputScale
from txpert_dist.store.shard_file import DEFAULT_SHARDS, FileHash, ShardSizes

_CODECS = (ZstdCodec(level=1), Crc32cCodec())
"""Of small arrays."""


RowOrder = Literal["split", "source"]
"""Cells grouped by split and shuffled (controls last), or as the sources have them."""


class LabelRow(NamedTuple):
    """How one label of the source was read."""

    label: str
    perturbation: str
    num_cells: int


class KnockdownRow(NamedTuple):
    """How much of a target gene's expression its perturbation left."""

    perturbation: str
    gene: str
    num_cells: int
    log_ratio: float
    """Mean over cells of log1p expression less the mean of the controls of the cell's batch."""
    share_left: float
    """Mean normalised count over that of the controls of the same batches; NaN where they have none."""


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
    source_row: NDArray[np.int64]
    """(cells,) position of each row among the kept cells of all sources."""
    row_order: RowOrder
    knockdown_rows: tuple[KnockdownRow, ...]
    summary: str
    """What ingest reported, as JSON."""


class ShardFiles(NamedTuple):
    """A shard of counts and the shard of their gene numbers, written already."""

    value: Path
    value_hash: FileHash
    gene: Path
    gene_hash: FileHash


class StoreWriter:
    """Writes a store into a new ``folder``: ``adopt`` shards, ``append`` cells in order; then ``finish``."""

    def __init__(
        self,
        folder: Path,
        *,
        num_cells: int,
        num_genes: int,
        num_entries: int,
        dtype: DTypeLike,
        gene_dtype: DTypeLike = np.int32,
        shards: ShardSizes = DEFAULT_SHARDS,
    ) -> None:
        """Lay out arrays for ``num_entries`` non-zero values of type ``dtype`` in ``num_cells`` rows."""
        self._folder = folder
        self._root = zarr.open_group(str(folder), mode="w-", zarr_format=3)
        self._root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = self._root.create_group("X")
        shape = [num_cells, num_genes]
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        self._value = _sharded(self._root, folder, layout.VALUE, (num_entries,), dtype, shards, 0)
        self._gene = _sharded(
            self._root, folder, layout.GENE, (num_entries,), gene_dtype, shards, layout.GENE_FILL
        )
        self._length: list[NDArray[np.int64]] = []
        self._num_cells = num_cells
        self._hashes: dict[Path, FileHash] = {}

    def append(self, indptr: NDArray[np.int64], gene: NDArray[np.int32], value: NDArray[np.generic]) -> None:
        """Add cells: canonical sparse rows (genes ascending, no zeros, no repeats)."""
        self._length.append(np.diff(indptr).astype(np.int64))
        self._gene.append(gene)
        self._value.append(value)

    def adopt(self, lengths: NDArray[np.int64], files: Sequence[ShardFiles]) -> None:
        """The entries of the first cells, ``lengths`` of each, as shards that are linked (else copied)."""
        self._length.append(lengths)
        self._value.adopt([(shard.value, shard.value_hash) for shard in files])
        self._gene.adopt([(shard.gene, shard.gene_hash) for shard in files])

    def write_embedding(
        self,
        name: str,
        width: int,
        blocks: Iterable[NDArray[np.float32]],
        *,
        origin: Mapping[str, Any],
        adopted: Sequence[tuple[Path, FileHash]] = (),
    ) -> None:
        """Write the embedding ``name``: ``blocks`` of (rows, ``width``) finite values, all cells in order.

        ``origin`` says how it was made, in JSON values; of the first cells, ``adopted`` are whole shards that
        are written already. Raises ``StoreError`` when cells are missing.
        """
        shape = (self._num_cells, width)
        self._hashes |= _embedding(self._root, self._folder, name, shape, blocks, origin, adopted)

    def finish(
        self,
        *,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        labels: Labels,
        fingerprint: str,
        appended_to: Sequence[str] = (),
    ) -> None:
        """Write tables, labels and, last, the manifest. Raises ``StoreError`` when cells are missing.

        ``appended_to``: see ``Manifest``.
        """
        lengths = np.concatenate([np.zeros(0, np.int64), *self._length])
        if len(lengths) != self._num_cells or len(obs) != self._num_cells:
            raise StoreError(
                f"{self._folder}: {len(lengths)} cells and {len(obs)} rows of obs written, "
                f"{self._num_cells} announced; the source changed while it was read, start again"
            )
        for array in (self._gene, self._value):
            array.close()
            self._hashes |= array.files
        _element(self._root["X"], "indptr", np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
        _element(self._root, "obs", obs)
        _element(self._root, "var", var)
        _element(self._root, "uns", {"txpert": _tree(labels)})
        _consolidate(self._folder)
        manifest.write(self._folder, fingerprint, known=self._hashes, appended_to=appended_to)


def check_embedding_name(name: str) -> None:
    """``InputError`` unless an embedding may be called ``name``."""
    if not layout.EMBEDDING_NAME.fullmatch(name):
        raise InputError(
            f"embedding {name!r}: a name is letters, digits, '.', '_' and '-', for instance X_pca; rename it"
        )


def embedding_shards(width: int) -> ShardSizes:
    """How the rows of an embedding are cut."""
    chunk = max(1, layout.EMBEDDING_CHUNK_VALUES // width)
    return ShardSizes(chunk, chunk * layout.EMBEDDING_CHUNKS_PER_SHARD)


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
    _embedding(root, folder, name, (num_cells, width), blocks, origin)
    _consolidate(folder)
    own = f"{layout.OBSM}/{name}"
    metadata = (folder / "zarr.json", folder / layout.OBSM / "zarr.json")
    written = [*metadata, *(path for path in (folder / own).rglob("*") if path.is_file())]
    manifest.amend(folder, before, written, replaced=own)


def _embedding(
    root: Any,
    folder: Path,
    name: str,
    shape: tuple[int, int],
    blocks: Iterable[NDArray[np.float32]],
    origin: Mapping[str, Any],
    adopted: Sequence[tuple[Path, FileHash]] = (),
) -> dict[Path, FileHash]:
    check_embedding_name(name)
    group = root.require_group(layout.OBSM)
    if "encoding-type" not in group.attrs:
        group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    shards = embedding_shards(shape[1])
    appended = _sharded(root, folder, f"{layout.OBSM}/{name}", shape, np.float32, shards, np.nan)
    group[name].attrs[layout.ORIGIN] = dict(origin)
    appended.adopt(adopted)
    for block_RN in blocks:
        if not np.isfinite(block_RN).all():
            raise StoreError(f"embedding {name}: a value is not finite; repair or recompute it")
        appended.append(block_RN)
    appended.close()
    return appended.files


def _sharded(
    root: Any,
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    shards: ShardSizes,
    fill: float,
) -> AppendedArray:
    """Write the metadata of an array, for its shards to be filled in."""
    inner, level, shuffle = layout.COMPRESSOR
    size = np.dtype(dtype).itemsize
    array = root.create_array(
        name,
        shape=shape,
        dtype=np.dtype(dtype),
        chunks=(shards.chunk, *shape[1:]),
        shards=(shards.shard, *shape[1:]),
        compressors=(BloscCodec(cname=inner, clevel=level, shuffle=shuffle, typesize=size), Crc32cCodec()),
        fill_value=np.array(fill, dtype)[()],
        config={"write_empty_chunks": True},
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return AppendedArray(folder / name, shape, dtype, shards, fill)


def _consolidate(folder: Path) -> None:
    with warnings.catch_warnings():
        # Consolidated metadata spares one request an array; Zarr v3 readers without it ignore it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        # Files beside the hierarchy: the manifest, and what users put there.
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        zarr.consolidate_metadata(str(folder))


def _tree(labels: Labels) -> dict[str, Any]:
    rows, knockdown = labels.label_rows, labels.knockdown_rows
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
        layout.SOURCE_ROW: labels.source_row,
        layout.ROW_ORDER: labels.row_order,
        layout.KNOCKDOWN: {
            "perturbation": np.array([r.perturbation for r in knockdown], object),
            "gene": np.array([r.gene for r in knockdown], object),
            "num_cells": np.array([r.num_cells for r in knockdown], np.int64),
            "log_ratio": np.array([r.log_ratio for r in knockdown], np.float32),
            "share_left": np.array([r.share_left for r in knockdown], np.float32),
        },
        layout.LABELS: {
            "label": np.array([r.label for r in rows], object),
            "perturbation": np.array([r.perturbation for r in rows], object),
            "num_cells": np.array([r.num_cells for r in rows], np.int64),
        },
        layout.SUMMARY: labels.summary,
    }


def _element(group: Any, name: str, value: Any) -> None:
    with warnings.catch_warnings():
        # Small arrays are not to be sharded, whatever anndata's default will be.
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        with anndata.settings.override(auto_shard_zarr_v3=False, zarr_write_format=3):
            write_elem(group, name, value, dataset_kwargs={"compressors": _CODECS})
