"""One of the workers of test_txpert.py: ``gloo_worker.py FOLDER WORLD RANK`` writes FOLDER/RANK-MODEL.npz."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.graph_input import GraphInput
from txpert_dist.model.txpert import build_model

NUM_CELLS, NUM_GENES, NUM_NODES, STEPS = 11, 20, 12, 2
GAT = config.Gat(layers=2, node_features=8, hidden=4)
MODELS = {
    "additive": config.Model(latent=6, perturbation=GAT),
    "variational": config.Model(
        latent=6,
        perturbation=config.Embedding(node_features=8),
        basal=config.VaeBasal(),
        fusion=config.SequentialFusion(hidden=8),
        decoder=config.Decoder(activation="softplus"),
        control_token="learned",
    ),
}


class SumOverWorkers(torch.autograd.Function):
    """All-reduce sum, whose gradient is the all-reduce sum of the gradients."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        distributed.all_reduce(total)
        return total

    backward = forward


def all_reduce_sum(x: Tensor) -> Tensor:
    return SumOverWorkers.apply(x)


def main(folder: Path, world: int, rank: int) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    for name, options in MODELS.items():
        saved = steps(options, world, rank)
        np.savez(folder / f"{rank}-{name}.npz", **{name: value.numpy() for name, value in saved.items()})
    distributed.destroy_process_group()


def steps(options: config.Model, world: int, rank: int) -> dict[str, Tensor]:
    """Predictions, gradients summed over the steps, and the state, of this worker's share."""
    random = np.random.default_rng(0)
    edges_2E = random.integers(0, NUM_NODES, (2, 30)).astype(np.int32)
    graph = KnowledgeGraph("g", edges_2E, np.ones(30, np.float32))
    model = build_model(
        options,
        num_genes=NUM_GENES,
        basal_width=NUM_GENES,
        graph=GraphInput(NUM_NODES, (graph,)),
        seed=3,
        reduce=all_reduce_sum,
    ).double()
    share = slice(rank * NUM_CELLS // world, (rank + 1) * NUM_CELLS // world)
    for step in range(STEPS):
        control_BG, observed_BG = torch.from_numpy(random.gamma(1.0, 1.0, (2, NUM_CELLS, NUM_GENES)))
        perturbations_BM = torch.from_numpy(random.integers(-1, NUM_NODES, (NUM_CELLS, 2)))
        prediction = model(
            control_BG[share], perturbations_BM[share], DropoutKey(seed=5, step=step, first_row=share.start)
        )
        loss = (prediction.expression_BG - observed_BG[share]).square().sum()
        if prediction.divergence_B is not None:
            loss = loss + prediction.divergence_B.sum()
        loss.backward()
    saved = {name: value.detach() for name, value in prediction._asdict().items() if value is not None}
    saved |= {f"gradient:{name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    saved |= {f"state:{name}": value for name, value in model.state_dict().items()}
    model.eval()
    saved["evaluated"] = model(control_BG[share], perturbations_BM[share]).expression_BG.detach()
    return saved


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
