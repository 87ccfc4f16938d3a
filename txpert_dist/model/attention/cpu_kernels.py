"""Compiled loops of graph attention on the CPU.

Enters: arrays whose sizes fit and whose indices are in range (the callers' edge tables see to both). Leaves:
arrays of the caller, filled. Invariants: vectors are only gathered, never scattered, so what a call writes
depends on its span of rows alone, and not on which thread makes the call; no [E, H, N] array exists.

A row's edges are gone through once for each piece of a vector's width, with what is summed over them in the
processor's registers: ``_Vector`` is such a piece. What a compiler makes of a plain loop over the width reads
and writes those sums once an edge. So the width is cut into pieces of 64 numbers, the rest into pieces of 16,
then of one. What a row has for each edge lies side by side in scratch meanwhile.

All that is compiled into these loops is in this file (see ``compiled``).
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

from txpert_dist.model.attention.compiled import Integers, Reals, Span, compiled, inlined


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


class Features(NamedTuple):
    """What edges add to the sum of their ends."""

    value_EK: Reals
    projection: Reals
    """(K * M,)"""


class Gatv2(NamedTuple):
    """What GATv2 attention reads."""

    x: Rows
    y: Rows
    a: Reals
    """(M,)"""
    slope: float
    """At most 1."""
    features: Features | None


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


class _Vector(types.Type):  # type: ignore[misc]  # numba has no types for mypy
    """Some numbers side by side, in registers."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: _Vector) -> None:
        number = ir.FloatType() if vector.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, vector, ir.VectorType(number, vector.lanes))


_FAST = ("reassoc", "contract", "nsz")
_WIDE, _NARROW = 64, 16
_U = np.uint64
"""Of an index that is never negative: one that could be costs a loop its vector instructions."""


def _operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation given by its instructions."""
    return cast("Callable[..., Any]", intrinsic(function))


def _zeros(lanes: int) -> Callable[..., Any]:
    def zeros(_: Any, array: Any) -> Any:
        def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return ir.Constant(context.get_value_type(signature.return_type), None)

        return _Vector(array.dtype, lanes)(array), instructions

    return _operation(zeros)


_wide, _narrow, _single = _zeros(_WIDE), _zeros(_NARROW), _zeros(1)


@_operation
def _load(_: Any, like: Any, array: Any, index: Any) -> Any:
    """The array's numbers from ``index`` on, as many as ``like`` has."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        place = _place(context, builder, signature.args[1:], values[1:], kind)
        return builder.load(place, align=_bytes(kind), typ=kind)

    return _Vector(array.dtype, like.lanes)(like, array, index), instructions


@_operation
def _store(_: Any, value: Any, array: Any, index: Any) -> Any:
    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = values[0].type
        place = _place(context, builder, signature.args[1:], values[1:], kind)
        builder.store(values[0], place, align=_bytes(kind))
        return context.get_dummy_value()

    return types.void(value, array, index), instructions


def _place(context: Any, builder: Any, kinds: Any, values: Any, kind: Any) -> Any:
    view = context.make_array(kinds[0])(context, builder, values[0])
    index = context.cast(builder, values[1], kinds[1], types.intp)
    return builder.bitcast(builder.gep(view.data, [index]), kind.as_pointer())


def _bytes(kind: Any) -> int:
    return 4 if isinstance(kind.element, ir.FloatType) else 8


@_operation
def _spread(_: Any, like: Any, number: Any) -> Any:
    """The number, as often as ``like`` has numbers."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        number = context.cast(builder, values[1], signature.args[1], like.dtype)
        none, first = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None)
        return builder.shuffle_vector(builder.insert_element(none, number, first), none, everywhere)

    return like(like, number), instructions


@_operation
def _total(_: Any, vector: Any) -> Any:
    """The sum of a vector's numbers."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = values[0].type
        function = _function(builder, "vector.reduce.fadd", kind.element, kind.element, kind)
        zero = ir.Constant(kind.element, 0.0)
        return builder.call(function, [zero, values[0]], fastmath=("reassoc", "nsz"))

    return vector.dtype(vector), instructions


