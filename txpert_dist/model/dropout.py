"""Dropout whose masks are counted, not streamed.

Enters: activations, and a key that says which optimiser step and which rows these are. Leaves: the
activations, thinned. Invariants: a cell's mask is a function of (seed, step, layer, row in the global
minibatch, column), so any number of workers draws what one worker draws; a graph's mask is a function of
(seed, step, layer), so every worker draws the same. Without a key nothing is dropped. The process's own
random streams are neither read nor advanced.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_INCREMENT = 0x9E3779B97F4A7C15
_BITS = 24
_CELLS, _GRAPH = 0, 1


class DropoutKey(NamedTuple):
    """Which draw this is; forward without a key draws nothing."""

    seed: int
    """The run's seed."""
    step: int
    """The optimiser step, counted over all epochs."""
    first_row: int
    """Position of this worker's first cell in the global minibatch."""


def cell_dropout(x_BN: Tensor, probability: float, layer: int, key: DropoutKey | None) -> Tensor:
    """``x_BN`` with entries zeroed with ``probability`` and the rest scaled to keep the mean.

    ``layer`` tells the dropouts of one model apart. The mask hashes row and column (SplitMix64's finaliser,
    Steele et al. 2014, over wrap-around 64-bit integers).
    """
    if key is None or probability == 0:
        return x_BN
    num_cells, width = x_BN.shape
    base = hash_integers(_CELLS, key.seed, key.step, layer)
    row_B = torch.arange(key.first_row, key.first_row + num_cells, device=x_BN.device)
    column_N = torch.arange(width, device=x_BN.device)
    bits_BN = _mix(_mix(row_B + _signed(base)).unsqueeze(1) + _mix(column_N + _signed(~base & _MASK_64)))
    drawn_BN = bits_BN.bitwise_and_((1 << _BITS) - 1)
    kept_BN = drawn_BN >= round(probability * (1 << _BITS))
    return x_BN * kept_BN.to(x_BN.dtype).mul_(1 / (1 - probability))


def graph_dropout(x_PN: Tensor, probability: float, layer: int, key: DropoutKey | None) -> Tensor:
    """``x_PN`` with entries zeroed with ``probability``, equally on every worker; the rest is scaled up."""
    if key is None or probability == 0:
        return x_PN
    generator = torch.Generator(device=x_PN.device)
    generator.manual_seed(hash_integers(_GRAPH, key.seed, key.step, layer) >> 1)
    # four 16-bit draws from each 64-bit one: a third of the time that bernoulli_ takes on a CPU
    draws = torch.empty(-(-x_PN.numel() // 4), dtype=torch.int64, device=x_PN.device)
    draws.random_(-(1 << 63), None, generator=generator)
    dropped = min(round(probability * (1 << 16)), (1 << 16) - 1)
    kept_PN = (draws.view(torch.int16)[: x_PN.numel()] >= dropped - (1 << 15)).view(x_PN.shape)
    return x_PN * kept_PN.to(x_PN.dtype).mul_((1 << 16) / ((1 << 16) - dropped))


def hash_integers(*numbers: int) -> int:
    """A 64-bit unsigned hash of a sequence of integers (chained SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state + _INCREMENT + number) & _MASK_64
        for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
            state = ((state ^ (state >> shift)) * multiplier) & _MASK_64
        state ^= state >> 31
    return state


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(_INCREMENT)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = x.bitwise_xor_(_shift_right(x, shift)).mul_(_signed(multiplier))
    return x.bitwise_xor_(_shift_right(x, 31))


def _shift_right(x: Tensor, count: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask makes the shift logical
    return torch.bitwise_right_shift(x, count).bitwise_and_((1 << (64 - count)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
