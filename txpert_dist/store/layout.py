"""What a cell store is made of: names, chunk sizes and version, shared by writer and reader.

A store is a Zarr v3 group that is a valid AnnData store (X in compressed sparse rows, obs, var, embeddings of
the cells in obsm), with our own arrays under ``uns/txpert`` and ``manifest.json`` beside the root metadata.
Invariants the reader relies on:

- stored values are never zero, gene numbers never negative and embeddings always finite, so a chunk that zarr
  would fill in is seen;
- genes ascend within a cell; ``source_row`` says where each row was in the source;
- the cells of one split are one contiguous range of rows, shuffled (``row_order`` is ``split``), unless the
  source's order was asked for; of a store that cells were appended to, this holds for what was ingested first
  and for each part that was appended, which follow one another;
- every file is listed in the manifest with its size and SHA-256; the manifest is written last.

Sharded arrays (``X/data``, ``X/indices``, embeddings) have one codec chain, ``COMPRESSOR`` then CRC-32C, on
chunks of ``CHUNK_ENTRIES``. A shard file is its chunks one after the other and, at the end, the index: an
(offset, size) pair of little-endian uint64 for each chunk, and the CRC-32C of these pairs. The last chunk is
filled up with the fill value; chunks that lie wholly behind the array's end are marked as absent
(``ABSENT``, twice).
"""

import re

FORMAT = "txpert-dist cell store"
VERSION = 2

MANIFEST = "manifest.json"

SOURCES = "sources.json"
"""Where the input files lay and when they were written: spares hashing them again. Not in the manifest, so
that the same content has the same manifest on every machine."""

REMOTE = "remote.json"
"""In a view of a store that lies elsewhere: its URL. Not in the manifest."""

VALUE = "X/data"
"""(entries,) the smallest unsigned integer type that holds the counts, or float32 for log1p input."""
GENE = "X/indices"
"""(entries,) int32 gene number; the fill value is -1, which no entry has."""
INDPTR = "X/indptr"
"""(cells + 1,) int64."""
GENE_FILL = -1

CHUNK_ENTRIES = 65_536
"""Entries that are compressed together: about 128 KiB of counts and gene numbers."""
SHARD_ENTRIES = 64 * CHUNK_ENTRIES
"""Entries of one file: 4,194,304, so that a screen of a billion entries has some 240 files an array."""

COMPRESSOR = ("lz4", 5, "shuffle")
"""Blosc's inner codec, level and filter, over items of the array's own size. Measured on one core, counts and
gene numbers of 65,536 entries, million entries a second decoded, encoded, and bytes an entry: lz4 with
shuffle 1,800 and 1,350, 270 and 320, 0.81 and 0.94; zstd level 1 400 and 290, 150 and 80, 0.61 and 1.1."""
ABSENT = (1 << 64) - 1
"""Offset and size, in a shard's index, of a chunk that is not there."""

OBSM = "obsm"
"""Embeddings of the cells by name: (cells, width) float32, filled with NaN, which no entry is."""
EMBEDDING_NAME = re.compile(r"(?!zarr\.json$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Names that an embedding may have: one harmless path component, apart from the group's own metadata."""
EMBEDDING_CHUNK_VALUES = 65_536
"""Values of an embedding that are compressed together: 256 KiB, so that picked cells cost little reading."""
EMBEDDING_CHUNKS_PER_SHARD = 64
"""Chunks of one file: 16 MiB."""
ORIGIN = "origin"
"""Attribute of an embedding: how it was made, as JSON."""

OBS_LIBRARY_SIZE = "txpert_library_size"
"""obs column, for people: the library size of each cell."""
OBS_DETECTED_GENES = "txpert_detected_genes"
"""obs column: genes with a count, of all genes of the cell's file."""

GROUP = "uns/txpert"
"""Where our own arrays live; the names below are relative to it."""
VERSION_KEY = "version"
INPUT_SCALE = "input_scale"
"""``counts`` or ``log1p``."""
PERTURBATION = "perturbation"
"""(cells,) int32 perturbation code."""
CONTEXT = "context"
"""(cells,) int32 context code."""
LIBRARY_SIZE = "library_size"
"""(cells,) float32."""
PERTURBATIONS = "perturbations"
"""(perturbations,) names; the first is ``control``."""
SPLIT = "split"
"""(perturbations,) uint8 position in ``splits.SPLITS``."""
CELL_LINE_OF_CONTEXT = "context_cell_line"
BATCH_OF_CONTEXT = "context_batch"
SELECTED = "selected"
"""(selected genes,) int64 gene numbers, ascending."""
CONTROL_INDPTR = "control_indptr"
CONTROL_ROWS = "control_rows"
CONTROL_FALLBACK = "control_fallback"
CONTROL_MEAN = "control_mean"
"""(contexts, genes) float32 mean log1p expression of each context's controls."""
SOURCE_ROW = "source_row"
"""(cells,) int64 position of each row among the kept cells of all sources, in file order: a permutation.
Files appended later come after those before them."""
ROW_ORDER = "row_order"
"""``split``: train, validation, test, then control cells, each shuffled, part by part; ``source``: as in the
files."""
KNOCKDOWN = "knockdown"
"""Table of perturbation, target gene, cells, log ratio against the controls of their batches and share of
expression left (five arrays of one length); a target that was not measured is not in it."""
LABELS = "labels"
"""Table of source label -> canonical perturbation -> number of cells (three arrays of one length)."""
SUMMARY = "summary"
"""What ingest reported, as JSON."""
