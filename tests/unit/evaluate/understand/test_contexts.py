"""Within and across contexts: every correlation by SciPy from dense cells; halves share nothing."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.evaluate.understand.contexts import (
    COLUMNS,
    Controls,
    Halves,
    control_pseudobulks,
    mean_baselines,
    summarise,
    within_and_across,
)
from txpert_dist.evaluate.understand.enrichment import meta_baseline
from txpert_dist.store.splits import TRAIN

REPEATS = 3


@pytest.fixture(scope="module")
def genes(screen: DenseScreen) -> np.ndarray:
    return np.arange(len(screen.store.genes), dtype=np.int64)


def delta_by_line(screen: DenseScreen, chosen: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Mean delta of each (line, perturbation) over the chosen cells, straight from the dense screen."""
    found = {}
    for line, name in sorted(set(zip(screen.line[chosen], screen.name[chosen], strict=True))):
        own = chosen & (screen.line == line) & (screen.name == name)
        found[line, name] = (screen.y_BG[own] - screen.control_BG[own]).mean(0)
    return found


def test_control_means_are_those_of_the_dense_cells(screen: DenseScreen, genes: np.ndarray) -> None:
    found = control_pseudobulks(screen.store, genes=genes, repeats=REPEATS)
    for name, mean_G in zip(found.batches, found.mean_CG, strict=True):
        line, batch = name.split("/")
        own = (screen.name == "control") & (screen.line == line) & (screen.batch == batch)
        np.testing.assert_allclose(mean_G, screen.y_BG[own].mean(0), atol=1e-6)
    assert "RPE1/3" not in found.batches  # it has no controls of its own


def test_halves_of_a_batch_are_all_its_cells_and_differ(screen: DenseScreen, genes: np.ndarray) -> None:
    found = control_pseudobulks(screen.store, genes=genes, repeats=REPEATS)
    # 25 cells: the halves have 12 and 13, whichever is which
    for repeat in range(REPEATS):
        first, second = found.halves.first_SCG[repeat], found.halves.second_SCG[repeat]
        shares = [(12 * first + 13 * second) / 25, (13 * first + 12 * second) / 25]
        fits = np.stack([np.isclose(share, found.mean_CG, atol=1e-9).all(1) for share in shares])
        assert fits.any(0).all()
    assert not np.allclose(found.halves.first_SCG[0], found.halves.first_SCG[1])


def test_batches_are_kept_whole_when_lines_are_compared(screen: DenseScreen, genes: np.ndarray) -> None:
    """Each half of a line is a mean of whole batches: of 3 batches (1 and 2), of 2 (1 and 1)."""
    found = control_pseudobulks(screen.store, genes=genes, repeats=REPEATS)
    means = dict(zip(found.batches, found.mean_CG, strict=True))
    for place, line in enumerate(found.lines.names):
        own = [mean for name, mean in means.items() if name.startswith(f"{line}/")]
        allowed = [*own, *((a + b) / 2 for i, a in enumerate(own) for b in own[:i])]  # 25 controls each
        for half_SCG in (found.lines.first_SCG, found.lines.second_SCG):
            for half_G in half_SCG[:, place]:
                assert any(np.allclose(half_G, mean, atol=1e-9) for mean in allowed)
        np.testing.assert_array_less(
            np.full(REPEATS, 1e-3),
            np.abs(found.lines.first_SCG[:, place] - found.lines.second_SCG[:, place]).max(1),
        )


def test_mean_baselines_weigh_perturbations_alike_and_see_training_only(
    screen: DenseScreen, genes: np.ndarray
) -> None:
    chosen = screen.in_split(TRAIN)
    deltas = delta_by_line(screen, chosen)
    mean_LG, halves = mean_baselines(screen.store, genes=genes, repeats=REPEATS)
    for place, line in enumerate(halves.names):
        own = np.array([delta for (where, _), delta in deltas.items() if where == line])
        np.testing.assert_allclose(mean_LG[place], own.mean(0), atol=2e-6)
    np.testing.assert_allclose(meta_baseline(mean_LG), mean_LG.mean(0), atol=1e-12)
    everything, _ = mean_baselines(screen.store, genes=genes, which="all", repeats=1)
    of_all = delta_by_line(screen, screen.perturbed)
    own = np.array([delta for (where, _), delta in of_all.items() if where == "K562"])
    np.testing.assert_allclose(everything[0], own.mean(0), atol=2e-6)


