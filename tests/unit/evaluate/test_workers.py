"""Scores by several real processes are those of one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.test_evaluate_run import view
from tests.unit.evaluate.test_predictions import profiles, read, write
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.run import evaluate

pytestmark = pytest.mark.process


def test_two_processes_score_as_one(screen: DenseScreen, tmp_path: Path) -> None:
    store = screen.store
    obs, x_RG = profiles(store)
    found = read(write(tmp_path / "p.h5ad", obs, x_RG, list(store.genes)), store)
    seen: list[tuple[str, int, int]] = []
    alone, shared = (
        evaluate(
            store,
            [found.predictor],
            split="test",
            genes=view(store),
            seed=5,
            effort=Effort(repeats=2, energy_cells=10, workers=workers),
            progress=lambda *step: seen.append(step),
        )
        for workers in (1, 2)
    )
    pd.testing.assert_frame_equal(shared.table, alone.table, rtol=0, atol=1e-12)
    assert (shared.table["predictor"] == "sampling").any()
    assert shared.table["energy_distance"].notna().any()
    assert shared.counts == alone.counts
    assert shared.exclusions == alone.exclusions
    for ours, theirs in zip(
        [*shared.predictors, *shared.reproducibility],
        [*alone.predictors, *alone.reproducibility],
        strict=True,
    ):
        assert ours.name == theirs.name
        for metric, mean in ours.metrics.items():
            assert mean[1:] == theirs.metrics[metric][1:]
            ends = (
                [*ours.intervals[metric], mean.mean],
                [*theirs.intervals[metric], theirs.metrics[metric].mean],
            )
            assert np.allclose(*(np.array(part, float) for part in ends), rtol=0, atol=1e-12, equal_nan=True)
    last = [step for step in seen if step[0] == "scoring predictions"][-1]
    assert last == ("scoring predictions", alone.counts.cells, alone.counts.cells)


def test_an_error_in_a_process_is_raised_here(screen: DenseScreen, tmp_path: Path) -> None:
    store = screen.store
    obs, x_RG = profiles(store)
    found = read(write(tmp_path / "p.h5ad", obs, x_RG, list(store.genes)), store)
    broken = found.predictor._replace(expression_RG=found.predictor.expression_RG[:, :5])
    with pytest.raises(ValueError, match="broadcast"):
        evaluate(store, [broken], split="test", genes=view(store), effort=Effort(samplings=0, workers=2))
