"""Compiled loops of graph attention on the CPU.

Enters: arrays whose sizes fit and whose indices are in range (the callers' edge tables see to both). Leaves:
arrays of the caller, filled. Invariants: vectors are only gathered, never scattered, so what a call writes
depends on its span of rows alone, and not on which thread makes the call; no kernel holds the interpreter's
lock; no [E, H, N] array exists.

Compilation may reorder a sum's terms and join products with sums, the same way each time; it may not assume
that there are no infinities or NaN. Loops over vectors take four edges at once: a vector's partial sums are
then read and written a quarter as often, and four rows are on their way from memory. A vector is named by the
array and where in it it begins, indices are unsigned, and arrays are taken out of their tuples before the
loops: a slice costs as much as adding a vector, an index that could be negative the vector instructions, and
every name for an array a counted reference, for which threads would wait.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
Reals = NDArray[Any]
Integers = NDArray[np.int64]
Span = tuple[int, int]
"""First row and the row after the last."""
Edges4 = tuple[int, int, int, int]
Four = tuple[np.uint64, np.uint64, np.uint64, np.uint64]
"""Where four vectors begin."""
Numbers = tuple[Any, Any, Any, Any]
"""Of four edges."""
_U = np.uint64

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


class Rows(NamedTuple):
    """A vector for every node, its heads side by side."""

    flat: Reals
    """From the first node's first number to the last one's last."""
    stride: int
    """Numbers from one node to the next."""


class Edges(NamedTuple):
    """The edges of each row."""

    indptr: Integers
    """(rows + 1,) where each row's edges begin."""
    other: Integers
    """(E,) node at the edge's other end."""
    number: Integers
    """(E,) position of the edge in arrays over edges; empty when it is its own."""


class Gatv2(NamedTuple):
    """What GATv2 attention reads; arrays without elements where edges have no features."""

    x: Rows
    y: Rows
    a: Reals
    """(M,)"""
    slope: float
    feature_EK: Reals
    projection: Reals
    """(K * M,)"""


class Gatv2Kept(NamedTuple):
    """What GATv2 attention leaves for the gradient."""

    out: Reals
    """(T * M,)"""
    weight_EH: Reals
    kept_EH: Reals
    """Times the multipliers; the same array when there are none."""


class Gatv2Gradients(NamedTuple):
    """What is found by target; ``da`` and ``dp`` hold one sum for each block of rows."""

    dy: Reals
    """(T * M,)"""
    da: NDArray[np.float64]
    """(B * M,)"""
    dp: NDArray[np.float64]
    """(B * K * M,)"""


class Groups(NamedTuple):
    """The edges of each row, those of one pattern side by side."""

    row_indptr: Integers
    """(rows + 1,) where each row's groups begin."""
    indptr: Integers
    """(G + 1,) where each group's edges begin."""
    pattern: Integers
    """(G,) row of the terms."""
    other: Integers
    """(E,) node at the edge's other end."""
    number: Integers
    """(E,) position of the edge in arrays over edges; by source alone."""
    slot: Integers
    """(G,) where the sums for the group's pattern in its block are kept; by target alone."""


class Pattern(NamedTuple):
    """What pattern attention reads; ``gate`` has no elements when values pass as they are."""

    query: Rows
    key: Rows
    value: Rows
    feature: Reals
    """(R * M,)"""
    bias_RH: Reals
    gate: Reals
    """(R * M,)"""
    width: int
    """Of a head."""


class PatternKept(NamedTuple):
    """What pattern attention leaves for the gradient."""

    out: Reals
    """(T * M,)"""
    weight_EH: Reals
    """Negative where the score was clipped."""


class PatternGradients(NamedTuple):
    """What is found by target; all but ``dquery`` hold one sum for each slot."""

    dquery: Reals
    """(T * M,)"""
    dfeature: Reals
    """(S * M,)"""
    dbias_SH: Reals
    dgate: Reals
    """(S * M,)"""


def compiled(function: Compiled) -> Compiled:
    """``function``, compiled when first called; the machine code is kept for later processes."""
    try:
        return cast(Compiled, numba.njit(cache=True, **_OPTIONS)(function))
    except RuntimeError:  # nowhere to keep it: a read-only installation without a home folder
        return cast(Compiled, numba.njit(**_OPTIONS)(function))