@_operation
def _highest(_: Any, vector: Any) -> Any:
    """The greatest of a vector's numbers, none of which is NaN."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = values[0].type
        function = _function(builder, "vector.reduce.fmax", kind.element, kind)
        return builder.call(function, [values[0]], fastmath=("nnan", "nsz"))

    return vector.dtype(vector), instructions


@_operation
def _choose(_: Any, a: Any, b: Any, greater: Any, other: Any) -> Any:
    """``greater`` where a is greater than b, ``other`` where it is not, and where one of them is NaN."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", values[0], values[1]), values[2], values[3])

    return a(a, b, greater, other), instructions


@_operation
def _exp(_: Any, vector: Any) -> Any:
    """Within two units in the last place in single precision; double is the C library's."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = values[0].type
        if kind.element == ir.DoubleType():
            return builder.call(_function(builder, "exp", kind, kind), [values[0]])
        return _exp_instructions(builder, values[0])

    return vector(vector), instructions


# exp(x) = 2^n exp(r) with n the nearest integer to x / ln 2 and |r| <= ln 2 / 2, where Taylor's series up to
# the seventh power is exact to 2^-27. ln 2 comes in two parts, the first short enough for n times it to be
# exact. n is added to the exponent: products could be reordered to ones that overflow.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_LOWEST, _HIGHEST = -87.336541, 88.7228317
"""Of the logarithms of normal numbers in single precision; the result is 0 below and infinite above."""


def _exp_instructions(builder: Any, x: Any) -> Any:
    kind, whole = x.type, ir.VectorType(ir.IntType(32), x.type.count)

    def number(value: float) -> Any:
        return ir.Constant(kind, [value] * kind.count)

    def times_plus(a: Any, b: Any, c: Any) -> Any:
        return builder.call(_function(builder, "fma", kind, kind, kind, kind), [a, b, c])

    ratio = builder.fmul(x, number(1.4426950408889634))
    n = builder.call(_function(builder, "rint", kind, kind), [ratio])
    r = times_plus(n, number(-_LN2_LOW), times_plus(n, number(-_LN2_HIGH), x))
    result = number(1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        result = times_plus(result, r, number(factor))
    # NaN has no integer, and stays in the result
    n = builder.fptosi(builder.select(builder.fcmp_ordered("ord", n, n), n, number(0.0)), whole)
    shift = builder.shl(n, ir.Constant(whole, [23] * kind.count))
    result = builder.bitcast(builder.add(builder.bitcast(result, whole), shift), kind)
    result = builder.select(builder.fcmp_ordered("<", x, number(_LOWEST)), number(0.0), result)
    return builder.select(builder.fcmp_ordered(">", x, number(_HIGHEST)), number(float("inf")), result)


def _function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function that the compiler knows, for the last argument's kind of vector."""
    kind = arguments[-1]
    name = f"llvm.{name}.v{kind.count}f{8 * _bytes(kind)}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _arithmetic(operation: Any, instruction: str) -> None:
    @_operation
    def of_two(_: Any, a: Any, b: Any) -> Any:
        def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return getattr(builder, instruction)(values[0], values[1], flags=_FAST)

        return a(a, b), instructions

    @overload(operation, inline="always", strict=False)  # type: ignore[untyped-decorator]
    def of_vectors(a: Any, b: Any) -> Any:
        if isinstance(a, _Vector) and isinstance(b, _Vector):
            return lambda a, b: of_two(a, b)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")


@compiled
def gatv2_forward(span: Span, edges: Edges, inputs: Gatv2, keep_EH: Reals, kept: Gatv2Kept) -> None:
    """Attention weights and outputs of the targets in ``span``; ``keep_EH`` may be empty."""
    indptr, source, _ = edges
    x, y, a, _, _ = inputs
    out, weight_EH, kept_EH = kept
    heads = weight_EH.shape[1]
    width = len(a) // heads
    at, score = _scratch(indptr, span, indptr), _scratch(indptr, span, a)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, source, begin, size, x.stride)
        for h in range(heads):
            shift = h * width
            row = begin, size, i * y.stride + shift, shift
            _clear(score, size)
            _pieces(_add_scores, width, a, (row, at, inputs, score))
            _softmax(score, size)
            for k in range(size):
                weight_EH[begin + k, h] = score[k]
            if len(keep_EH):
                for k in range(size):
                    score[k] *= keep_EH[begin + k, h]
                    kept_EH[begin + k, h] = score[k]
            _pieces(_set_sum, width, a, (size, at, x, shift, score, out, (i * heads + h) * width))


