"""What any honest evaluation must give, on made-up screens of known truth."""

from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from txpert_dist.evaluate.baselines import fit_additive, training_from
from txpert_dist.evaluate.blocks import Effort
from txpert_dist.evaluate.report import Report
from txpert_dist.evaluate.run import evaluate
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.metrics.delta import PerturbationDeltas
from txpert_dist.store.cells import CellStore, open_store

NUM_GENES, NUM_PERTURBATIONS = 120, 60


class Rule(NamedTuple):
    """Predicts the control mean plus what a rule says of perturbation and context."""

    control_CG: NDArray[np.float32]
    change_QG: NDArray[np.float64]
    change_CG: NDArray[np.float64]
    name: str = "model"

    def predict(
        self, perturbation_R: NDArray[np.int32], context_R: NDArray[np.int32]
    ) -> NDArray[np.floating]:
        return self.control_CG[context_R] + self.change_QG[perturbation_R] + self.change_CG[context_R]


def screen_of(
    folder: Path, *, effect: float, batch_effect: float, noise: float, seed: int = 0, controls: int = 60
) -> tuple[CellStore, NDArray[np.float64], NDArray[np.float64]]:
    """A store of expression on the log scale, (Q, G) true effects and (C, G) batch effects by its codes.

    Perturbations are concentrated in batches: nine tenths of their cells are in one of four.
    """
    rng = np.random.default_rng(seed)
    names = [f"P{i:02d}" for i in range(NUM_PERTURBATIONS)]
    own = {name: effect * rng.normal(size=NUM_GENES) for name in names} | {"control": np.zeros(NUM_GENES)}
    batches = batch_effect * rng.normal(size=(4, NUM_GENES))
    rows, labels = [], []
    for number, name in enumerate(["control", *names]):
        for batch in range(4):
            cells = controls if name == "control" else 18 if batch == number % 4 else 2
            base = 3.0 + own[name] + batches[batch]
            rows.append(np.maximum(base + noise * rng.normal(size=(cells, NUM_GENES)), 0.0))
            labels += [(name, "L", str(batch))] * cells
    obs = pd.DataFrame(labels, columns=["perturbation", "cell_line", "batch"])
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=[f"g{i}" for i in range(NUM_GENES)])
    anndata.AnnData(np.vstack(rows).astype(np.float32), obs, var).write_h5ad(folder / "s.h5ad")
    config = IngestConfig(
        sources=(folder / "s.h5ad",),
        store=folder / "s.zarr",
        preset="scperturb",
        input_scale="log1p",
        select_genes=0,
    )
    ingest(config)
    store = open_store(config.store)
    of_context = np.stack([batches[int(context.batch)] for context in store.contexts])
    return store, np.stack([own[name] for name in store.perturbations]), of_context


def report_of(store: CellStore, change_QG: NDArray[np.float64], change_CG: NDArray[np.float64]) -> Report:
    rule = Rule(store.control_mean_CG, change_QG, change_CG)
    genes = np.arange(len(store.genes), dtype=np.int64)
    return evaluate(store, [rule], split="test", genes=genes, effort=Effort(repeats=3))


def means(report: Report, name: str) -> dict[str, float | None]:
    rows = {row.name: row for row in (*report.predictors, *report.reproducibility)}
    return {metric: value.mean for metric, value in rows[name].metrics.items()}


