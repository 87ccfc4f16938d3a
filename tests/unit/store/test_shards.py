"""Our reader against zarr's, over codecs, dimensions and sizes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from txpert_dist.errors import StoreError
from txpert_dist.store import shards
from txpert_dist.store.shards import ShardedArray, StoreFiles, open_array

CODECS: dict[str, tuple[Any, ...]] = {
    "zstd": (ZstdCodec(level=1), Crc32cCodec()),
    "lz4": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), Crc32cCodec()),
    "lz4 bits": (BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()),
    "zstd in blosc": (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()),
    "nothing": (Crc32cCodec(),),
}


def write(
    folder: Path, values: np.ndarray, codec: str, *, chunk: int, chunks_per_shard: int
) -> tuple[Any, ShardedArray]:
    """An array as zarr writes it, opened by zarr and by us."""
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    array = group.create_array(
        "some",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk, *values.shape[1:]),
        shards=(chunk * chunks_per_shard, *values.shape[1:]),
        compressors=CODECS[codec],
        config={"write_empty_chunks": True},
    )
    array[:] = values
    return zarr.open_group(str(folder), mode="r")["some"], open_array("some", files_of(folder))


def files_of(folder: Path) -> StoreFiles:
    names = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return StoreFiles(folder.joinpath, names)


@given(data=st.data(), codec=st.sampled_from(sorted(CODECS)), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_what_zarr_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, codec: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("array")
    rows = data.draw(st.integers(1, 200))
    width = data.draw(st.sampled_from([(), (1,), (5,)]))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32, np.float32]))
    values = np.random.default_rng(seed).integers(0, 200, (rows, *width)).astype(dtype)
    chunk = data.draw(st.integers(1, 70))
    theirs, ours = write(folder, values, codec, chunk=chunk, chunks_per_shard=data.draw(st.integers(1, 5)))
    for picked in (
        np.arange(rows),
        np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=30)), np.int64),
    ):
        found = ours.take(picked)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, theirs.oindex[picked])
    shutil.rmtree(folder)


def test_more_files_than_stay_open(tmp_path: Path) -> None:
    num_shards = 2 * shards._OPEN_SHARDS + 7
    values = np.arange(num_shards * 2, dtype=np.uint16)
    _, ours = write(tmp_path, values, "lz4", chunk=1, chunks_per_shard=2)
    for _ in range(2):
        np.testing.assert_array_equal(ours.take(np.arange(0, len(values))), values)
    opened = [p.resolve() for p in Path("/proc/self/fd").iterdir() if p.is_symlink()]
    assert sum(tmp_path in p.parents for p in opened) <= shards._OPEN_SHARDS


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, 4000).astype(np.uint16)
    _, ours = write(tmp_path / "one", values, "lz4", chunk=400, chunks_per_shard=2)
    write(tmp_path / "other", values // 2, "lz4", chunk=400, chunks_per_shard=2)
    ours.take(np.arange(0, 800))
    shutil.rmtree(tmp_path / "one")
    (tmp_path / "other").rename(tmp_path / "one")
    np.testing.assert_array_equal(ours.take(np.arange(0, 800)), values[:800])
    with pytest.raises(StoreError, match=r"some/c/1: damaged, holds .* bytes instead of"):
        ours.take(np.arange(800, 1600))


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    write(tmp_path, np.arange(100, dtype=np.uint16), "lz4", chunk=10, chunks_per_shard=2)
    listed = files_of(tmp_path)
    del listed.size["some/c/3"]  # type: ignore[attr-defined]
    ours = open_array("some", listed)
    ours.take(np.arange(0, 60))
    with pytest.raises(StoreError, match=r"some/c/3: not listed"):
        ours.take(np.arange(0, 61))


@pytest.mark.parametrize(
    ("codecs", "sharded", "message"),
    [
        ((GzipCodec(), Crc32cCodec()), True, "gzip"),
        ((ZstdCodec(),), True, "crc32c last"),
        ((ZstdCodec(), Crc32cCodec()), False, "codecs|unpack"),
    ],
)
def test_arrays_of_another_make_are_refused(
    tmp_path: Path, codecs: tuple[Any, ...], sharded: bool, message: str
) -> None:
    group = zarr.open_group(str(tmp_path), mode="w", zarr_format=3)
    group.create_array(
        "some", shape=(40,), dtype="uint8", chunks=(4,), shards=(8,) if sharded else None, compressors=codecs
    )
    with pytest.raises(StoreError, match=f"some/zarr.json: not an array .*({message})"):
        open_array("some", files_of(tmp_path))