@inlined
def _add_scores(zero: Any, c: int, given: Any) -> None:
    row, at, inputs, score = given
    begin, size, y_at, shift = row
    x, y, a, slope, features = inputs
    y_c, a_c, slopes = _load(zero, y.flat, y_at + c), _load(zero, a, shift + c), _spread(zero, slope)
    for k in range(size):
        near = _featured(zero, y_c, features, begin + k, shift + c, len(a))
        z = _load(zero, x.flat, at[k] + (shift + c)) + near
        score[k] += _total(a_c * _leaky(z, slopes))


@compiled
def gatv2_targets(
    span: Span,
    blocks: tuple[int, Integers],
    edges: Edges,
    inputs: Gatv2,
    kept: Gatv2Kept,
    d: Rows,
    pair_E2H: Reals,
    gradients: Gatv2Gradients,
) -> None:
    """Gradients by target: of y, and each block's share of those of a and of the features' projection.

    ``blocks`` are the first one in ``span`` and where they all begin. ``pair_E2H`` gets what the sources need
    of each edge: its weight times the multiplier, and g.
    """
    indptr, source, _ = edges
    x, y, a, _, features = inputs
    (out, weight_EH, kept_EH), (dy, da, dp), (block, bounds) = kept, gradients, blocks
    heads = weight_EH.shape[1]
    width = len(a) // heads
    at, g, level = _scratch(indptr, span, indptr), _scratch(indptr, span, a), np.empty(width, a.dtype)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, source, begin, size, x.stride)
        while i == bounds[block + 1]:
            block += 1
        for h in range(heads):
            shift, out_at = h * width, (i * heads + h) * width
            d_at = i * d.stride + shift
            mean, total = _dot(d.flat, d_at, out, out_at, width), a.dtype.type(0)
            _clear(g, size)
            _pieces(_add_dots, width, a, (size, at, x, shift, d.flat, d_at, g))
            for k in range(size):
                kept_k = kept_EH[begin + k, h]
                g_k = kept_k * g[k] - weight_EH[begin + k, h] * mean
                pair_E2H[begin + k, h], pair_E2H[begin + k, heads + h], g[k] = kept_k, g_k, g_k
                total += g_k
            row = begin, size, i * y.stride + shift, shift
            _pieces(_set_target, width, a, (row, at, inputs, g, total, level, dy, out_at))
            _add(da, block * len(a) + shift, 1.0, level, 0, width)
            _add_steps(row, at, inputs, features, g, (level, dp, block, width))


@inlined
def _set_target(zero: Any, c: int, given: Any) -> None:
    """Of one target: y's gradient, and what goes to a."""
    row, at, inputs, g, total, level, dy, out_at = given
    begin, size, y_at, shift = row
    x, y, a, slope, features = inputs
    y_c, a_c, slopes = _load(zero, y.flat, y_at + c), _load(zero, a, shift + c), _spread(zero, slope)
    up, levels = zero, zero
    for k in range(size):
        near = _featured(zero, y_c, features, begin + k, shift + c, len(a))
        z, g_k = _load(zero, x.flat, at[k] + (shift + c)) + near, _spread(zero, g[k])
        up = up + _choose(z, zero, g_k, zero)
        levels = levels + g_k * _leaky(z, slopes)
    _store(levels, level, c)
    _store(_sloped(zero, a_c, slope, up, total), dy, out_at + c)


@inlined
def _add_steps(row: Any, at: Integers, inputs: Any, features: Any, g: Reals, into: Any) -> None:
    """Of one target: what goes to the projection of each of the edges' features."""
    if features is None:
        return
    (_, _, _, shift), (step, dp, block, width), a = row, into, inputs.a
    num_features = features.value_EK.shape[1]
    for feature in range(num_features):
        _pieces(_set_step, width, a, (row, at, inputs, features, feature, g, step))
        dp_at = (block * num_features + feature) * len(a) + shift
        _add_product(step, 0, a, shift, dp, dp_at, width)


