"""The loss with a variational basal encoder: its meaning, its annealing, and its way through DeepSpeed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributions

from tests.processes import run
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist import config
from txpert_dist.model.basal import build_basal
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.graph_input import GraphInput
from txpert_dist.model.txpert import Prediction, build_model
from txpert_dist.train.batch import DenseBatch

STAGES = (0, 1, 2)
NUM_CELLS, NUM_GENES, NUM_NODES, NUM_STEPS = 8, 10, 6, 6
MODEL = config.Model(
    latent=4,
    basal=config.VaeBasal(hidden=8, annealing_fraction=0.5),
    perturbation=config.Embedding(node_features=4),
    fusion=config.SequentialFusion(hidden=8),
    decoder=config.Decoder(hidden=8, activation="softplus"),
    control_token="learned",
)
SCREEN_MODEL = {
    "basal": {"kind": "vae", "hidden": 16, "annealing_fraction": 0.2},
    "perturbation": {"kind": "embedding", "node_features": 8},
    "fusion": {"kind": "sequential", "hidden": 8},
}


def test_the_loss_is_the_evidence_bound_of_a_unit_gaussian():
    """Times 2/G, up to the constant of the density; against torch.distributions, in double precision."""
    from txpert_dist.train.step import loss_terms

    torch.manual_seed(0)
    model = config.Model(latent=4, basal=config.VaeBasal(hidden=8), norm="none", dropout=0.0)
    basal = build_basal(model, NUM_GENES).double()
    control_BG, observed_BG, predicted_BG = torch.rand(3, NUM_CELLS, NUM_GENES, dtype=torch.float64)
    hidden_BN = basal.trunk(control_BG)
    posterior = distributions.Normal(basal.mean(hidden_BN), (basal.log_variance(hidden_BN) / 2).exp())
    divergence_B = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0)).sum(1)
    likelihood_B = distributions.Normal(predicted_BG, 1.0).log_prob(observed_BG).sum(1)
    bound_B = likelihood_B + NUM_GENES / 2 * math.log(2 * math.pi) - divergence_B
    prediction = Prediction(predicted_BG, basal(control_BG).divergence_B)
    batch = DenseBatch(control_BG, observed_BG, torch.zeros(NUM_CELLS, 1, dtype=torch.int32))
    loss = loss_terms(prediction, batch).objective(1.0) / (NUM_CELLS * NUM_GENES)
    # the squared error is taken in single precision
    torch.testing.assert_close(loss, -2 / NUM_GENES * bound_B.mean(), rtol=1e-6, atol=0, check_dtype=False)


def test_without_a_divergence_the_loss_is_the_squared_error():
    from txpert_dist.train.step import loss_terms

    control_BG, observed_BG = torch.rand(2, NUM_CELLS, NUM_GENES)
    batch = DenseBatch(control_BG, observed_BG, torch.zeros(NUM_CELLS, 1, dtype=torch.int32))
    terms = loss_terms(Prediction(control_BG, None), batch)
    assert torch.equal(terms.objective(0.0), (control_BG - observed_BG).square().sum())
    assert terms.divergence == 0


def weight(step, *, num_steps, fraction, of=1.0):
    from txpert_dist.train.step import divergence_weight

    basal = config.VaeBasal(divergence_weight=of, annealing_fraction=fraction)
    return divergence_weight(basal, step, num_steps=num_steps)


def test_weight_rises_linearly_and_stays():
    weights = [weight(step, num_steps=20, fraction=0.2, of=3.0) for step in range(20)]
    assert weights == pytest.approx([0.75, 1.5, 2.25] + [3.0] * 17)
    assert [weight(step, num_steps=20, fraction=0.0) for step in range(20)] == [1.0] * 20


@given(num_steps=st.integers(1, 10**6), fraction=st.floats(0, 1), share=st.floats(0, 1))
def test_weight_is_never_zero_nor_above_its_peak(num_steps, fraction, share):
    step = round(share * (num_steps - 1))
    assert 0 < weight(step, num_steps=num_steps, fraction=fraction) <= 1
    assert weight(num_steps - 1, num_steps=num_steps, fraction=fraction) == 1


def options(stage, world, precision="fp32"):
    return config.Config.model_validate(
        {
            "data": {"store": "store"},
            "graph": {"location": "graphs"},
            "model": MODEL.model_dump(),
            "optimiser": {"learning_rate": 1e-2, "gradient_clipping": 0.5},
            "train": {"minibatch_size": NUM_CELLS, "precision": precision},
            "cluster": {"num_workers": world, "zero_stage": stage},
        }
    )


def batch_of(step, share=slice(None)):
    random = np.random.default_rng(step)
    control_BG, observed_BG = torch.from_numpy(random.gamma(1.0, 1.0, (2, NUM_CELLS, NUM_GENES))).float()
    perturbations_BM = torch.from_numpy(random.integers(-1, NUM_NODES, (NUM_CELLS, 2)))
    return DenseBatch(control_BG[share], observed_BG[share], perturbations_BM[share])


def small_model(**reduce):
    graph = GraphInput(NUM_NODES, ())
    return build_model(MODEL, num_genes=NUM_GENES, basal_width=NUM_GENES, graph=graph, seed=1, **reduce)


def objective(model, step, share=slice(None)):
    from txpert_dist.train.step import divergence_weight, loss_terms

    batch = batch_of(step, share)
    prediction = model(batch.control_BN, batch.perturbations_BM, DropoutKey(3, step, share.start or 0))
    assert isinstance(prediction, Prediction)
    now = divergence_weight(MODEL.basal, step, num_steps=NUM_STEPS)
    return loss_terms(prediction, batch).objective(now) / (NUM_CELLS * NUM_GENES)


def through_deepspeed(rank, world, stage, precision="fp32"):
    """Losses of this rank's share, and the weights after some steps, as plain values."""
    from txpert_dist.train import engine as engines
    from txpert_dist.train.collective import sum_over_ranks

    model = small_model(reduce=sum_over_ranks)
    engine = engines.build_engine(
        model, options(stage, world, precision), device=torch.device("cpu"), num_steps=NUM_STEPS
    )
    share = slice(rank * NUM_CELLS // world, (rank + 1) * NUM_CELLS // world)
    losses = []
    for step in range(NUM_STEPS):
        loss = objective(engine.deepspeed, step, share)
        engines.backward(engine, loss * world)
        assert engines.step(engine).taken
        losses.append(loss.item())
    return losses, {name: value.numpy() for name, value in model.state_dict().items()}


def every_stage(rank, world):
    results = {stage: through_deepspeed(rank, world, stage) for stage in STAGES}
    return results, through_deepspeed(rank, world, 1, "bf16")[0]


def plain_torch():
    from txpert_dist.train.schedule import schedule

    model = small_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, schedule(options(0, 1).optimiser, num_steps=NUM_STEPS)
    )
    losses = []
    for step in range(NUM_STEPS):
        loss = objective(model, step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimiser.step()
        scheduler.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.process
def test_deepspeed_takes_the_steps_that_plain_torch_takes_at_every_stage():
    losses, weights = plain_torch()
    ranks = run(every_stage, 2)
    for stage in STAGES:
        summed = np.sum([exact[stage][0] for exact, _ in ranks], axis=0)
        assert summed == pytest.approx(losses, rel=1e-5)
        for exact, _ in ranks:
            for name, value in exact[stage][1].items():
                np.testing.assert_allclose(value, weights[name].numpy(), rtol=0, atol=2e-5, err_msg=name)
    assert np.sum([rounded for _, rounded in ranks], axis=0) == pytest.approx(losses, rel=5e-2)


def train(_rank, world, inputs, output, sections):
    """Metrics by step, and the error if there was one."""
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    settings = configuration(inputs, output, **sections | {"cluster": {"num_workers": world}})
    metrics = {}
    hooks = Hooks(
        progress=lambda *_: None,
        metrics=lambda values, step: metrics.update({step: dict(values)} if "train/loss" in values else {}),
        epoch=lambda *_: None,
    )
    try:
        fit(settings, open_inputs(settings), device=torch.device("cpu"), hooks=hooks, max_steps=11)
    except Exception as error:  # noqa: BLE001 - an error is what one test asks for
        return metrics, f"{type(error).__name__}: {error}"
    return metrics, None


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.process
def test_a_run_logs_both_parts_and_two_workers_take_the_steps_of_one(inputs, tmp_path):
    results = {
        world: run(train, world, inputs, tmp_path / str(world), {"model": SCREEN_MODEL}) for world in (1, 2)
    }
    (one, error), (two, _) = results[1][0], results[2][0]
    assert error is None
    assert sorted(one) == list(range(1, 12))
    num_steps = 2 * 11
    for step, values in one.items():
        part = 2 / 12 * weight(step - 1, num_steps=num_steps, fraction=0.2) * values["train/divergence"]
        assert values["train/divergence"] > 0
        assert values["train/loss"] == pytest.approx(values["train/squared_error"] + part, rel=1e-6)
        for name, tolerance in (("loss", 1e-5), ("squared_error", 1e-5), ("divergence", 1e-3)):
            assert two[step][f"train/{name}"] == pytest.approx(values[f"train/{name}"], rel=tolerance)


@pytest.mark.process
def test_an_exploding_run_names_the_parts(inputs, tmp_path):
    sections = {
        "model": SCREEN_MODEL,
        "optimiser": {"learning_rate": 1e30, "gradient_clipping": 0, "warmup_fraction": 0},
    }
    for metrics, error in run(train, 2, inputs, tmp_path, sections):
        assert list(metrics) == [1]
        assert error.startswith("TrainingError: step 2: the loss is ")
        named = error.partition("not finite: the gradient of ")[2].partition(".")[0].split(", ")
        assert {"fusion", "decoder"} <= set(named) <= {"basal", "perturbation", "fusion", "decoder"}
