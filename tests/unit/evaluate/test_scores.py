"""Every metric of a report against cell-eval and SciPy, on simulated and on real cells."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from cell_eval._types import PerturbationAnndataPair
from cell_eval.metrics._anndata import discrimination_score, mse, mse_delta, pearson_delta
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error

from tests.unit.evaluate.conftest import DenseScreen
from txpert_dist.evaluate.scores import Values, background_of, observed_block, score_prediction
from txpert_dist.evaluate.survey import differential_genes
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.loader.conditions import cell_lines, condition_moments, perturbation_deltas, perturbed_rows
from txpert_dist.metrics.moments import ConditionMoments
from txpert_dist.store.cells import CellStore, open_store
from txpert_dist.store.expression import dense, log1p_normalise

PAPALEXI = Path(os.environ.get("TXPERT_SHARED_DATA", "../shared/data")) / "real_papalexi2021.h5ad"
Predict = Callable[[ConditionMoments], NDArray[np.floating]]


def scores_of(store: CellStore, rows: NDArray[np.int64], predict: Predict) -> tuple[pd.DataFrame, Values]:
    """Our scores of a prediction, and which (perturbation, cell line) they are of."""
    genes = np.arange(len(store.genes), dtype=np.int64)
    lines = cell_lines(store)
    everything = perturbation_deltas(store, perturbed_rows(store), genes=genes)
    differential = differential_genes(store, rows, genes=genes, max_groups=100)
    background = background_of(
        store, everything, lines.cell_line_C, genes=genes, differential=differential, seed=0
    )
    moments = condition_moments(store, rows, genes=genes)
    block = observed_block(moments, background)
    names = np.array(store.perturbations)[block.groups.perturbation_P]
    line = np.array(lines.names)[block.groups.cell_line_P]
    index = pd.DataFrame({"perturbation": names, "cell_line": line})
    return index, score_prediction(predict(moments), block, background)


def noisy_truth(control_CG: NDArray[np.float32]) -> Predict:
    def predict(moments: ConditionMoments) -> NDArray[np.floating]:
        rng = np.random.default_rng(7)
        noise_RG = rng.normal(0, 1.5, moments.sum_RG.shape)
        mean_RG = moments.sum_RG / moments.num_cells_R[:, None]
        control_RG = control_CG[moments.context_R]
        return (control_RG + 0.3 * (mean_RG - control_RG) + noise_RG).astype(np.float32)

    return predict


def cell_eval_pair(
    real_BG: NDArray[np.float64], predicted_BG: NDArray[np.float64], name: NDArray[np.str_]
) -> PerturbationAnndataPair:
    """What cell-eval needs to see batch-matched deltas: centred cells and one control at exactly zero."""
    names = np.append(name, "control")

    def as_anndata(x_BG: NDArray[np.float64]) -> anndata.AnnData:
        obs = pd.DataFrame({"perturbation": names}, index=[f"c{i}" for i in range(len(names))])
        var = pd.DataFrame(index=[f"measured{i}" for i in range(x_BG.shape[1])])
        return anndata.AnnData(np.vstack([x_BG, np.zeros(x_BG.shape[1])]), obs=obs, var=var)

    return PerturbationAnndataPair(
        real=as_anndata(real_BG),
        pred=as_anndata(predicted_BG),
        pert_col="perturbation",
        control_pert="control",
    )


def expand(
    moments: ConditionMoments, predicted_RG: NDArray[np.floating], store: CellStore, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """A prediction of conditions as one row for each cell."""
    row = {key: i for i, key in enumerate(zip(moments.perturbation_R, moments.context_R, strict=True))}
    keys = zip(store.perturbation[rows], store.context[rows], strict=True)
    return predicted_RG[[row[key] for key in keys]].astype(np.float64)


def against_cell_eval(
    store: CellStore,
    rows: NDArray[np.int64],
    y_BG: NDArray[np.float64],
    control_BG: NDArray[np.float64],
    tolerance: float,
) -> None:
    """Score all perturbations of one cell line with cell-eval and with ours."""
    predict = noisy_truth(store.control_mean_CG)
    index, values = scores_of(store, rows, predict)
    moments = condition_moments(store, rows, genes=np.arange(len(store.genes), dtype=np.int64))
    predicted_BG = expand(moments, predict(moments), store, rows)
    name = np.array(store.perturbations)[store.perturbation[rows]]
    pair = cell_eval_pair(y_BG - control_BG, predicted_BG - control_BG, name)

    def theirs(scores: dict[str, Any]) -> NDArray[np.float64]:
        return np.array([float(scores[name]) for name in index["perturbation"]])

    num = len(index)
    rank = theirs(discrimination_score(pair, metric="correlation", exclude_target_gene=False))
    assert np.abs(values["pearson_delta"] - theirs(pearson_delta(pair))).max() < tolerance
    assert np.abs(values["retrieval"] - (1 - (1 - rank) * num / (num - 1))).max() < 1e-9
    assert values["retrieval"].min() < 1.0
    assert np.abs(values["pseudobulk_mse"] - theirs(mse(pair))).max() < tolerance
    assert np.abs(values["pseudobulk_mse"] - theirs(mse_delta(pair))).max() < tolerance
    for p, found in zip(index["perturbation"], values["per_cell_mse"], strict=True):
        expected = mean_squared_error(y_BG[name == p], predicted_BG[name == p])
        assert found == pytest.approx(expected, abs=tolerance)


def stored_cells(
    store: CellStore, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expression of the cells and the control mean of each, with the store's own float32 values."""
    cells = log1p_normalise(store.take(rows), input_scale=store.input_scale)
    y_BG = dense(cells, len(store.genes)).astype(np.float64)
    return y_BG, store.control_mean_CG[store.context[rows]].astype(np.float64)