@inlined
def _set_step(zero: Any, c: int, given: Any) -> None:
    """The sum of g l' times one feature."""
    (begin, size, y_at, shift), at, (x, y, a, slope, _), features, feature, g, step = given
    y_c, slopes, total = _load(zero, y.flat, y_at + c), _spread(zero, slope), zero
    for k in range(size):
        near = _featured(zero, y_c, features, begin + k, shift + c, len(a))
        z, g_k = _load(zero, x.flat, at[k] + (shift + c)) + near, _spread(zero, g[k])
        share = _choose(z, zero, g_k, g_k * slopes)
        total = total + share * _spread(zero, features.value_EK[begin + k, feature])
    _store(total, step, c)


@compiled
def gatv2_sources(span: Span, edges: Edges, inputs: Gatv2, d: Rows, pair_E2H: Reals, dx: Reals) -> None:
    """Gradients of x by source."""
    indptr, target, number = edges
    _, y, a, _, _ = inputs
    heads = pair_E2H.shape[1] // 2
    width = len(a) // heads
    w, g = _scratch(indptr, span, a), _scratch(indptr, span, a)
    y_at, d_at = _scratch(indptr, span, indptr), _scratch(indptr, span, indptr)
    for j in range(span[0], span[1]):
        begin, size = _edges_of(indptr, j)
        _set_places(y_at, target, begin, size, y.stride)
        _set_places(d_at, target, begin, size, d.stride)
        for h in range(heads):
            shift, total = h * width, a.dtype.type(0)
            for k in range(size):
                edge = _U(number[begin + k])
                w[k], g[k] = pair_E2H[edge, h], pair_E2H[edge, heads + h]
                total += g[k]
            row = begin, size, j, shift
            given = row, (y_at, d_at, number), inputs, d, w, g, total, dx, (j * heads + h) * width
            _pieces(_set_source, width, a, given)


@inlined
def _set_source(zero: Any, c: int, given: Any) -> None:
    row, (y_at, d_at, number), inputs, d, w, g, total, dx, dx_at = given
    begin, size, j, shift = row
    x, y, a, slope, features = inputs
    x_c, a_c = _load(zero, x.flat, j * x.stride + shift + c), _load(zero, a, shift + c)
    result, up = zero, zero
    for k in range(size):
        y_k = _load(zero, y.flat, y_at[k] + (shift + c))
        z = x_c + _featured(zero, y_k, features, number[begin + k], shift + c, len(a))
        result = result + _spread(zero, w[k]) * _load(zero, d.flat, d_at[k] + (shift + c))
        up = up + _choose(z, zero, _spread(zero, g[k]), zero)
    _store(result + _sloped(zero, a_c, slope, up, total), dx, dx_at + c)


@inlined
def _featured(zero: Any, y_c: Any, features: Any, k: int, at: int, size: int) -> Any:
    """y and what an edge's features add to it; ``size`` is that of all heads."""
    if features is None:
        return y_c
    value_EK, projection = features
    for feature in range(value_EK.shape[1]):
        y_c = y_c + _spread(zero, value_EK[k, feature]) * _load(zero, projection, feature * size + at)
    return y_c


@inlined
def _leaky(z: Any, slopes: Any) -> Any:
    low = slopes * z
    return _choose(z, low, z, low)


@inlined
def _sloped(zero: Any, a_c: Any, slope: Any, up: Any, total: Any) -> Any:
    """a times the sum of g l', from the sum of g where z is positive and the sum of all g.

    The latter is 0 but for rounding, and makes NaN of all numbers when one edge has it.
    """
    return a_c * (_spread(zero, type(slope)(1) - slope) * up + _spread(zero, slope * total))


@compiled
def weighted_rows(span: Span, edges: Edges, weight_EH: Reals, x: Rows, out: Reals, width: int) -> None:
    """Sums of weight times other end over the edges of each row in ``span``."""
    indptr, other, number = edges
    heads, direct = weight_EH.shape[1], len(number) == 0
    at, weight = _scratch(indptr, span, indptr), _scratch(indptr, span, out)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, other, begin, size, x.stride)
        for h in range(heads):
            for k in range(size):
                weight[k] = weight_EH[begin + k if direct else _U(number[begin + k]), h]
            _pieces(_set_sum, width, out, (size, at, x, h * width, weight, out, (i * heads + h) * width))


