"""One worker of test_txpert.py's two: ``python gloo_worker.py FOLDER WORLD RANK`` writes FOLDER/RANK.npz."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.txpert import build_model

NUM_CELLS, NUM_GENES, NUM_NODES, STEPS = 11, 20, 12, 2


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
    random = np.random.default_rng(0)
    edges_2E = random.integers(0, NUM_NODES, (2, 30)).astype(np.int32)
    model = build_model(
        config.Model(latent=6, perturbation=config.Gat(layers=2, node_features=8, hidden=4)),
        num_genes=NUM_GENES,
        num_nodes=NUM_NODES,
        graphs=[KnowledgeGraph("g", edges_2E, np.ones(30, np.float32))],
        seed=3,
        reduce=all_reduce_sum,
    ).double()
    share = slice(rank * NUM_CELLS // world, (rank + 1) * NUM_CELLS // world)
    for step in range(STEPS):
        control_BG, observed_BG = torch.from_numpy(random.gamma(1.0, 1.0, (2, NUM_CELLS, NUM_GENES)))
        perturbations_BM = torch.from_numpy(random.integers(-1, NUM_NODES, (NUM_CELLS, 2)))
        predicted_BG = model(
            control_BG[share], perturbations_BM[share], DropoutKey(seed=5, step=step, first_row=share.start)
        )
        (predicted_BG - observed_BG[share]).square().sum().backward()
    saved = {"predicted": predicted_BG.detach()}
    saved |= {f"gradient:{name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    saved |= {f"state:{name}": value for name, value in model.state_dict().items()}
    model.eval()
    saved["evaluated"] = model(control_BG[share], perturbations_BM[share]).detach()
    np.savez(folder / f"{rank}.npz", **{name: value.numpy() for name, value in saved.items()})
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
