"""The loader: what the store holds, in the plan's order, on any world, and a thread that ends."""

import gc
import shutil
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from txpert_dist.config import Data
from txpert_dist.errors import ConfigError, InputError, StoreError
from txpert_dist.loader.conditions import cells_of_lines, perturbed_rows
from txpert_dist.loader.loader import CellLoader, training_rows
from txpert_dist.loader.pairing import control_table, pair
from txpert_dist.loader.plan import plan_epoch
from txpert_dist.loader.rows import read_rows
from txpert_dist.minibatch import Minibatch
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.expression import dense

REUSE = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def nodes(store: CellStore) -> np.ndarray:
    """(R, 2) made-up node numbers: twice the code, and for doubles once more."""
    code = np.arange(len(store.perturbations))
    double = np.array(["+" in name for name in store.perturbations])
    table = np.stack([2 * code, np.where(double, 2 * code + 1, -1)], axis=1)
    table[0] = -1
    return table.astype(np.int32)


def loader(store: CellStore, rows: np.ndarray | None = None, **change: Any) -> CellLoader:
    data = {"store": store.path, "chunk": change.pop("chunk", 16), "window": change.pop("window", 3)}
    genes = change.pop("genes", store.selected)
    matching = change.pop("matching", "matched")
    options = {"seed": 5, "rank": 0, "world": 1, "minibatch_size": 24, **change}
    return CellLoader(
        store,
        training_rows(store, controls_as_targets=True) if rows is None else rows,
        genes=genes,
        nodes_RM=nodes(store),
        data=Data.model_validate({**data, "control_matching": matching}),
        table=control_table(store, matching, genes),
        **options,
    )


def order_of(one: CellLoader, epoch: int) -> np.ndarray:
    plan = plan_epoch(
        len(one.rows),
        chunk=one.data.chunk,
        window=one.data.window,
        minibatch_size=one.minibatch_size,
        seed=one.seed,
        epoch=epoch,
    )
    return one.rows[plan.order][: one.num_steps * one.minibatch_size]


def assert_holds(
    minibatch: Minibatch, rows: np.ndarray, one: CellLoader, epoch: int, truth: np.ndarray
) -> None:
    store = one.store
    assert minibatch.cells.indptr.dtype == np.int64
    assert minibatch.cells.gene.dtype == np.uint16
    assert minibatch.cells.value.dtype == np.uint8
    np.testing.assert_array_equal(dense(minibatch.cells, len(one.genes)), truth[rows][:, one.genes])
    np.testing.assert_array_equal(minibatch.cells.library_size, store.library_size[rows])
    np.testing.assert_array_equal(minibatch.perturbations_BM, one.nodes_RM[store.perturbation[rows]])
    control = pair(one.table, store.context[rows], rows, seed=one.seed, epoch=epoch)
    np.testing.assert_array_equal(minibatch.control, control)


@given(
    world=st.sampled_from([1, 2, 3, 4]),
    chunk=st.integers(1, 64),
    window=st.integers(1, 6),
    epoch=st.integers(0, 3),
    start=st.integers(0, 20),
    which=st.sampled_from(["selected", "all"]),
)
@REUSE
def test_minibatches_are_the_stores_cells_in_plan_order_on_any_world(
    store: CellStore,
    expected: np.ndarray,
    world: int,
    chunk: int,
    window: int,
    epoch: int,
    start: int,
    which: str,
) -> None:
    genes = store.training_genes(which)
    for rank in range(world):
        one = loader(store, genes=genes, chunk=chunk, window=window, world=world, rank=rank)
        first = min(start, one.num_steps)
        order, share = order_of(one, epoch), 24 // world
        served = list(one.epoch(epoch, start_step=first))
        assert len(served) == one.num_steps - first
        for step, minibatch in enumerate(served, start=first):
            at = step * 24 + rank * share
            assert_holds(minibatch, order[at : at + share], one, epoch, expected)


