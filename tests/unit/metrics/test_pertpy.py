"""The metrics that pertpy has too, against its stored answers (tests/golden/pertpy_distances.py)."""

import json

import numpy as np
import pytest

from tests.golden.pertpy_distances import CASES, DISTANCES, FILE, clouds
from txpert_dist.metrics.energy import energy_distance
from txpert_dist.metrics.error import pseudobulk_mse, r2_delta
from txpert_dist.metrics.pearson import pearson_delta
from txpert_dist.metrics.ranks import spearman_delta

STORED = json.loads(FILE.read_text("utf-8"))


def test_every_case_is_stored() -> None:
    assert [tuple(answer["case"]) for answer in STORED["answers"]] == list(CASES)
    assert all(np.isfinite([answer[name] for name in DISTANCES]).all() for answer in STORED["answers"])


@pytest.mark.parametrize("answer", STORED["answers"], ids=lambda answer: f"seed {answer['case'][0]}")
def test_metrics_are_those_of_pertpy(answer: dict[str, float]) -> None:
    observed_AG, predicted_BG = clouds(*answer["case"])  # type: ignore[misc]
    observed_PG, predicted_PG = observed_AG.mean(0)[None], predicted_BG.mean(0)[None]
    ours = {
        "edistance": energy_distance(predicted_BG, observed_AG),
        "pearson_distance": 1 - pearson_delta(predicted_PG, observed_PG)[0],
        "spearman_distance": 1 - spearman_delta(predicted_PG, observed_PG)[0],
        "r2_distance": 1 - r2_delta(predicted_PG, observed_PG)[0],
        "mse": pseudobulk_mse(predicted_PG, observed_PG)[0],
    }
    for name, value in ours.items():
        assert value == pytest.approx(answer[name], rel=1e-9, abs=1e-12), name
