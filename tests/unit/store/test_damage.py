"""Every kind of array, damaged in every way, before the store is opened and after: never read as data.

A store of every kind of array is read whole, by each of its readers, after one file of it was damaged. Either
a ``StoreError`` names the array, or the file is one that no reader needs: then everything is as it was, and
``verify`` names the file all the same.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.loader.exactness import Shape, write
from txpert_dist.errors import StoreError
from txpert_dist.store import manifest
from txpert_dist.store.cells import (
    CellStore,
    cell_names,
    numeric_column,
    open_store,
    read_summary,
    verify,
)
from txpert_dist.store.write import add_embedding

FLIPS = tuple(np.linspace(0, 1, 4).tolist())
"""Where in a file a bit is flipped."""
NEVER_READ = ("obs/text", "uns/txpert/labels", "uns/txpert/knockdown", "uns/txpert/source_row")
"""What only users of anndata read."""
READ_LATE = ("X/data", "X/indices", "obsm/", "obs/_index", "obs/weight", "uns/txpert/summary")
"""What is read after the store was opened."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    path = tmp_path_factory.mktemp("damage") / "screen.zarr"
    written = write(path, Shape(400, num_genes=20, chunk=128, chunks_per_shard=4))
    embedding_BN = np.random.default_rng(0).normal(size=(written.num_cells, 3)).astype(np.float32)
    add_embedding(path, "X_some", 3, [embedding_BN], origin={}, before=manifest.read(path))
    return open_store(path)


def later(opened: CellStore) -> list[Any]:
    """Everything that is read after opening, by all readers."""
    rows = np.arange(opened.num_cells)
    return [
        *opened.read(0, opened.num_cells),
        *opened.take(rows[::-3]),
        opened.take_embedding("X_some", rows),
        cell_names(opened.path),
        numeric_column(opened.path, "weight"),
        read_summary(opened.path),
    ]


def everything(opened: CellStore) -> list[Any]:
    """Everything that a store says."""
    return [
        opened.input_scale,
        opened.genes,
        opened.selected,
        opened.perturbations,
        opened.contexts,
        opened.perturbation,
        opened.context,
        opened.library_size,
        opened.split,
        opened.split_hash,
        *opened.controls,
        opened.control_mean_CG,
        opened.embeddings,
        opened.embedding_origin("X_some"),
        opened.matrix.indptr,
        *later(opened),
    ]


def same(found: list[Any], expected: list[Any]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def flip(position: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= 0x04
        path.write_bytes(content)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap_halves(path: Path) -> None:
    """Bytes of the right number in the wrong place, as a torn write leaves them."""
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[half:] + content[:half])


def chunk_files(path: Path) -> list[str]:
    """One file of every array, and a second of those that have several."""
    names: list[str] = []
    for array in sorted(p.parent for p in path.rglob("zarr.json") if (p.parent / "c").exists()):
        files = sorted(p.relative_to(path) for p in (array / "c").rglob("*") if p.is_file())
        names += [str(file) for file in dict.fromkeys(files[:1] + files[-1:])]
    return names


def trials(path: Path) -> Iterator[tuple[str, str, Callable[[Path], None]]]:
    for name in chunk_files(path):
        yield name, "deleted", Path.unlink
        yield name, "emptied", empty
        yield name, "cut", cut
        if (path / name).stat().st_size > 1:
            yield name, "torn", swap_halves
        for position in FLIPS:
            yield name, f"flipped at {position:.2f}", flip(position)


def outcome(read: Callable[[], list[Any]], expected: list[Any]) -> str:
    """What the readers make of a damaged store: the error's message, or whether what they say is true."""
    try:
        return "true" if same(read(), expected) else "FALSE"
    except StoreError as error:
        return str(error)


def check(copy: Path, name: str, what: str, found: str, *, needed: bool) -> None:
    """Fail unless the readers' outcome ``found`` is right; ``needed``: a reader needs the damaged file."""
    where = f"{name} {what}: {found}"
    array = name.split("/c/")[0].removesuffix("/c")
    assert found != "FALSE", where
    assert array in found if needed else found == "true" or array in found, where
    assert "\n" not in found, where
    with pytest.raises(StoreError, match=name):
        verify(copy)


def test_no_damage_is_silent_before_opening_or_after(store: CellStore, tmp_path: Path) -> None:
    expected, expected_later = everything(store), later(store)
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store.path, copy)
    arrays, done = set(), 0
    for name, what, damage in trials(store.path):
        undamaged = (copy / name).read_bytes()
        if name.startswith(READ_LATE):
            opened = open_store(copy)
            damage(copy / name)
            found = outcome(lambda opened=opened: later(opened), expected_later)
            check(copy, name, f"{what} after opening", found, needed=True)
            (copy / name).write_bytes(undamaged)
            done += 1
        damage(copy / name)
        found = outcome(lambda: everything(open_store(copy)), expected)
        check(copy, name, f"{what} before opening", found, needed=not name.startswith(NEVER_READ))
        (copy / name).write_bytes(undamaged)
        arrays.add(name.split("/c/")[0])
        done += 1
    assert {"X/data", "X/indices", "X/indptr", "obsm/X_some", "obs/weight"} < arrays
    assert done >= 200


