"""The model as a predictor: the same numbers as calling it cell by cell."""

import numpy as np
import pytest
import torch

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.evaluate.predict import model_predictor
from txpert_dist.model.txpert import TxPert, build_model

NUM_GENES = 15
NODES_QM = np.array([[-1, -1], [0, -1], [1, -1], [0, 3]], np.int32)
CONTROL_CG = np.random.default_rng(0).gamma(1.0, 1.0, (3, NUM_GENES)).astype(np.float32)


def trained_model() -> TxPert:
    small = config.Model(
        latent=6,
        basal=config.MlpBasal(hidden=16),
        perturbation=config.Gat(layers=2, node_features=8, hidden=4),
        decoder=config.Decoder(hidden=16),
        dropout=0.5,
    )
    edges_2E = np.array([[0, 1, 2, 3], [1, 1, 3, 3]], np.int32)
    graph = KnowledgeGraph("g", edges_2E, np.ones(4, np.float32))
    model = build_model(small, num_genes=NUM_GENES, num_nodes=5, graphs=[graph], seed=1)
    for _ in range(3):  # so that running statistics differ from those of any minibatch
        nodes_BM = torch.from_numpy(NODES_QM.astype(np.int64))[torch.randint(0, 4, (20,))]
        model(torch.rand(20, NUM_GENES) * 4, nodes_BM)
    return model


@pytest.mark.parametrize("minibatch_size", [1, 4, 1000])
def test_predicts_every_condition_from_its_contexts_control_mean(minibatch_size: int) -> None:
    model = trained_model()
    rng = np.random.default_rng(1)
    perturbation_R = rng.integers(0, 4, 11).astype(np.int32)
    context_R = rng.integers(0, 3, 11).astype(np.int32)
    predictor = model_predictor(model, NODES_QM, CONTROL_CG, minibatch_size=minibatch_size)
    predicted_RG = predictor.predict(perturbation_R, context_R)
    assert predicted_RG.dtype == np.float32
    model.eval()
    for predicted, p, c in zip(predicted_RG, perturbation_R, context_R, strict=True):
        with torch.no_grad():
            alone = model(torch.from_numpy(CONTROL_CG[[c]]), torch.from_numpy(NODES_QM[[p]].astype(np.int64)))
        assert np.abs(predicted - alone.numpy()[0]).max() < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(training: bool) -> None:
    model = trained_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predictor = model_predictor(model, NODES_QM, CONTROL_CG)
    first = predictor.predict(np.array([1], np.int32), np.array([0], np.int32))
    assert (predictor.predict(np.array([1], np.int32), np.array([0], np.int32)) == first).all()
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not predictor.z_PD.requires_grad


def test_nothing_to_predict_is_an_empty_prediction() -> None:
    empty = np.zeros(0, np.int32)
    predictor = model_predictor(trained_model(), NODES_QM, CONTROL_CG)
    assert predictor.predict(empty, empty).shape == (0, NUM_GENES)
