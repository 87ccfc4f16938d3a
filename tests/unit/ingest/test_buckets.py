"""Buckets: whatever the blocks and the order, any range of the store's entries comes out right."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from txpert_dist.errors import StoreError
from txpert_dist.ingest.buckets import bucket_of, collect, entries_of_rows, value_type
from txpert_dist.ingest.kernels import copy_rows
from txpert_dist.ingest.order import inverse
from txpert_dist.ingest.results import is_whole, load, new_result, save


def self_describing(rng: np.random.Generator, num_cells: int, num_genes: int) -> scipy.sparse.csr_matrix:
    """value = 1 + cell * genes + gene; some cells are empty."""
    value = 1 + np.arange(num_cells * num_genes, dtype=np.float32).reshape(num_cells, num_genes)
    kept = rng.random((num_cells, num_genes)) < rng.choice([0, 0.3, 0.9], (num_cells, 1))
    return scipy.sparse.csr_matrix(value * kept)


def write_buckets(
    folder: Path, matrix: scipy.sparse.csr_matrix, row: np.ndarray, edges: list[int]
) -> list[Path]:
    buckets = []
    for start, stop in zip([0, *edges], [*edges, matrix.shape[0]], strict=True):
        buckets.append(folder / str(len(buckets)))
        with new_result(buckets[-1]) as result:
            save(result, bucket_of(matrix[start:stop], row[start:stop], "counts"))
    return buckets


@given(data=st.data(), num_cells=st.integers(1, 60), num_genes=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_any_range_of_entries_comes_out_in_the_stores_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, num_cells: int, num_genes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = self_describing(rng, num_cells, num_genes)
    source_row = rng.permutation(num_cells)
    edges = sorted(data.draw(st.lists(st.integers(0, num_cells), max_size=5)))
    buckets = write_buckets(tmp_path_factory.mktemp("b"), matrix, inverse(source_row), edges)
    expected = matrix[source_row]
    indptr = entries_of_rows(buckets, num_cells)
    assert indptr.tolist() == expected.indptr.tolist()
    start = data.draw(st.integers(0, expected.nnz))
    stop = data.draw(st.integers(start, expected.nnz))
    if start == stop:
        return
    found = collect(buckets, indptr, start, stop, np.uint32)
    assert found.gene.tolist() == expected.indices[start:stop].tolist()
    assert found.value.tolist() == expected.data[start:stop].tolist()
    assert (found.gene.dtype, found.value.dtype) == (np.int32, np.uint32)


def test_types_are_as_narrow_as_the_block_allows() -> None:
    def types(largest: int, num_genes: int) -> tuple[str, str]:
        matrix = scipy.sparse.csr_matrix(([largest], ([0], [num_genes - 1])), shape=(1, num_genes))
        found = bucket_of(matrix, np.array([0]), "counts")
        assert (found["gene"][0], found["value"][0]) == (num_genes - 1, largest)
        return str(found["gene"].dtype), str(found["value"].dtype)

    assert types(255, 65_536) == ("uint16", "uint8")
    assert types(256, 65_537) == ("int32", "uint16")
    assert types(65_536, 3) == ("uint16", "uint32")
    assert value_type(3.5, "log1p") == np.float32


def test_a_missing_bucket_is_noticed(tmp_path: Path) -> None:
    matrix = self_describing(np.random.default_rng(0), 20, 5)
    buckets = write_buckets(tmp_path, matrix, np.arange(20), [7])
    indptr = entries_of_rows(buckets, 20)
    with pytest.raises(StoreError, match="cell 7 of 20 is missing"):
        entries_of_rows(buckets[:1], 20)
    with pytest.raises(StoreError, match="start again"):
        collect(buckets[1:], indptr, 0, int(indptr[-1]), np.uint32)


@pytest.mark.parametrize("row", [(-1, 1, 0), (0, 6, 0), (0, 1, 5), (4, 2, 0), (0, -1, 0)])
def test_rows_that_do_not_fit_are_never_copied(row: tuple[int, int, int]) -> None:
    begin, length, where = (np.array([value]) for value in row)
    with pytest.raises(IndexError):
        copy_rows(np.zeros(5, np.uint8), begin, length, np.zeros(5, np.uint8), where)


# --- results ----------------------------------------------------------------------------------------------


def a_result(folder: Path) -> Path:
    with new_result(folder / "0") as result:
        save(result, {"a": np.arange(500), "b": np.ones(3)})
    return folder / "0"


def test_a_result_appears_at_once_and_not_after_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with new_result(tmp_path / "0") as result:
            save(result, {"a": np.arange(3)})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "0").exists()
    assert not is_whole(tmp_path / "0")
    assert is_whole(a_result(tmp_path))
    assert load(tmp_path / "0", "a").tolist() == list(range(500))


def test_of_two_at_the_same_result_the_first_stays(tmp_path: Path) -> None:
    with new_result(tmp_path / "0") as slow:
        save(slow, {"a": np.arange(3)})
        with new_result(tmp_path / "0") as quick:
            save(quick, {"a": np.arange(3)})
        inode = (tmp_path / "0").stat().st_ino
    assert is_whole(tmp_path / "0")
    assert (tmp_path / "0").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


@pytest.mark.parametrize("name", ["a.npy", "b.npy", "checks.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_a_damaged_result_is_removed(tmp_path: Path, name: str, damage: str) -> None:
    path = a_result(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    if damage == "delete":
        path.unlink()
    else:
        kept = {"flip": len(content), "cut": len(content) // 2, "empty": 0}[damage]
        path.write_bytes(content[:kept])
    assert not is_whole(tmp_path / "0")
    assert not (tmp_path / "0").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "3", "null", json.dumps({"a.npy": None})])
def test_nonsense_in_place_of_the_checks_is_no_result(tmp_path: Path, text: str) -> None:
    (a_result(tmp_path) / "checks.json").write_text(text)
    assert not is_whole(tmp_path / "0")
