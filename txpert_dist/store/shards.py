"""Sharded arrays, read chunk by chunk without Zarr: one open file a shard, one read a chunk.

Enters: the metadata and the files of an array, as Zarr v3's sharding codec writes them. Leaves: decoded
chunks. Invariants: a chunk is an array's content only when its index entry and its own bytes have the
CRC-32C that they were written with; a file that is missing, cut or of another size than the manifest's, and a
chunk marked as absent, are a ``StoreError`` naming array and file. Threads may share an array.
"""

import contextlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import StoreError
from txpert_dist.store import layout

Decoder = Callable[[NDArray[np.uint8], NDArray[Any]], object]

_CRC = 4
"""Bytes of a CRC-32C, at the end of what it guards."""
_OPEN_SHARDS = 128
"""Files of one array that stay open."""
_REMEDY = "restore the file or ingest the screen again"


class StoreFiles(NamedTuple):
    """How the files of a store are found."""

    locate: Callable[[str], Path]
    """Where on this machine the file of this name (as in the manifest) lies."""
    size: Mapping[str, int]
    """Bytes of every file of the manifest."""


class ArrayForm(NamedTuple):
    """What an array's metadata says."""

    name: str
    """Within the store, e.g. ``X/data``."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk: int
    """Rows that are compressed together."""
    chunks_per_shard: int
    decode: Decoder


class _Shard:
    """One open file and its index; closed when nobody uses it any more."""

    def __init__(self, path: Path, size: int, num_chunks: int) -> None:
        self.path = path
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
            found = os.fstat(self.descriptor).st_size
            tail = 16 * num_chunks + _CRC
            index = os.pread(self.descriptor, tail, max(0, size - tail))
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        if found != size or len(index) != tail:
            raise StoreError(f"{path}: damaged, holds {found:,} bytes instead of {size:,}; {_REMEDY}")
        raw = np.frombuffer(index, np.uint8)
        if not _crc_holds(raw):
            raise StoreError(f"{path}: damaged, the index of its chunks is not as it was written; {_REMEDY}")
        self.offset_size_K2 = raw[:-_CRC].view("<u8").reshape(num_chunks, 2)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def place(self, chunk: int) -> tuple[int, int]:
        """Offset and size of the compressed ``chunk`` (number within this file)."""
        offset, size = self.offset_size_K2[chunk].tolist()
        if layout.ABSENT in (offset, size):
            raise StoreError(f"{self.path}: chunk {chunk} is marked as absent; {_REMEDY}")
        return offset, size

    def read(self, chunk: int) -> NDArray[np.uint8]:
        """The compressed bytes of ``chunk``, without their CRC-32C, which holds."""
        offset, size = self.place(chunk)
        try:
            found = os.pread(self.descriptor, size, offset)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read ({error.strerror}); {_REMEDY}") from None
        raw = np.frombuffer(found, np.uint8) if found else np.zeros(0, np.uint8)
        if len(raw) != size or not _crc_holds(raw):
            raise StoreError(f"{self.path}: damaged, chunk {chunk} is not as it was written; {_REMEDY}")
        return raw[:-_CRC]


class ShardedArray:
    """An array of compressed chunks along its first axis."""

    def __init__(self, form: ArrayForm, files: StoreFiles) -> None:
        """Files are opened when they are first read."""
        self.form = form
        self._files = files
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Within the store."""
        return self.form.name

    def empty(self, rows: int) -> NDArray[Any]:
        """Room for so many rows."""
        return np.empty((rows, *self.form.shape[1:]), self.form.dtype)

    def decode(self, chunk: int, out: NDArray[Any]) -> None:
        """Fill ``out``, contiguous and of a chunk's rows, with chunk number ``chunk``.

        The array's last chunk is filled up with whatever the writer filled it up with.
        Raises ``StoreError`` for anything that is not as it was written.
        """
        shard = self._shard(chunk // self.form.chunks_per_shard)
        payload = shard.read(chunk % self.form.chunks_per_shard)
        try:
            # The CRC says that these are the writer's bytes, and Zarr always writes whole chunks.
            self.form.decode(payload, out)
        except Exception as error:  # noqa: BLE001  every codec raises its own kinds
            raise StoreError(f"{shard.path}: cannot be decoded ({error}); {_REMEDY}") from None

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The rows ``rows``, in that order, repeats allowed; each chunk is decoded once."""
        result, scratch = self.empty(len(rows)), self.empty(self.form.chunk)
        if not len(rows):
            return result
        order = np.argsort(rows, kind="stable")
        chunks, first = np.unique(rows[order] // self.form.chunk, return_index=True)
        self.announce(chunks)
        for chunk, some in zip(chunks.tolist(), np.split(order, first[1:]), strict=True):
            self.decode(chunk, scratch)
            result[some] = scratch[rows[some] - chunk * self.form.chunk]
        return result

    def announce(self, chunks: NDArray[np.int64]) -> None:
        """Tell the system that ``chunks``, ascending, are about to be read, so that it reads ahead."""
        if not len(chunks) or not hasattr(os, "posix_fadvise"):
            return
        per_shard = self.form.chunks_per_shard
        broken = (np.diff(chunks) > 1) | (np.diff(chunks // per_shard) > 0)
        for run in np.split(chunks, np.flatnonzero(broken) + 1):
            shard = self._shard(int(run[0]) // per_shard)
            first, _ = shard.place(int(run[0]) % per_shard)
            last, size = shard.place(int(run[-1]) % per_shard)
            with contextlib.suppress(OSError):  # a hint, which not every file system takes
                os.posix_fadvise(shard.descriptor, first, last + size - first, os.POSIX_FADV_WILLNEED)

    def _shard(self, number: int) -> _Shard:
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        name = f"{self.form.name}/c/{'/'.join([str(number), *('0' for _ in self.form.shape[1:])])}"
        path = self._files.locate(name)
        if name not in self._files.size:
            raise StoreError(f"{path}: not listed in the manifest; {_REMEDY}")
        shard = _Shard(path, self._files.size[name], self.form.chunks_per_shard)
        with self._lock:
            self._open[number] = shard
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard


def crc32c(raw: NDArray[np.uint8]) -> int:
    """The Castagnoli checksum of contiguous bytes."""
    return int(google_crc32c.value(raw))


def open_array(name: str, files: StoreFiles) -> ShardedArray:
    """The sharded array ``name`` of a store; ``StoreError`` when it is not as this software writes it."""
    path = files.locate(f"{name}/zarr.json")
    try:
        form = _form(name, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(
            f"{path}: not an array that this software can read ({error}); ingest the screen again"
        ) from None
    return ShardedArray(form, files)


def _form(name: str, metadata: dict[str, Any]) -> ArrayForm:
    shape = tuple(int(size) for size in metadata["shape"])
    shard = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    (sharding,) = metadata["codecs"]
    inner = sharding["configuration"]
    chunk = inner["chunk_shape"]
    dtype = np.dtype(metadata["data_type"])
    expected = {
        "node_type": metadata["node_type"] == "array",
        "data_type": dtype.kind in "uif",
        "chunk_key_encoding": metadata["chunk_key_encoding"]
        in ({"name": "default"}, {"name": "default", "configuration": {"separator": "/"}}),
        "codecs": sharding["name"] == "sharding_indexed",
        "index_location": inner.get("index_location", "end") == "end",
        "index_codecs": [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"],
        "chunk_shape": [*shard[1:]] == [*chunk[1:]] == [*shape[1:]] and shard[0] % chunk[0] == 0,
    }
    wrong = [key for key, holds in expected.items() if not holds]
    if wrong:
        raise ValueError(f"{wrong[0]} is of another kind")
    return ArrayForm(name, dtype, shape, chunk[0], shard[0] // chunk[0], _decoder(inner["codecs"], dtype))


def _decoder(codecs: list[dict[str, Any]], dtype: np.dtype[Any]) -> Decoder:
    """How chunks are decoded, the CRC-32C at their end apart."""
    names = [codec["name"] for codec in codecs]
    if names[0] != "bytes" or names[-1] != "crc32c":
        raise ValueError("codecs are not bytes first and crc32c last")
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    if dtype.itemsize > 1 and endian != "little":
        raise ValueError("its numbers are not little-endian")
    known: dict[tuple[str, ...], Decoder] = {
        (): _plain,
        ("zstd",): numcodecs.zstd.decompress,
        ("blosc",): numcodecs.blosc.decompress,
    }
    chain = tuple(names[1:-1])
    if chain not in known:
        raise ValueError(f"codec {'+'.join(chain)} is none of zstd, blosc")
    return known[chain]


def _plain(payload: NDArray[np.uint8], out: NDArray[Any]) -> None:
    out.reshape(-1).view(np.uint8)[:] = payload


def _crc_holds(raw: NDArray[np.uint8]) -> bool:
    if len(raw) <= _CRC:
        return False
    return crc32c(raw[:-_CRC]) == int.from_bytes(raw[-_CRC:].tobytes(), "little")
