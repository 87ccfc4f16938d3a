"""Dropout over nodes or edges of a graph, the same on all workers and for any part of the graph; activation.

Enters: activations of nodes or edges, their numbers in the whole graph where these are not all of them, a
key. Leaves: the activations, thinned. Invariants: what is dropped is a function of (seed, step, layer, number
of the row, column), so every worker, every device and every part of the graph draws the same; the process's
own random streams are neither read nor advanced; no mask is kept for the gradient on a CPU, where it is drawn
again.

On a CPU dropout, LeakyReLU before it and the joint of two tensors before that are one pass over memory.

A row has a hash of its own, each four columns a hash of that and their place, 16 bits a column (SplitMix64's
finaliser, Steele et al. 2014, over wrap-around 64-bit integers).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from txpert_dist.model.attention.compiled import Integers, Reals, Span, compiled, inlined
from txpert_dist.model.attention.threads import over_blocks
from txpert_dist.model.dropout import GRAPH, DropoutKey, hashed, mix

_BITS = 16
_LANES = 64 // _BITS
_BLOCK = 1 << 17
"""Numbers that a thread thins at a time."""
_U = np.uint64
_NONE = np.empty(0, np.int64)
_INCREMENT, _FIRST, _SECOND = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)


class _Draw(NamedTuple):
    base: int | Tensor
    """Of the (seed, step, layer), signed; a () int64 tensor where the step is one."""
    lowest: int
    """Of the 16 bits of a number that is kept, read as signed."""
    scale: float


_LOWEST = -(1 << (_BITS - 1))
_ALL = _Draw(0, _LOWEST, 1.0)
"""Drops nothing."""


class _Rule(NamedTuple):
    """Of an activation, for the compiled loops."""

    place: Integers
    """Empty where the rows beside are the same."""
    number: Integers
    base: int
    lowest: int
    scale: float
    slope: float


class Beside(NamedTuple):
    """What stands to the right of activations."""

    x_SM: Tensor
    place: Tensor | None
    """(P,) int64 the row for each row of the activations, no two alike; None where they are the same."""


def graph_dropout(
    x_PN: Tensor, probability: float, layer: int, key: DropoutKey | None, rows: Tensor | None = None
) -> Tensor:
    """``x_PN`` with entries zeroed with ``probability``, equally on every worker; the rest is scaled up.

    ``rows`` (P,) are the numbers of the rows in the whole graph, by default from 0 on. Differentiable once.
    """
    if key is None or probability == 0:
        return x_PN
    rows, draw = _rows(x_PN, rows), _draw(probability, layer, key)
    if _is_compiled(x_PN, key):
        thinned_PN: Tensor = _Thinned.apply(x_PN, rows, draw)  # type: ignore[no-untyped-call]
        return thinned_PN
    return x_PN * _multipliers(x_PN, rows, draw)


def graph_activation(
    x_PN: Tensor,
    negative_slope: float,
    dropout: tuple[float, int],
    key: DropoutKey | None,
    rows: Tensor | None = None,
    *,
    beside: Beside | None = None,
) -> Tensor:
    """``graph_dropout`` of LeakyReLU of ``x_PN`` and what stands ``beside`` it: (P, N) or (P, N + M).

    ``dropout`` is the probability and the layer, the slope is not negative. Differentiable once.
    """
    probability, layer = dropout
    other_SM, place = (x_PN.new_empty(0, 0), None) if beside is None else beside
    if not _is_compiled(x_PN, key) or other_SM.dtype != x_PN.dtype:
        if beside is not None:
            right_PM = other_SM if place is None else other_SM.index_select(0, place)
            x_PN = torch.cat([x_PN, right_PM], 1)
        return graph_dropout(functional.leaky_relu(x_PN, negative_slope), probability, layer, key, rows)
    draw = _ALL if key is None else _draw(probability, layer, key)
    given = place, _rows(x_PN, rows), draw, negative_slope
    out_PN: Tensor = _Activated.apply(x_PN, other_SM, given)  # type: ignore[no-untyped-call]
    return out_PN


def _rows(x_PN: Tensor, rows: Tensor | None) -> Tensor:
    return torch.arange(len(x_PN), device=x_PN.device) if rows is None else rows


def _draw(probability: float, layer: int, key: DropoutKey) -> _Draw:
    dropped = min(round(probability * (1 << _BITS)), (1 << _BITS) - 1)
    return _Draw(hashed(GRAPH, key, layer), dropped + _LOWEST, (1 << _BITS) / ((1 << _BITS) - dropped))


def _is_compiled(x_PN: Tensor, key: DropoutKey | None) -> bool:
    # a tensor's number is not asked for: whoever gives one has the operations recorded, to repeat them
    counted = key is None or not isinstance(key.step, Tensor)
    return counted and x_PN.device.type == "cpu" and x_PN.dtype in (torch.float32, torch.float64)


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
    base, scale = int(draw.base), x.dtype.type(draw.scale)
    over_blocks(_bounds(x), lambda _, span: _thin(span, x, number, base, draw.lowest, scale, out))
    return out_PN


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_PN: Tensor, other_SM: Tensor, given: tuple[Tensor | None, Tensor, _Draw, float]
    ) -> Tensor:
        out_PN = torch.empty(len(x_PN), x_PN.shape[1] + other_SM.shape[1], dtype=x_PN.dtype)
        x, other, out = (part.detach().contiguous().numpy() for part in (x_PN, other_SM, out_PN))
        rule, flat = _rule(out, given), out.ravel()
        over_blocks(_bounds(out), lambda _, span: _activate(span, x, other, rule, flat))
        ctx.save_for_backward(out_PN)
        ctx.shapes, ctx.given = (x_PN.shape, other_SM.shape), given
        return out_PN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_PN: Tensor) -> tuple[Tensor, Tensor, None]:
        (out_PN,), (shape, other_shape), place = ctx.saved_tensors, ctx.shapes, ctx.given[0]
        dx_PN = torch.empty(shape, dtype=d_PN.dtype)
        make = torch.empty if place is None else torch.zeros
        dother_SM = make(other_shape, dtype=d_PN.dtype)
        out, d, dx, dother = (part.contiguous().numpy() for part in (out_PN, d_PN, dx_PN, dother_SM))
        rule, flat, d_flat = _rule(out, ctx.given), out.ravel(), d.ravel()
        over_blocks(_bounds(out), lambda _, span: _deactivate(span, d_flat, flat, rule, dx, dother))
        return dx_PN, dother_SM, None


def _rule(out: Reals, given: tuple[Tensor | None, Tensor, _Draw, float]) -> _Rule:
    place, rows, draw, slope = given
    numbers = out.dtype.type(draw.scale), out.dtype.type(slope)
    return _Rule(
        _NONE if place is None else place.numpy(), rows.numpy(), int(draw.base), draw.lowest, *numbers
    )


def _bounds(x_PN: Reals) -> Integers:
    return np.linspace(0, len(x_PN), max(x_PN.size // _BLOCK, 1) + 1).astype(np.int64)


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
        _set_bits(bits, number[row], base, lowest)
        for column in range(width):
            # a product and not a choice: what is not finite stays so
            out_PN[row, column] = x_PN[row, column] * (scale if lanes[column] >= lowest else zero)


@compiled
def _activate(span: Span, x_PN: Reals, other_SM: Reals, rule: _Rule, out: Reals) -> None:
    """``out`` is flat."""
    width, more = _U(x_PN.shape[1]), _U(other_SM.shape[1])
    bits = np.empty((width + more) // _U(_LANES) + _U(1), np.uint64)
    lanes = bits.view(np.int16)
    _, _, _, lowest, scale, slope = rule
    zero = scale - scale
    for row in range(span[0], span[1]):
        _set_bits(bits, rule.number[row], rule.base, rule.lowest)
        at, other = _U(row) * (width + more), rule.place[row] if len(rule.place) else row
        for column in range(width):
            number_c = x_PN[row, column]
            # a product and not a choice: what is not finite stays so
            share = scale if lanes[column] >= lowest else zero
            out[at + column] = (number_c if number_c > zero else slope * number_c) * share
        for column in range(more):
            number_c = other_SM[other, column]
            share = scale if lanes[width + column] >= lowest else zero
            out[at + width + column] = (number_c if number_c > zero else slope * number_c) * share


@compiled
def _deactivate(span: Span, d: Reals, out: Reals, rule: _Rule, dx_PN: Reals, dother_SM: Reals) -> None:
    """The gradients of ``_activate``, from the sign of what it made; rows are written once, by one thread."""
    width, more = _U(dx_PN.shape[1]), _U(dother_SM.shape[1])
    bits = np.empty((width + more) // _U(_LANES) + _U(1), np.uint64)
    lanes = bits.view(np.int16)
    _, _, _, lowest, scale, slope = rule
    zero = scale - scale
    for row in range(span[0], span[1]):
        _set_bits(bits, rule.number[row], rule.base, rule.lowest)
        at, other = _U(row) * (width + more), rule.place[row] if len(rule.place) else row
        for column in range(width):
            d_c = d[at + column] * (scale if lanes[column] >= lowest else zero)
            dx_PN[row, column] = d_c if out[at + column] > zero else slope * d_c
        for column in range(more):
            d_c = d[at + width + column] * (scale if lanes[width + column] >= lowest else zero)
            dother_SM[other, column] = d_c if out[at + width + column] > zero else slope * d_c


@inlined
def _set_bits(bits: Any, number: int, base: int, lowest: int) -> None:
    """Of one row; any will do where nothing is dropped."""
    if lowest > _LOWEST:
        start = _mixed(_U(number + base))
        for place in range(len(bits)):
            bits[place] = _mixed(start + _U(place))
