"""Resampled screens: the multinomial they claim to be, and what split halves say of more cells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.test_evaluate_run import view
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.run import evaluate
from txpert_dist.evaluate.sampling import Pooled, draw, pooled_counts, sampled_controls
from txpert_dist.loader.conditions import perturbed_rows, row_blocks
from txpert_dist.metrics.moments import ConditionMoments


def pooled(counts_G: list[int], totals: list[int]) -> Pooled:
    zero = np.zeros(1, np.int32)
    sums = ConditionMoments(zero, zero, np.array([len(totals)]), np.array([counts_G], float), np.zeros(1))
    size = np.array(totals)
    return Pooled(sums, np.zeros(len(totals), np.int64), size, size.astype(float))


def test_pooled_counts_are_the_sums_of_the_cells(screen: DenseScreen) -> None:
    store, rows, genes = screen.store, perturbed_rows(screen.store, "test"), view(screen.store)
    found = pooled_counts(store, rows, genes=genes)
    cells = store.take(rows)
    dense = np.zeros((len(rows), len(store.genes)))
    dense[np.repeat(np.arange(len(rows)), np.diff(cells.indptr)), cells.gene] = cells.value
    assert (found.total_B == dense.sum(1)).all()
    assert (found.library_size_B == store.library_size[rows]).all()
    for r, sum_G in enumerate(found.counts.sum_RG):
        assert (sum_G == dense[found.row_B == r][:, genes].sum(0)).all()


def test_expression_has_the_mean_and_variance_of_multinomial_cells() -> None:
    """One cell a condition: its counts are multinomial, so log1p of each is a function of a binomial."""
    counts, total, draws = [40, 25, 10, 0, 5], 100, 4000  # 20 counts are of genes outside the view
    mean = np.mean([draw(pooled(counts, [total]), seed=s, screen=0).sum_RG[0] for s in range(draws)], axis=0)
    k = np.arange(total + 1)
    expression = np.log1p(4000 * k / total)
    for gene, count in enumerate(counts):
        share = count / total
        log_choose = np.cumsum(np.log(np.maximum(k, 1)))
        weight = log_choose[-1] - log_choose - log_choose[::-1]
        chance = np.exp(weight) * share**k * (1 - share) ** (total - k)
        expected = (chance * expression).sum()
        spread = np.sqrt((chance * expression**2).sum() - expected**2)
        assert abs(mean[gene] - expected) <= 5 * spread / np.sqrt(draws) + 1e-9


@given(totals=st.lists(st.integers(1, 50), min_size=1, max_size=20), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_cells_keep_their_totals(totals: list[int], seed: int) -> None:
    """A cell of one gene alone can only get that gene, as often as it has counts."""
    found = draw(pooled([sum(totals)], totals), seed=seed, screen=0)
    assert found.num_cells_R.tolist() == [len(totals)]
    assert found.sum_RG[0, 0] == pytest.approx(len(totals) * np.log1p(4000))
    assert found.sum_squares_R[0] == pytest.approx(len(totals) * np.log1p(4000) ** 2)


def test_draws_do_not_depend_on_blocks_but_on_seed_and_screen(screen: DenseScreen) -> None:
    store, rows, genes = screen.store, perturbed_rows(screen.store, "test"), view(screen.store)
    whole = draw(pooled_counts(store, rows, genes=genes), seed=1, screen=0)
    for block in row_blocks(store, rows, by="perturbation", max_conditions=5):
        part = draw(pooled_counts(store, block, genes=genes), seed=1, screen=0)
        for r in range(len(part.num_cells_R)):
            same = (whole.perturbation_R == part.perturbation_R[r]) & (whole.context_R == part.context_R[r])
            assert (whole.sum_RG[same][0] == part.sum_RG[r]).all()
    for choice in ({"seed": 2, "screen": 0}, {"seed": 1, "screen": 1}):
        assert (draw(pooled_counts(store, rows, genes=genes), **choice).sum_RG != whole.sum_RG).any()


def test_controls_are_resampled_and_borrowed_where_they_were(screen: DenseScreen) -> None:
    store, genes = screen.store, view(screen.store)
    rows = np.flatnonzero(store.perturbation == 0)
    found_CG = sampled_controls(store, pooled_counts(store, rows, genes=genes), seed=0, screen=0, genes=genes)
    real_CG = store.control_mean_CG[:, genes]
    assert (found_CG != real_CG).any(1).all()
    assert np.corrcoef(found_CG.ravel(), real_CG.ravel())[0, 1] > 0.97
    borrowed = np.flatnonzero(store.controls.fallback)
    assert len(borrowed) == 1
    same = [c for c, place in enumerate(store.contexts) if place.cell_line == "RPE1" and c != borrowed[0]]
    assert np.abs(found_CG[borrowed[0]] - found_CG[same].mean(0)).max() < 1e-12  # 25 controls a batch


def test_a_screen_of_full_size_agrees_better_than_halves(screen: DenseScreen) -> None:
    report = evaluate(screen.store, [], split="test", genes=view(screen.store), effort=Effort(samplings=3))
    rows = {row.name: row.metrics for row in report.reproducibility}
    for metric in ("pearson_delta", "spearman_delta", "retrieval"):
        assert rows["sampling"][metric].mean > rows["split_half_pooled"][metric].mean
    assert rows["sampling"]["pseudobulk_mse"].mean < rows["split_half_pooled"]["pseudobulk_mse"].mean
    assert rows["sampling"]["pearson_delta"].num_nan == 0  # a single cell has no halves but can be drawn
    without = evaluate(screen.store, [], split="test", genes=view(screen.store), effort=Effort(samplings=0))
    assert [row.name for row in without.reproducibility] == ["split_half_pooled", "split_half_per_batch"]
    assert "sampling reproducibility" in {item.what for item in without.exclusions}
