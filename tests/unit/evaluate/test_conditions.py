"""Streamed statistics of a store against the plain means over dense, independently normalised cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.loader.conditions import (
    cell_lines,
    condition_moments,
    perturbation_deltas,
    perturbed_rows,
    row_blocks,
    split_moments,
)
from txpert_dist.metrics.moments import merge_moments


def test_moments_are_the_sums_over_the_dense_cells(screen: DenseScreen) -> None:
    store = screen.store
    genes = np.array([31, 2, 17, 5], np.int64)  # a model's order, not the store's
    rows = np.random.default_rng(0).permutation(perturbed_rows(store))
    moments = condition_moments(store, rows, genes=genes)
    assert moments.num_cells_R.sum() == screen.perturbed.sum()
    for p, c, number, total, squares in zip(*moments, strict=True):
        context = store.contexts[c]
        cells = (screen.name == store.perturbations[p]) & (screen.line == context.cell_line)
        y_BG = screen.y_BG[cells & (screen.batch == context.batch)][:, genes]
        assert number == len(y_BG)
        assert np.abs(total - y_BG.sum(0)).max() < 1e-4
        assert squares == pytest.approx((y_BG**2).sum(), rel=1e-5)


def test_deltas_are_the_means_of_cells_centred_on_their_own_batch(screen: DenseScreen) -> None:
    store = screen.store
    genes = store.training_genes("selected")
    deltas = perturbation_deltas(store, perturbed_rows(store), genes=genes)
    lines = cell_lines(store).names
    assert lines == ("K562", "RPE1")
    assert len(deltas.perturbation_P) == len(set(zip(screen.name, screen.line, strict=True))) - 2
    for p, line, number, delta_G in zip(*deltas, strict=True):
        cells = (screen.name == store.perturbations[p]) & (screen.line == lines[line])
        expected = (screen.y_BG - screen.control_BG)[cells][:, genes].mean(0)
        assert number == cells.sum()
        assert np.abs(delta_G - expected).max() < 1e-5


def test_rows_of_a_split_are_its_perturbed_cells(screen: DenseScreen) -> None:
    for code, name in enumerate(("train", "validation", "test")):
        rows = perturbed_rows(screen.store, name)
        assert rows.tolist() == np.flatnonzero(screen.in_split(code)).tolist()
        assert len(rows) > 20
    with pytest.raises(ValueError, match="holdout"):
        perturbed_rows(screen.store, "holdout")


@given(most=st.integers(1, 200), by=st.sampled_from(["perturbation", "context"]), keep=st.floats(0, 1))
@settings(max_examples=40)
def test_blocks_partition_the_rows_and_never_cut_a_key(
    screen: DenseScreen, most: int, by: str, keep: float
) -> None:
    store = screen.store
    rows = perturbed_rows(store)
    rows = rows[np.random.default_rng(1).random(len(rows)) < keep]
    blocks = row_blocks(store, rows, by=by, max_conditions=most)
    assert sorted(row for block in blocks for row in block.tolist()) == rows.tolist()
    key = store.perturbation if by == "perturbation" else store.context
    keys = [set(key[block].tolist()) for block in blocks]
    assert sum(map(len, keys)) == len(set().union(*keys))
    for block, held in zip(blocks, keys, strict=True):
        assert (np.diff(block) > 0).all()
        num = len(set(zip(store.perturbation[block], store.context[block], strict=True)))
        assert num <= most or len(held) == 1


def test_blocks_together_hold_the_moments_of_all(screen: DenseScreen) -> None:
    store, genes = screen.store, np.arange(10, dtype=np.int64)
    rows = perturbed_rows(store)
    whole = condition_moments(store, rows, genes=genes)
    blocks = row_blocks(store, rows, by="perturbation", max_conditions=9)
    assert len(blocks) > 3
    merged = condition_moments(store, blocks[0], genes=genes)
    for block in blocks[1:]:
        merged = merge_moments(merged, condition_moments(store, block, genes=genes))
    for ours, theirs in zip(merged, whole, strict=True):
        assert np.abs(ours - theirs).max() < 1e-12


def test_parts_are_the_moments_of_their_cells(screen: DenseScreen) -> None:
    store, genes = screen.store, np.arange(12, dtype=np.int64)
    rows = perturbed_rows(store)
    part_SB = np.random.default_rng(2).random((2, len(rows))) < 0.5
    whole, parts = split_moments(store, rows, part_SB, genes=genes)
    assert len(parts) == 2
    for part, in_part in zip(parts, part_SB, strict=True):
        alone = condition_moments(store, rows[in_part], genes=genes)
        held = part.num_cells_R > 0
        assert (part.perturbation_R == whole.perturbation_R).all()
        assert (part.context_R[held] == alone.context_R).all()
        assert (part.num_cells_R[held] == alone.num_cells_R).all()
        assert np.abs(part.sum_RG[held] - alone.sum_RG).max() < 1e-12
        assert np.abs(part.sum_squares_R[held] - alone.sum_squares_R).max() < 1e-10
        assert not part.sum_RG[~held].any()


def test_progress_counts_cells(screen: DenseScreen) -> None:
    seen: list[tuple[int, int]] = []
    rows = perturbed_rows(screen.store)
    condition_moments(
        screen.store,
        rows,
        genes=np.arange(3, dtype=np.int64),
        progress=lambda _what, done, total: seen.append((done, total)),
    )
    assert seen[-1] == (len(rows), len(rows))