@inlined
def _set_sum(zero: Any, c: int, given: Any) -> None:
    """The sum of weight times vector over a row's edges."""
    size, at, x, shift, weight, out, out_at = given
    result = zero
    for k in range(size):
        result = result + _spread(zero, weight[k]) * _load(zero, x.flat, at[k] + (shift + c))
    _store(result, out, out_at + c)


@compiled
def edge_dots(span: Span, edges: Edges, d: Rows, x: Rows, width: int, dot_EH: Reals) -> None:
    """The inner product of both ends of each edge of the rows in ``span``."""
    indptr, source, _ = edges
    at, dot = _scratch(indptr, span, indptr), _scratch(indptr, span, dot_EH)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, source, begin, size, x.stride)
        for h in range(dot_EH.shape[1]):
            shift = h * width
            _clear(dot, size)
            _pieces(_add_dots, width, dot, (size, at, x, shift, d.flat, i * d.stride + shift, dot))
            for k in range(size):
                dot_EH[begin + k, h] = dot[k]


@inlined
def _add_dots(zero: Any, c: int, given: Any) -> None:
    """Add each edge's inner product of its other end with one vector."""
    size, at, x, shift, vector, vector_at, dot = given
    vector_c = _load(zero, vector, vector_at + c)
    for k in range(size):
        dot[k] += _total(_load(zero, x.flat, at[k] + (shift + c)) * vector_c)


@compiled
def edge_sums(span: Span, edges: Edges, value_EN: Reals, out: Reals) -> None:
    """Sums over the edges of each row in ``span``."""
    indptr, _, number = edges
    width, value = value_EN.shape[1], value_EN.reshape(value_EN.size)
    for i in range(span[0], span[1]):
        _pieces(_set_edge_sum, width, out, (indptr[i], indptr[i + 1], number, value, width, out, i * width))


@inlined
def _set_edge_sum(zero: Any, c: int, given: Any) -> None:
    begin, end, number, value, width, out, out_at = given
    result = zero
    for k in range(begin, end):
        result = result + _load(zero, value, (number[k] if len(number) else k) * width + c)
    _store(result, out, out_at + c)


@compiled
def softmax_rows(span: Span, indptr: Integers, score_EH: Reals, weight_EH: Reals) -> None:
    """Softmax over the edges of each row in ``span``."""
    score = _scratch(indptr, span, score_EH)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        for h in range(score_EH.shape[1]):
            for k in range(size):
                score[k] = score_EH[begin + k, h]
            _softmax(score, size)
            for k in range(size):
                weight_EH[begin + k, h] = score[k]


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
    out, weight_EH = kept
    heads, width, one = weight_EH.shape[1], inputs.width, out.dtype.type(1)
    score = _scratch_of_groups(groups, span, out)
    key_at, value_at = (
        _scratch_of_groups(groups, span, groups.other),
        _scratch_of_groups(groups, span, groups.other),
    )
    for i in range(span[0], span[1]):
        begin, size = _edges_of_groups(groups, i)
        _set_places(key_at, groups.other, begin, size, inputs.key.stride)
        _set_places(value_at, groups.other, begin, size, inputs.value.stride)
        for h in range(heads):
            row = i, h, heads, begin
            _set_biases(score, row, groups, inputs.bias_RH)
            _pieces(_add_group_scores, width, out, (row, groups, inputs, key_at, score))
            share = one / (_clipped_powers(score, size, limits[0]) + limits[1])
            for k in range(size):
                weight_EH[begin + k, h] = score[k] * share
                score[k] = abs(score[k] * share)
            _pieces(_set_mean, width, out, (row, groups, inputs, value_at, score, out))


@inlined
def _set_biases(score: Reals, row: Any, groups: Any, bias_RH: Reals) -> None:
    i, h, _, begin = row
    for group in _groups_of(groups, i):
        for k in _edges_in(groups, group, begin):
            score[k] = bias_RH[groups.pattern[group], h]


