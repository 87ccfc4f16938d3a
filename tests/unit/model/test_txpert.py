import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.txpert import TxPert, build_model, parameter_counts, sum_perturbations

SMALL = config.Model(
    latent=6,
    basal=config.MlpBasal(hidden=16),
    perturbation=config.Gat(layers=2, node_features=8, hidden=4),
    decoder=config.Decoder(hidden=16),
)
IDENTITY = SMALL.model_copy(update={"basal": config.IdentityBasal()})


def graph(num_nodes: int, num_edges: int, seed: int = 0) -> KnowledgeGraph:
    edges_2E = np.random.default_rng(seed).integers(0, num_nodes, (2, num_edges)).astype(np.int32)
    return KnowledgeGraph("g", edges_2E, np.ones(num_edges, np.float32))


def build(model: config.Model = SMALL, seed: int = 0, num_genes: int = 20) -> TxPert:
    return build_model(model, num_genes=num_genes, num_nodes=12, graphs=[graph(12, 30)], seed=seed)


def cells(num_cells: int, num_genes: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(1)
    control_BG = torch.from_numpy(random.gamma(1.0, 1.0, (num_cells, num_genes))).float()
    perturbations_BM = torch.from_numpy(random.integers(-1, 12, (num_cells, 2)).astype(np.int32))
    return control_BG, perturbations_BM


def test_parameter_counts_are_those_of_the_published_k562_model():
    counts = parameter_counts(build_model(config.Model(), num_genes=5000, num_nodes=9854, graphs=[], seed=0))
    assert counts == {"basal": 2_594_368, "perturbation": 2_387_776, "decoder": 2_599_304}


def test_parameter_counts_are_those_of_the_published_cross_line_model():
    model = config.Model(basal=config.IdentityBasal())
    counts = parameter_counts(build_model(model, num_genes=3352, num_nodes=9854, graphs=[], seed=0))
    assert counts["basal"] == 0
    assert sum(counts.values()) == 4_141_656


def test_perturbations_add_up_and_padding_adds_nothing():
    z_PD = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    _, perturbations_BM = cells(40)
    expected_BD = torch.stack(
        [
            sum((z_PD[node] for node in row if node >= 0), torch.zeros(6, dtype=torch.float64))
            for row in perturbations_BM.tolist()
        ]
    )
    ours_BD = sum_perturbations(z_PD, perturbations_BM)
    torch.testing.assert_close(ours_BD, expected_BD)
    d_BD = torch.randn(40, 6, dtype=torch.float64)
    (ours,) = torch.autograd.grad(ours_BD, z_PD, d_BD)
    (expected,) = torch.autograd.grad(expected_BD, z_PD, d_BD)
    torch.testing.assert_close(ours, expected)


def test_padding_is_not_contaminated_by_a_node_that_is_not_finite():
    z_PD = torch.full((3, 2), torch.nan)
    assert torch.equal(sum_perturbations(z_PD, torch.full((1, 2), -1)), torch.zeros(1, 2))


def test_a_node_that_does_not_exist_is_an_error():
    with pytest.raises(IndexError):
        sum_perturbations(torch.zeros(3, 2), torch.tensor([[4]]))


def test_forward_is_basal_plus_embeddings_decoded():
    model = build().eval()
    control_BG, perturbations_BM = cells(7)
    z_PD = model.perturbation_embeddings()
    predicted_BG = model(control_BG, perturbations_BM)
    assert model.basal is not None
    shift_BD = sum_perturbations(z_PD, perturbations_BM)
    torch.testing.assert_close(predicted_BG, model.decoder(model.basal(control_BG) + shift_BD))
    halves = [
        model.decode(control_BG[part], perturbations_BM[part], z_PD) for part in (slice(3), slice(3, 7))
    ]
    torch.testing.assert_close(torch.cat(halves), predicted_BG)


def test_identity_basal_adds_a_learned_change_to_the_control():
    model = build(IDENTITY).eval()
    control_BG, perturbations_BM = cells(7)
    shift_BD = sum_perturbations(model.perturbation_embeddings(), perturbations_BM)
    expected_BG = control_BG + model.decoder(shift_BD)
    torch.testing.assert_close(model(control_BG, perturbations_BM), expected_BG)


def test_order_of_a_cells_perturbations_does_not_matter():
    model = build().eval()
    control_BG, perturbations_BM = cells(7)
    flipped_BG = model(control_BG, perturbations_BM.flip(1))
    torch.testing.assert_close(model(control_BG, perturbations_BM), flipped_BG)


def test_the_seed_decides_the_weights_and_leaves_the_callers_stream():
    before = torch.get_rng_state()
    one, same, other = build().state_dict(), build().state_dict(), build(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["perturbation.features_PN"], other["perturbation.features_PN"])


def test_a_graph_is_the_union_of_its_parts():
    parts = [graph(12, 20, 1), graph(12, 20, 2)]
    edges_2E = np.unique(np.concatenate([part.edges_2E for part in parts], 1), axis=1)
    union = KnowledgeGraph("union", edges_2E, np.ones(edges_2E.shape[1], np.float32))
    many, one = (
        build_model(SMALL, num_genes=20, num_nodes=12, graphs=graphs, seed=0) for graphs in (parts, [union])
    )
    assert torch.equal(many.perturbation_embeddings(), one.perturbation_embeddings())


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_single_precision_is_near_double(norm):
    model = build(SMALL.model_copy(update={"norm": norm}))
    control_BG, perturbations_BM = cells(30)
    key = DropoutKey(0, 5, 0)
    single_BG = model(control_BG, perturbations_BM, key)
    double_BG = model.double()(control_BG.double(), perturbations_BM, key)
    assert (single_BG - double_BG).abs().max() < 1e-5 * double_BG.abs().max()


@pytest.mark.parametrize("basal", [config.MlpBasal(hidden=64), config.IdentityBasal()])
def test_learns_a_toy_screen_by_heart(basal):
    model = build(
        SMALL.model_copy(update={"latent": 24, "basal": basal, "decoder": config.Decoder(hidden=64)})
    )
    control_BG, _ = cells(24)
    perturbations_BM = torch.arange(24).remainder(12).unsqueeze(1)
    effect_PG = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    observed_BG = control_BG + effect_PG[perturbations_BM[:, 0]]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(400):
        loss = functional.mse_loss(model(control_BG, perturbations_BM), observed_BG)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


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
    one, first, second = (dict(np.load(folder / f"{rank}.npz")) for folder, _, rank in runs)
    assert len(first["predicted"]) != len(second["predicted"])
    for name in one:
        if name.startswith("gradient:"):
            found = first[name] + second[name]
        elif name.startswith("state:"):
            assert np.array_equal(first[name], second[name])
            found = first[name]
        else:
            found = np.concatenate([first[name], second[name]])
        np.testing.assert_allclose(found, one[name], rtol=1e-10, atol=1e-10, err_msg=name)
    assert np.abs(one["gradient:basal.first.weight"]).max() > 1e-3
    learned = {name for name, parameter in build().named_parameters() if parameter.requires_grad}
    assert {name.removeprefix("gradient:") for name in one if name.startswith("gradient:")} == learned


def test_biases_that_batch_norm_cancels_do_not_learn_and_have_no_gradient():
    """Freed, their exact gradient is zero: fixing them changes no function the model can learn."""
    model = build().double()
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"basal.first.bias", "basal.last.bias", "decoder.first.bias"}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    control_BG, perturbations_BM = cells(12)
    model(control_BG.double(), perturbations_BM).square().sum().backward()
    gradients = {name: parameter.grad.abs().max().item() for name, parameter in model.named_parameters()}
    assert max(gradients[name] for name in fixed) < 1e-9 * max(gradients.values())
