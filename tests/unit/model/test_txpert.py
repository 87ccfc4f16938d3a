import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from graph_store.graph import KnowledgeGraph
from tests.unit.model.gloo_worker import MODELS
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey, cell_normal
from txpert_dist.model.fusion import sum_perturbations
from txpert_dist.model.graph_input import GraphInput
from txpert_dist.model.txpert import TxPert, build_model, parameter_counts

NUM_GENES, NUM_NODES, EMBEDDED = 20, 12, 7
SMALL = config.Model(
    latent=6,
    basal=config.MlpBasal(hidden=16),
    perturbation=config.Embedding(node_features=8),
    decoder=config.Decoder(hidden=16),
)
GAT = config.Gat(layers=2, node_features=8, hidden=4)
BASALS = {
    "mlp": config.MlpBasal(hidden=16),
    "identity": config.IdentityBasal(),
    "embedding": config.EmbeddingBasal(key="X_pca", hidden=16),
    "vae": config.VaeBasal(hidden=16),
}
FUSIONS = {
    "additive": config.AdditiveFusion(),
    "by_name": config.SequentialFusion(hidden=8, order="by_name"),
    "all": config.SequentialFusion(hidden=8, order="all"),
}
KEY = DropoutKey(0, 5, 0)
EVERY_PAIR = list(itertools.product(BASALS, FUSIONS))


def changed(**parts) -> config.Model:
    return config.Model.model_validate({**dict(SMALL), **parts})


def build(model: config.Model = SMALL, seed: int = 0) -> TxPert:
    random = np.random.default_rng(0)
    edges_2E = np.unique(random.integers(0, NUM_NODES, (2, 30)), axis=1).astype(np.int32)
    graph = KnowledgeGraph("g", edges_2E, np.ones(edges_2E.shape[1], np.float32))
    return build_model(
        model,
        num_genes=NUM_GENES,
        basal_width=width(model),
        graph=GraphInput(NUM_NODES, (graph,)),
        seed=seed,
    )


def width(model: config.Model) -> int:
    return EMBEDDED if model.basal.kind == "embedding" else NUM_GENES


def cells(num_cells: int, model: config.Model = SMALL) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(1)
    control_BN = torch.from_numpy(random.gamma(1.0, 1.0, (num_cells, width(model)))).float()
    perturbations_BM = torch.from_numpy(random.integers(-1, NUM_NODES, (num_cells, 2)).astype(np.int32))
    return control_BN, perturbations_BM


def published(model: config.Model, num_genes: int) -> dict[str, int]:
    graph = GraphInput(9854, ())
    return parameter_counts(
        build_model(model, num_genes=num_genes, basal_width=num_genes, graph=graph, seed=0)
    )


def test_parameter_counts_are_those_of_the_published_k562_model():
    counts = published(config.Model(), 5000)
    assert counts == {"basal": 2_594_368, "perturbation": 2_387_776, "fusion": 0, "decoder": 2_599_304}


def test_parameter_counts_are_those_of_the_published_cross_line_model():
    counts = published(config.Model(basal=config.IdentityBasal()), 3352)
    assert counts["basal"] == 0
    assert sum(counts.values()) == 4_141_656


def test_parameter_counts_of_the_other_parts():
    model = changed(basal=BASALS["vae"], fusion=FUSIONS["all"], control_token="learned")
    counts = parameter_counts(build(model))
    assert counts["basal"] == (20 + 1 + 2) * 16 + 2 * (16 + 1) * 6
    assert counts["fusion"] == (12 + 1) * 8 + 8 * 6 + 6
    assert parameter_counts(build(changed(basal=BASALS["embedding"])))["basal"] == (7 + 1 + 2) * 16 + 17 * 6


def test_forward_is_basal_plus_embeddings_decoded():
    model = build().eval()
    control_BN, perturbations_BM = cells(7)
    z_PD = model.perturbation_embeddings()
    predicted_BG = model(control_BN, perturbations_BM).expression_BG
    shift_BD = sum_perturbations(z_PD, perturbations_BM)
    expected_BG = model.decoder(model.basal(control_BN).state_BD + shift_BD)
    torch.testing.assert_close(predicted_BG, expected_BG)
    halves = [
        model.decode(control_BN[part], perturbations_BM[part], z_PD) for part in (slice(3), slice(3, 7))
    ]
    torch.testing.assert_close(torch.cat(halves), predicted_BG)


