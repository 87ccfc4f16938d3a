"""The validation score against cells one by one, whatever controls the predictions start from."""

import math
from typing import get_args

import numpy as np
import pytest
import scipy.stats
import torch

from tests.processes import run
from tests.unit.train.small_screen import NUM_GENES, configuration, write_inputs
from txpert_dist.config import ControlMatching
from txpert_dist.loader.pairing import control_table
from txpert_dist.model.txpert import build_model
from txpert_dist.store.expression import dense, log1p_normalise
from txpert_dist.train.batch import resident_controls
from txpert_dist.train.checkpoint import SCORE
from txpert_dist.train.conditions import context_controls
from txpert_dist.train.inputs import open_inputs
from txpert_dist.train.validate import UNDEFINED, observe, validate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def prepared(folder, matching="matched_mean"):
    config = configuration(folder, folder, data={"control_matching": matching})
    inputs = open_inputs(config)
    model = build_model(
        config.model,
        num_genes=len(inputs.genes),
        basal_width=inputs.basal_width,
        graph=inputs.graph,
        seed=3,
    )
    model.train()
    x_BG = torch.randn(64, len(inputs.genes), generator=torch.Generator().manual_seed(0))
    model(x_BG, torch.from_numpy(inputs.nodes_RM[np.arange(64) % 17]))
    table = control_table(inputs.store, matching, inputs.genes)
    resident = resident_controls(table, num_genes=len(inputs.genes), device=CPU)
    return inputs, model, context_controls(table, resident, seed=config.seed)


def score(_rank, _world, folder, matching="matched_mean"):
    inputs, model, controls = prepared(folder, matching)
    observed = observe(inputs, progress=lambda *_: None)
    metrics = validate(model, inputs, observed, controls, device=CPU)
    assert model.training
    return metrics, len(observed.num_cells_R)


@pytest.mark.parametrize("matching", get_args(ControlMatching))
def test_score_is_the_mean_over_perturbations_and_lines_of_cellwise_deltas(folder, matching):
    """Every perturbed cell alone, from every control it may have (fewer than are drawn, so all of them)."""
    inputs, model, _ = prepared(folder, matching)
    store = inputs.store
    cells = log1p_normalise(store.read(0, store.num_cells), input_scale="counts")
    y_BG = dense(cells, NUM_GENES)[:, inputs.genes]
    is_control = store.perturbation == 0
    mean_CG = np.stack([y_BG[is_control & (store.context == code)].mean(0) for code in range(3)])
    line = np.array([store.contexts[code].cell_line for code in store.context])
    model.eval()
    scores = []
    for code in np.flatnonzero(store.split == 1):
        for name in np.unique(line):
            rows = np.flatnonzero((store.perturbation == code) & (line == name))
            predicted_BG = []
            for row in rows:
                near = store.context == store.context[row] if "matched" in matching else line == name
                start_BG = y_BG[is_control & near]
                if "mean" in matching:
                    start_BG = start_BG.mean(0, keepdims=True)
                nodes = torch.from_numpy(inputs.nodes_RM[np.full(len(start_BG), code)])
                with torch.no_grad():
                    answer_BG = model(torch.from_numpy(start_BG), nodes).expression_BG.numpy()
                predicted_BG.append(answer_BG.mean(0))
            control_BG = mean_CG[store.context[rows]]
            predicted, observed = (predicted_BG - control_BG).mean(0), (y_BG[rows] - control_BG).mean(0)
            scores.append(scipy.stats.pearsonr(predicted, observed).statistic)
    assert len(scores) == 6
    metrics, _ = score(0, 1, folder, matching)
    assert metrics == {SCORE: pytest.approx(np.mean(scores), abs=1e-4), UNDEFINED: 0}


@pytest.mark.process
def test_any_number_of_ranks_gives_the_same_score(folder):
    alone, all_conditions = score(0, 1, folder)
    results = run(score, 4, folder)  # more ranks than validation perturbations: one has nothing to do
    for metrics, _ in results:
        assert metrics == {SCORE: pytest.approx(alone[SCORE], abs=1e-6), UNDEFINED: 0}
    shares = [conditions for _, conditions in results]
    assert sum(shares) == all_conditions
    assert shares[3] == 0


def test_undefined_scores_are_counted_and_none_is_not_zero(folder):
    inputs, model, controls = prepared(folder)
    observed = observe(inputs, progress=lambda *_: None)
    flat = observed._replace(delta_PG=np.zeros_like(observed.delta_PG))
    metrics = validate(model, inputs, flat, controls, device=CPU)
    assert math.isnan(metrics[SCORE])
    assert metrics[UNDEFINED] == len(flat.delta_PG) == 6
    one = flat.delta_PG.copy()
    one[0] = observed.delta_PG[0]
    metrics = validate(model, inputs, observed._replace(delta_PG=one), controls, device=CPU)
    assert -1 <= metrics[SCORE] <= 1
    assert metrics[UNDEFINED] == 5
    none = inputs._replace(validation=inputs.validation[:0])
    empty = validate(model, none, observe(none, progress=lambda *_: None), controls, device=CPU)
    assert math.isnan(empty[SCORE])
    assert empty[UNDEFINED] == 0
