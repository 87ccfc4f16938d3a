"""Predictions of conditions against loops over the store's dense cells, in every mode and basal kind."""

from typing import get_args

import numpy as np
import pytest
import torch

from tests.unit.train.small_screen import EMBEDDING, NUM_GENES, WIDTH, configuration, write_inputs
from txpert_dist.config import ControlMatching
from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.loader.pairing import ControlTable, control_table, evaluation_rows
from txpert_dist.model.txpert import build_model
from txpert_dist.store.expression import dense, log1p_normalise
from txpert_dist.train.batch import control_rows, resident_controls
from txpert_dist.train.checkpoint import LoadedModel, RunState
from txpert_dist.train.conditions import (
    EVALUATION_CONTROLS,
    context_controls,
    controls_of_store,
    node_embeddings,
    predicted_conditions,
)
from txpert_dist.train.inputs import open_inputs

CPU = torch.device("cpu")
BASAL = {
    "mlp": {"kind": "mlp", "hidden": 16},
    "identity": {"kind": "identity"},
    "vae": {"kind": "vae", "hidden": 16},
    "embedding": {"kind": "embedding", "key": EMBEDDING, "hidden": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def prepared(folder, basal, matching):
    config = configuration(
        folder,
        folder,
        seed=11,
        data={"control_matching": matching},
        model={"latent": 8, "basal": BASAL[basal], "perturbation": {"kind": "embedding", "dropout": 0.5}},
    )
    inputs = open_inputs(config)
    width = inputs.basal_width
    model = build_model(
        config.model, num_genes=len(inputs.genes), basal_width=width, graph=inputs.graph, seed=3
    )
    model.train()
    model(torch.rand(64, width) * 4, torch.from_numpy(inputs.nodes_RM[np.arange(64) % 17]))
    state = RunState(
        *(1, 1, {}, "store", "split", inputs.snapshot.id, "git", inputs.gene_names, inputs.vocabulary, width)
    )
    return inputs, LoadedModel(model, config, inputs.gene_names, inputs.vocabulary, inputs.snapshot, state)


def starts(inputs, basal, matching, code):
    """(controls, N) what the predictions of context ``code`` are averaged over, from the dense cells."""
    store = inputs.store
    cells = log1p_normalise(store.read(0, store.num_cells), input_scale="counts")
    x_BN = dense(cells, NUM_GENES)[:, inputs.genes]
    if basal == "embedding":
        x_BN = store.take_embedding(EMBEDDING, np.arange(store.num_cells))
    line = np.array([context.cell_line for context in store.contexts])
    near = store.context == code if "matched" in matching else line[store.context] == line[code]
    controls = np.flatnonzero((store.perturbation == 0) & near)
    assert len(controls) < EVALUATION_CONTROLS
    return x_BN[controls].mean(0, keepdims=True) if "mean" in matching else x_BN[controls]


@pytest.mark.parametrize("basal", BASAL)
@pytest.mark.parametrize("matching", get_args(ControlMatching))
def test_a_condition_is_the_mean_over_its_contexts_controls(folder, basal, matching):
    inputs, loaded = prepared(folder, basal, matching)
    rng = np.random.default_rng(1)
    codes, contexts = rng.integers(0, 17, 23), rng.integers(0, 3, 23)
    controls = controls_of_store(loaded, inputs.store, inputs.genes)
    z_PD = node_embeddings(loaded.model)
    assert not z_PD.requires_grad
    outcomes = []
    for rows_at_once in (1, 50, 10_000):
        predicted_RG = np.full((23, len(inputs.genes)), np.nan)
        for block, predicted_BG in predicted_conditions(
            loaded.model, z_PD, inputs.nodes_RM[codes], contexts, controls, rows_at_once=rows_at_once
        ):
            assert torch.is_grad_enabled()
            assert loaded.model.training
            assert np.isnan(predicted_RG[block]).all()
            predicted_RG[block] = predicted_BG.numpy()
        outcomes.append(predicted_RG)
    np.testing.assert_allclose(outcomes[0], outcomes[1], atol=1e-5)
    np.testing.assert_allclose(outcomes[0], outcomes[2], atol=1e-5)
    loaded.model.eval()
    for code, context, found in zip(codes, contexts, outcomes[1], strict=True):
        answers = []
        for start in starts(inputs, basal, matching, context):
            with torch.no_grad():
                alone = loaded.model(torch.from_numpy(start[None]), torch.from_numpy(inputs.nodes_RM[[code]]))
            answers.append(alone.expression_BG.numpy()[0])
        np.testing.assert_allclose(found, np.mean(answers, axis=0), atol=1e-5)


def test_no_condition_gives_no_block(folder):
    inputs, loaded = prepared(folder, "mlp", "matched")
    controls = controls_of_store(loaded, inputs.store, inputs.genes)
    z_PD = node_embeddings(loaded.model)
    none = np.zeros(0, np.int64)
    assert list(predicted_conditions(loaded.model, z_PD, inputs.nodes_RM[none], none, controls)) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_of_many_controls_64_are_drawn_by_the_runs_seed(seed):
    sizes = [100, 64, 3]
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    x_RN = np.random.default_rng(0).random((indptr[-1], 4)).astype(np.float32)
    table = ControlTable("counts", np.array([0, 1, 2, 0]), x_RN, None, indptr, np.arange(indptr[-1]))
    controls = context_controls(table, resident_controls(table, num_genes=9, device=CPU), seed=seed)
    found = [rows.tolist() for rows in controls.rows_of_context]
    assert [len(rows) for rows in found] == [64, 64, 3, 64]
    assert found[0] == found[3] == sorted(set(found[0]))
    assert max(found[0]) < 100
    other = evaluation_rows(table, seed=seed + 1, most=EVALUATION_CONTROLS)
    assert other[0].tolist() != found[0]
    assert [rows.tolist() for rows in other[1:3]] == found[1:3]


def test_a_store_without_the_models_embedding_or_of_another_width_is_refused(folder):
    inputs, loaded = prepared(folder, "embedding", "matched_mean")
    narrower = loaded._replace(state=loaded.state._replace(basal_width=WIDTH - 1))
    with pytest.raises(CheckpointError, match=f"{EMBEDDING} has {WIDTH} values a cell.* from {WIDTH - 1}"):
        controls_of_store(narrower, inputs.store, inputs.genes)
    other = BASAL["embedding"] | {"key": "X_scgpt"}
    model = loaded.config.model.model_validate(loaded.config.model.model_dump() | {"basal": other})
    elsewhere = loaded._replace(config=loaded.config.model_copy(update={"model": model}))
    with pytest.raises(ConfigError, match=r"X_scgpt.*no such embedding"):
        controls_of_store(elsewhere, inputs.store, inputs.genes)


def test_genes_may_come_in_the_models_order(folder):
    """A store whose genes are numbered otherwise than the model's: columns follow the model."""
    inputs, _ = prepared(folder, "mlp", "matched")
    shuffled = np.random.default_rng(0).permutation(inputs.genes)
    place = np.searchsorted(inputs.genes, shuffled)
    for matching in get_args(ControlMatching):
        tables = [control_table(inputs.store, matching, genes) for genes in (inputs.genes, shuffled)]
        resident = [resident_controls(table, num_genes=12, device=CPU) for table in tables]
        rows = torch.arange(3)
        straight, mixed = (control_rows(controls, rows[:2]) for controls in resident)
        torch.testing.assert_close(straight[:, place], mixed)