def inlined(function: Compiled) -> Compiled:
    """``function``, compiled into whatever compiled function calls it: a call costs as much as its loop."""
    return cast(Compiled, numba.njit(forceinline=True, **_OPTIONS)(function))


@compiled
def order_by(key_E: Integers, order_E: Integers, indptr: Integers, count: Integers) -> None:
    """Counting sort of ``order_E``, which comes in some order, by ``key_E[order_E]``; equal keys keep theirs.

    Fills ``indptr`` with where each key's entries begin; ``count`` (E,) is scratch.
    """
    indptr[:] = 0
    for entry in range(len(key_E)):
        indptr[key_E[entry] + 1] += 1
    for key in range(len(indptr) - 1):
        indptr[key + 1] += indptr[key]
    place = indptr[:-1].copy()
    for entry in range(len(order_E)):
        key = key_E[order_E[entry]]
        count[place[key]] = order_E[entry]
        place[key] += 1
    order_E[:] = count


@compiled
def gatv2_forward(span: Span, edges: Edges, inputs: Gatv2, keep_EH: Reals, kept: Gatv2Kept) -> None:
    """Attention weights and outputs of the targets in ``span``; ``keep_EH`` may be empty."""
    indptr, source, _ = edges
    (x, x_stride), (y, y_stride), a, slope, feature_EK, projection = inputs
    out, weight_EH, kept_EH = kept
    heads = weight_EH.shape[1]
    width = len(a) // heads
    base = np.empty(width, a.dtype)
    for i in range(span[0], span[1]):
        begin, end = indptr[i], indptr[i + 1]
        wide = begin if feature_EK.shape[1] else end
        for h in range(heads):
            shift, out_at = h * width, (i * heads + h) * width
            y_at = i * y_stride + shift
            for k in range(begin, wide, 4):
                edge = _four(k, end)
                at = _begin(source, edge, x_stride, shift)
                _put(_scores(x, at, y, y_at, a, shift, slope, width), edge, h, weight_EH)
            for k in range(wide, end):
                _base(y, y_at, feature_EK, projection, k, shift, base)
                weight_EH[k, h] = _score(x, source[k] * x_stride + shift, base, a, shift, slope)
            _softmax(weight_EH, h, begin, end, weight_EH)
            if len(keep_EH):
                for k in range(begin, end):
                    kept_EH[k, h] = weight_EH[k, h] * keep_EH[k, h]
            _zero(out, out_at, width)
            for k in range(begin, end, 4):
                edge = _four(k, end)
                w = _valid(_get(kept_EH, edge, h), k, end)
                _add_four(out, out_at, w, x, _begin(source, edge, x_stride, shift), width)


@compiled
def gatv2_targets(
    span: Span,
    block: int,
    edges: Edges,
    inputs: Gatv2,
    kept: Gatv2Kept,
    d: Rows,
    pair_E2H: Reals,
    gradients: Gatv2Gradients,
) -> None:
    """Gradients by target: of y, and this block's share of those of a and of the features' projection.

    ``pair_E2H`` gets what the sources need of each edge: its weight times the multiplier, and g.
    """
    indptr, source, _ = edges
    (x, x_stride), (y, y_stride), a, slope, feature_EK, projection = inputs
    (d_flat, d_stride), (out, weight_EH, kept_EH), (dy, da, dp) = d, kept, gradients
    heads, num_features = weight_EH.shape[1], feature_EK.shape[1]
    width = len(a) // heads
    base, up, level = np.empty(width, a.dtype), np.empty(width, a.dtype), np.empty(width, a.dtype)
    steps = np.empty(num_features * width, a.dtype)
    for i in range(span[0], span[1]):
        begin, end = indptr[i], indptr[i + 1]
        wide = begin if num_features else end
        for h in range(heads):
            shift, out_at = h * width, (i * heads + h) * width
            y_at, d_at = i * y_stride + shift, i * d_stride + shift
            mean, total = _dot(d_flat, d_at, out, out_at, width), a.dtype.type(0)
            up[:], level[:], steps[:] = 0, 0, 0
            for k in range(begin, wide, 4):
                edge = _four(k, end)
                at = _begin(source, edge, x_stride, shift)
                dots = _dots(x, at, d_flat, d_at, width)
                g = _valid(_shares(weight_EH, kept_EH, edge, h, dots, mean, pair_E2H), k, end)
                total += (g[0] + g[1]) + (g[2] + g[3])
                _add_levels(g, x, at, y, y_at, slope, up, level)
            for k in range(wide, end):
                at_k = source[k] * x_stride + shift
                g_k = _share(weight_EH, kept_EH, k, h, _dot(x, at_k, d_flat, d_at, width), mean, pair_E2H)
                total += g_k
                _base(y, y_at, feature_EK, projection, k, shift, base)
                _add_level(g_k, x, at_k, base, slope, up, level)
                for feature in range(num_features):
                    part = g_k * feature_EK[k, feature]
                    _add_steps(part, slope * part, x, at_k, base, steps, feature * width)
            _zero(dy, out_at, width)
            _add_slopes(a, shift, slope, up, total, dy, out_at)
            _add(da, block * len(a) + shift, 1.0, level, 0, width)
            for feature in range(num_features):
                dp_at = (block * num_features + feature) * len(a) + shift
                _add_product(steps, feature * width, a, shift, dp, dp_at, width)