def leaky(x: Tensor) -> Tensor:
    return torch.maximum(x, 0.01 * x)


def linear(part: dict[str, Tensor], name: str, x_N: Tensor) -> Tensor:
    return part[f"{name}.weight"] @ x_N + part[f"{name}.bias"]


def hidden(part: dict[str, Tensor], prefix: str, rows: list[Tensor]) -> list[Tensor]:
    """A hidden layer with batch norm over the rows."""
    before = [linear(part, f"{prefix}.first", row) for row in rows]
    mean_N = sum(before) / len(before)
    variance_N = sum((row - mean_N) ** 2 for row in before) / len(before)
    scale_N = part[f"{prefix}.norm.weight"] / (variance_N + 1e-5).sqrt()
    return [leaky((row - mean_N) * scale_N + part[f"{prefix}.norm.bias"]) for row in before]


def plain_basal(options: config.Model, part: dict[str, Tensor], control_BN: Tensor):
    rows = list(control_BN)
    if options.basal.kind == "identity":
        return [torch.zeros(options.latent, dtype=torch.float64) for _ in rows], None
    if options.basal.kind != "vae":
        return [
            linear(part, "basal.perceptron.last", row) for row in hidden(part, "basal.perceptron", rows)
        ], None
    states, divergences = [], []
    noise_BD = cell_normal(torch.empty(len(rows), options.latent, dtype=torch.float64), 0, KEY)
    for row, noise_D in zip(hidden(part, "basal.trunk", rows), noise_BD, strict=True):
        mean_D, log_D = linear(part, "basal.mean", row), linear(part, "basal.log_variance", row)
        states.append(mean_D + noise_D * torch.exp(log_D / 2))
        divergences.append(-0.5 * (1 + log_D - mean_D**2 - torch.exp(log_D)).sum())
    return states, torch.stack(divergences)


def plain_fusion(options: config.Model, part: dict[str, Tensor], state_D: Tensor, nodes: list[int], z_PD):
    if options.control_token == "learned" and len(nodes) < 2:
        state_D = state_D + part["fusion.token_D"]
    if options.fusion.kind == "additive":
        return state_D + sum(z_PD[node] for node in nodes)
    prefix = "fusion.fusion." if options.control_token == "learned" else "fusion."
    outcomes = []
    for order in itertools.permutations(nodes) if options.fusion.order == "all" else [nodes]:
        after_D = state_D
        for node in order:
            inner_N = leaky(linear(part, f"{prefix}first", torch.cat([after_D, z_PD[node]])))
            after_D = after_D + part[f"{prefix}last.weight"] @ inner_N
        outcomes.append(after_D)
    return sum(outcomes) / len(outcomes)


def plain(options: config.Model, model: TxPert, control_BN: Tensor, perturbations_BM: Tensor):
    """The model cell by cell from its parameters and formulas; only z and the normal draws are its own."""
    part = dict(model.named_parameters())
    z_PD = model.perturbation_embeddings(KEY)
    states, divergence_B = plain_basal(options, part, control_BN)
    fused = [
        plain_fusion(options, part, state_D, [node for node in row if node >= 0], z_PD)
        for state_D, row in zip(states, perturbations_BM.tolist(), strict=True)
    ]
    out_BG = torch.stack([linear(part, "decoder.last", row) for row in hidden(part, "decoder", fused)])
    if options.decoder.activation == "softplus":
        out_BG = torch.log(1 + torch.exp(out_BG))
    return control_BN + out_BG if options.basal.kind == "identity" else out_BG, divergence_B


