"""Random numbers of a step that are counted, not streamed: dropout masks and normal draws for cells.

Enters: activations, and a key that says which optimiser step and which rows these are. Leaves: the
activations, thinned, or normal numbers of their shape. Invariants: what is drawn for a cell is a function of
(seed, step, layer, row in the global minibatch, column), so any number of workers draws what one worker
draws. Without a key nothing is dropped. The process's own random streams are neither read nor advanced.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_INCREMENT = 0x9E3779B97F4A7C15
_BITS = 24
GRAPH = 1
"""Stream of the draws for a graph, which are in attention/graph_dropout.py."""
_CELLS, _NORMAL = 0, 3
"""Streams of the draws for cells; encoders/features.py has 2."""


class DropoutKey(NamedTuple):
    """Which draw this is; forward without a key draws nothing."""

    seed: int
    """The run's seed."""
    step: int | Tensor
    """The optimiser step, counted over all epochs; or the same as a () int64 tensor where the draws are: a
    CUDA graph's replay reads tensors anew, numbers never."""
    first_row: int
    """Position of the first cell in the global minibatch."""
    row_step: int = 1
    """From one cell to the next, in positions of the global minibatch."""


def cell_dropout(x_BN: Tensor, probability: float, layer: int, key: DropoutKey | None) -> Tensor:
    """``x_BN`` with entries zeroed with ``probability`` and the rest scaled to keep the mean.

    ``layer`` tells the dropouts of one model apart. The mask hashes row and column (SplitMix64's finaliser,
    Steele et al. 2014, over wrap-around 64-bit integers).
    """
    if key is None or probability == 0:
        return x_BN
    drawn_BN = _cell_bits(x_BN, _CELLS, layer, key).bitwise_and_((1 << _BITS) - 1)
    kept_BN = drawn_BN >= round(probability * (1 << _BITS))
    return x_BN * kept_BN.to(x_BN.dtype).mul_(1 / (1 - probability))


def cell_normal(x_BN: Tensor, layer: int, key: DropoutKey) -> Tensor:
    """Independent standard normal numbers of the shape, type and device of ``x_BN``, hashed as the masks are.

    Box & Muller 1958 on the two halves of a hash, in double precision: both uniform on the midpoints of 2^32
    intervals, so the logarithm is finite and no number exceeds 6.8.
    """
    bits_BN = _cell_bits(x_BN, _NORMAL, layer, key)
    radius_BN = (-2 * _uniform(_shift_right(bits_BN, 32)).log_()).sqrt_()
    angle_BN = _uniform(bits_BN.bitwise_and_((1 << 32) - 1)).mul_(2 * math.pi)
    return radius_BN.mul_(angle_BN.cos_()).to(x_BN.dtype)


def hash_integers(*numbers: int) -> int:
    """A 64-bit unsigned hash of a sequence of integers (chained SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state + _INCREMENT + number) & _MASK_64
        for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
            state = ((state ^ (state >> shift)) * multiplier) & _MASK_64
        state ^= state >> 31
    return state


def hashed(stream: int, key: DropoutKey, *numbers: int) -> int | Tensor:
    """``hash_integers`` of stream, seed, step and ``numbers``, signed; a () int64 tensor for such a step."""
    if not isinstance(key.step, Tensor):
        return signed(hash_integers(stream, key.seed, key.step, *numbers))
    state = mix(key.step + signed(hash_integers(stream, key.seed)))
    for number in numbers:
        state = mix(state + number)
    return state


def _cell_bits(x_BN: Tensor, stream: int, layer: int, key: DropoutKey) -> Tensor:
    """64 hashed bits for every entry of ``x_BN``."""
    num_cells, width = x_BN.shape
    base = hashed(stream, key, layer)
    row_B = torch.arange(num_cells, device=x_BN.device) * key.row_step + key.first_row
    column_N = torch.arange(width, device=x_BN.device)
    return mix(mix(row_B + base).unsqueeze(1) + mix(column_N + ~base))


def _uniform(bits_BN: Tensor) -> Tensor:
    """Midpoints in (0, 1) from integers below 2^32."""
    return bits_BN.double().add_(0.5).mul_(2.0**-32)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's next output from each state."""
    x = x + signed(_INCREMENT)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = x.bitwise_xor_(_shift_right(x, shift)).mul_(signed(multiplier))
    return x.bitwise_xor_(_shift_right(x, 31))


def _shift_right(x: Tensor, count: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask makes the shift logical
    return torch.bitwise_right_shift(x, count).bitwise_and_((1 << (64 - count)) - 1)


def signed(number: int) -> int:
    """The signed integer of the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number
