"""The embeddings that cells need, and only those: the same step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.train.small_screen import configuration, write_inputs
from tests.unit.train.test_step_parts import MODELS, NUM_NODES, build, whole_batch
from txpert_dist.minibatch import Minibatch, SparseRows
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.txpert import build_model
from txpert_dist.train.inputs import open_inputs
from txpert_dist.train.needed import Needed, needed_by, needed_in_training, placed

NO_CELLS = SparseRows(
    np.zeros(1, np.int64), np.zeros(0, np.uint16), np.zeros(0, np.uint8), np.zeros(0, np.float32)
)


def minibatch(nodes_BM):
    return Minibatch(
        NO_CELLS, np.zeros(len(nodes_BM), np.int64), np.array(nodes_BM, np.int32).reshape(len(nodes_BM), -1)
    )


nodes = st.lists(st.lists(st.integers(-1, 30), min_size=2, max_size=2), min_size=1, max_size=8)


@given(nodes_BM=nodes, more=st.sets(st.integers(0, 40)))
def test_places_name_the_same_nodes(nodes_BM, more):
    rows = np.array(sorted(more | {node for row in nodes_BM for node in row if node >= 0}), np.int64)
    changed = placed(minibatch(nodes_BM), Needed(rows, ()))
    place_BM = changed.perturbations_BM
    assert place_BM.dtype == np.int32
    assert np.append(rows, -1)[place_BM].tolist() == nodes_BM


@pytest.mark.parametrize("missing", [0, 4, 9])
def test_a_node_that_is_not_needed_is_an_error(missing):
    with pytest.raises(ValueError, match=f"node {missing} is not among those needed"):
        placed(minibatch([[3, -1], [missing, 8]]), Needed(np.array([3, 8]), ()))


@pytest.mark.parametrize("name", MODELS)
def test_a_step_with_the_needed_embeddings_is_the_step_with_all(name):
    model, key = build(MODELS[name]), DropoutKey(3, 7, 0)
    batch = whole_batch(12)
    nodes_BM = batch.perturbations_BM.clamp(max=4).numpy().astype(np.int32)
    needed = needed_by(model, nodes_BM, (1,))
    assert needed.rows.tolist() == sorted(set(nodes_BM[nodes_BM >= 0].tolist())) != list(range(NUM_NODES))
    found = []
    for perturbations_BM, reaches in (
        (nodes_BM, ()),
        (placed(minibatch(nodes_BM), needed).perturbations_BM, needed.reaches),
    ):
        z_PD = model.perturbation_embeddings(key, reaches)
        prediction = model(batch.control_BN, torch.from_numpy(perturbations_BM), key, z_PD)
        model.zero_grad()
        (prediction.expression_BG - batch.observed_BG).square().sum().backward()
        found.append(
            [prediction.expression_BG.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]
        )
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9 * float(expected.abs().max()) + 1e-12)


def test_cells_without_perturbations_need_nothing_and_still_learn():
    model, key = build(MODELS["gat"]), DropoutKey(3, 7, 0)
    none_BM = np.full((12, 2), -1, np.int32)
    needed = needed_by(model, none_BM, (2,))
    assert len(needed.rows) == 0
    batch, z_PD = whole_batch(12), model.perturbation_embeddings(key, needed.reaches)
    prediction = model(batch.control_BN, torch.from_numpy(none_BM), key, z_PD)
    prediction.expression_BG.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moved = parameter.grad.abs().max() > 0
            assert moved == (not name.startswith("perturbation.")), name


def test_training_needs_the_perturbed_genes_of_its_cells(tmp_path):
    config = configuration(write_inputs(tmp_path), tmp_path / "out")
    inputs = open_inputs(config)
    model = build_model(
        config.model,
        num_genes=len(inputs.genes),
        basal_width=inputs.basal_width,
        graph=inputs.graph,
        seed=0,
    )
    needed = needed_in_training(model, inputs)
    expected = {
        node
        for row in inputs.training
        for node in inputs.nodes_RM[inputs.store.perturbation[row]].tolist()
        if node >= 0
    }
    assert needed.rows.tolist() == sorted(expected)
    assert len(needed.rows) < len(inputs.vocabulary.genes)
    (reach,) = needed.reaches
    assert reach.rows.tolist() == needed.rows.tolist()
