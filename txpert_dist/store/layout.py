"""What a cell store is made of: names, chunk sizes and version, shared by writer and reader.

A store is a Zarr v3 group that is a valid AnnData store (X in compressed sparse rows, obs, var, embeddings of
the cells in obsm), with our own arrays under ``uns/txpert`` and ``manifest.json`` beside the root metadata.
Invariants the reader relies on:

- stored values are never zero, gene numbers never negative and embeddings always finite, so a chunk that zarr
  would fill in is seen;
- genes ascend within a cell; rows keep the order of the source;
- every file is listed in the manifest with its size and SHA-256; the manifest is written last.
"""

import re

FORMAT = "txpert-dist cell store"
VERSION = 1

MANIFEST = "manifest.json"

SOURCES = "sources.json"
"""Where the input files lay and when they were written: spares hashing them again. Not in the manifest, so
that the same content has the same manifest on every machine."""

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
LABELS = "labels"
"""Table of source label -> canonical perturbation -> number of cells (three arrays of one length)."""
SUMMARY = "summary"
"""What ingest reported, as JSON."""
