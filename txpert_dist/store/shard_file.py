"""One file of a sharded array: rows in, the bytes of a Zarr v3 shard out.

Enters: consecutive rows of one array. Leaves: a file that any Zarr v3 reader opens with the array's metadata
(see ``layout`` for its form). Invariant: the same rows give the same bytes, whoever encodes them.

Encoding a shard here takes a third of the time that zarr takes for it, needs no event loop, and gives the
hash of the file while its bytes are at hand.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from txpert_dist.store import layout


class ShardSizes(NamedTuple):
    """Entries per compressed chunk, and per file (a whole number of chunks)."""

    chunk: int = layout.CHUNK_ENTRIES
    shard: int = layout.SHARD_ENTRIES


DEFAULT_SHARDS = ShardSizes()


class FileHash(NamedTuple):
    """What the manifest says of a file."""

    size: int
    sha256: str


def write_shard(path: Path, rows: NDArray[Any], shards: ShardSizes, fill: float) -> FileHash:
    """Write at most ``shards.shard`` ``rows`` to ``path``; what lacks to a whole chunk is ``fill``."""
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for part in _encoded(rows, shards, fill):
            file.write(part)
            digest.update(part)
            size += len(part)
    return FileHash(size, digest.hexdigest())


def shard_file(array: Path, number: int, dimensions: int) -> Path:
    """Where shard ``number`` of the array in folder ``array`` lies; only the first axis is cut."""
    return array.joinpath("c", str(number), *["0"] * (dimensions - 1))


def _encoded(rows: NDArray[Any], shards: ShardSizes, fill: float) -> Iterator[bytes]:
    inner, level, _filter = layout.COMPRESSOR
    codec = Blosc(inner, clevel=level, shuffle=Blosc.SHUFFLE)
    index = np.full((shards.shard // shards.chunk, 2), layout.ABSENT, "<u8")
    offset = 0
    for number, start in enumerate(range(0, len(rows), shards.chunk)):
        chunk = np.ascontiguousarray(rows[start : start + shards.chunk])
        if len(chunk) < shards.chunk:
            rest = np.full((shards.chunk - len(chunk), *rows.shape[1:]), fill, rows.dtype)
            chunk = np.concatenate([chunk, rest])
        part = _checked(codec.encode(chunk))
        index[number] = offset, len(part)
        offset += len(part)
        yield part
    yield _checked(index.tobytes())


def _checked(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")