def test_truth_its_opposite_and_noise_get_what_they_deserve(tmp_path: Path) -> None:
    store, effect_QG, batch_CG = screen_of(tmp_path, effect=0.4, batch_effect=0.3, noise=0.3)
    nothing_CG = np.zeros_like(batch_CG)
    truth = means(report_of(store, effect_QG, nothing_CG), "model")
    assert truth["pearson_delta"] > 0.95
    assert truth["pearson_delta_shifted"] > 0.95
    assert truth["retrieval"] == 1.0
    assert truth["direction_accuracy"] > 0.9
    opposite = means(report_of(store, -effect_QG, nothing_CG), "model")
    assert opposite["pearson_delta"] < -0.95
    assert opposite["retrieval"] == 0.0
    noise_QG = np.random.default_rng(9).normal(size=effect_QG.shape)
    noise = means(report_of(store, noise_QG, nothing_CG), "model")
    assert abs(noise["pearson_delta"]) < 0.1
    assert noise["retrieval"] == pytest.approx(0.5, abs=0.15)
    assert noise["direction_accuracy"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("controls", [60, 2000])
def test_knowing_the_batch_alone_gets_no_credit(tmp_path: Path, controls: int) -> None:
    """Strong batch effects, perturbations concentrated in batches, no effect of any perturbation."""
    store, nothing_QG, batch_CG = screen_of(
        tmp_path, effect=0.0, batch_effect=1.0, noise=0.3, controls=controls
    )
    report = report_of(store, nothing_QG, batch_CG - batch_CG.mean(0))
    model = means(report, "model")
    assert abs(model["pearson_delta"]) < 0.1
    assert abs(model["pearson_delta_shifted"]) < 0.1
    assert model["retrieval"] == pytest.approx(0.5, abs=0.15)
    assert means(report, "no_change")["pearson_delta"] is None
    # the mean of a batch's other cells earns what the sampling error of its controls is worth, which is in
    # every delta of the batch; with many controls, next to nothing
    batch = means(report, "batch_mean")
    if controls == 60:
        assert 0.2 < batch["pearson_delta"] < 0.5
        assert batch["retrieval"] > 0.7
    else:
        assert abs(batch["pearson_delta"]) < 0.15
        assert batch["retrieval"] == pytest.approx(0.5, abs=0.2)


def test_what_all_perturbations_share_earns_nothing_once_it_is_subtracted(tmp_path: Path) -> None:
    _, effect_QG, batch_CG = screen_of(tmp_path, effect=0.2, batch_effect=0.1, noise=0.3)
    shared_G = 0.6 * np.random.default_rng(3).normal(size=NUM_GENES)
    x_BG = anndata.read_h5ad(tmp_path / "s.h5ad")
    x_BG.X[(x_BG.obs["perturbation"] != "control").to_numpy()] += shared_G.astype(np.float32)
    x_BG.X = np.maximum(x_BG.X, 0)
    (tmp_path / "shared").mkdir()
    x_BG.write_h5ad(tmp_path / "shared" / "s.h5ad")
    config = IngestConfig(
        sources=(tmp_path / "shared" / "s.h5ad",),
        store=tmp_path / "shared" / "s.zarr",
        preset="scperturb",
        input_scale="log1p",
        select_genes=0,
    )
    ingest(config)
    report = report_of(open_store(config.store), effect_QG + shared_G, np.zeros_like(batch_CG))
    mean = means(report, "train_mean")
    assert mean["pearson_delta"] > 0.85
    assert abs(mean["pearson_delta_shifted"]) < 0.2
    assert means(report, "model")["pearson_delta_shifted"] > 0.8


@pytest.mark.parametrize(
    ("noise", "least", "most"), [(1.0, 0.0, 0.9), (0.1, 0.97, 1.0), (0.001, 0.99999, 1.0)]
)
def test_halves_agree_the_better_the_less_noise_there_is(
    tmp_path: Path, noise: float, least: float, most: float
) -> None:
    store, effect_QG, batch_CG = screen_of(tmp_path, effect=0.3, batch_effect=0.2, noise=noise)
    report = report_of(store, effect_QG, np.zeros_like(batch_CG))
    found = means(report, "split_half_pooled")["pearson_delta"]
    assert least < found <= most
    corrected = report.spearman_brown["split_half_pooled"]["pearson_delta"]
    assert found <= corrected <= 1.0 + 1e-12


@given(seed=st.integers(0, 1000), genes=st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_additive_is_exact_where_effects_add_up(seed: int, genes: int) -> None:
    rng = np.random.default_rng(seed)
    names = ("control", "A", "A+B", "A+B+C", "B", "C")
    effect = {name: rng.normal(size=genes) for name in "ABC"}
    codes = np.array([names.index(name) for name in "ABC"], np.int32)
    delta_PG = np.stack([effect[name] for name in "ABC"])
    deltas = PerturbationDeltas(codes, np.zeros(3, np.int32), np.array([5, 3, 8]), delta_PG)
    control_CG = rng.random((2, genes))
    additive = fit_additive(training_from(deltas, names, control_CG, np.zeros(2, np.int64), control_CG))
    predicted = additive.predict(np.array([2, 3], np.int32), np.array([0, 1], np.int32))
    truth = [effect["A"] + effect["B"], effect["A"] + effect["B"] + effect["C"]]
    assert np.abs(predicted - control_CG - truth).max() < 1e-12