@compiled
def gatv2_sources(span: Span, edges: Edges, inputs: Gatv2, d: Rows, pair_E2H: Reals, dx: Reals) -> None:
    """Gradients of x by source."""
    indptr, target, number = edges
    (x, x_stride), (y, y_stride), a, slope, feature_EK, projection = inputs
    d_flat, d_stride = d
    heads = pair_E2H.shape[1] // 2
    width, zero = len(a) // heads, a.dtype.type(0)
    base, up = np.empty(width, a.dtype), np.empty(width, a.dtype)
    for j in range(span[0], span[1]):
        begin, end = indptr[j], indptr[j + 1]
        wide = begin if feature_EK.shape[1] else end
        for h in range(heads):
            shift, dx_at = h * width, (j * heads + h) * width
            x_at, total = j * x_stride + shift, zero
            _zero(dx, dx_at, width)
            up[:] = 0
            for k in range(begin, wide, 4):
                edge = _four(k, end)
                there = _numbers(number, edge)
                w, g = (
                    _valid(_get(pair_E2H, there, h), k, end),
                    _valid(_get(pair_E2H, there, heads + h), k, end),
                )
                total += (g[0] + g[1]) + (g[2] + g[3])
                _add_four(dx, dx_at, w, d_flat, _begin(target, edge, d_stride, shift), width)
                _add_ups(g, x, x_at, y, _begin(target, edge, y_stride, shift), up)
            for k in range(wide, end):
                w_k, g_k = pair_E2H[number[k], h], pair_E2H[number[k], heads + h]
                total += g_k
                _add(dx, dx_at, w_k, d_flat, target[k] * d_stride + shift, width)
                _base(y, target[k] * y_stride + shift, feature_EK, projection, number[k], shift, base)
                _add_steps(g_k, zero, x, x_at, base, up, 0)
            _add_slopes(a, shift, slope, up, total, dx, dx_at)


@compiled
def weighted_rows(span: Span, edges: Edges, weight_EH: Reals, x: Rows, out: Reals, width: int) -> None:
    """Sums of weight times other end over the edges of each row in ``span``."""
    indptr, other, number = edges
    x_flat, x_stride = x
    heads, direct = weight_EH.shape[1], len(number) == 0
    for i in range(span[0], span[1]):
        begin, end = indptr[i], indptr[i + 1]
        for h in range(heads):
            shift, out_at = h * width, (i * heads + h) * width
            _zero(out, out_at, width)
            for k in range(begin, end, 4):
                edge = _four(k, end)
                there = edge if direct else _numbers(number, edge)
                w = _valid(_get(weight_EH, there, h), k, end)
                _add_four(out, out_at, w, x_flat, _begin(other, edge, x_stride, shift), width)


