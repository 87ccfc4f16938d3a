"""What this machine can do of the loader's work, one step at a time, on one core.

Enters: a cell store in the page cache. Leaves: rates. All are of thread CPU time, so that other work on the
machine counts little; cells are those of one window.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from txpert_dist.loader.memory import ReusedMemory
from txpert_dist.loader.rows import Window, read_rows, read_window, rows_of_window
from txpert_dist.minibatch import SparseRows
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.expression import dense_log1p
from txpert_dist.store.reads import chunks_of

CELLS = 16_384
MINIBATCH = 256
REPEATS = 5
COPIED = 5_120_000
"""Bytes: a dense minibatch of 256 cells and 5,000 genes."""
CODECS = (("none", 0, 0), ("lz4", 5, 1), ("zstd", 1, 1))
"""Blosc's inner codec, level and filter (1: shuffle)."""


class Layout(NamedTuple):
    """Entries in one form and codec."""

    name: str
    cells_per_s: float
    """Thousand cells a CPU second."""
    bytes_per_cell: float


def limits(path: Path) -> dict[str, float]:
    """By name: million bytes, or thousand cells, a CPU second."""
    store = open_store(path)
    rows = np.random.default_rng(0).permutation(min(CELLS, len(store.perturbation)))
    window = read_window(store, rows, np.arange(len(store.genes)))
    order = np.sort(rows)
    matrix = store.matrix
    chunks = chunks_of(matrix.indptr[order], matrix.indptr[order + 1], matrix.gene.form.chunk)
    gene_K, value_K = (array.empty(array.form.chunk) for array in (matrix.gene, matrix.value))

    def decode() -> None:
        for chunk in chunks.tolist():
            matrix.gene.decode(chunk, gene_K)
            matrix.value.decode(chunk, value_K)

    # what is decoded besides the window's own entries is not the machine's limit
    useful = (matrix.indptr[order + 1] - matrix.indptr[order]).sum() / (len(chunks) * len(gene_K))
    cells = len(rows) / 1e3
    dense = np.empty((MINIBATCH, len(store.genes)), np.float32)
    memory = ReusedMemory()
    parts = _minibatches(store, window, memory)
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    return {
        "copy 5 MB, MB/s": COPIED / 1e6 / _seconds(lambda: np.copyto(target, source)),
        **{f"read {kib} KiB from the page cache, MB/s": _read_rate(path, kib << 10) for kib in (64, 1024)},
        "read and decode": cells / (_seconds(decode) * useful),
        "put in order": cells / _seconds(lambda: _minibatches(store, window, memory)),
        "densify counts": cells / _seconds(lambda: _densify(parts, dense, counts=True)),
        "densify and log1p": cells / _seconds(lambda: _densify(parts, dense, counts=False)),
    }


def layouts(path: Path) -> list[Layout]:
    """How fast the same entries are decoded in other forms: sparse rows as stored, and packed.

    Packed is one uint16 an entry, the gap to the next gene in the low byte, the count in the high one:
    left so for the device to unpack, or unpacked to sparse rows.
    """
    store = open_store(path)
    rows = np.arange(min(CELLS, len(store.perturbation)))
    cells = read_rows(store, rows, np.arange(len(store.genes)))
    gene = cells.gene.astype(np.int32)
    packed, begin = pack(cells.indptr, gene, cells.value)
    room_gene, room_value = np.empty_like(cells.gene), np.empty_like(cells.value)
    forms: dict[str, tuple[NDArray[Any], ...]] = {
        "int32 and counts": (gene, cells.value),
        "packed": (packed,),
        "packed, to sparse rows": (packed,),
    }
    found = []
    for form, arrays in forms.items():
        for codec in CODECS:
            chunks = [_compressed(array, codec) for array in arrays]
            room = [np.empty_like(array) for array in arrays]
            size = sum(chunk.nbytes for some in chunks for chunk in some) / len(rows)

            def decode(chunks: Any = chunks, room: Any = room, form: str = form) -> None:
                for some, whole in zip(chunks, room, strict=True):
                    _decompress(some, whole)
                if form.endswith("rows"):
                    unpack(room[0], begin, cells.indptr, room_gene, room_value)

            rate = len(rows) / 1e3 / _seconds(decode)
            found.append(Layout(f"{form}, {codec[0]}", rate, size))
    return found


