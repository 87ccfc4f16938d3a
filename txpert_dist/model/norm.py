"""Normalisation over the rows of the global minibatch.

Enters: one worker's rows. Leaves: those rows, normalised with the statistics of all workers' rows.
Invariants: any number of workers gives what one worker with all the rows gives, in output, gradient and
running statistics; statistics are single precision or better whatever the precision of the rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all workers, whose gradient is the sum of the workers' gradients."""

NormKind = Literal["batch", "layer", "none"]


def identity(x: Tensor) -> Tensor:
    """The sum over one worker."""
    return x


class GlobalBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) as ``torch.nn.BatchNorm1d``, over the global minibatch.

    Every worker calls ``forward`` the same number of times, be it with no rows at all. Two sums over workers
    a call: first the means, then squared distances from them, so that a large mean costs no precision.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self, width: int, *, reduce: Reduce = identity, epsilon: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.reduce = reduce
        self.epsilon = epsilon
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))

    def forward(self, x_BN: Tensor, reduce: Reduce | None = None) -> Tensor:
        """``x_BN`` normalised: with the minibatch's statistics in training, the running ones otherwise.

        ``reduce`` is for this call, in place of the module's own. The result is single precision or better. A
        single row over all workers normalises to the bias.
        """
        with torch.autocast(x_BN.device.type, enabled=False):
            wide_BN = x_BN.to(torch.promote_types(x_BN.dtype, torch.float32))
            if not self.training:
                return self._scale(wide_BN - self.running_mean, self.running_variance)
            reduce = reduce or self.reduce
            local = wide_BN.new_full((1,), len(wide_BN))
            sums_N = reduce(torch.cat([wide_BN.sum(0), local]))
            count = sums_N[-1].detach()
            mean_N = sums_N[:-1] / count
            centred_BN = wide_BN - mean_N
            squares_N = reduce((centred_BN * centred_BN).sum(0))
            self._remember(mean_N.detach(), squares_N.detach(), count)
            return self._scale(centred_BN, squares_N / count)

    def _scale(self, centred_BN: Tensor, variance_N: Tensor) -> Tensor:
        return centred_BN * (torch.rsqrt(variance_N + self.epsilon) * self.weight) + self.bias

    def _remember(self, mean_N: Tensor, squares_N: Tensor, count: Tensor) -> None:
        # one row has no variance; the floor keeps the running value finite without asking the device
        unbiased_N = squares_N / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean_N.to(self.running_mean.dtype), self.momentum)
        self.running_variance.lerp_(unbiased_N.to(self.running_variance.dtype), self.momentum)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Norms of ``module`` remember what they see: give back, in place, what they remembered before."""
    learned = {name for name, _ in module.named_parameters()}
    held = {name: value for name, value in module.state_dict().items() if name not in learned}
    before = {name: value.clone() for name, value in held.items()}
    try:
        yield
    finally:
        for name, value in before.items():
            held[name].copy_(value)


def norm_layer(kind: NormKind, width: int, *, reduce: Reduce = identity) -> nn.Module:
    """The normalisation that a configuration asks for, over ``width`` columns."""
    match kind:
        case "batch":
            return GlobalBatchNorm(width, reduce=reduce)
        case "layer":
            return nn.LayerNorm(width)
        case "none":
            return nn.Identity()
