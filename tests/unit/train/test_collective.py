"""What ranks tell each other, against the same arithmetic in one process."""

import pytest
import torch

from tests.processes import run
from txpert_dist.train import collective

CPU = torch.device("cpu")


def shares(world):
    return [torch.linspace(-1, 1 + rank, 6, dtype=torch.float64).reshape(2, 3) for rank in range(world)]


def loss_of(summed, own):
    return (summed.square() * own).sum() + own.sum()


def gradient_of_rank(rank, world):
    own = shares(world)[rank].requires_grad_()
    loss_of(collective.sum_over_ranks(own.t()).t(), own).backward()
    return own.grad.numpy()


@pytest.mark.process
def test_sum_is_differentiated_through_every_rank():
    world = 3
    parts = [part.requires_grad_() for part in shares(world)]
    total = sum(parts)
    sum(loss_of(total, part) for part in parts).backward()
    for gradient, part in zip(run(gradient_of_rank, world), parts, strict=True):
        torch.testing.assert_close(torch.from_numpy(gradient), part.grad)


LENGTHS = [2, 0, 5]


def blocks():
    rows = torch.arange(3 * sum(LENGTHS), dtype=torch.float64).reshape(-1, 3) / 7
    return list(rows.split(LENGTHS))


def weighted(rows, rank):
    return (rows.square() * (rank + 1)).sum()


def rows_and_gradient(rank, world):
    own = blocks()[rank].requires_grad_()
    everything = collective.rows_of_all_ranks(own, LENGTHS)
    weighted(everything, rank).backward()
    return everything.detach().numpy(), own.grad.numpy()


@pytest.mark.process
def test_rows_of_all_ranks_and_the_sum_of_their_gradients():
    parts = [part.requires_grad_() for part in blocks()]
    whole = torch.cat(parts)
    sum(weighted(whole, rank) for rank in range(3)).backward()
    for (everything, gradient), part in zip(run(rows_and_gradient, 3), parts, strict=True):
        assert (everything == whole.detach().numpy()).all()
        torch.testing.assert_close(torch.from_numpy(gradient), part.grad)


def exchange(rank, world):
    assert (collective.rank(), collective.world_size()) == (rank, world)
    collective.barrier()
    return (
        collective.sum_numbers([rank + 0.5, 1.0], device=CPU),
        collective.any_rank(rank == 1, device=CPU),
        collective.any_rank(False, device=CPU),
        collective.broadcast_text("JAK2 über" if rank == 0 else "", device=CPU),
        collective.broadcast_text("", device=CPU),
    )


@pytest.mark.process
def test_every_rank_hears_the_same():
    assert run(exchange, 2) == [([2.0, 2.0], True, False, "JAK2 über", "")] * 2


def test_alone_everything_is_the_identity():
    x = torch.ones(2, requires_grad=True)
    assert collective.sum_over_ranks(x) is x
    assert collective.rows_of_all_ranks(x, [2]) is x
    assert collective.sum_numbers([3.0], device=CPU) == [3.0]
    assert collective.broadcast_text("x", device=CPU) == "x"
    assert (collective.rank(), collective.world_size()) == (0, 1)
    collective.barrier()