@inlined
def _add_group_scores(zero: Any, c: int, given: Any) -> None:
    row, groups, inputs, key_at, score = given
    i, h, heads, begin = row
    query, key, _, feature, _, _, width = inputs
    shift = h * width + c
    query_c = _load(zero, query.flat, i * query.stride + shift)
    for group in _groups_of(groups, i):
        near = query_c * _load(zero, feature, (groups.pattern[group] * heads + h) * width + c)
        for k in _edges_in(groups, group, begin):
            score[k] += _total(_load(zero, key.flat, key_at[k] + shift) * near)


@inlined
def _set_mean(zero: Any, c: int, given: Any) -> None:
    """The sum of weight times value times gate."""
    row, groups, inputs, value_at, weight, out = given
    i, h, heads, begin = row
    _, _, value, _, _, gate, width = inputs
    shift, result = h * width + c, zero
    for group in _groups_of(groups, i):
        part = zero
        for k in _edges_in(groups, group, begin):
            part = part + _spread(zero, weight[k]) * _load(zero, value.flat, value_at[k] + shift)
        result = result + _gated(zero, part, gate, (groups.pattern[group] * heads + h) * width + c)
    _store(result, out, (i * heads + h) * width + c)


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
    (out, weight_EH), heads, width = kept, kept.weight_EH.shape[1], inputs.width
    w, r = _scratch_of_groups(groups, span, out), _scratch_of_groups(groups, span, out)
    key_at, value_at = (
        _scratch_of_groups(groups, span, groups.other),
        _scratch_of_groups(groups, span, groups.other),
    )
    for i in range(span[0], span[1]):
        begin, size = _edges_of_groups(groups, i)
        _set_places(key_at, groups.other, begin, size, inputs.key.stride)
        _set_places(value_at, groups.other, begin, size, inputs.value.stride)
        for h in range(heads):
            row = i, h, heads, begin
            mean = _dot(d.flat, i * d.stride + h * width, out, (i * heads + h) * width, width)
            _clear(r, size)
            _pieces(_add_group_dots, width, out, (row, groups, inputs, value_at, d, r))
            for k in range(size):
                weight = weight_EH[begin + k, h]
                # nothing where the score was clipped
                r[k] = out.dtype.type(0) if weight < 0 else weight * (r[k] - mean)
                w[k] = abs(weight)
                pair_E2H[begin + k, h], pair_E2H[begin + k, heads + h] = w[k], r[k]
            _add_biases(r, row, groups, gradients.dbias_SH)
            _pieces(_set_query, width, out, (row, groups, inputs, (key_at, value_at), d, w, r, gradients))


@inlined
def _add_biases(r: Reals, row: Any, groups: Any, dbias_SH: Reals) -> None:
    i, h, _, begin = row
    for group in _groups_of(groups, i):
        total = r.dtype.type(0)
        for k in _edges_in(groups, group, begin):
            total += r[k]
        dbias_SH[groups.slot[group], h] += total


@inlined
def _add_group_dots(zero: Any, c: int, given: Any) -> None:
    """Add d . (v * g) of each edge."""
    row, groups, inputs, value_at, d, dot = given
    i, h, heads, begin = row
    _, _, value, _, _, gate, width = inputs
    shift = h * width + c
    d_c = _load(zero, d.flat, i * d.stride + shift)
    for group in _groups_of(groups, i):
        near = _gated(zero, d_c, gate, (groups.pattern[group] * heads + h) * width + c)
        for k in _edges_in(groups, group, begin):
            dot[k] += _total(_load(zero, value.flat, value_at[k] + shift) * near)


@inlined
def _set_query(zero: Any, c: int, given: Any) -> None:
    """Of one target: the query's gradient, and what goes to the terms."""
    row, groups, inputs, (key_at, value_at), d, w, r, gradients = given
    i, h, heads, begin = row
    query, key, value, feature, _, gate, width = inputs
    dquery, dfeature, _, dgate = gradients
    shift = h * width + c
    query_c = _load(zero, query.flat, i * query.stride + shift)
    d_c, result = _load(zero, d.flat, i * d.stride + shift), zero
    for group in _groups_of(groups, i):
        slot_at, part = (groups.slot[group] * heads + h) * width + c, zero
        for k in _edges_in(groups, group, begin):
            part = part + _spread(zero, r[k]) * _load(zero, key.flat, key_at[k] + shift)
        _store(_load(zero, dfeature, slot_at) + part * query_c, dfeature, slot_at)
        result = result + part * _load(zero, feature, (groups.pattern[group] * heads + h) * width + c)
        if len(gate):
            values = zero
            for k in _edges_in(groups, group, begin):
                values = values + _spread(zero, w[k]) * _load(zero, value.flat, value_at[k] + shift)
            _store(_load(zero, dgate, slot_at) + values * d_c, dgate, slot_at)
    _store(result, dquery, (i * heads + h) * width + c)