@compiled
def edge_dots(span: Span, edges: Edges, d: Rows, x: Rows, width: int, dot_EH: Reals) -> None:
    """The inner product of both ends of each edge of the rows in ``span``."""
    indptr, source, _ = edges
    x_flat, x_stride = x
    d_flat, d_stride = d
    for i in range(span[0], span[1]):
        begin, end = indptr[i], indptr[i + 1]
        for h in range(dot_EH.shape[1]):
            shift, d_at = h * width, i * d_stride + h * width
            for k in range(begin, end, 4):
                edge = _four(k, end)
                at = _begin(source, edge, x_stride, shift)
                _put(_dots(x_flat, at, d_flat, d_at, width), edge, h, dot_EH)


@compiled
def edge_sums(span: Span, edges: Edges, value_EN: Reals, out: Reals) -> None:
    """Sums over the edges of each row in ``span``."""
    indptr, _, number = edges
    width, direct, one = value_EN.shape[1], len(number) == 0, value_EN.dtype.type(1)
    value = value_EN.reshape(value_EN.size)
    for i in range(span[0], span[1]):
        _zero(out, i * width, width)
        for k in range(indptr[i], indptr[i + 1]):
            _add(out, i * width, one, value, (k if direct else number[k]) * width, width)


@compiled
def softmax_rows(span: Span, indptr: Integers, score_EH: Reals, weight_EH: Reals) -> None:
    """Softmax over the edges of each row in ``span``."""
    for i in range(span[0], span[1]):
        for h in range(score_EH.shape[1]):
            _softmax(score_EH, h, indptr[i], indptr[i + 1], weight_EH)


@compiled
def softmax_rows_backward(
    span: Span, indptr: Integers, weight_EH: Reals, d_EH: Reals, dscore_EH: Reals
) -> None:
    """The scores' gradients of ``softmax_rows``."""
    for i in range(span[0], span[1]):
        for h in range(weight_EH.shape[1]):
            mean = weight_EH.dtype.type(0)
            for k in range(indptr[i], indptr[i + 1]):
                mean += weight_EH[k, h] * d_EH[k, h]
            for k in range(indptr[i], indptr[i + 1]):
                dscore_EH[k, h] = weight_EH[k, h] * (d_EH[k, h] - mean)


@compiled
def pattern_forward(
    span: Span, groups: Groups, limits: tuple[float, float], inputs: Pattern, kept: PatternKept
) -> None:
    """Weighted means of the targets in ``span``; ``limits`` are clip and epsilon."""
    row_indptr, indptr, pattern, source, _, _ = groups
    (query, query_stride), (key, key_stride), (value, value_stride), feature, bias_RH, gate, width = inputs
    out, weight_EH = kept
    heads, one = weight_EH.shape[1], out.dtype.type(1)
    near, part = np.empty(width, out.dtype), np.empty(width, out.dtype)
    for i in range(span[0], span[1]):
        for h in range(heads):
            shift, out_at, total = h * width, (i * heads + h) * width, out.dtype.type(0)
            _zero(out, out_at, width)
            for group in range(row_indptr[i], row_indptr[i + 1]):
                term_at, bias = (pattern[group] * heads + h) * width, bias_RH[pattern[group], h]
                _multiply(query, i * query_stride + shift, feature, term_at, near)
                part[:] = 0
                begin, end = indptr[group], indptr[group + 1]
                for k in range(begin, end, 4):
                    edge = _four(k, end)
                    s = _dots(key, _begin(source, edge, key_stride, shift), near, 0, width)
                    w = _valid(_powers(s, bias, limits[0], weight_EH, edge, h), k, end)
                    total += (w[0] + w[1]) + (w[2] + w[3])
                    _add_four(part, 0, w, value, _begin(source, edge, value_stride, shift), width)
                _add_gated(part, gate, term_at, out, out_at)
            share = one / (total + limits[1])
            _scale(out, out_at, share, width)
            for k in range(indptr[row_indptr[i]], indptr[row_indptr[i + 1]]):
                weight_EH[k, h] *= share


