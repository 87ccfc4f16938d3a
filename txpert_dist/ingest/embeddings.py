"""Embeddings of the cells that h5ad files hold in obsm, or a store.

Enters: files and keys. Leaves: blocks of float32 rows, in order. Invariants: memory is bounded by the block
size for every layout; every value is finite; an embedding has one width in all files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.containers import kind_of, opened
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.matrix import stream
from txpert_dist.ingest.source import Source, matrix_layout, read_table
from txpert_dist.ingest.statistics import Progress
from txpert_dist.store.cells import CellStore
from txpert_dist.store.write import check_embedding_name

_BLOCK_VALUES = 1 << 22
"""Values of an embedding that are held at once."""


class EmbeddingSources(NamedTuple):
    """One embedding, as the files hold it."""

    name: str
    width: int
    parts: tuple[Source, ...]
    """Per file: the cells, with the embedding in place of the expression matrix."""

    @property
    def origin(self) -> dict[str, str]:
        """How it was made, for the store."""
        files = ", ".join(part.path.name for part in self.parts)
        return {"made": "elsewhere", "key": self.name, "file": files}


def open_embeddings(sources: Sequence[Source], keys: Sequence[str]) -> tuple[EmbeddingSources, ...]:
    """The embeddings ``keys`` of all files; ``InputError`` for one that is missing or does not fit."""
    found = []
    for key in keys:
        check_embedding_name(key)
        parts = tuple(open_embedding(source.path, key, source.obs) for source in sources)
        for part in parts[1:]:
            if part.shape[1] != parts[0].shape[1]:
                raise InputError(
                    f"{part.path}: {part.place} is {part.shape[1]} wide, but {parts[0].shape[1]} in "
                    f"{parts[0].path}; compute it over all files together"
                )
        found.append(EmbeddingSources(key, parts[0].shape[1], parts))
    return tuple(found)


def open_embedding(path: Path, key: str, obs: pd.DataFrame | None = None) -> Source:
    """obsm ``key`` of the h5ad file ``path`` as a matrix of its cells; ``obs`` spares reading that table.

    Raises ``InputError`` when there is none, it is no matrix of numbers, or its rows are not the cells.
    """
    place = f"obsm/{key}"
    if kind_of(path) == "10x":
        raise InputError(f"{path}: a 10x folder has no embeddings; add them with txpert embed add")
    with opened(path) as file:
        if "obsm" not in file or key not in file["obsm"]:
            there = sorted(file["obsm"]) if "obsm" in file else []
            raise InputError(f"{path}: obsm has no {key!r}; there is {listing(there, 12) or 'none'}")
        encoding, shape = matrix_layout(path, place, file[place])
        cells = read_table(path, file, "obs") if obs is None else obs
    if shape[0] != len(cells) or not shape[1]:
        raise InputError(
            f"{path}: {place} holds {shape[0]} rows x {shape[1]} columns for {len(cells)} cells; write the "
            "file again from matching parts"
        )
    return Source(path, cells, pd.DataFrame(), place, encoding, shape, ())


def embedding_blocks(
    embedding: EmbeddingSources, rows: Sequence[NDArray[np.int64]], scratch: Path, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """(rows of a block, width) the embedding of the cells ``rows`` (per file, ascending), in order.

    ``scratch`` is a folder for temporary files. Raises ``InputError`` naming the first cell whose embedding
    is not finite.
    """
    done, total = 0, sum(map(len, rows))
    for number, (part, kept) in enumerate(zip(embedding.parts, rows, strict=True)):
        for block in stream(part, scratch / f"{embedding.name}.{number}"):
            first, stop = np.searchsorted(kept, (block.start, block.start + block.matrix.shape[0]))
            own = kept[first:stop]
            if not len(own):
                continue
            names = part.obs.index.to_numpy(object)[own]
            yield finite_rows(f"{part.path}: {part.place}", names, block.matrix[own - block.start].toarray())
            done += len(own)
            progress(f"write {embedding.name}", done, total)


def stored_blocks(cells: CellStore, name: str, start: int = 0) -> Iterator[NDArray[np.float32]]:
    """(rows of a block, width) the embedding ``name`` of a store's cells from ``start`` on, in order."""
    step = max(1, _BLOCK_VALUES // cells.embeddings[name])
    for first in range(start, cells.num_cells, step):
        rows = np.arange(first, min(first + step, cells.num_cells), dtype=np.int64)
        yield cells.take_embedding(name, rows)


def reordered(
    blocks: Iterator[NDArray[np.float32]], shape: tuple[int, int], row: NDArray[np.int64], scratch: Path
) -> Iterator[NDArray[np.float32]]:
    """The rows of ``blocks``, of which row i goes to place ``row[i]``; ``scratch`` is a file to make."""
    scratch.parent.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, block_RN in enumerate(blocks):
        # Mapped anew for every block, so that pages already written count as nobody's memory.
        whole_RN = np.memmap(scratch, np.float32, "r+" if number else "w+", shape=shape)
        whole_RN[row[start : start + len(block_RN)]] = block_RN
        start += len(block_RN)
    rows = max(1, _BLOCK_VALUES // shape[1])
    for start in range(0, shape[0], rows):
        yield np.array(np.memmap(scratch, np.float32, "r", shape=shape)[start : start + rows])


def finite_rows(where: str, names: NDArray[np.object_], value_RN: NDArray[np.generic]) -> NDArray[np.float32]:
    """``value_RN`` of the cells ``names`` in float32; ``InputError`` for the first that is not finite."""
    with np.errstate(over="ignore"):
        finite_RN: NDArray[np.float32] = value_RN.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(finite_RN))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise InputError(
            f"{where}: value {value_RN[row, column]:g} of cell {str(names[row])!r}, column {column}, is not "
            "a finite number in single precision; repair or recompute it"
        )
    return finite_RN