@compiled
def pattern_sources(
    span: Span, groups: Groups, inputs: Pattern, d: Rows, pair_E2H: Reals, dkey: Reals, dvalue: Reals
) -> None:
    """Gradients of keys and values by source."""
    heads, number = pair_E2H.shape[1] // 2, groups.number
    w, r = _scratch_of_groups(groups, span, dkey), _scratch_of_groups(groups, span, dkey)
    query_at, d_at = (
        _scratch_of_groups(groups, span, groups.other),
        _scratch_of_groups(groups, span, groups.other),
    )
    for j in range(span[0], span[1]):
        begin, size = _edges_of_groups(groups, j)
        _set_places(query_at, groups.other, begin, size, inputs.query.stride)
        _set_places(d_at, groups.other, begin, size, d.stride)
        for h in range(heads):
            for k in range(size):
                edge = _U(number[begin + k])
                w[k], r[k] = pair_E2H[edge, h], pair_E2H[edge, heads + h]
            row = j, h, heads, begin
            given = row, groups, inputs, (query_at, d_at), d, w, r, dkey, dvalue
            _pieces(_set_key_and_value, inputs.width, dkey, given)


@inlined
def _set_key_and_value(zero: Any, c: int, given: Any) -> None:
    row, groups, inputs, (query_at, d_at), d, w, r, dkey, dvalue = given
    j, h, heads, begin = row
    query, _, _, feature, _, gate, width = inputs
    shift, out_at = h * width + c, (j * heads + h) * width + c
    key_sum, value_sum = zero, zero
    for group in _groups_of(groups, j):
        term_at, part, values = (groups.pattern[group] * heads + h) * width + c, zero, zero
        for k in _edges_in(groups, group, begin):
            part = part + _spread(zero, r[k]) * _load(zero, query.flat, query_at[k] + shift)
            values = values + _spread(zero, w[k]) * _load(zero, d.flat, d_at[k] + shift)
        key_sum = key_sum + part * _load(zero, feature, term_at)
        value_sum = value_sum + _gated(zero, values, gate, term_at)
    _store(key_sum, dkey, out_at)
    _store(value_sum, dvalue, out_at)


@inlined
def _gated(zero: Any, vector: Any, gate: Reals, at: int) -> Any:
    """The vector times the gate, or as it is when there is none."""
    return vector * _load(zero, gate, at) if len(gate) else vector


@compiled
def sum_slots(span: Span, indptr: Integers, order_S: Integers, value: Reals, out: Reals, width: int) -> None:
    """For each pattern in ``span`` the sum over its slots, in double precision."""
    total = np.empty(width, np.float64)
    for row in range(span[0], span[1]):
        total[:] = 0
        for k in range(indptr[row], indptr[row + 1]):
            _add(total, 0, 1.0, value, order_S[k] * width, width)
        out[row * width : (row + 1) * width] = total


@inlined
def _pieces(work: Any, width: int, array: Reals, given: Any) -> None:
    """``work`` for each piece of the width: it gets zeros as wide as the piece, and where that begins."""
    c = 0
    while c + _WIDE <= width:
        work(_wide(array), c, given)
        c += _WIDE
    while c + _NARROW <= width:
        work(_narrow(array), c, given)
        c += _NARROW
    while c < width:
        work(_single(array), c, given)
        c += 1


@inlined
def _scratch(indptr: Integers, span: Span, like: Any) -> Any:
    """Room for a number for each edge of any of the rows, and for a piece more; hardly any of it is used."""
    return np.empty(indptr[span[1]] - indptr[span[0]] + _NARROW, like.dtype)