@pytest.mark.parametrize("control_token", ["none", "learned"])
@pytest.mark.parametrize(("basal", "fusion"), EVERY_PAIR)
def test_equals_plain_loops_in_value_and_every_gradient(basal, fusion, control_token):
    activation = "none" if basal == "identity" else "softplus"
    options = changed(
        basal=BASALS[basal],
        fusion=FUSIONS[fusion],
        control_token=control_token,
        decoder=config.Decoder(hidden=16, activation=activation),
        dropout=0.0,
    )
    model = build(options).double()
    control_BN, perturbations_BM = cells(9, options)
    control_BN = control_BN.double().requires_grad_()
    ours_BG, ours_B = model(control_BN, perturbations_BM, KEY)
    expected_BG, expected_B = plain(options, model, control_BN, perturbations_BM)
    torch.testing.assert_close(ours_BG, expected_BG, rtol=0, atol=1e-9)
    assert (ours_B is None) == (expected_B is None) == (basal != "vae")
    weight_BG = torch.randn(ours_BG.shape, dtype=torch.float64)
    inputs = [control_BN, *(p for p in model.parameters() if p.requires_grad)]
    gradients = []
    for out_BG, divergence_B in ((ours_BG, ours_B), (expected_BG, expected_B)):
        loss = (out_BG * weight_BG).sum() + (0 if divergence_B is None else divergence_B.sum())
        gradients.append(torch.autograd.grad(loss, inputs, materialize_grads=True, allow_unused=True))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("basal", "fusion"), EVERY_PAIR)
def test_embeddings_that_are_asked_for_are_those_that_are_given(basal, fusion):
    """Bit for bit, in predictions and every gradient; asked once, when the basal states are there."""
    options = changed(basal=BASALS[basal], fusion=FUSIONS[fusion], perturbation=GAT)
    model, events = build(options), []
    control_BN, perturbations_BM = cells(9, options)
    model.basal.register_forward_hook(lambda *_: events.append("basal"))
    model.fusion.register_forward_pre_hook(lambda *_: events.append("fusion"))
    found = []
    for asks in (False, True):
        z_PD = model.perturbation_embeddings(KEY)

        def later(z_PD=z_PD):
            events.append("embeddings")
            return z_PD

        out_BG, divergence_B = model(control_BN, perturbations_BM, KEY, later if asks else z_PD)
        loss = out_BG.square().sum() + (0 if divergence_B is None else divergence_B.sum())
        learned = [p for p in model.parameters() if p.requires_grad]
        found.append([out_BG, *torch.autograd.grad(loss, learned)])
    assert events == ["basal", "fusion", "basal", "embeddings", "fusion"]
    for given, asked in zip(*found, strict=True):
        assert torch.equal(given, asked)


def test_identity_basal_adds_a_learned_change_to_the_control():
    model = build(changed(basal=BASALS["identity"])).eval()
    control_BN, perturbations_BM = cells(7)
    shift_BD = sum_perturbations(model.perturbation_embeddings(), perturbations_BM)
    expected_BG = control_BN + model.decoder(shift_BD)
    torch.testing.assert_close(model(control_BN, perturbations_BM).expression_BG, expected_BG)


def test_variational_model_evaluates_at_the_mean_and_always_alike():
    model = build(changed(basal=BASALS["vae"], fusion=FUSIONS["all"])).eval()
    control_BN, perturbations_BM = cells(7)
    one_BG, _ = model(control_BN, perturbations_BM)
    assert torch.equal(model(control_BN, perturbations_BM).expression_BG, one_BG)
    mean_BD = model.basal.mean(model.basal.trunk(control_BN))
    z_PD = model.perturbation_embeddings()
    assert torch.equal(model.decoder(model.fusion(mean_BD, perturbations_BM, z_PD)), one_BG)
    assert torch.equal(model.decode(control_BN, perturbations_BM, z_PD), one_BG)
    assert not torch.equal(model.decode(control_BN, perturbations_BM, z_PD, KEY), one_BG)


@pytest.mark.parametrize("key", [None, KEY])
def test_softplus_keeps_expression_above_zero(key):
    softplus = changed(decoder=config.Decoder(hidden=16, activation="softplus"))
    control_BN, perturbations_BM = cells(50)
    assert build()(control_BN, perturbations_BM, key).expression_BG.min() < 0
    assert build(softplus)(control_BN, perturbations_BM, key).expression_BG.min() > 0


