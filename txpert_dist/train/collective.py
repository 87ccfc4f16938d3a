"""What ranks tell each other, over torch.distributed's default group and nothing else.

Enters: a tensor or a number of this rank. Leaves: the same on every rank. Invariant: with one process, or
none initialised, every function is the identity, so the same code runs alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


def world_size() -> int:
    """Number of ranks; 1 when there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()


class _Sum(torch.autograd.Function):
    """y = sum over ranks of x. Every rank's loss depends on every x, so dx = sum over ranks of dy."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_in_place(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_in_place(gradients[0].clone(memory_format=torch.contiguous_format))


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over ranks, differentiable: the gradient is summed over ranks too."""
    if world_size() == 1:
        return tensor
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


class _RowsOfAll(torch.autograd.Function):
    """Every rank's rows, one rank's after the other's; dx = the sum over ranks of this rank's rows of dy."""

    @staticmethod
    def forward(ctx: Any, x_TN: Tensor, lengths: Sequence[int]) -> Tensor:
        ctx.lengths = lengths
        longest = max(lengths)  # ranks exchange equally many rows, which every backend can
        each = [x_TN.new_empty(longest, x_TN.shape[1]) for _ in lengths]
        dist.all_gather(each, _padded(x_TN, longest))
        return torch.cat([rows[:length] for rows, length in zip(each, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        lengths = ctx.lengths
        each = [_padded(rows, max(lengths)) for rows in torch.split(gradients[0], lengths)]
        own = torch.empty_like(each[0])
        dist.reduce_scatter(own, each)
        return own[: lengths[rank()]], None


def _padded(x_TN: Tensor, length: int) -> Tensor:
    return functional.pad(x_TN, (0, 0, 0, length - len(x_TN))).contiguous()


def rows_of_all_ranks(x_TN: Tensor, lengths: Sequence[int]) -> Tensor:
    """(sum of lengths, N): the rows of all ranks in their order, of which this one has ``x_TN``.

    ``lengths`` are every rank's numbers of rows. Differentiable: the gradient is summed over ranks.
    """
    if world_size() == 1:
        return x_TN
    gathered: Tensor = _RowsOfAll.apply(x_TN, list(lengths))  # type: ignore[no-untyped-call]
    return gathered


def sum_in_place(tensor: Tensor) -> Tensor:
    """Sum of ``tensor`` over ranks, written into it; no gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_numbers(numbers: Sequence[float], *, device: torch.device) -> list[float]:
    """Sum of each number over ranks, in double precision; ``device`` must suit the group's backend."""
    summed: list[float] = sum_in_place(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()
    return summed


def any_rank(flag: bool, *, device: torch.device) -> bool:
    """True on every rank when ``flag`` is true on at least one."""
    return sum_numbers([float(flag)], device=device)[0] > 0


def broadcast_text(text: str, *, device: torch.device) -> str:
    """Rank 0's ``text`` on every rank (as bytes: no pickle)."""
    if world_size() == 1:
        return text
    data = text.encode()
    length = torch.tensor([len(data) if rank() == 0 else 0], device=device)
    dist.broadcast(length, 0)
    size = int(length.item())
    buffer = torch.zeros(size, dtype=torch.uint8, device=device)
    if rank() == 0:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device) if size else buffer
    dist.broadcast(buffer, 0)
    return bytes(buffer.cpu().tolist()).decode()
