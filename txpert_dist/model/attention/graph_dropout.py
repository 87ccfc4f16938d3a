"""Dropout over nodes or edges of a graph, the same on all workers and for any part of the graph.

Enters: activations of nodes or edges, their numbers in the whole graph where these are not all of them, a
key. Leaves: the activations, thinned. Invariants: what is dropped is a function of (seed, step, layer, number
of the row, column), so every worker, every device and every part of the graph draws the same; the process's
own random streams are neither read nor advanced; no mask is kept for the gradient on a CPU, where it is drawn
again.

A row has a hash of its own, each four columns a hash of that and their place, 16 bits a column (SplitMix64's
finaliser, Steele et al. 2014, over wrap-around 64-bit integers).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from txpert_dist.model.attention.compiled import Integers, Reals, Span, compiled, inlined
from txpert_dist.model.attention.threads import over_blocks
from txpert_dist.model.dropout import GRAPH, DropoutKey, hash_integers, mix, signed

_BITS = 16
_LANES = 64 // _BITS
_BLOCK = 1 << 17
"""Numbers that a thread thins at a time."""
_U = np.uint64
_INCREMENT, _FIRST, _SECOND = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)


class _Draw(NamedTuple):
    base: int
    """Of the (seed, step, layer), signed."""
    lowest: int
    """Of the 16 bits of a number that is kept, read as signed."""
    scale: float


def graph_dropout(
    x_PN: Tensor, probability: float, layer: int, key: DropoutKey | None, rows: Tensor | None = None
) -> Tensor:
    """``x_PN`` with entries zeroed with ``probability``, equally on every worker; the rest is scaled up.

    ``rows`` (P,) are the numbers of the rows in the whole graph, by default from 0 on. Differentiable once.
    """
    if key is None or probability == 0:
        return x_PN
    rows = torch.arange(len(x_PN), device=x_PN.device) if rows is None else rows
    dropped = min(round(probability * (1 << _BITS)), (1 << _BITS) - 1)
    base = signed(hash_integers(GRAPH, key.seed, key.step, layer))
    draw = _Draw(base, dropped - (1 << (_BITS - 1)), (1 << _BITS) / ((1 << _BITS) - dropped))
    if x_PN.device.type == "cpu" and x_PN.dtype in (torch.float32, torch.float64):
        thinned_PN: Tensor = _Thinned.apply(x_PN, rows, draw)  # type: ignore[no-untyped-call]
        return thinned_PN
    return x_PN * _multipliers(x_PN, rows, draw)


class _Thinned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PN: Tensor, rows: Tensor, draw: _Draw) -> Tensor:
        ctx.rows, ctx.draw = rows, draw
        return _thinned(x_PN, rows, draw)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_PN: Tensor) -> tuple[Tensor, None, None]:
        return _thinned(d_PN, ctx.rows, ctx.draw), None, None


def _thinned(x_PN: Tensor, rows: Tensor, draw: _Draw) -> Tensor:
    out_PN = torch.empty(x_PN.shape, dtype=x_PN.dtype)
    x, out, number = x_PN.detach().contiguous().numpy(), out_PN.numpy(), rows.numpy()
    scale = x.dtype.type(draw.scale)
    blocks = max(x.size // _BLOCK, 1)
    bounds = np.unique(np.linspace(0, len(x), blocks + 1).astype(np.int64))
    over_blocks(bounds, lambda _, span: _thin(span, x, number, draw.base, draw.lowest, scale, out))
    return out_PN


def _multipliers(x_PN: Tensor, rows: Tensor, draw: _Draw) -> Tensor:
    """The mask that ``_thin`` applies, by torch's own operations."""
    places = torch.arange(-(-x_PN.shape[1] // _LANES), device=x_PN.device)
    bits_PN = mix(mix(rows + draw.base).unsqueeze(1) + places).view(torch.int16)[:, : x_PN.shape[1]]
    return (bits_PN >= draw.lowest).to(x_PN.dtype).mul_(draw.scale)


@inlined
def _mixed(state: np.uint64) -> np.uint64:
    state = state + _INCREMENT
    state = (state ^ (state >> _U(30))) * _FIRST
    state = (state ^ (state >> _U(27))) * _SECOND
    return state ^ (state >> _U(31))


@compiled
def _thin(
    span: Span, x_PN: Reals, number: Integers, base: int, lowest: int, scale: float, out_PN: Reals
) -> None:
    width = x_PN.shape[1]
    bits = np.empty(-(-width // _LANES), np.uint64)
    lanes = bits.view(np.int16)
    zero = scale - scale
    for row in range(span[0], span[1]):
        start = _mixed(_U(number[row] + base))
        for place in range(len(bits)):
            bits[place] = _mixed(start + _U(place))
        for column in range(width):
            # a product and not a choice: what is not finite stays so
            out_PN[row, column] = x_PN[row, column] * (scale if lanes[column] >= lowest else zero)
