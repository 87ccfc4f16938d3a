"""Which chunks are read, and what is kept of them, against scipy's own indexing."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.store.small_store import NUM_CELLS, NUM_GENES, self_describing_matrix, write_store
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.expression import gene_view
from txpert_dist.store.kernels import BAD_GENE, FetchedRows, Kept, Wanted, keep_entries
from txpert_dist.store.reads import arranged, chunks_of, fetch, gene_dtype, room_for

REUSE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", name="x_BG")
def counts() -> NDArray[np.uint32]:
    return self_describing_matrix()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, x_BG: NDArray[np.uint32]) -> CellStore:
    folder = tmp_path_factory.mktemp("reads") / "screen.zarr"
    write_store(folder, x_BG)
    return open_store(folder)


@given(data=st.data(), chunk=st.integers(1, 40))
def test_the_chunks_of_some_rows_are_those_that_hold_an_entry_of_theirs(
    data: st.DataObject, chunk: int
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=30))
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1)))), np.int64)
    entries = [entry for row in rows for entry in range(indptr[row], indptr[row + 1])]
    expected = sorted({entry // chunk for entry in entries})
    assert chunks_of(indptr[rows], indptr[rows + 1], chunk).tolist() == expected


@given(
    rows=st.sets(st.integers(0, NUM_CELLS - 1), max_size=300),
    genes=st.none() | st.sets(st.integers(0, NUM_GENES - 1)),
    helpers=st.integers(0, 3),
    data=st.data(),
)
@REUSE
def test_fetched_rows_are_scipys_whatever_the_view_and_the_number_of_threads(
    store: CellStore,
    x_BG: NDArray[np.uint32],
    rows: set[int],
    genes: set[int] | None,
    helpers: int,
    data: st.DataObject,
) -> None:
    ascending = np.array(sorted(rows), np.int64)
    chosen = np.arange(NUM_GENES) if genes is None else np.array(sorted(genes), np.int64)
    view = None if genes is None else gene_view(chosen, NUM_GENES)
    room = room_for(store.matrix, ascending, gene_dtype(NUM_GENES))
    room.gene[:], room.value[:] = 60_000, 1  # what an earlier window left behind
    pools = [ThreadPoolExecutor(1) for _ in range(helpers)]
    try:
        fetched = fetch(store.matrix, ascending, room, view=view, helpers=pools)
    finally:
        for pool in pools:
            pool.shutdown()
    which = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=50)) if rows else []
    indptr, gene, value = arranged(fetched, np.array(which, np.int64))
    expected = scipy.sparse.csr_matrix(x_BG)[ascending[which]][:, chosen]
    assert gene.dtype == np.uint16
    assert value.dtype == np.uint32
    assert indptr.tolist() == expected.indptr.tolist()
    assert gene.tolist() == expected.indices.tolist()
    assert value.tolist() == expected.data.tolist()


def test_room_is_used_again_where_it_is_large_enough(store: CellStore) -> None:
    many, few = np.arange(500), np.arange(100)
    room = room_for(store.matrix, many, np.uint16)
    assert room_for(store.matrix, few, np.uint16, room) is room
    assert room_for(store.matrix, few, np.int32, room) is not room
    assert room_for(store.matrix, np.arange(600), np.uint16, room) is not room


@pytest.mark.parametrize(("num_genes", "dtype"), [(0, "u2"), (65_536, "u2"), (65_537, "i4")])
def test_gene_numbers_travel_in_two_bytes_where_they_fit(num_genes: int, dtype: str) -> None:
    assert gene_dtype(num_genes) == np.dtype(dtype)
    assert num_genes == 0 or int(gene_dtype(num_genes).type(num_genes - 1)) == num_genes - 1


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("view", [[], [0, -1, 1, 2, -1]])
def test_a_gene_number_that_the_store_does_not_have_is_found_before_it_is_used(
    bad: int, view: list[int]
) -> None:
    gene_K = np.array([0, 1, 4, bad, 2], np.int32)
    value_K = np.arange(1, 6).astype(np.uint8)
    place = FetchedRows(
        np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(5, np.uint16), np.zeros(5, "u1")
    )
    wanted = Wanted(np.array([10, 13]), np.array([13, 15]))
    kept = Kept(np.array(view, np.int32), 5)
    assert keep_entries(gene_K, value_K, 10, wanted, kept, place, (0, 0)) == (BAD_GENE, 13)
