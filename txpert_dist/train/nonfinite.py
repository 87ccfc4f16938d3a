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
    basal, perturbation, fusion, decoder.
    """
    if any_rank(not _finite([batch.control_BN, batch.observed_BG]), device=device):
        return "the input data"
    groups = _groups(module)
    poisoned = [name for name, parameters in groups.items() if not _finite(parameters)]
    if poisoned:
        return f"the parameters of {', '.join(poisoned)}"
    learned = [(name, p) for name, parameters in groups.items() for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss(), [p for _, p in learned], allow_unused=True)
    bad_here = {
        name for (name, _), g in zip(learned, gradients, strict=True) if g is not None and not _finite([g])
    }
    local = [float(name in bad_here) for name in groups]
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