@compiled
def pattern_targets(
    span: Span,
    groups: Groups,
    inputs: Pattern,
    kept: PatternKept,
    d: Rows,
    pair_E2H: Reals,
    gradients: PatternGradients,
) -> None:
    """Gradients by target: of the queries, and each block's share of those of the terms.

    ``pair_E2H`` gets what the sources need of each edge: its weight, and r.
    """
    row_indptr, indptr, pattern, source, _, slot_G = groups
    (query, query_stride), (key, key_stride), (value, value_stride), feature, _, gate, width = inputs
    (d_flat, d_stride), (out, weight_EH), (dquery, dfeature, dbias_SH, dgate) = d, kept, gradients
    heads, gated = weight_EH.shape[1], len(gate) > 0
    near, part, values = np.empty(width, out.dtype), np.empty(width, out.dtype), np.empty(width, out.dtype)
    for i in range(span[0], span[1]):
        for h in range(heads):
            shift, out_at = h * width, (i * heads + h) * width
            query_at, d_at = i * query_stride + shift, i * d_stride + shift
            mean = _dot(d_flat, d_at, out, out_at, width)
            _zero(dquery, out_at, width)
            for group in range(row_indptr[i], row_indptr[i + 1]):
                term_at, slot_at = (pattern[group] * heads + h) * width, (slot_G[group] * heads + h) * width
                part[:], values[:], total = 0, 0, out.dtype.type(0)
                if gated:
                    _multiply(d_flat, d_at, gate, term_at, near)
                else:
                    _copy(d_flat, d_at, near)
                begin, end = indptr[group], indptr[group + 1]
                for k in range(begin, end, 4):
                    edge = _four(k, end)
                    at = _begin(source, edge, value_stride, shift)
                    dots = _dots(value, at, near, 0, width)
                    r = _valid(_opens(weight_EH, edge, h, dots, mean, pair_E2H), k, end)
                    total += (r[0] + r[1]) + (r[2] + r[3])
                    _add_four(part, 0, r, key, _begin(source, edge, key_stride, shift), width)
                    if gated:
                        w = _valid(_get(pair_E2H, edge, h), k, end)
                        _add_four(values, 0, w, value, at, width)
                _add_product(part, 0, feature, term_at, dquery, out_at, width)
                _add_product(part, 0, query, query_at, dfeature, slot_at, width)
                dbias_SH[slot_G[group], h] += total
                if gated:
                    _add_product(values, 0, d_flat, d_at, dgate, slot_at, width)


@compiled
def pattern_sources(
    span: Span, groups: Groups, inputs: Pattern, d: Rows, pair_E2H: Reals, dkey: Reals, dvalue: Reals
) -> None:
    """Gradients of keys and values by source."""
    row_indptr, indptr, pattern, target, number, _ = groups
    (query, query_stride), _, _, feature, _, gate, width = inputs
    d_flat, d_stride = d
    heads = pair_E2H.shape[1] // 2
    part, values = np.empty(width, dkey.dtype), np.empty(width, dkey.dtype)
    for j in range(span[0], span[1]):
        for h in range(heads):
            shift, out_at = h * width, (j * heads + h) * width
            _zero(dkey, out_at, width)
            _zero(dvalue, out_at, width)
            for group in range(row_indptr[j], row_indptr[j + 1]):
                term_at = (pattern[group] * heads + h) * width
                part[:], values[:] = 0, 0
                begin, end = indptr[group], indptr[group + 1]
                for k in range(begin, end, 4):
                    edge = _four(k, end)
                    there = _numbers(number, edge)
                    r = _valid(_get(pair_E2H, there, heads + h), k, end)
                    _add_four(part, 0, r, query, _begin(target, edge, query_stride, shift), width)
                    w = _valid(_get(pair_E2H, there, h), k, end)
                    _add_four(values, 0, w, d_flat, _begin(target, edge, d_stride, shift), width)
                _add_product(part, 0, feature, term_at, dkey, out_at, width)
                _add_gated(values, gate, term_at, dvalue, out_at)


@compiled
def sum_slots(span: Span, indptr: Integers, order_S: Integers, value: Reals, out: Reals, width: int) -> None:
    """For each pattern in ``span`` the sum over its slots, in double precision."""
    total = np.empty(width, np.float64)
    for row in range(span[0], span[1]):
        total[:] = 0
        for k in range(indptr[row], indptr[row + 1]):
            _add(total, 0, 1.0, value, order_S[k] * width, width)
        _zero(out, row * width, width)
        _add(out, row * width, 1.0, total, 0, width)


@inlined
def _four(k: int, end: int) -> Edges4:
    """Four edges from ``k`` on; in place of those beyond ``end`` the last, which ``_valid`` tells apart."""
    last = end - 1
    return k, min(k + 1, last), min(k + 2, last), min(k + 3, last)