@pytest.mark.parametrize("position", np.linspace(0, 1, 12).tolist())
def test_flipped_metadata_is_refused_at_open(store: CellStore, tmp_path: Path, position: float) -> None:
    for number, path in enumerate(sorted(store.path.rglob("zarr.json"))):
        copy = tmp_path / f"{number}.zarr"
        shutil.copytree(store.path, copy)
        name = path.relative_to(store.path)
        flip(position)(copy / name)
        with pytest.raises(StoreError, match=str(name)):
            open_store(copy)


def test_a_chunk_that_its_index_marks_as_absent_is_not_filled_in(store: CellStore, tmp_path: Path) -> None:
    """What Zarr itself reads as fill values, index and checksum in order."""
    from google_crc32c import value as crc32c

    for name in ("X/data/c/1", "X/indices/c/0", "obsm/X_some/c/0/0"):
        copy = tmp_path / name.replace("/", "_")
        shutil.copytree(store.path, copy)
        content = bytearray((copy / name).read_bytes())
        num_chunks = 64 if "obsm" in name else 4
        begin = len(content) - 4 - 16 * num_chunks
        content[begin : begin + 16] = b"\xff" * 16
        content[-4:] = crc32c(bytes(content[begin:-4])).to_bytes(4, "little")
        (copy / name).write_bytes(content)
        opened = open_store(copy)
        with pytest.raises(StoreError, match=f"{name}.*absent"):
            later(opened)


def test_a_store_that_was_replaced_since_it_was_opened_is_not_mixed_in(tmp_path: Path) -> None:
    """Shards of the same size, as stores of the same kind may have, told apart by the manifest."""
    path, shape = tmp_path / "s.zarr", Shape(400, num_genes=20, chunk=128, chunks_per_shard=1)
    opened = write(path, shape)
    first = opened.read(0, 10)
    shutil.rmtree(path)
    write(path, shape._replace(order_seed=7))
    assert same(list(opened.read(0, 10)), list(first))
    with pytest.raises(StoreError, match=r"X/(data|indices)/c/\d+: the store was replaced"):
        opened.read(0, 400)


def test_a_store_that_got_an_embedding_since_it_was_opened_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    opened = write(path, Shape(400, num_genes=20, chunk=128, chunks_per_shard=1))
    expected = open_store(path).read(0, 400)
    blocks = [np.ones((400, 2), np.float32)]
    add_embedding(path, "X_new", 2, blocks, origin={}, before=manifest.read(path))
    assert same(list(opened.read(0, 400)), list(expected))


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_shrinks_while_it_is_open_is_not_read_on(tmp_path: Path, size: int) -> None:
    path = tmp_path / "s.zarr"
    opened = write(path, Shape(400, num_genes=20, chunk=128, chunks_per_shard=64))
    opened.read(0, 10)
    for name in ("X/data/c/0", "X/indices/c/0"):
        with (path / name).open("r+b") as file:
            file.truncate(size)
    with pytest.raises(StoreError, match=r"X/(data|indices)/c/0: damaged, chunk \d+"):
        opened.read(0, 400)
