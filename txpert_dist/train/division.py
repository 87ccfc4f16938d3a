"""Whether workers divide the graph's nodes among themselves, or each computes all of them.

Enters: a model, the workers at hand. Leaves: this rank's share of each stack of layers, and what a step's
embeddings take either way, measured on these very workers: what an exchange costs depends on their links more
than on anything that could be worked out. Invariants: dividing changes a result by rounding alone; measuring
leaves the model as it was.
"""

import time
from typing import NamedTuple

import torch

from txpert_dist.model.encoders.reach import Workers
from txpert_dist.model.norm import statistics_kept
from txpert_dist.model.txpert import TxPert
from txpert_dist.train import engine
from txpert_dist.train.collective import (
    barrier,
    rank,
    rows_of_all_ranks,
    sum_numbers,
    sum_over_ranks,
    world_size,
)
from txpert_dist.train.engine import Engine
from txpert_dist.train.needed import Needed, Shares

_TRIES = 3


class Times(NamedTuple):
    """Seconds for Z and its gradient, the mean over ranks of each rank's fastest try."""

    whole: float
    """Every rank computes all nodes."""
    divided: float
    """Every rank computes its share."""

    def __str__(self) -> str:
        faster = "pays" if self.divided < self.whole else "does not pay"
        return (
            f"graph: {self.whole:.3g} s a step when each worker computes all nodes, {self.divided:.3g} s "
            f"when they divide them; cluster.partition_nodes {faster} here"
        )


def shares_of(model: TxPert) -> Shares:
    """This rank's share of every stack of layers; None for what cannot be divided."""
    return model.shares(Workers(rank(), world_size(), rows_of_all_ranks, sum_over_ranks))


def measured(built: Engine, model: TxPert, needed: Needed, shares: Shares) -> Times:
    """What a step's embeddings take for the nodes of ``needed``. Collective."""
    pairs = zip(needed.reaches, shares, strict=True)
    divided = Needed(needed.rows, tuple(reach._replace(share=share) for reach, share in pairs))
    device = next(model.parameters()).device
    with statistics_kept(model.perturbation):
        each = [_seconds(built, model, one) for one in (needed, divided)]
    whole, shared = (total / world_size() for total in sum_numbers(each, device=device))
    return Times(whole, shared)


def _seconds(built: Engine, model: TxPert, needed: Needed) -> float:
    learned = [p for p in model.perturbation.parameters() if p.requires_grad]
    taken = []
    for _ in range(_TRIES):
        barrier()
        started = time.perf_counter()
        with engine.precision(built):
            z_PD = model.perturbation_embeddings(None, needed.reaches)
        torch.autograd.grad(z_PD.float().sum(), learned, allow_unused=True)
        if z_PD.is_cuda:
            torch.cuda.synchronize(z_PD.device)
        taken.append(time.perf_counter() - started)
    return min(taken)
