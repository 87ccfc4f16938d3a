"""Shard files: zarr reads what was written, byte for byte what zarr itself would write."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from txpert_dist.store import layout
from txpert_dist.store.appended import AppendedArray
from txpert_dist.store.manifest import file_sha256
from txpert_dist.store.shard_file import ShardSizes, shard_file, write_shard

SIZES = ShardSizes(chunk=64, shard=256)
TYPES = ["uint8", "uint16", "uint32", "int32", "float32"]


def zarr_array(folder: Path, shape: tuple[int, ...], dtype: str, fill: float) -> zarr.Array:
    inner, level, shuffle = layout.COMPRESSOR
    codec = BloscCodec(cname=inner, clevel=level, shuffle=shuffle, typesize=np.dtype(dtype).itemsize)
    return zarr.create_array(
        str(folder),
        shape=shape,
        dtype=dtype,
        chunks=(SIZES.chunk, *shape[1:]),
        shards=(SIZES.shard, *shape[1:]),
        compressors=(codec, Crc32cCodec()),
        fill_value=np.array(fill, dtype)[()],
        config={"write_empty_chunks": True},
    )


@given(
    length=st.integers(1, 700),
    dtype=st.sampled_from(TYPES),
    width=st.sampled_from([None, 1, 3]),
    blocks=st.lists(st.integers(0, 300), max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_zarr_reads_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, length: int, dtype: str, width: int | None, blocks: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shape = (length,) if width is None else (length, width)
    values = np.random.default_rng(length).integers(1, 200, shape).astype(dtype)
    array = zarr_array(folder / "ours", shape, dtype, 0)
    appended = AppendedArray(folder / "ours", shape, dtype, SIZES, 0)
    for part in np.split(values, np.cumsum(blocks)):
        appended.append(part)
    appended.close()
    assert np.array_equal(array[:], values)
    for path, found in appended.files.items():
        assert (path.stat().st_size, file_sha256(path)) == found


@pytest.mark.parametrize("dtype", TYPES)
def test_a_full_shard_is_what_zarr_writes(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).integers(1, 200, SIZES.shard).astype(dtype)
    theirs = zarr_array(tmp_path / "theirs", (SIZES.shard,), dtype, 0)
    theirs[:] = values
    write_shard(tmp_path / "ours", values, SIZES, 0)
    assert (tmp_path / "ours").read_bytes() == shard_file(tmp_path / "theirs", 0, 1).read_bytes()


def test_chunks_behind_the_end_are_absent_and_the_last_is_filled_up(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", np.arange(70, dtype=np.int32), SIZES, -1)
    index = np.frombuffer((tmp_path / "s").read_bytes()[-4 - 4 * 16 : -4], "<u8").reshape(4, 2)
    assert (index[2:] == layout.ABSENT).all()
    assert (index[:2] < layout.ABSENT).all()
    array = zarr_array(tmp_path / "a", (SIZES.shard,), "int32", -1)
    target = shard_file(tmp_path / "a", 0, 1)
    target.parent.mkdir()
    target.write_bytes((tmp_path / "s").read_bytes())
    assert array[:].tolist() == [*range(70), *[-1] * 186]