@pytest.mark.parametrize("fusion", ["additive", "all"])
def test_order_of_a_cells_perturbations_does_not_matter(fusion):
    model = build(changed(fusion=FUSIONS[fusion])).eval()
    control_BN, perturbations_BM = cells(7)
    one_BG = model(control_BN, perturbations_BM).expression_BG
    torch.testing.assert_close(one_BG, model(control_BN, perturbations_BM.flip(1)).expression_BG)


def test_order_by_name_matters():
    model = build(changed(fusion=FUSIONS["by_name"])).eval()
    control_BN, perturbations_BM = cells(40)
    doubles_B = (perturbations_BM >= 0).all(1)
    one_BG = model(control_BN, perturbations_BM).expression_BG
    differs_B = (model(control_BN, perturbations_BM.flip(1)).expression_BG - one_BG).abs().amax(1) > 1e-5
    two_genes_B = perturbations_BM[:, 0] != perturbations_BM[:, 1]
    assert torch.equal(differs_B, doubles_B & two_genes_B)


@pytest.mark.parametrize("order", ["by_name", "all"])
@pytest.mark.parametrize("width_of_cells", [3, 4])
def test_three_and_four_perturbations(order, width_of_cells):
    model = build(changed(fusion=FUSIONS[order])).eval()
    control_BN, _ = cells(6)
    perturbations_BM = torch.stack([torch.randperm(NUM_NODES)[:width_of_cells] for _ in range(6)])
    perturbations_BM[0, 1:] = -1
    whole_BG = model(control_BN, perturbations_BM).expression_BG
    assert whole_BG.isfinite().all()
    alone_BG = model(control_BN[:1], perturbations_BM[:1, :1]).expression_BG
    torch.testing.assert_close(whole_BG[:1], alone_BG)


