"""The expression of cells that follow those of a store: new shards behind the full ones.

Enters: what was found in the files, and the store. Leaves: ``Expression`` in terms of all cells. Invariants:
full shards of the store are neither read nor written; the last one, if it is not full, is written anew as the
first of the new ones, with the same entries at its beginning.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from txpert_dist.errors import InputError
from txpert_dist.ingest.buckets import entries_of_rows
from txpert_dist.ingest.carried import carry, knockdown_of_all
from txpert_dist.ingest.cells import readable_cells
from txpert_dist.ingest.expression import measure_cells, write_entries
from txpert_dist.ingest.order import inverse
from txpert_dist.ingest.results import new_result, save
from txpert_dist.ingest.stored import Stored
from txpert_dist.ingest.work import Expression, Found, Work
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import CellStore
from txpert_dist.store.shard_file import FileHash, ShardSizes, shard_file
from txpert_dist.store.write import ShardFiles


class _Tail(NamedTuple):
    """The entries behind the last full shard, as a bucket of the rows that hold them."""

    buckets: tuple[Path, ...]
    """One, or none."""
    num_rows: int


def shard_sizes(cells: CellStore) -> ShardSizes:
    """How the entries of ``cells`` are cut."""
    form = cells.matrix.value.form
    return ShardSizes(form.chunk, form.chunk * form.chunks_per_shard)


def num_full_shards(cells: CellStore) -> int:
    """Shards of its entries that no more fit into."""
    return int(cells.matrix.indptr[-1]) // shard_sizes(cells).shard


def follow_expression(work: Work, found: Found, before: Stored) -> Expression:
    """Check and measure the cells of ``found`` and write them behind those of the store ``before``.

    Raises ``InputError`` for the first bad value, or one that the store's type of values does not hold.
    """
    screen, matrix = found.screen, before.cells.matrix
    cells = readable_cells(found.sources, screen.rows, found.genes, work.config, work.scratch)
    tail = _tail(work, before.cells)
    destination = tail.num_rows + inverse(found.source_row)
    carried = carry(before, screen)
    statistics, buckets = measure_cells(work, cells, screen, destination, carried)
    buckets = (*tail.buckets, *buckets)
    indptr = entries_of_rows(buckets, tail.num_rows + screen.num_cells)
    if indptr[-1] == indptr[tail.num_rows]:
        raise InputError(f"{work.config.sources[0]}: no count in any of the store's {matrix.num_genes} genes")
    gene_dtype = matrix.gene.form.dtype
    shards = write_entries(work, buckets, indptr, carried.value_type, gene_dtype)
    lengths = np.diff(indptr[tail.num_rows :])
    return Expression(
        statistics=statistics,
        dtype=carried.value_type,
        gene_dtype=gene_dtype,
        selected=before.cells.selected,
        knockdown=knockdown_of_all(before, screen, statistics),
        indptr=np.concatenate([matrix.indptr, matrix.indptr[-1] + np.cumsum(lengths)]),
        shards=(*_full_shards(before.cells), *shards),
    )


def whole_shards(cells: CellStore, name: str, count: int, dimensions: int) -> list[tuple[Path, FileHash]]:
    """The first ``count`` files of the array ``name`` of a store, as its manifest has them."""
    listed = {record.path: FileHash(record.size, record.sha256) for record in manifest.read(cells.path).files}
    files = [shard_file(Path(name), number, dimensions) for number in range(count)]
    return [(cells.path / file, listed[file.as_posix()]) for file in files]


def _full_shards(cells: CellStore) -> tuple[ShardFiles, ...]:
    count = num_full_shards(cells)
    values, genes = (whole_shards(cells, name, count, 1) for name in (layout.VALUE, layout.GENE))
    return tuple(ShardFiles(*value, *gene) for value, gene in zip(values, genes, strict=True))


def _tail(work: Work, cells: CellStore) -> _Tail:
    indptr, size = cells.matrix.indptr, shard_sizes(cells).shard
    total = int(indptr[-1])
    start = total - total % size
    if start == total:
        return _Tail((), 0)
    first = int(np.searchsorted(indptr, start, side="right")) - 1
    begin, entries = np.maximum(indptr[first:], start) - start, np.arange(start, total)
    arrays = {
        "row": np.arange(len(begin) - 1),
        "indptr": begin,
        "gene": cells.matrix.gene.take(entries),
        "value": cells.matrix.value.take(entries),
    }
    with new_result(work.folder / "tail") as folder:
        save(folder, arrays)
    return _Tail((work.folder / "tail",), len(begin) - 1)
