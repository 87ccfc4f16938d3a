"""Controls: of the cell's own batch or line, drawn from (seed, epoch, cell) alone, means exact."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.loader.conftest import EMBEDDING, embedding
from txpert_dist.config import ControlMatching
from txpert_dist.errors import StoreError
from txpert_dist.loader.pairing import (
    ControlTable,
    _embedding_mean,
    control_table,
    evaluation_rows,
    fallback_cells,
    pair,
)
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
    assert table.dense_RN is None
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
    assert table.dense_RN is not None
    everything = store.read(0, store.num_cells)
    y_BG = dense(log1p_normalise(everything, input_scale="counts"), len(store.genes)).astype(np.float64)
    is_control = store.perturbation == 0
    line = np.array([context.cell_line for context in contexts_of(store, np.arange(store.num_cells))])
    rows = np.arange(store.num_cells)
    given_BG = table.dense_RN[pair(table, store.context, rows, seed=0, epoch=0)]
    for code, context in enumerate(store.contexts):
        cells = is_control & (line == context.cell_line)
        if matching == "matched_mean" and not store.controls.fallback[code]:
            cells &= store.context == code
        for row in np.flatnonzero(store.context == code):
            np.testing.assert_allclose(given_BG[row], y_BG[cells][:, genes].mean(axis=0), rtol=1e-5)


def controls_of(store: CellStore, code: int, matching: ControlMatching) -> np.ndarray:
    """Control cells of a context's batch or, by mode or where it has none, of its cell line, by label."""
    own, contexts = store.contexts[code], contexts_of(store, np.arange(store.num_cells))
    of_line = np.array([context.cell_line == own.cell_line for context in contexts])
    controls = np.flatnonzero((store.perturbation == 0) & of_line)
    of_batch = np.array([row for row in controls if contexts[row] == own], np.int64)
    return of_batch if len(of_batch) and matching in ("matched", "matched_mean") else controls


@given(matching=st.sampled_from(["random", "matched"]), seed=st.integers(0, 2**40), epoch=st.integers(0, 99))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cells_embedded_control_is_one_of_its_own_batch_or_line(
    store: CellStore, matching: ControlMatching, seed: int, epoch: int
) -> None:
    table = control_table(store, matching, store.selected, EMBEDDING)
    assert table.cells is None
    assert table.dense_RN is not None
    rows = np.arange(store.num_cells)
    drawn_BN = table.dense_RN[pair(table, store.context, rows, seed=seed, epoch=epoch)]
    np.testing.assert_array_equal(drawn_BN, embedding(drawn_BN[:, 0].astype(np.int64)))
    for code in range(len(store.contexts)):
        drawn = drawn_BN[store.context == code, 0]
        assert np.isin(drawn, controls_of(store, code, matching)).all()


@pytest.mark.parametrize("matching", ["mean", "matched_mean"])
@pytest.mark.parametrize("cells_per_read", [1, 7, 4096])
def test_mean_embeddings_are_those_of_the_control_cells(
    store: CellStore, matching: ControlMatching, cells_per_read: int
) -> None:
    mean_CN = _embedding_mean(store, EMBEDDING, cells_per_read=cells_per_read)
    table = control_table(store, matching, store.selected, EMBEDDING)
    assert not table.draws
    assert table.dense_RN is not None
    for code in range(len(store.contexts)):
        row = pair(table, np.array([code]), np.array([0]), seed=0, epoch=0)
        expected = embedding(controls_of(store, code, matching)).astype(np.float64).mean(0)
        np.testing.assert_allclose(table.dense_RN[row[0]], expected, rtol=1e-6, atol=1e-6)
        of_batch = embedding(controls_of(store, code, "matched")).astype(np.float64).mean(0)
        np.testing.assert_allclose(mean_CN[code], of_batch, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("matching", EVERY)
def test_an_embedding_that_the_store_lacks_is_said(store: CellStore, matching: ControlMatching) -> None:
    with pytest.raises(StoreError, match=f"no embedding 'X_other', there is {EMBEDDING}"):
        control_table(store, matching, store.selected, "X_other")


@pytest.mark.parametrize("name", [None, EMBEDDING])
@pytest.mark.parametrize("matching", EVERY)
def test_every_context_has_a_row_of_the_table(
    store: CellStore, matching: ControlMatching, name: str | None
) -> None:
    table = control_table(store, matching, store.selected, name)
    rows = np.arange(store.num_cells)
    chosen = pair(table, store.context, rows, seed=0, epoch=0)
    size = len(table.dense_RN) if table.dense_RN is not None else len(store.controls.rows)
    assert chosen.min() >= 0
    assert chosen.max() < size


@pytest.mark.parametrize("matching", EVERY)
def test_evaluation_starts_from_the_same_controls_for_all_of_a_batch_or_line(
    store: CellStore, matching: ControlMatching
) -> None:
    table = control_table(store, matching, store.selected, EMBEDDING)
    assert table.dense_RN is not None
    for most in (1, 4, 1000):
        rows_of_context = evaluation_rows(table, seed=3, most=most)
        for code, rows in enumerate(rows_of_context):
            if matching in ("mean", "matched_mean"):
                assert rows.tolist() == [table.group_of_context[code]]
                continue
            cells = table.dense_RN[rows, 0].astype(np.int64)
            candidates = controls_of(store, code, matching)
            assert len(set(cells)) == len(cells) == min(most, len(candidates))
            assert np.isin(cells, candidates).all()
            if matching == "random":  # one cell line, one draw
                same = [c for c, other in enumerate(store.contexts) if other[0] == store.contexts[code][0]]
                assert all(rows_of_context[c].tolist() == rows.tolist() for c in same)


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


def test_every_control_is_as_likely_to_be_evaluated_with() -> None:
    table, most, num_seeds = drawing_table([3, 40, 90]), 16, 1500
    draws = [evaluation_rows(table, seed=seed, most=most) for seed in range(num_seeds)]
    assert all(drawn[0].tolist() == [0, 1, 2] for drawn in draws)
    for group, size in ((1, 40), (2, 90)):
        first = int(table.indptr[group])
        counts = np.bincount(np.concatenate([drawn[group] for drawn in draws]) - first, minlength=size)
        assert len(counts) == size
        # hypergeometric: a binomial count of each cell, a little less spread over all of them
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    again = evaluation_rows(table, seed=7, most=most)
    assert [rows.tolist() for rows in again] == [rows.tolist() for rows in draws[7]]


def test_a_log1p_store_keeps_its_scale(store: CellStore) -> None:
    table = control_table(replace(store, input_scale="log1p"), "matched", store.selected)
    assert table.input_scale == "log1p"