def test_halves_of_a_mean_baseline_are_of_distinct_perturbations_the_same_in_every_line(
    screen: DenseScreen, genes: np.ndarray
) -> None:
    """Solve for which perturbations are in each half: weights are 0 or 1/n, the same set in both lines."""
    deltas = delta_by_line(screen, screen.perturbed)
    _, halves = mean_baselines(screen.store, genes=genes, which="all", repeats=REPEATS)
    for repeat in range(REPEATS):
        sets = []
        for half_LG in (halves.first_SCG[repeat], halves.second_SCG[repeat]):
            in_lines = []
            for place, line in enumerate(halves.names):
                names = [name for where, name in deltas if where == line]
                own_PG = np.array([deltas[line, name] for name in names])
                weight_P = np.linalg.lstsq(own_PG.T, half_LG[place], rcond=None)[0]
                members = {name for name, weight in zip(names, weight_P, strict=True) if weight > 1e-3}
                np.testing.assert_allclose(
                    weight_P, [(name in members) / len(members) for name in names], atol=1e-4
                )
                in_lines.append((members, set(names)))
            (first, here), (second, there) = in_lines
            assert first & there == second & here
            sets.append(first | second)
        assert not sets[0] & sets[1]
        assert sets[0] | sets[1] == {name for _, name in deltas}


def test_every_correlation_is_scipys(screen: DenseScreen, genes: np.ndarray) -> None:
    controls = control_pseudobulks(screen.store, genes=genes, repeats=REPEATS)
    _, halves = mean_baselines(screen.store, genes=genes, repeats=REPEATS)
    table = within_and_across(controls, halves)
    assert tuple(table.columns) == COLUMNS
    whole = dict(zip(controls.batches, controls.mean_CG, strict=True))
    for row in table.itertuples():
        if row.kind == "controls_batch" and row.relation == "across":
            first, second = whole[row.first], whole[row.second]
            assert row.first.split("/")[0] == row.second.split("/")[0]
        else:
            of = {"controls_batch": controls.halves, "controls_line": controls.lines}.get(row.kind, halves)
            first = of.first_SCG[row.repeat, of.names.index(row.first)]
            second = of.second_SCG[row.repeat, of.names.index(row.second)]
        assert row.correlation == pytest.approx(scipy.stats.pearsonr(first, second).statistic, abs=1e-12)
        assert (row.relation == "within") == (row.first == row.second)
    counts = table.groupby(["kind", "relation"]).size().to_dict()
    assert counts == {
        ("controls_batch", "within"): 5 * REPEATS,
        ("controls_batch", "across"): 3 + 1,
        ("controls_line", "within"): 2 * REPEATS,
        ("controls_line", "across"): 2 * REPEATS,
        ("mean_baseline", "within"): 2 * REPEATS,
        ("mean_baseline", "across"): 2 * REPEATS,
    }


def test_the_summary_counts_what_has_no_correlation() -> None:
    rows = [("mean_baseline", "within", "A", "A", i, value) for i, value in enumerate((0.5, np.nan, 0.7))]
    (row,) = summarise(pd.DataFrame(rows, columns=list(COLUMNS))).itertuples()
    assert (row.mean, row.median) == (pytest.approx(0.6), pytest.approx(0.6))
    assert (row.num_values, row.num_nan) == (2, 1)


def test_less_noise_brings_within_nearer_to_one() -> None:
    """Halves of the same truth with less and less noise; another context has another truth."""
    rng = np.random.default_rng(0)
    truth_CG = rng.normal(size=(2, 400))
    means = []
    for noise in (1.0, 0.3, 0.01):
        first, second = (truth_CG + noise * rng.normal(size=(5, 2, 400)) for _ in range(2))
        halves = Halves(("A", "B"), first, second)
        controls = Controls(halves.names, np.array([0, 1]), halves.first_SCG[0], halves, halves)
        table = summarise(within_and_across(controls, halves)).set_index(["kind", "relation"])["mean"]
        means.append(table["mean_baseline"])
    within = [mean["within"] for mean in means]
    assert within == sorted(within)
    assert within[-1] > 0.999
    assert all(abs(mean["across"]) < 0.15 for mean in means)