def test_an_epoch_serves_every_row_but_the_rest_once(store: CellStore) -> None:
    one = loader(store, minibatch_size=32)
    sizes = [minibatch.cells.num_cells for minibatch in one.epoch(0)]
    assert sizes == [32] * (len(one.rows) // 32)
    assert len(set(order_of(one, 0).tolist())) == sum(sizes)
    assert order_of(one, 0).tolist() != order_of(one, 1).tolist()


def test_training_rows_hold_no_held_out_perturbation(store: CellStore) -> None:
    held_out = np.flatnonzero(store.split != 0)
    assert len(held_out) > 5
    both = training_rows(store, controls_as_targets=True)
    perturbed = training_rows(store, controls_as_targets=False)
    assert (np.diff(both) > 0).all()
    assert not np.isin(store.perturbation[both], held_out).any()
    assert set(both) - set(perturbed) == set(np.flatnonzero(store.perturbation == 0))
    of_train = np.isin(store.perturbation, np.flatnonzero(store.split == 0))
    assert len(both) == of_train.sum()


@given(
    lines=st.sets(st.sampled_from(["A549", "K562"])),
    controls_as_targets=st.booleans(),
    seed=st.integers(0, 1000),
)
@REUSE
def test_no_perturbed_cell_of_a_held_out_line_is_learned_from(
    store: CellStore, lines: set[str], controls_as_targets: bool, seed: int
) -> None:
    split = np.random.default_rng(seed).integers(0, 3, len(store.split)).astype(np.uint8)
    another = replace(store, split=split)
    rows = training_rows(another, controls_as_targets=controls_as_targets, held_out_cell_lines=sorted(lines))
    expected = []
    for row in range(store.num_cells):
        code, line = store.perturbation[row], store.contexts[store.context[row]].cell_line
        if controls_as_targets if code == 0 else split[code] == 0 and line not in lines:
            expected.append(row)
    assert rows.tolist() == expected
    validation = perturbed_rows(another, "validation", among=~cells_of_lines(store, sorted(lines)))
    assert not lines & {store.contexts[code].cell_line for code in store.context[validation]}
    assert (split[store.perturbation[validation]] == 1).all()
    everywhere = perturbed_rows(another, "validation")
    rest = np.setdiff1d(everywhere, validation)
    assert {store.contexts[code].cell_line for code in store.context[rest]} <= lines


def test_a_cell_line_that_is_not_there_is_said(store: CellStore) -> None:
    with pytest.raises(InputError, match="no cell line 'K652'; did you mean K562"):
        training_rows(store, controls_as_targets=True, held_out_cell_lines=["K652"])
    with pytest.raises(InputError, match="no cell line 'xyz'; it has A549, K562"):
        training_rows(store, controls_as_targets=True, held_out_cell_lines=["xyz"])


def test_controls_have_no_perturbation_nodes(store: CellStore) -> None:
    one = loader(store, np.flatnonzero(store.perturbation == 0))
    for minibatch in one.epoch(0):
        assert (minibatch.perturbations_BM == -1).all()


@given(rows=st.lists(st.integers(0, 419), unique=True, min_size=1, max_size=60))
@REUSE
def test_rows_are_read_in_any_order(store: CellStore, expected: np.ndarray, rows: list[int]) -> None:
    wanted = np.array(rows)
    read = read_rows(store, wanted, store.selected)
    np.testing.assert_array_equal(dense(read, len(store.selected)), expected[wanted][:, store.selected])
    for start, stop in zip(read.indptr[:-1], read.indptr[1:], strict=True):
        assert (np.diff(read.gene[start:stop]) > 0).all()


def reading_threads() -> int:
    return sum(thread.name.startswith("read-cells") for thread in threading.enumerate())


def test_the_thread_ends_with_the_epoch_and_with_an_abandoned_iterator(store: CellStore) -> None:
    one = loader(store, window=1)
    assert reading_threads() == 0
    minibatches = cast(Generator[Minibatch, None, None], one.epoch(0))
    next(minibatches)
    assert 0 < reading_threads() <= one.data.reading_threads + 1
    minibatches.close()
    assert reading_threads() == 0
    for _ in one.epoch(0):
        pass
    assert reading_threads() == 0
    for _ in one.epoch(1):
        break
    gc.collect()
    assert reading_threads() == 0
    never_begun = one.epoch(2)
    del never_begun
    assert reading_threads() == 0


def test_damage_found_by_the_thread_is_raised_where_minibatches_are_used(
    tmp_path: Path, store: CellStore
) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(store.path, copy)
    opened = open_store(copy)
    one = loader(opened)
    shard = max(
        (copy / "X" / "data").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(bytes(content))
    with pytest.raises(StoreError, match="damaged"):
        list(one.epoch(0))
    assert reading_threads() == 0


def test_a_minibatch_that_cannot_be_made_is_refused(store: CellStore) -> None:
    with pytest.raises(ConfigError, match="cannot be shared equally by 5 workers"):
        loader(store, world=5)
    with pytest.raises(InputError, match=r"fewer than train\.minibatch_size=4800"):
        loader(store, minibatch_size=4_800)
