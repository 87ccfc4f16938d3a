"""A share taken in parts: the same cells, draws and gradients, and the graph encoded once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.model.encoders.random_graphs import graph_input
from txpert_dist import config
from txpert_dist.config import Train
from txpert_dist.model.dropout import DropoutKey, cell_dropout
from txpert_dist.model.txpert import build_model
from txpert_dist.train.batch import DenseBatch
from txpert_dist.train.parts import Gathered, gathered, in_parts
from txpert_dist.train.step import loss_terms

NUM_CELLS, NUM_GENES, NUM_NODES = 12, 10, 9
GAT = config.Gat(layers=2, node_features=4, hidden=4)
MODELS = {
    "gat": config.Model(latent=6, perturbation=GAT, norm="batch"),
    "layer norm": config.Model(latent=6, perturbation=GAT, norm="layer"),
    "variational, sequential": config.Model(
        latent=6,
        perturbation=config.Exphormer(layers=2, hidden=4, expander_cycles=2),
        basal=config.VaeBasal(hidden=8),
        fusion=config.SequentialFusion(hidden=8),
        control_token="learned",
    ),
    "identity": config.Model(
        latent=6, perturbation=config.Embedding(node_features=4), basal=config.IdentityBasal()
    ),
}


def build(options: config.Model, dtype=torch.float64):
    graph = graph_input(NUM_NODES, 30, 2, 0)
    model = build_model(options, num_genes=NUM_GENES, basal_width=NUM_GENES, graph=graph, seed=0)
    return model.to(dtype)


def whole_batch(num_cells: int, dtype=torch.float64) -> DenseBatch:
    random = np.random.default_rng(0)
    control_BG, observed_BG = torch.from_numpy(random.gamma(1.0, 1.0, (2, num_cells, NUM_GENES))).to(dtype)
    return DenseBatch(
        control_BG, observed_BG, torch.from_numpy(random.integers(-1, NUM_NODES, (num_cells, 2)))
    )


def share(batch: DenseBatch, rank: int, world: int) -> tuple[DenseBatch, DropoutKey]:
    rows = slice(rank * NUM_CELLS // world, (rank + 1) * NUM_CELLS // world)
    return DenseBatch(*(x[rows] for x in batch)), DropoutKey(3, 7, rows.start)


@settings(max_examples=60)
@given(count=st.integers(1, NUM_CELLS), world=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_a_part_is_the_same_cells_with_the_same_draws_on_any_number_of_ranks(count, world):
    number_B = torch.arange(NUM_CELLS)
    batch = DenseBatch(torch.ones(NUM_CELLS, 5), torch.zeros(NUM_CELLS, 2), number_B.unsqueeze(1))
    dropped_BN = cell_dropout(batch.control_BN, 0.5, 1, DropoutKey(3, 7, 0))
    seen = [[] for _ in range(count)]
    for rank in range(world):
        parts = in_parts(*share(batch, rank, world), count)
        assert len(parts) == count
        for number, (own, key) in enumerate(parts):
            cells = own.perturbations_BM.flatten().tolist()
            assert len(own.control_BN) == len(own.observed_BG) == len(cells)
            seen[number] += cells
            assert torch.equal(cell_dropout(own.control_BN, 0.5, 1, key), dropped_BN[cells])
    assert seen == [[cell for cell in range(NUM_CELLS) if cell % count == number] for number in range(count)]


def objective(model, part, z_PD):
    prediction = model.forward(part.batch.control_BN, part.batch.perturbations_BM, part.key, z_PD)
    return loss_terms(prediction, part.batch).objective(0.5)


def learned_with_cells(model):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [p for n, p in named if not n.startswith("perturbation.")]


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_gradients_are_those_of_encoding_the_graph_for_every_part(name, count, dtype, tolerance):
    """Dropout and batch norm on; the squared error is in single precision."""
    model = build(MODELS[name], dtype)
    parts = in_parts(*share(whole_batch(NUM_CELLS, dtype), 0, 1), count)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for part in parts:
        objective(model, part, model.perturbation_embeddings(part.key)).backward()
    expected, after = gradients(model), {n: v.clone() for n, v in model.state_dict().items()}
    model.load_state_dict(state)
    calls = []
    model.perturbation.register_forward_hook(lambda *_: calls.append(1))
    z_PD = model.perturbation_embeddings(parts[0].key)
    *earlier, last = parts
    before = gathered(
        lambda part, z_PD: objective(model, part, z_PD), earlier, z_PD, learned_with_cells(model)
    )
    assert all(p.grad is None for p in model.parameters())
    (objective(model, last, z_PD) + before.inner_product()).backward()
    ours = gradients(model)
    assert len(calls) == 1
    for key, gradient in expected.items():
        assert (gradient is None) == (ours[key] is None)
        if gradient is not None:
            largest = max(gradient.abs().max().item(), 1e-3)
            assert (gradient - ours[key]).abs().max() <= 4 * tolerance * largest, key
    for key, value in model.state_dict().items():  # running statistics of the cells' norms
        if not key.startswith("perturbation."):
            torch.testing.assert_close(value, after[key])


def test_what_no_part_meets_is_left_out():
    z_PD, met, unmet = (torch.ones(2, 2, requires_grad=True) for _ in range(3))
    parts = in_parts(whole_batch(NUM_CELLS), DropoutKey(0, 0, 0), 3)
    found = gathered(lambda _part, z_PD: (z_PD * met).sum(), parts, z_PD, [met, unmet])
    assert [x is y for (x, _), y in zip(found.pairs, (z_PD, met), strict=True)] == [True, True]
    assert all(torch.equal(gradient, torch.full((2, 2), 3.0)) for _, gradient in found.pairs)
    assert unmet.grad is None
    assert Gathered().inner_product() == 0


def test_more_parts_than_cells_are_refused():
    with pytest.raises(ValidationError, match=r"accumulation=9 .*minibatch_size=8"):
        Train(minibatch_size=8, accumulation=9)
    assert Train(minibatch_size=8, accumulation=8).accumulation == 8