@inlined
def _valid(value: Numbers, k: int, end: int) -> Numbers:
    """The edges' numbers, zero beyond ``end``."""
    zero = type(value[0])(0)
    return (
        value[0],
        value[1] if k + 1 < end else zero,
        value[2] if k + 2 < end else zero,
        value[3] if k + 3 < end else zero,
    )


@inlined
def _begin(node: Integers, edge: Edges4, stride: int, shift: int) -> Four:
    """Where the vectors of the edges' ends begin."""
    return (
        _U(node[edge[0]] * stride + shift),
        _U(node[edge[1]] * stride + shift),
        _U(node[edge[2]] * stride + shift),
        _U(node[edge[3]] * stride + shift),
    )


@inlined
def _numbers(number: Integers, edge: Edges4) -> Edges4:
    return number[edge[0]], number[edge[1]], number[edge[2]], number[edge[3]]


@inlined
def _get(value_EH: Reals, edge: Edges4, h: int) -> Numbers:
    return value_EH[edge[0], h], value_EH[edge[1], h], value_EH[edge[2], h], value_EH[edge[3], h]


@inlined
def _put(value: Numbers, edge: Edges4, h: int, into_EH: Reals) -> None:
    into_EH[edge[0], h], into_EH[edge[1], h] = value[0], value[1]
    into_EH[edge[2], h], into_EH[edge[3], h] = value[2], value[3]


@inlined
def _softmax(score_EH: Reals, h: int, begin: int, end: int, weight_EH: Reals) -> None:
    """Softmax of the scores from ``begin`` to ``end``."""
    highest, total = score_EH.dtype.type(-np.inf), score_EH.dtype.type(0)
    for k in range(begin, end):
        highest = max(highest, score_EH[k, h])
    for k in range(begin, end):
        power = np.exp(score_EH[k, h] - highest)
        weight_EH[k, h] = power
        total += power
    share = score_EH.dtype.type(1) / total
    for k in range(begin, end):
        weight_EH[k, h] *= share


@inlined
def _share(weight_EH: Reals, kept_EH: Reals, k: int, h: int, dot: Any, mean: Any, pair_E2H: Reals) -> Any:
    """g of an edge, from d . x and d . o."""
    kept = kept_EH[k, h]
    g = kept * dot - weight_EH[k, h] * mean
    pair_E2H[k, h] = kept
    pair_E2H[k, weight_EH.shape[1] + h] = g
    return g


@inlined
def _shares(
    weight_EH: Reals, kept_EH: Reals, edge: Edges4, h: int, dot: Numbers, mean: Any, pair_E2H: Reals
) -> Numbers:
    return (
        _share(weight_EH, kept_EH, edge[0], h, dot[0], mean, pair_E2H),
        _share(weight_EH, kept_EH, edge[1], h, dot[1], mean, pair_E2H),
        _share(weight_EH, kept_EH, edge[2], h, dot[2], mean, pair_E2H),
        _share(weight_EH, kept_EH, edge[3], h, dot[3], mean, pair_E2H),
    )


@inlined
def _power(score: Any, clip: Any, weight_EH: Reals, k: int, h: int) -> Any:
    """exp of the clipped score, kept with the sign that says whether it was; NaN stays NaN."""
    inside = -clip if score < -clip else (clip if score > clip else score)
    power = np.exp(inside)
    weight_EH[k, h] = power if score == inside else -power
    return power


@inlined
def _powers(score: Numbers, bias: Any, clip: Any, weight_EH: Reals, edge: Edges4, h: int) -> Numbers:
    return (
        _power(score[0] + bias, clip, weight_EH, edge[0], h),
        _power(score[1] + bias, clip, weight_EH, edge[1], h),
        _power(score[2] + bias, clip, weight_EH, edge[2], h),
        _power(score[3] + bias, clip, weight_EH, edge[3], h),
    )


@inlined
def _open(weight_EH: Reals, k: int, h: int, dot: Any, mean: Any, pair_E2H: Reals) -> Any:
    """r of an edge, from d . (v * g) and d . o: nothing where its score was clipped."""
    weight = weight_EH[k, h]
    r = weight_EH.dtype.type(0) if weight < 0 else weight * (dot - mean)
    pair_E2H[k, h] = abs(weight)
    pair_E2H[k, weight_EH.shape[1] + h] = r
    return r


