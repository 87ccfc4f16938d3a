"""The model as a predictor: the same numbers as calling it cell by cell."""

import numpy as np
import pytest
import torch

from txpert_dist import config
from txpert_dist.evaluate.predict import ModelPredictor, model_predictor
from txpert_dist.loader.pairing import ControlTable
from txpert_dist.model.graph_input import GraphInput
from txpert_dist.model.txpert import TxPert, build_model
from txpert_dist.train.batch import resident_controls
from txpert_dist.train.conditions import context_controls

NUM_GENES = 15
NODES_QM = np.array([[-1, -1], [0, -1], [1, -1], [0, 3]], np.int32)
CONTROL_CG = np.random.default_rng(0).gamma(1.0, 1.0, (3, NUM_GENES)).astype(np.float32)


def trained_model() -> TxPert:
    small = config.Model(
        latent=6,
        basal=config.MlpBasal(hidden=16),
        perturbation=config.Embedding(node_features=8),
        decoder=config.Decoder(hidden=16),
        dropout=0.5,
    )
    graph = GraphInput(num_nodes=5, graphs=())
    model = build_model(small, num_genes=NUM_GENES, basal_width=NUM_GENES, graph=graph, seed=1)
    for _ in range(3):  # so that running statistics differ from those of any minibatch
        nodes_BM = torch.from_numpy(NODES_QM.astype(np.int64))[torch.randint(0, 4, (20,))]
        model(torch.rand(20, NUM_GENES) * 4, nodes_BM)
    return model


def predictor_of(model: TxPert, **options: int) -> ModelPredictor:
    """Starts from ``CONTROL_CG``, one mean for each of three contexts."""
    none = np.zeros(0, np.int64)
    table = ControlTable("counts", np.arange(3), CONTROL_CG, None, none, none)
    resident = resident_controls(table, num_genes=NUM_GENES, device=torch.device("cpu"))
    return model_predictor(model, NODES_QM, context_controls(table, resident, seed=0), **options)


@pytest.mark.parametrize("rows_at_once", [1, 4, 1000])
def test_predicts_every_condition_from_its_contexts_control_mean(rows_at_once: int) -> None:
    model = trained_model()
    rng = np.random.default_rng(1)
    perturbation_R = rng.integers(0, 4, 11).astype(np.int32)
    context_R = rng.integers(0, 3, 11).astype(np.int32)
    predictor = predictor_of(model, rows_at_once=rows_at_once)
    predicted_RG = predictor.predict(perturbation_R, context_R)
    assert predicted_RG.dtype == np.float32
    model.eval()
    for predicted, p, c in zip(predicted_RG, perturbation_R, context_R, strict=True):
        with torch.no_grad():
            alone = model(torch.from_numpy(CONTROL_CG[[c]]), torch.from_numpy(NODES_QM[[p]].astype(np.int64)))
        assert np.abs(predicted - alone.expression_BG.numpy()[0]).max() < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(training: bool) -> None:
    model = trained_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predictor = predictor_of(model)
    first = predictor.predict(np.array([1], np.int32), np.array([0], np.int32))
    assert (predictor.predict(np.array([1], np.int32), np.array([0], np.int32)) == first).all()
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not predictor.z_PD.requires_grad


def test_nothing_to_predict_is_an_empty_prediction() -> None:
    empty = np.zeros(0, np.int32)
    predictor = predictor_of(trained_model())
    assert predictor.predict(empty, empty).shape == (0, NUM_GENES)
