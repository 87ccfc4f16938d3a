"""A share of a minibatch taken in parts, one after the other, for the price of one encoding of the graph.

Enters: a rank's share, the node embeddings Z, an objective of a part. Leaves: one scalar whose gradient is
that of all parts' objectives together. The earlier parts go through a detached leaf of Z; what they give to
Z, and to each parameter they meet, joins the last part's objective as an inner product with the gradient
held constant: <Z, dZ> + sum of <p, dp>. So one backward passes the encoder, and whoever waits for a
parameter's gradient (DeepSpeed's reductions do) sees it once, complete. Invariants: a part is the same cells
on any number of ranks, so batch normalisation has the same statistics; a cell draws the dropout that it draws
in the whole share.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from txpert_dist.model.dropout import DropoutKey
from txpert_dist.train.batch import DenseBatch


class Part(NamedTuple):
    """Some cells of a share, and where in the global minibatch they are."""

    batch: DenseBatch
    key: DropoutKey


class Gathered(NamedTuple):
    """Gradients of objectives that were done with before."""

    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    """What the gradient is of, and the gradient."""

    def inner_product(self) -> Tensor | float:
        """A number whose gradient these are."""
        return sum((x * dx).sum() for x, dx in self.pairs)


def in_parts(batch: DenseBatch, key: DropoutKey, count: int) -> list[Part]:
    """Cell n of the global minibatch to part n modulo ``count``; a small share may have none in some."""
    parts = []
    for number in range(count):
        first = (number - key.first_row) % count
        own = DenseBatch(*(rows[first::count] for rows in batch))
        parts.append(Part(own, key._replace(first_row=key.first_row + first, row_step=count)))
    return parts


def gathered(
    objective: Callable[[Part, Tensor], Tensor],
    parts: Sequence[Part],
    z_PD: Tensor,
    learned: Sequence[Tensor],
) -> Gathered:
    """Gradients of ``objective(part, z_PD)``, added up over ``parts``, in ``z_PD`` and ``learned``.

    The encoder is not gone through; of ``learned``, what no part meets is left out.
    """
    leaf_PD = z_PD.detach().requires_grad_()
    total: list[Tensor | None] = [None] * (1 + len(learned))
    for part in parts:
        found = torch.autograd.grad(objective(part, leaf_PD), [leaf_PD, *learned], allow_unused=True)
        total = [_plus(before, now) for before, now in zip(total, found, strict=True)]
    of = [z_PD, *learned]
    return Gathered(tuple((x, dx) for x, dx in zip(of, total, strict=True) if dx is not None))


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one.add_(other)