@numba.njit(nogil=True)
def pack(indptr: Any, gene: Any, value: Any) -> Any:
    """Sparse rows packed, and where each cell begins; (255, 0) skips, gap 0 continues a large count."""
    packed = np.empty(3 * len(gene) + 64 * len(indptr), np.uint16)
    begin = np.zeros(len(indptr), np.int64)
    filled = 0
    for cell in range(len(indptr) - 1):
        last = -1
        for entry in range(indptr[cell], indptr[cell + 1]):
            gap, count = gene[entry] - last, np.int64(value[entry])
            while gap > 255:
                packed[filled] = 255
                filled, gap = filled + 1, gap - 255
            packed[filled] = gap | (min(count, 255) << 8)
            filled, count = filled + 1, count - min(count, 255)
            while count > 0:
                packed[filled] = min(count, 255) << 8
                filled, count = filled + 1, count - min(count, 255)
            last = gene[entry]
        begin[cell + 1] = filled
    return packed[:filled].copy(), begin


@numba.njit(nogil=True)
def unpack(packed: Any, begin: Any, indptr: Any, gene: Any, value: Any) -> None:
    """Packed cells as sparse rows again."""
    for cell in range(len(begin) - 1):
        here, last = indptr[cell] - 1, -1
        for entry in range(begin[cell], begin[cell + 1]):
            gap, count = packed[entry] & 255, packed[entry] >> 8
            last += gap
            if count == 0:
                continue
            if gap == 0:
                value[here] += count
                continue
            here += 1
            gene[here] = last
            value[here] = count


def _seconds(function: Callable[[], object]) -> float:
    """Least CPU time of a few runs of this thread, after one to warm up."""
    function()
    best = float("inf")
    for _ in range(REPEATS):
        began = time.thread_time()
        function()
        best = min(best, time.thread_time() - began)
    return best


def _minibatches(store: CellStore, window: Window, memory: ReusedMemory) -> list[SparseRows]:
    num_cells = len(window.rows)
    starts = range(0, num_cells - num_cells % MINIBATCH, MINIBATCH)
    return [rows_of_window(store, window, slice(start, start + MINIBATCH), memory) for start in starts]


def _densify(parts: list[SparseRows], dense: NDArray[np.float32], *, counts: bool) -> None:
    for part in parts:
        dense_log1p(part, dense, input_scale="log1p" if counts else "counts")


def _read_rate(path: Path, size: int) -> float:
    """Million bytes a CPU second of reading the largest file in pieces of ``size``."""
    largest = max(
        (file for file in path.rglob("c/*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    room = bytearray(size)
    descriptor = os.open(largest, os.O_RDONLY)
    whole = largest.stat().st_size // size * size

    def read() -> None:
        for offset in range(0, whole, size):
            os.preadv(descriptor, [room], offset)

    try:
        return whole / 1e6 / _seconds(read) if whole else float("nan")
    finally:
        os.close(descriptor)


def _compressed(array: NDArray[Any], codec: tuple[str, int, int]) -> list[Any]:
    pieces = [array[start : start + 65_536] for start in range(0, len(array), 65_536)]
    if codec[0] == "none":
        return pieces
    name, level, shuffle = codec
    return [
        np.frombuffer(numcodecs.blosc.compress(piece, name.encode(), level, shuffle), np.uint8)
        for piece in pieces
    ]


def _decompress(chunks: list[NDArray[Any]], whole: NDArray[Any]) -> None:
    for number, chunk in enumerate(chunks):
        room = whole[number * 65_536 : (number + 1) * 65_536]
        if chunk.dtype == whole.dtype and len(chunk) == len(room):
            room[:] = chunk
        else:
            numcodecs.blosc.decompress(chunk, room)