@inlined
def _scratch_of_groups(groups: Any, span: Span, like: Any) -> Any:
    first, last = groups.row_indptr[span[0]], groups.row_indptr[span[1]]
    return np.empty(groups.indptr[last] - groups.indptr[first] + _NARROW, like.dtype)


@inlined
def _edges_of(indptr: Integers, i: int) -> tuple[Any, Any]:
    """A row's first edge, and how many it has."""
    return _U(indptr[i]), _U(indptr[i + 1] - indptr[i])


@inlined
def _edges_of_groups(groups: Any, i: int) -> tuple[Any, Any]:
    begin = groups.indptr[groups.row_indptr[i]]
    return _U(begin), _U(groups.indptr[groups.row_indptr[i + 1]] - begin)


@inlined
def _groups_of(groups: Any, i: int) -> Any:
    """A row's groups."""
    return range(_U(groups.row_indptr[i]), _U(groups.row_indptr[i + 1]))


@inlined
def _edges_in(groups: Any, group: Any, begin: Any) -> Any:
    """A group's edges, counted from the row's first."""
    return range(_U(groups.indptr[group]) - begin, _U(groups.indptr[group + _U(1)]) - begin)


@inlined
def _set_places(at: Integers, other: Integers, begin: Any, size: Any, stride: int) -> None:
    """Where the vector of each edge's other end begins."""
    for k in range(size):
        at[k] = other[begin + k] * stride


@inlined
def _clear(values: Reals, size: Any) -> None:
    zero = _narrow(values)
    for k in range(_U(0), size, _U(_NARROW)):
        _store(zero, values, k)


@inlined
def _softmax(score: Reals, size: Any) -> None:
    """Of the first ``size`` numbers; what lies beyond them is there to be overwritten."""
    zero = _narrow(score)
    highest, total = _spread(zero, -np.inf), zero
    _store(highest, score, size)
    for k in range(_U(0), size, _U(_NARROW)):
        score_k = _load(zero, score, k)
        highest = _choose(score_k, highest, score_k, highest)
    highest = _spread(zero, _highest(highest))
    for k in range(_U(0), size, _U(_NARROW)):
        power = _exp(_load(zero, score, k) - highest)
        total = total + power
        _store(power, score, k)
    share = _spread(zero, score.dtype.type(1) / _total(total))
    for k in range(_U(0), size, _U(_NARROW)):
        _store(_load(zero, score, k) * share, score, k)


@inlined
def _clipped_powers(score: Reals, size: Any, clip: Any) -> Any:
    """exp of the clipped scores, with the sign that says whether it was clipped, in their place; their sum.

    NaN stays NaN. What lies beyond the first ``size`` numbers is there to be overwritten.
    """
    zero = _narrow(score)
    clips, total = _spread(zero, clip), zero
    for k in range(_U(0), size, _U(_NARROW)):
        score_k = _load(zero, score, k)
        power = _exp(_choose(score_k, clips, clips, _choose(zero - clips, score_k, zero - clips, score_k)))
        _store(_choose(_absolute(score_k), clips, zero - power, power), score, k)
    _store(zero, score, size)
    for k in range(_U(0), size, _U(_NARROW)):
        total = total + _absolute(_load(zero, score, k))
    return _total(total)


@inlined
def _absolute(vector: Any) -> Any:
    minus = vector - vector - vector
    return _choose(vector, minus, vector, minus)


@inlined
def _dot(x: Reals, x_at: int, y: Reals, y_at: int, width: int) -> Any:
    x_0, y_0, total = _U(x_at), _U(y_at), x.dtype.type(0)
    for c in range(_U(width)):
        total += x[x_0 + c] * y[y_0 + c]
    return total


@inlined
def _add(into: Reals, into_at: int, w: Any, x: Reals, x_at: int, width: int) -> None:
    into_0, x_0 = _U(into_at), _U(x_at)
    for c in range(_U(width)):
        into[into_0 + c] += w * x[x_0 + c]


@inlined
def _add_product(x: Reals, x_at: int, y: Reals, y_at: int, into: Reals, into_at: int, width: int) -> None:
    x_0, y_0, into_0 = _U(x_at), _U(y_at), _U(into_at)
    for c in range(_U(width)):
        into[into_0 + c] += x[x_0 + c] * y[y_0 + c]
