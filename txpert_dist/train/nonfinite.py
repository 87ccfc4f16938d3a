"""Where a value that is not finite comes from.

Enters: the step whose loss or gradient is not finite, on every rank together. Leaves: words for the message.
Invariant: parameters are only read.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from txpert_dist.train.batch import DenseBatch
from txpert_dist.train.collective import any_rank, sum_numbers


def culprit(module: nn.Module, batch: DenseBatch, loss: Callable[[], Tensor], *, device: torch.device) -> str:
    """What is not finite first: the input data, a group's parameters, or a group's gradient.

    Collective. ``loss`` computes the step's loss again. A group is the first part of a parameter's name:
    basal, perturbation, decoder.
    """
    if any_rank(not _finite([batch.control_BG, batch.observed_BG]), device=device):
        return "the input data"
    groups = _groups(module)
    poisoned = [name for name, parameters in groups.items() if not _finite(parameters)]
    if poisoned:
        return f"the parameters of {', '.join(poisoned)}"
    named = [name for name, parameters in groups.items() for _ in parameters]
    gradients = torch.autograd.grad(
        loss(), [p for parameters in groups.values() for p in parameters], allow_unused=True
    )
    local = [
        float(
            not _finite(
                [g for g, owner in zip(gradients, named, strict=True) if owner == name and g is not None]
            )
        )
        for name in groups
    ]
    counts = sum_numbers(local, device=device)
    bad = [name for name, count in zip(groups, counts, strict=True) if count]
    return f"the gradient of {', '.join(bad)}" if bad else "the loss itself"


def _groups(module: nn.Module) -> dict[str, list[Tensor]]:
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        groups.setdefault(name.partition(".")[0], []).append(parameter)
    return groups


def _finite(tensors: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
