"""Tasks: what was seen in training, cell by cell; and means by group, by pandas."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.errors import InputError
from txpert_dist.evaluate.groups import NO_GROUP, group_intervals, means_by_group, metrics_of
from txpert_dist.evaluate.tasks import split_subgroups, task_groups
from txpert_dist.ingest.resplit import Resplit, resplit
from txpert_dist.loader.conditions import cell_lines
from txpert_dist.metrics.aggregate import mean_ignoring_nan
from txpert_dist.metrics.bootstrap import Bootstrap, bootstrap_means
from txpert_dist.store.cells import open_store
from txpert_dist.store.splits import SPLITS, TRAIN


def units(screen: DenseScreen) -> tuple[np.ndarray, np.ndarray]:
    """Every (perturbation, cell line) that has cells."""
    store = screen.store
    lines = cell_lines(store)
    pairs = {
        (p, line) for p, line in zip(store.perturbation, lines.cell_line_C[store.context], strict=True) if p
    }
    codes, places = zip(*sorted(pairs), strict=True)
    return np.array(codes), np.array(places)


def test_tasks_say_what_training_cells_held(screen: DenseScreen) -> None:
    store = screen.store
    codes, places = units(screen)
    trained = set(screen.name[screen.in_split(TRAIN)])
    genes = {gene for name in trained for gene in name.split("+")}
    tasks = task_groups(store, codes, places)
    assert len(tasks) == len(codes)
    for code, task in zip(codes, tasks, strict=True):
        name = store.perturbations[code]
        parts = [part in genes for part in name.split("+")]
        if task == "seen":
            assert name in trained
        elif task in ("unseen_single", "seen_single"):
            assert len(parts) == 1
            assert parts[0] == (task == "seen_single")
        else:
            assert task == f"combo_seen{sum(parts)}"
            assert len(parts) > 1
        assert (store.split[code] == TRAIN) == (task == "seen")
    assert len(set(tasks)) > 3


def test_of_a_held_out_line_only_other_lines_are_seen(screen: DenseScreen) -> None:
    store = screen.store
    codes, places = units(screen)
    tasks = task_groups(store, codes, places, held_out_cell_lines=("RPE1",))
    rpe1 = cell_lines(store).names.index("RPE1")
    trained = set(screen.name[screen.in_split(TRAIN) & (screen.line == "K562")])
    for code, place, task in zip(codes, places, tasks, strict=True):
        assert task.startswith("cross_line_") == (place == rpe1)
        if place == rpe1:
            assert (task == "cross_line_seen") == (store.perturbations[code] in trained)
    assert {"cross_line_seen", "cross_line_unseen"} < set(tasks)


def test_sub_groups_of_the_split_win_where_no_line_is_held_out(screen: DenseScreen, tmp_path: Path) -> None:
    codes = {
        name: SPLITS[code] for name, code in zip(screen.store.perturbations, screen.store.split, strict=True)
    }
    rows = [(name, split, "combo_seen7" if name == "A+B" else "") for name, split in codes.items()]
    rows = [(name, "test" if name == "A+B" else split, group) for name, split, group in rows]
    table = pd.DataFrame(rows, columns=["perturbation", "split", "subgroup"])
    table.to_csv(tmp_path / "split.csv", index=False)
    resplit(Resplit(screen.store.path, tmp_path / "s.zarr", table=tmp_path / "split.csv"))
    store = open_store(tmp_path / "s.zarr")
    assert split_subgroups(store) == {"A+B": "combo_seen7"}
    assert split_subgroups(screen.store) == {}
    code = store.perturbations.index("A+B")
    tasks = task_groups(store, np.array([code, code]), np.array([0, 1]), held_out_cell_lines=("RPE1",))
    assert tasks.tolist() == ["combo_seen7", "cross_line_unseen"]


def test_an_unknown_line_is_named(screen: DenseScreen) -> None:
    with pytest.raises(InputError, match="no cell line 'HepG2'"):
        task_groups(screen.store, *units(screen), held_out_cell_lines=("HepG2",))


def test_means_by_group_are_those_of_pandas_and_count_what_is_undefined() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "perturbation": [f"P{i}" for i in range(60)] * 2,
            "cell_line": "K562",
            "num_cells": 7,
            "predictor": ["model"] * 60 + ["general"] * 60,
            "pearson_delta": rng.normal(size=120),
            "mse": rng.random(120),
        }
    )
    table.loc[::7, "mse"] = np.nan
    group = [None if i % 5 == 0 else "ab"[i % 2] for i in range(120)]
    assert metrics_of(table) == ["pearson_delta", "mse"]
    found = means_by_group(table, group)
    named = table.assign(group=[name or "none" for name in group])
    for row in found.itertuples():
        own = named[(named.predictor == row.predictor) & (named.group == row.group)][row.metric]
        assert row.mean == pytest.approx(own.mean(), abs=1e-12)
        assert (row.num_values, row.num_nan) == (own.notna().sum(), own.isna().sum())
    assert len(found) == 2 * 3 * 2
    assert list(dict.fromkeys(found.predictor)) == ["model", "general"]
    assert list(dict.fromkeys(found.group)) == ["a", "b", "none"]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_intervals_of_groups_are_those_of_their_units_in_any_order(seed: int) -> None:
    rng, bootstrap = np.random.default_rng(seed), Bootstrap(resamples=50, seed=seed)
    names = [f"P{i % 9:02d}" for i in range(18)]
    units = pd.DataFrame({"perturbation": names, "cell_line": ["A"] * 9 + ["B"] * 9})
    units["task"] = [("x", "y", NO_GROUP)[i % 3] for i in range(18)]
    parts = [units.assign(predictor=name, retrieval=rng.random(18)) for name in ("model", "general")]
    table = pd.concat(parts, ignore_index=True)
    table.loc[rng.random(36) < 0.2, "retrieval"] = np.nan
    found = group_intervals(table, "task", ["retrieval"], bootstrap)
    assert [row[:2] for row in found] == [(p, g) for p in ("model", "general") for g in ("x", "y", NO_GROUP)]
    for row in found:
        own = table[(table["predictor"] == row.predictor) & (table["task"] == row.group)]
        own = own.sort_values(["perturbation", "cell_line"])
        unit, values = pd.factorize(own["perturbation"])[0], own["retrieval"].to_numpy()
        assert (row.low, row.high) == bootstrap_means(values[:, None], unit, bootstrap)[0]
        mean = mean_ignoring_nan(values)
        assert (row.mean, row.num_values, row.num_nan) == mean
    shuffled = table.iloc[rng.permutation(36)]
    again = {row[:3]: row for row in group_intervals(shuffled, "task", ["retrieval"], bootstrap)}
    for row in found:
        assert again[row[:3]] == row