@inlined
def _opens(weight_EH: Reals, edge: Edges4, h: int, dot: Numbers, mean: Any, pair_E2H: Reals) -> Numbers:
    return (
        _open(weight_EH, edge[0], h, dot[0], mean, pair_E2H),
        _open(weight_EH, edge[1], h, dot[1], mean, pair_E2H),
        _open(weight_EH, edge[2], h, dot[2], mean, pair_E2H),
        _open(weight_EH, edge[3], h, dot[3], mean, pair_E2H),
    )


@inlined
def _leaky(z: Any, slope: Any) -> Any:
    return z if z > 0 else slope * z


@inlined
def _base(
    y: Reals, y_at: int, feature_EK: Reals, projection: Reals, edge: int, shift: int, base: Reals
) -> None:
    """y and what the edge's features add to it."""
    width, num_features = len(base), feature_EK.shape[1]
    _copy(y, y_at, base)
    for feature in range(num_features):
        at = feature * (len(projection) // num_features) + shift
        _add(base, 0, feature_EK[edge, feature], projection, at, width)


@inlined
def _score(x: Reals, x_at: int, base: Reals, a: Reals, a_at: int, slope: Any) -> Any:
    x_0, a_0, total = _U(x_at), _U(a_at), a.dtype.type(0)
    for c in range(_U(len(base))):
        total += a[a_0 + c] * _leaky(x[x_0 + c] + base[c], slope)
    return total


@inlined
def _scores(x: Reals, at: Four, y: Reals, y_at: int, a: Reals, a_at: int, slope: Any, width: int) -> Numbers:
    y_0, a_0 = _U(y_at), _U(a_at)
    s0, s1, s2, s3 = a.dtype.type(0), a.dtype.type(0), a.dtype.type(0), a.dtype.type(0)
    for c in range(_U(width)):
        y_c, a_c = y[y_0 + c], a[a_0 + c]
        s0 += a_c * _leaky(x[at[0] + c] + y_c, slope)
        s1 += a_c * _leaky(x[at[1] + c] + y_c, slope)
        s2 += a_c * _leaky(x[at[2] + c] + y_c, slope)
        s3 += a_c * _leaky(x[at[3] + c] + y_c, slope)
    return s0, s1, s2, s3


@inlined
def _dot(x: Reals, x_at: int, y: Reals, y_at: int, width: int) -> Any:
    x_0, y_0, total = _U(x_at), _U(y_at), x.dtype.type(0)
    for c in range(_U(width)):
        total += x[x_0 + c] * y[y_0 + c]
    return total


@inlined
def _dots(x: Reals, at: Four, y: Reals, y_at: int, width: int) -> Numbers:
    y_0 = _U(y_at)
    s0, s1, s2, s3 = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
    for c in range(_U(width)):
        y_c = y[y_0 + c]
        s0 += x[at[0] + c] * y_c
        s1 += x[at[1] + c] * y_c
        s2 += x[at[2] + c] * y_c
        s3 += x[at[3] + c] * y_c
    return s0, s1, s2, s3


@inlined
def _zero(into: Reals, into_at: int, width: int) -> None:
    into_0 = _U(into_at)
    for c in range(_U(width)):
        into[into_0 + c] = 0


@inlined
def _copy(x: Reals, x_at: int, into: Reals) -> None:
    x_0 = _U(x_at)
    for c in range(_U(len(into))):
        into[c] = x[x_0 + c]


@inlined
def _scale(into: Reals, into_at: int, w: Any, width: int) -> None:
    into_0 = _U(into_at)
    for c in range(_U(width)):
        into[into_0 + c] *= w


@inlined
def _add(into: Reals, into_at: int, w: Any, x: Reals, x_at: int, width: int) -> None:
    into_0, x_0 = _U(into_at), _U(x_at)
    for c in range(_U(width)):
        into[into_0 + c] += w * x[x_0 + c]


@inlined
def _add_four(into: Reals, into_at: int, w: Numbers, x: Reals, at: Four, width: int) -> None:
    into_0 = _U(into_at)
    for c in range(_U(width)):
        first = w[0] * x[at[0] + c] + w[1] * x[at[1] + c]
        into[into_0 + c] += first + (w[2] * x[at[2] + c] + w[3] * x[at[3] + c])


@inlined
def _multiply(x: Reals, x_at: int, y: Reals, y_at: int, into: Reals) -> None:
    x_0, y_0 = _U(x_at), _U(y_at)
    for c in range(_U(len(into))):
        into[c] = x[x_0 + c] * y[y_0 + c]


@inlined
def _add_product(x: Reals, x_at: int, y: Reals, y_at: int, into: Reals, into_at: int, width: int) -> None:
    x_0, y_0, into_0 = _U(x_at), _U(y_at), _U(into_at)
    for c in range(_U(width)):
        into[into_0 + c] += x[x_0 + c] * y[y_0 + c]


@inlined
def _add_gated(x: Reals, gate: Reals, gate_at: int, into: Reals, into_at: int) -> None:
    """Add ``x`` times the gate, or as it is when there is none."""
    if len(gate):
        _add_product(x, 0, gate, gate_at, into, into_at, len(x))
    else:
        _add(into, into_at, into.dtype.type(1), x, 0, len(x))


@inlined
def _add_slopes(a: Reals, a_at: int, slope: Any, up: Reals, total: Any, into: Reals, into_at: int) -> None:
    """Add a times the sum of g l', from the sum of g where z is positive and the sum of all g.

    The latter is 0 but for rounding, and makes NaN of all numbers when one edge has it.
    """
    a_0, into_0, rise = _U(a_at), _U(into_at), a.dtype.type(1) - slope
    for c in range(_U(len(up))):
        into[into_0 + c] += a[a_0 + c] * (rise * up[c] + slope * total)


@inlined
def _add_steps(high: Any, low: Any, x: Reals, x_at: int, base: Reals, into: Reals, into_at: int) -> None:
    """Add ``high`` where z is positive, ``low`` elsewhere."""
    x_0, into_0 = _U(x_at), _U(into_at)
    for c in range(_U(len(base))):
        into[into_0 + c] += high if x[x_0 + c] + base[c] > 0 else low


@inlined
def _add_ups(g: Numbers, x: Reals, x_at: int, y: Reals, at: Four, up: Reals) -> None:
    """Add each of four edges' g where its z is positive."""
    x_0, zero = _U(x_at), up.dtype.type(0)
    for c in range(_U(len(up))):
        x_c = x[x_0 + c]
        first = (g[0] if x_c + y[at[0] + c] > 0 else zero) + (g[1] if x_c + y[at[1] + c] > 0 else zero)
        second = (g[2] if x_c + y[at[2] + c] > 0 else zero) + (g[3] if x_c + y[at[3] + c] > 0 else zero)
        up[c] += first + second


@inlined
def _add_level(g: Any, x: Reals, x_at: int, base: Reals, slope: Any, up: Reals, level: Reals) -> None:
    """Add g to ``up`` where z is positive, and g times LeakyReLU(z) to ``level``."""
    x_0, zero = _U(x_at), up.dtype.type(0)
    for c in range(_U(len(base))):
        z = x[x_0 + c] + base[c]
        up[c] += g if z > 0 else zero
        level[c] += g * _leaky(z, slope)


@inlined
def _add_levels(
    g: Numbers,
    x: Reals,
    at: Four,
    y: Reals,
    y_at: int,
    slope: Any,
    up: Reals,
    level: Reals,
) -> None:
    """``_add_level`` for four edges of one target."""
    y_0, zero = _U(y_at), up.dtype.type(0)
    for c in range(_U(len(up))):
        y_c = y[y_0 + c]
        z0, z1, z2, z3 = x[at[0] + c] + y_c, x[at[1] + c] + y_c, x[at[2] + c] + y_c, x[at[3] + c] + y_c
        first = (g[0] if z0 > 0 else zero) + (g[1] if z1 > 0 else zero)
        second = (g[2] if z2 > 0 else zero) + (g[3] if z3 > 0 else zero)
        up[c] += first + second
        first = g[0] * _leaky(z0, slope) + g[1] * _leaky(z1, slope)
        second = g[2] * _leaky(z2, slope) + g[3] * _leaky(z3, slope)
        level[c] += first + second