def test_the_seed_decides_the_weights_and_leaves_the_callers_stream():
    model = changed(fusion=FUSIONS["all"], basal=BASALS["vae"])
    before = torch.get_rng_state()
    one, same, other = (build(model, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["basal.mean.weight"], other["basal.mean.weight"])
    assert {name.partition(".")[0] for name in one} == {"basal", "perturbation", "fusion", "decoder"}


def test_the_fusion_leaves_the_weights_of_the_other_parts():
    one, other = build().state_dict(), build(changed(fusion=FUSIONS["all"])).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {name.partition(".")[0] for name in other.keys() - one.keys()} == {"fusion"}


@pytest.mark.parametrize(("basal", "fusion"), [("mlp", "additive"), ("vae", "all")])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_single_precision_is_near_double(norm, basal, fusion):
    model = build(changed(norm=norm, basal=BASALS[basal], fusion=FUSIONS[fusion], perturbation=GAT))
    control_BN, perturbations_BM = cells(30)
    single_BG = model(control_BN, perturbations_BM, KEY).expression_BG
    double_BG = model.double()(control_BN.double(), perturbations_BM, KEY).expression_BG
    assert (single_BG - double_BG).abs().max() < 1e-5 * double_BG.abs().max()


@pytest.mark.parametrize(
    ("basal", "fusion"), [*itertools.product(BASALS, ["additive", "all"]), ("mlp", "by_name")]
)
def test_learns_a_toy_screen_by_heart(basal, fusion):
    """Doubles and singles whose effects have nothing to do with each other, variational noise included."""
    options = changed(
        latent=24,
        basal=BASALS[basal].model_copy(update={"hidden": 64} if basal != "identity" else {}),
        fusion=FUSIONS[fusion],
        decoder=config.Decoder(hidden=64),
        perturbation=config.Embedding(node_features=24, dropout=0.0),
        dropout=0.0,
    )
    model = build(options)
    control_BN, _ = cells(24, options)
    second_B = torch.arange(24).add(5).remainder(12)
    second_B[:12] = -1
    perturbations_BM = torch.stack([torch.arange(24).remainder(12), second_B], 1)
    generator = torch.Generator().manual_seed(0)
    observed_BG = torch.randn(24, 20, generator=generator)
    if basal == "identity":
        observed_BG = observed_BG + control_BN
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(200):
        predicted_BG, divergence_B = model(control_BN, perturbations_BM, DropoutKey(0, step, 0))
        squared = functional.mse_loss(predicted_BG, observed_BG)
        loss = squared if divergence_B is None else squared + 1e-4 * divergence_B.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(squared.item())
    assert losses[-1] < (2e-2 if basal == "vae" else 1e-3) * losses[0]


@pytest.mark.process
def test_two_workers_equal_one(tmp_path):
    """Output, gradients and running statistics, with dropout and batch norm, on shares of unequal size."""
    root = Path(__file__).parents[3]
    runs = [(tmp_path / "one", 1, 0), (tmp_path / "two", 2, 0), (tmp_path / "two", 2, 1)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    workers = []
    for folder, world, rank in runs:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(Path(__file__).with_name("gloo_worker.py"))]
        workers.append(
            subprocess.Popen([*command, str(folder), str(world), str(rank)], cwd=root, env=environment)
        )
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    for model, options in MODELS.items():
        one, first, second = (dict(np.load(folder / f"{rank}-{model}.npz")) for folder, _, rank in runs)
        assert_halves_are_the_whole(one, first, second)
        assert ("divergence_B" in one) == (options.basal.kind == "vae")
        trained = {name for name, parameter in build(options).named_parameters() if parameter.requires_grad}
        assert {name.removeprefix("gradient:") for name in one if name.startswith("gradient:")} == trained


def assert_halves_are_the_whole(one, first, second):
    assert len(first["expression_BG"]) != len(second["expression_BG"])
    for name in one:
        if name.startswith("gradient:"):
            found = first[name] + second[name]
        elif name.startswith("state:"):
            assert np.array_equal(first[name], second[name])
            found = first[name]
        else:
            found = np.concatenate([first[name], second[name]])
        np.testing.assert_allclose(found, one[name], rtol=1e-10, atol=1e-10, err_msg=name)
    gradients = [value for name, value in one.items() if name.startswith("gradient:")]
    assert min(np.abs(value).max() for value in gradients) > 1e-4


def fixed_biases(basal: str, fusion: str, weight: float) -> set[str]:
    """What batch norm cancels: the first biases always, a shift of every state where states only add up."""
    names = {"decoder.first.bias"}
    if basal in ("mlp", "embedding"):
        names |= {"basal.perceptron.first.bias"}
        names |= {"basal.perceptron.last.bias"} if fusion == "additive" else set()
    if basal == "vae":
        names |= {"basal.trunk.first.bias"}
        names |= {"basal.mean.bias"} if fusion == "additive" and weight == 0 else set()
    return names


@pytest.mark.parametrize("cells_are", ["mixed", "singles"])
@pytest.mark.parametrize("control_token", ["none", "learned"])
@pytest.mark.parametrize(
    ("basal", "fusion", "weight"),
    [(*pair, 1.0) for pair in EVERY_PAIR] + [("vae", fusion, 0.0) for fusion in FUSIONS],
)
def test_exactly_the_undetermined_biases_do_not_learn(basal, fusion, weight, control_token, cells_are):
    """Freed, their exact gradient is zero: fixing them changes no function the model can learn.

    All others have a gradient, also where every cell has one perturbation; but not the control token there,
    when states add up.
    """
    basal_options = BASALS[basal]
    if basal == "vae":
        basal_options = config.VaeBasal(hidden=16, divergence_weight=weight)
    options = changed(basal=basal_options, fusion=FUSIONS[fusion], control_token=control_token)
    model = build(options).double()
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == fixed_biases(basal, fusion, weight)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    control_BN, perturbations_BM = cells(12, options)
    if cells_are == "singles":
        perturbations_BM = torch.arange(12).unsqueeze(1)
    expression_BG, divergence_B = model(control_BN.double(), perturbations_BM, KEY)
    loss = (expression_BG - 1).square().sum()
    (loss if divergence_B is None else loss + weight * divergence_B.sum()).backward()
    gradients = {name: parameter.grad.abs().max().item() for name, parameter in model.named_parameters()}
    if (cells_are, control_token, fusion) == ("singles", "learned", "additive"):
        fixed |= {"fusion.token_D"}
    assert {name for name, size in gradients.items() if size < 1e-9 * max(gradients.values())} == fixed


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_without_batch_norm_every_parameter_learns(norm):
    assert all(parameter.requires_grad for parameter in build(changed(norm=norm)).parameters())