def test_scores_of_a_simulated_screen_are_those_of_cell_eval(screen: DenseScreen) -> None:
    for line in ("K562", "RPE1"):
        cells = screen.perturbed & (screen.line == line)
        rows = np.flatnonzero(cells).astype(np.int64)
        against_cell_eval(screen.store, rows, screen.y_BG[cells], screen.control_BG[cells], 1e-4)
        against_cell_eval(screen.store, rows, *stored_cells(screen.store, rows), 1e-9)


@pytest.mark.real
@pytest.mark.skipif(not PAPALEXI.exists(), reason=f"{PAPALEXI.name} is not there")
def test_scores_of_a_real_screen_are_those_of_cell_eval(tmp_path: Path) -> None:
    config = IngestConfig(
        sources=(PAPALEXI,),
        store=tmp_path / "papalexi.zarr",
        perturbation_key="target",
        control_label="non-targeting",
        batch_key="bio_rep",
        cell_line="THP-1",
        select_genes=0,
    )
    ingest(config)
    store = open_store(config.store)
    rows = perturbed_rows(store)
    against_cell_eval(store, rows, *stored_cells(store, rows), 1e-9)


def test_retrieval_ranks_among_perturbations_of_every_split_in_the_cell_line(screen: DenseScreen) -> None:
    store = screen.store
    rows = perturbed_rows(store, "test")
    index, values = scores_of(store, rows, noisy_truth(store.control_mean_CG))
    genes = np.arange(len(store.genes), dtype=np.int64)
    moments = condition_moments(store, rows, genes=genes)
    predicted_BG = expand(moments, noisy_truth(store.control_mean_CG)(moments), store, rows)
    name, line = screen.name[rows], screen.line[rows]
    change_BG = screen.y_BG - screen.control_BG
    for row, (p, where) in enumerate(zip(index["perturbation"], index["cell_line"], strict=True)):
        own = (name == p) & (line == where)
        predicted = (predicted_BG[own] - screen.control_BG[rows][own]).mean(0)
        others = sorted(set(screen.name[screen.perturbed & (screen.line == where)]))
        truth = {q: change_BG[(screen.name == q) & (screen.line == where)].mean(0) for q in others}
        similarity = {q: pearsonr(predicted, truth[q])[0] for q in others}
        expected = np.mean([similarity[p] >= similarity[q] for q in others if q != p])
        assert len(others) >= 16
        assert values["retrieval"][row] == pytest.approx(expected, abs=1e-12)
        assert values["retrieval_fast"][row] == values["retrieval"][row]  # fewer than 100 references


def test_a_prediction_of_another_shape_is_refused(screen: DenseScreen) -> None:
    rows = perturbed_rows(screen.store, "test")
    with pytest.raises(ValueError, match="conditions of shape"):
        scores_of(screen.store, rows, lambda moments: moments.sum_RG[:, 1:])
