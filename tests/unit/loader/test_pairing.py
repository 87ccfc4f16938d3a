"""Controls: of the cell's own batch or line, drawn from (seed, epoch, cell) alone, means exact."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.config import ControlMatching
from txpert_dist.loader.pairing import ControlTable, control_table, fallback_cells, pair
from txpert_dist.minibatch import SparseRows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.controls import Context
from txpert_dist.store.expression import dense, log1p_normalise

EVERY = get_args(ControlMatching)


def contexts_of(store: CellStore, rows: np.ndarray) -> list[Context]:
    return [store.contexts[code] for code in store.context[rows]]


@pytest.fixture(scope="module", params=["selected", "all"])
def genes(request: pytest.FixtureRequest, store: CellStore) -> np.ndarray:
    return store.training_genes(request.param)


@pytest.mark.parametrize("matching", ["random", "matched"])
def test_drawn_controls_are_controls_of_the_right_place(
    store: CellStore, genes: np.ndarray, expected: np.ndarray, matching: ControlMatching
) -> None:
    table = control_table(store, matching, genes)
    assert table.mean_RG is None
    assert table.cells is not None
    # The rows of the table in store order are the controls; their counts say that they are those cells.
    control_rows = np.flatnonzero(store.perturbation == 0)
    np.testing.assert_array_equal(dense(table.cells, len(genes)), expected[control_rows][:, genes])
    np.testing.assert_array_equal(table.cells.library_size, store.library_size[control_rows])
    rows = np.arange(store.num_cells)
    for epoch in range(3):
        chosen = control_rows[pair(table, store.context, rows, seed=1, epoch=epoch)]
        for own, other, code in zip(
            contexts_of(store, rows), contexts_of(store, chosen), store.context, strict=True
        ):
            assert own[0] == other[0]
            if matching == "matched" and not store.controls.fallback[code]:
                assert own == other


def test_fallback_cells_are_those_of_the_batch_without_controls(store: CellStore) -> None:
    rows = np.arange(store.num_cells)
    orphans = sum(context == ("K562", "b2") for context in contexts_of(store, rows))
    assert orphans > 10
    assert fallback_cells(store, rows) == orphans
    assert fallback_cells(store, np.flatnonzero(store.perturbation == 0)) == 0


@pytest.mark.parametrize("matching", ["mean", "matched_mean"])
def test_means_are_those_of_the_control_cells(
    store: CellStore, genes: np.ndarray, matching: ControlMatching
) -> None:
    table = control_table(store, matching, genes)
    assert table.cells is None
    assert table.mean_RG is not None
    everything = store.read(0, store.num_cells)
    y_BG = dense(log1p_normalise(everything, input_scale="counts"), len(store.genes)).astype(np.float64)
    is_control = store.perturbation == 0
    line = np.array([context.cell_line for context in contexts_of(store, np.arange(store.num_cells))])
    rows = np.arange(store.num_cells)
    given_BG = table.mean_RG[pair(table, store.context, rows, seed=0, epoch=0)]
    for code, context in enumerate(store.contexts):
        cells = is_control & (line == context.cell_line)
        if matching == "matched_mean" and not store.controls.fallback[code]:
            cells &= store.context == code
        for row in np.flatnonzero(store.context == code):
            np.testing.assert_allclose(given_BG[row], y_BG[cells][:, genes].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("matching", EVERY)
def test_every_context_has_a_row_of_the_table(store: CellStore, matching: ControlMatching) -> None:
    table = control_table(store, matching, store.selected)
    rows = np.arange(store.num_cells)
    chosen = pair(table, store.context, rows, seed=0, epoch=0)
    size = len(table.mean_RG) if table.mean_RG is not None else len(store.controls.rows)
    assert chosen.min() >= 0
    assert chosen.max() < size


def drawing_table(sizes: list[int]) -> ControlTable:
    """Groups of the given sizes; the members are numbered through."""
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    num_controls = int(indptr[-1])
    empty = SparseRows(
        indptr=np.zeros(num_controls + 1, np.int64),
        gene=np.zeros(0, np.int32),
        value=np.zeros(0, np.uint8),
        library_size=np.ones(num_controls, np.float32),
    )
    return ControlTable("counts", np.arange(len(sizes)), None, empty, indptr, np.arange(num_controls))


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 10_000),
    data=st.data(),
)
def test_a_draw_depends_on_seed_epoch_and_cell_only(
    sizes: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    table = drawing_table(sizes)
    num_cells = 200
    context = np.arange(num_cells) % len(sizes)
    rows = np.arange(num_cells)
    whole = pair(table, context, rows, seed=seed, epoch=epoch)
    assert (whole >= table.indptr[context]).all()
    assert (whole < table.indptr[context + 1]).all()
    some = np.array(data.draw(st.lists(st.integers(0, num_cells - 1), max_size=30)), np.int64)
    np.testing.assert_array_equal(pair(table, context[some], some, seed=seed, epoch=epoch), whole[some])


def test_draws_are_uniform_and_independent_over_epochs_seeds_and_cells() -> None:
    num_cells, size = 20_000, 37
    table, context = drawing_table([size]), np.zeros(20_000, np.int64)
    rows = np.arange(num_cells)
    draws = [
        pair(table, context, rows, seed=seed, epoch=epoch)
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (2**40, 7)]
    ]
    for one in draws:
        assert scipy.stats.chisquare(np.bincount(one, minlength=size)).pvalue > 1e-4
        pairs = np.bincount(one[:-1] * size + one[1:], minlength=size * size)
        assert scipy.stats.chisquare(pairs).pvalue > 1e-4
    for a in range(4):
        for b in range(a):
            joint = np.bincount(draws[a] * size + draws[b], minlength=size * size)
            assert scipy.stats.chisquare(joint).pvalue > 1e-4


def test_a_log1p_store_keeps_its_scale(store: CellStore) -> None:
    table = control_table(replace(store, input_scale="log1p"), "matched", store.selected)
    assert table.input_scale == "log1p"
