"""Compiled loops of graph attention on the CPU.

Enters: arrays whose sizes fit and whose indices are in range (the callers' edge tables see to both). Leaves:
arrays of the caller, filled. Invariants: vectors are only gathered, never scattered, so what a call writes
depends on its span of rows alone, and not on which thread makes the call; no [E, H, N] array exists.

A row's edges are gone through once for each piece of a vector's width, with what is summed over them in the
processor's registers: ``_Vector`` is such a piece. What a compiler makes of a plain loop over the width reads
and writes those sums once an edge. So the width is cut into pieces of 128 numbers, the rest into pieces of
64, 32 and 16, then of one. What a row has for each edge lies side by side in scratch meanwhile; a sum over a
vector stays sixteen numbers there until those of sixteen edges become their sums together.

GATv2's forward pass keeps a bit a number, whether z is positive, and no z: with it the gradients need no
sum over edges but that of g where z is positive. By source they gather one vector an edge, not two, and a's
gradient is found node by node,

    sum over edges of g l(z) = sum over nodes of x times the sum of g l' by source + the same of y by target,

since l(z) = l' z, z = x + y (and what the edges' features add, alike).

All that is compiled into these loops is in this file (see ``compiled``).
"""

import operator
from collections.abc import Callable, Iterable, Iterator
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
    weight: Reals
    """(E * H,) a row's edges side by side, head by head."""
    kept: Reals
    """Times the multipliers; the same array when there are none."""
    marks: NDArray[np.uint8]
    """(E * H * mark_bytes(N),) where z is positive: see ``_mark_at``."""


class Gatv2Gradients(NamedTuple):
    """What is found by target; the last two hold one sum for each block of rows."""

    dy: Reals
    """(T * M,)"""
    da: NDArray[np.float64]
    """(B * M,) of g l' times y"""
    steps: NDArray[np.float64]
    """(B * K * M,) of g l' times a feature"""


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
    weight: Reals
    """(E * H,) a row's edges side by side, head by head; negative where the score was clipped."""


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
_NARROW = 16
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


_of_128, _of_64, _of_32, _of_16, _of_1 = map(_zeros, (128, 64, 32, _NARROW, 1))


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
def _add_part(_: Any, product: Any, parts: Any, index: Any, begins: Any) -> Any:
    """Add to a sum its share of a product, as sixteen numbers from ``index`` on, or begin it so."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value, *place, begins = values
        kind, folded = ir.VectorType(value.type.element, _NARROW), _folded(builder, value)
        at = _place(context, builder, signature.args[1:], place, kind)
        with builder.if_else(begins) as (begin, go_on):
            with begin:
                builder.store(folded, at, align=_bytes(kind))
            with go_on:
                before = builder.load(at, align=_bytes(kind), typ=kind)
                builder.store(builder.fadd(before, folded, flags=_FAST), at, align=_bytes(kind))
        return context.get_dummy_value()

    return types.void(product, parts, index, begins), instructions


def _folded(builder: Any, vector: Any) -> Any:
    """Sixteen numbers with the same sum as the vector's."""
    count = vector.type.count
    if count < _NARROW:
        zeros = ir.Constant(ir.VectorType(vector.type.element, _NARROW), None)
        return builder.insert_element(zeros, builder.extract_element(vector, _whole(0)), _whole(0))
    first, *parts = (
        _shuffled(builder, vector, vector, range(at, at + _NARROW)) for at in range(0, count, _NARROW)
    )
    for part in parts:
        first = builder.fadd(first, part, flags=_FAST)
    return first


def _concatenated(builder: Any, parts: list[Any]) -> Any:
    """Vectors side by side: equally long ones, as many as a power of two."""
    while len(parts) > 1:
        both = range(2 * parts[0].type.count)
        parts = [_shuffled(builder, *pair, both) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


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
def _totals(_: Any, array: Any, index: Any) -> Any:
    """The sums of sixteen vectors of sixteen numbers that lie one after the other from ``index`` on.

    As many at a time, these take a third of the instructions of one by one, and wait for no other.
    """

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        start = _place(context, builder, signature.args, values, kind)
        rows = [
            builder.load(builder.gep(start, [_whole(row)]), align=_bytes(kind), typ=kind)
            for row in range(_NARROW)
        ]
        half = _NARROW // 2
        while half:
            # of 2 * half numbers: the first half of one row's beside the first half of another's
            low = [
                lane % half + lane // (2 * half) * 2 * half + _NARROW * (lane // half % 2)
                for lane in range(_NARROW)
            ]
            high = [lane + half for lane in low]
            rows = [
                builder.fadd(
                    _shuffled(builder, one, other, low), _shuffled(builder, one, other, high), flags=_FAST
                )
                for one, other in zip(rows[:half], rows[half:], strict=True)
            ]
            half //= 2
        return rows[0]

    return _Vector(array.dtype, _NARROW)(array, index), instructions


def _shuffled(builder: Any, one: Any, other: Any, lanes: Iterable[int]) -> Any:
    lanes = list(lanes)
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _whole(number: int) -> Any:
    return ir.Constant(ir.IntType(32), number)


@_operation
def _mark_positive(_: Any, vector: Any, marks: Any, index: Any) -> Any:
    """Keep, one bit a number from byte ``index`` on, which of the vector's numbers are positive."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        (value, *into), kinds = values, signature.args[1:]
        for lanes, place in _marks(context, builder, value.type.count, kinds, into):
            part = _shuffled(builder, value, value, lanes)
            positive = builder.fcmp_ordered(">", part, ir.Constant(part.type, None))
            bits = builder.bitcast(positive, ir.IntType(len(lanes)))
            bits = builder.zext(bits, ir.IntType(8)) if len(lanes) < 8 else bits
            builder.store(bits, place, align=1)
        return context.get_dummy_value()

    return types.void(vector, marks, index), instructions


@_operation
def _where_marked(_: Any, marks: Any, index: Any, marked: Any, other: Any) -> Any:
    """``marked`` where ``_mark_positive`` has seen a positive number, ``other`` elsewhere."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        *_, marked, other = values
        parts = []
        for lanes, place in _marks(context, builder, marked.type.count, signature.args, values):
            bits = builder.load(place, align=1, typ=ir.IntType(max(len(lanes), 8)))
            bits = builder.trunc(bits, ir.IntType(1)) if len(lanes) < 8 else bits
            positive = builder.bitcast(bits, ir.VectorType(ir.IntType(1), len(lanes)))
            one, two = (_shuffled(builder, x, x, lanes) for x in (marked, other))
            parts.append(builder.select(positive, one, two))
        return _concatenated(builder, parts)

    return marked(marks, index, marked, other), instructions


def _marks(context: Any, builder: Any, lanes: int, kinds: Any, values: Any) -> Iterator[tuple[range, Any]]:
    """The lanes whose bits lie in one integer, sixteen or one, and where that lies."""
    step = min(lanes, _NARROW)
    start = _place(context, builder, kinds, values, ir.IntType(8))
    for first in range(0, lanes, step):
        place = builder.gep(start, [_whole(first // 8)])
        yield range(first, first + step), builder.bitcast(place, ir.IntType(max(step, 8)).as_pointer())


def mark_bytes(width: int) -> int:
    """Bytes of the marks of one edge and head."""
    return width // _NARROW * (_NARROW // 8) + width % _NARROW


_mark_bytes = inlined(mark_bytes)


@inlined
def _mark_at(h: int, c: int, width: int) -> Any:
    """The byte of an edge's marks where those of a head's numbers from ``c`` on begin.

    Eight numbers a byte while sixteen are left, then one.
    """
    whole = width - width % _NARROW
    return h * _mark_bytes(width) + min(c, whole) // 8 + max(c - whole, 0)


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
def _within(_: Any, vector: Any, count: Any, other: Any) -> Any:
    """The vector's first ``count`` numbers, or all, and ``other`` where there are no more."""

    def instructions(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.VectorType(ir.IntType(32), vector.lanes)
        count = context.cast(builder, values[1], signature.args[1], types.uint64)
        most = ir.Constant(count.type, vector.lanes)
        count = builder.select(builder.icmp_unsigned("<", count, most), count, most)
        count = builder.insert_element(
            ir.Constant(kind, ir.Undefined), builder.trunc(count, ir.IntType(32)), _whole(0)
        )
        counts = _shuffled(builder, count, count, [0] * vector.lanes)
        place = ir.Constant(kind, list(range(vector.lanes)))
        return builder.select(builder.icmp_unsigned("<", place, counts), values[0], values[2])

    return vector(vector, count, other), instructions


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
def gatv2_forward(
    span: Span, edges: Edges, inputs: Gatv2, heads: int, keep_EH: Reals, kept: Gatv2Kept
) -> None:
    """Attention weights and outputs of the targets in ``span``; ``keep_EH`` may be empty."""
    indptr, source, _ = edges
    x, _, a, _, _ = inputs
    width, longest = len(a) // heads, _longest(indptr, span)
    at, parts = _scratch(longest, indptr), _parts_scratch(longest, heads, a)
    score, room = _heads_scratch(longest, heads, a)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, source, begin, size, x.stride)
        row = begin, size, i, heads, room
        _pieces(_add_scores, heads, width, a, (row, at, inputs, parts, kept.marks))
        # one head's chain of dependent instructions is worked on while another's waits
        for h in range(heads):
            _set_totals(parts, score, h * room, size)
            _softmax(score, h * room, size)
        for h in range(heads):
            first, weight_at = _U(h * room), begin * _U(heads) + _U(h) * size
            for k in range(size):
                kept.weight[weight_at + k] = score[first + k]
            if len(keep_EH):
                for k in range(size):
                    score[first + k] *= keep_EH[begin + k, h]
                    kept.kept[weight_at + k] = score[first + k]
        _pieces(_set_sum, heads, width, a, (size, at, x, score, room, kept.out, i * len(a), width))


@inlined
def _add_scores(zero: Any, h: int, c: int, given: Any) -> None:
    """Add a . l(z), and mark where z is positive."""
    row, at, inputs, parts, marks = given
    begin, size, i, heads, room = row
    x, y, a, slope, features = inputs
    width = len(a) // heads
    shift, edge_bytes = h * width + c, _U(heads * _mark_bytes(width))
    y_c, a_c = _load(zero, y.flat, i * y.stride + shift), _load(zero, a, shift)
    low_c, mark_at = a_c * _spread(zero, slope), begin * edge_bytes + _U(_mark_at(h, c, width))
    for k in range(size):
        near = _featured(zero, y_c, features, begin + k, shift, len(a))
        z = _load(zero, x.flat, at[k] + shift) + near
        _mark_positive(z, marks, mark_at + k * edge_bytes)
        _add_part(z * _choose(z, zero, a_c, low_c), parts, _part_at(h, room, k), c == 0)


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
    (block, bounds), heads, longest = blocks, pair_E2H.shape[1] // 2, _longest(indptr, span)
    width, step, total = len(a) // heads, np.empty(len(a), a.dtype), np.empty(heads, a.dtype)
    at, parts = _scratch(longest, indptr), _parts_scratch(longest, heads, a)
    g, room = _heads_scratch(longest, heads, a)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, source, begin, size, x.stride)
        while i == bounds[block + 1]:
            block += 1
        _pieces(_add_dots, heads, width, a, (size, at, x, d.flat, i * d.stride, parts, room, width))
        for h in range(heads):
            _set_totals(parts, g, h * room, size)
            shift = h * width
            mean = _dot(d.flat, i * d.stride + shift, kept.out, i * len(a) + shift, width)
            first, weight_at, sum_h = _U(h * room), begin * _U(heads) + _U(h) * size, a.dtype.type(0)
            for k in range(size):
                g_k = kept.kept[weight_at + k] * g[first + k] - kept.weight[weight_at + k] * mean
                g[first + k] = g_k
                sum_h += g_k
            total[h] = sum_h
            for k in range(size):
                pair_E2H[begin + k, h] = kept.kept[weight_at + k]
                pair_E2H[begin + k, heads + h] = g[first + k]
        row = begin, size, heads, room
        _pieces(_set_step, heads, width, a, (row, inputs, kept.marks, g, total, step))
        _set_product(a, 0, step, 0, gradients.dy, i * len(a), len(a))
        _add_product(y.flat, i * y.stride, step, 0, gradients.da, block * len(a), len(a))
        _add_feature_steps(row, inputs, features, (kept.marks, g, step), gradients.steps, block)


@inlined
def _set_step(zero: Any, h: int, c: int, given: Any) -> None:
    """Of one target: the sum of g l'."""
    (begin, size, heads, room), inputs, marks, g, total, step = given
    width = len(inputs.a) // heads
    up, edge_bytes = zero, _U(heads * _mark_bytes(width))
    mark_at = begin * edge_bytes + _U(_mark_at(h, c, width))
    for k in range(size):
        more = up + _spread(zero, g[_U(h * room) + k])
        up = _where_marked(marks, mark_at + k * edge_bytes, more, up)
    _store(_sloped(zero, inputs.slope, up, _spread(zero, total[h])), step, h * width + c)


@inlined
def _add_feature_steps(row: Any, inputs: Any, features: Any, given: Any, steps: Any, block: int) -> None:
    """Of one target: the sums of g l' times each of the edges' features."""
    if features is None:
        return
    (_, _, heads, _), (marks, g, step), a = row, given, inputs.a
    num_features = features.value_EK.shape[1]
    for feature in range(num_features):
        given = row, inputs, features, feature, marks, g, step
        _pieces(_set_feature_step, heads, len(a) // heads, a, given)
        _add(steps, (block * num_features + feature) * len(a), 1.0, step, 0, len(a))


@inlined
def _set_feature_step(zero: Any, h: int, c: int, given: Any) -> None:
    (begin, size, heads, room), inputs, features, feature, marks, g, step = given
    width = len(inputs.a) // heads
    slopes, total, edge_bytes = _spread(zero, inputs.slope), zero, _U(heads * _mark_bytes(width))
    mark_at = begin * edge_bytes + _U(_mark_at(h, c, width))
    for k in range(size):
        g_k = _spread(zero, g[_U(h * room) + k])
        g_k = g_k * _spread(zero, features.value_EK[begin + k, feature])
        total = total + _where_marked(marks, mark_at + k * edge_bytes, g_k, g_k * slopes)
    _store(total, step, h * width + c)


@compiled
def gatv2_sources(
    span: Span,
    blocks: tuple[int, Integers],
    edges: Edges,
    inputs: Gatv2,
    marks: NDArray[np.uint8],
    d: Rows,
    pair_E2H: Reals,
    gradients: tuple[Reals, NDArray[np.float64]],
) -> None:
    """Gradients by source: of x, and each block's share of a's, the sum of g l' times x.

    ``blocks`` are the first one in ``span`` and where they all begin.
    """
    indptr, target, number = edges
    (x, _, a, _, _), (dx, da), (block, bounds) = inputs, gradients, blocks
    heads, longest = pair_E2H.shape[1] // 2, _longest(indptr, span)
    width, step, total = len(a) // heads, np.empty(len(a), a.dtype), np.empty(heads, a.dtype)
    w, room = _heads_scratch(longest, heads, a)
    g, _ = _heads_scratch(longest, heads, a)
    d_at, mark_at = _scratch(longest, indptr), _scratch(longest, indptr)
    for j in range(span[0], span[1]):
        begin, size = _edges_of(indptr, j)
        _set_places(d_at, target, begin, size, d.stride)
        _set_places(mark_at, number, begin, size, heads * _mark_bytes(width))
        while j == bounds[block + 1]:
            block += 1
        _set_pairs((w, g, room, total), number, begin, size, pair_E2H)
        given = (size, j, width, room), (d_at, mark_at), inputs, marks, d, (w, g, total), dx, step
        _pieces(_set_source, heads, width, a, given)
        _add_product(x.flat, j * x.stride, step, 0, da, block * len(a), len(a))


@inlined
def _set_pairs(into: Any, number: Integers, begin: Any, size: Any, pair_E2H: Reals) -> None:
    """What each edge of a row has for its source, head by head, and the sums of the second."""
    (w, g, room, total), heads = into, pair_E2H.shape[1] // 2
    for h in range(heads):
        first, sum_h = _U(h * room), g.dtype.type(0)
        for k in range(size):
            edge = _U(number[begin + k])
            w[first + k], g[first + k] = pair_E2H[edge, h], pair_E2H[edge, heads + h]
            sum_h += g[first + k]
        total[h] = sum_h


@inlined
def _set_source(zero: Any, h: int, c: int, given: Any) -> None:
    row, (d_at, mark_at), inputs, marks, d, (w, g, total), dx, step = given
    size, j, width, room = row
    shift, shift_mark = h * width + c, _mark_at(h, c, width)
    result, up = zero, zero
    for k in range(size):
        w_k = _spread(zero, w[_U(h * room) + k])
        result = result + w_k * _load(zero, d.flat, d_at[k] + shift)
        more = up + _spread(zero, g[_U(h * room) + k])
        up = _where_marked(marks, mark_at[k] + shift_mark, more, up)
    sloped = _sloped(zero, inputs.slope, up, _spread(zero, total[h]))
    _store(sloped, step, shift)
    _store(result + _load(zero, inputs.a, shift) * sloped, dx, j * len(inputs.a) + shift)


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
def _sloped(zero: Any, slope: Any, up: Any, total: Any) -> Any:
    """The sum of g l', from the sum of g where z is positive and the sum of all g.

    The latter makes NaN of all numbers when one edge has it.
    """
    return _spread(zero, type(slope)(1) - slope) * up + _spread(zero, slope) * total


@compiled
def weighted_rows(span: Span, edges: Edges, weight_EH: Reals, x: Rows, out: Reals, width: int) -> None:
    """Sums of weight times other end over the edges of each row in ``span``."""
    indptr, other, number = edges
    heads, direct, longest = weight_EH.shape[1], len(number) == 0, _longest(indptr, span)
    at, (weight, room) = _scratch(longest, indptr), _heads_scratch(longest, heads, out)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, other, begin, size, x.stride)
        for h in range(heads):
            for k in range(size):
                weight[_U(h * room) + k] = weight_EH[begin + k if direct else _U(number[begin + k]), h]
        given = size, at, x, weight, room, out, i * heads * width, width
        _pieces(_set_sum, heads, width, out, given)


@inlined
def _set_sum(zero: Any, h: int, c: int, given: Any) -> None:
    """The sum of weight times vector over a row's edges."""
    size, at, x, weight, room, out, out_at, width = given
    result, shift = zero, h * width + c
    for k in range(size):
        weight_k = _spread(zero, weight[_U(h * room) + k])
        result = result + weight_k * _load(zero, x.flat, at[k] + shift)
    _store(result, out, out_at + shift)


@compiled
def edge_dots(span: Span, edges: Edges, d: Rows, x: Rows, width: int, dot_EH: Reals) -> None:
    """The inner product of both ends of each edge of the rows in ``span``."""
    indptr, source, _ = edges
    heads, longest = dot_EH.shape[1], _longest(indptr, span)
    at, (dot, room) = _scratch(longest, indptr), _heads_scratch(longest, heads, dot_EH)
    parts = _parts_scratch(longest, heads, dot_EH)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        _set_places(at, source, begin, size, x.stride)
        _pieces(_add_dots, heads, width, dot, (size, at, x, d.flat, i * d.stride, parts, room, width))
        for h in range(heads):
            _set_totals(parts, dot, h * room, size)
            for k in range(size):
                dot_EH[begin + k, h] = dot[_U(h * room) + k]


@inlined
def _add_dots(zero: Any, h: int, c: int, given: Any) -> None:
    """Add each edge's inner product of its other end with one vector."""
    size, at, x, vector, vector_at, parts, room, width = given
    shift = h * width + c
    vector_c = _load(zero, vector, vector_at + shift)
    for k in range(size):
        product = _load(zero, x.flat, at[k] + shift) * vector_c
        _add_part(product, parts, _part_at(h, room, k), c == 0)


@compiled
def edge_sums(span: Span, edges: Edges, value_EN: Reals, out: Reals) -> None:
    """Sums over the edges of each row in ``span``."""
    indptr, _, number = edges
    width, value = value_EN.shape[1], value_EN.reshape(value_EN.size)
    for i in range(span[0], span[1]):
        given = indptr[i], indptr[i + 1], number, value, width, out, i * width
        _pieces(_set_edge_sum, 1, width, out, given)


@inlined
def _set_edge_sum(zero: Any, h: int, c: int, given: Any) -> None:
    begin, end, number, value, width, out, out_at = given
    result = zero
    for k in range(begin, end):
        result = result + _load(zero, value, (number[k] if len(number) else k) * width + c)
    _store(result, out, out_at + c)


@compiled
def softmax_rows(span: Span, indptr: Integers, score_EH: Reals, weight_EH: Reals) -> None:
    """Softmax over the edges of each row in ``span``."""
    score = _scratch(_longest(indptr, span), score_EH)
    for i in range(span[0], span[1]):
        begin, size = _edges_of(indptr, i)
        for h in range(score_EH.shape[1]):
            for k in range(size):
                score[k] = score_EH[begin + k, h]
            _softmax(score, 0, size)
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
    out, width, one = kept.out, inputs.width, kept.out.dtype.type(1)
    heads, longest = inputs.bias_RH.shape[1], _longest_of_groups(groups, span)
    parts, (score, room) = _parts_scratch(longest, heads, out), _heads_scratch(longest, heads, out)
    key_at, value_at = _scratch(longest, groups.other), _scratch(longest, groups.other)
    for i in range(span[0], span[1]):
        begin, size = _edges_of_groups(groups, i)
        _set_places(key_at, groups.other, begin, size, inputs.key.stride)
        _set_places(value_at, groups.other, begin, size, inputs.value.stride)
        row = i, begin, heads, room
        _pieces(_add_group_scores, heads, width, out, (row, groups, inputs, key_at, parts))
        # one head's chain of dependent instructions is worked on while another's waits
        for h in range(heads):
            _set_totals(parts, score, h * room, size)
            _add_group_biases(score, h, row, groups, inputs.bias_RH)
        for h in range(heads):
            first, weight_at = _U(h * room), begin * _U(heads) + _U(h) * size
            share = one / (_clipped_powers(score, first, size, limits[0]) + limits[1])
            for k in range(size):
                weight = score[first + k] * share
                kept.weight[weight_at + k] = weight
                score[first + k] = abs(weight)
        _pieces(_set_mean, heads, width, out, (row, groups, inputs, value_at, score, out))


@inlined
def _add_group_biases(score: Reals, h: int, row: Any, groups: Any, bias_RH: Reals) -> None:
    i, begin, _, room = row
    for group in _groups_of(groups, i):
        for k in _edges_in(groups, group, begin):
            score[_U(h * room) + k] += bias_RH[groups.pattern[group], h]


@inlined
def _add_group_scores(zero: Any, h: int, c: int, given: Any) -> None:
    row, groups, inputs, key_at, parts = given
    i, begin, heads, room = row
    query, key, _, feature, _, _, width = inputs
    shift = h * width + c
    query_c = _load(zero, query.flat, i * query.stride + shift)
    for group in _groups_of(groups, i):
        near = query_c * _load(zero, feature, groups.pattern[group] * heads * width + shift)
        for k in _edges_in(groups, group, begin):
            product = _load(zero, key.flat, key_at[k] + shift) * near
            _add_part(product, parts, _part_at(h, room, k), c == 0)


@inlined
def _set_mean(zero: Any, h: int, c: int, given: Any) -> None:
    """The sum of weight times value times gate."""
    row, groups, inputs, value_at, weight, out = given
    i, begin, heads, room = row
    _, _, value, _, _, gate, width = inputs
    shift, result = h * width + c, zero
    for group in _groups_of(groups, i):
        part = zero
        for k in _edges_in(groups, group, begin):
            weight_k = _spread(zero, weight[_U(h * room) + k])
            part = part + weight_k * _load(zero, value.flat, value_at[k] + shift)
        result = result + _gated(zero, part, gate, groups.pattern[group] * heads * width + shift)
    _store(result, out, i * heads * width + shift)


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
    out, width, heads = kept.out, inputs.width, inputs.bias_RH.shape[1]
    longest = _longest_of_groups(groups, span)
    parts, (r, room) = _parts_scratch(longest, heads, out), _heads_scratch(longest, heads, out)
    w, _ = _heads_scratch(longest, heads, out)
    key_at, value_at = _scratch(longest, groups.other), _scratch(longest, groups.other)
    for i in range(span[0], span[1]):
        begin, size = _edges_of_groups(groups, i)
        _set_places(key_at, groups.other, begin, size, inputs.key.stride)
        _set_places(value_at, groups.other, begin, size, inputs.value.stride)
        row = i, begin, heads, room
        _pieces(_add_group_dots, heads, width, out, (row, groups, inputs, value_at, d, parts))
        for h in range(heads):
            _set_totals(parts, r, h * room, size)
            shift = h * width
            mean = _dot(d.flat, i * d.stride + shift, out, i * heads * width + shift, width)
            first, weight_at = _U(h * room), begin * _U(heads) + _U(h) * size
            for k in range(size):
                weight = kept.weight[weight_at + k]
                # nothing where the score was clipped
                r[first + k] = out.dtype.type(0) if weight < 0 else weight * (r[first + k] - mean)
                w[first + k] = abs(weight)
            for k in range(size):
                pair_E2H[begin + k, h], pair_E2H[begin + k, heads + h] = w[first + k], r[first + k]
            _add_biases(r, h, row, groups, gradients.dbias_SH)
        given = row, groups, inputs, (key_at, value_at), d, (w, r), gradients
        _pieces(_set_query, heads, width, out, given)


@inlined
def _add_biases(r: Reals, h: int, row: Any, groups: Any, dbias_SH: Reals) -> None:
    i, begin, _, room = row
    for group in _groups_of(groups, i):
        total = r.dtype.type(0)
        for k in _edges_in(groups, group, begin):
            total += r[_U(h * room) + k]
        dbias_SH[groups.slot[group], h] += total


@inlined
def _add_group_dots(zero: Any, h: int, c: int, given: Any) -> None:
    """Add d . (v * g) of each edge."""
    row, groups, inputs, value_at, d, parts = given
    i, begin, heads, room = row
    _, _, value, _, _, gate, width = inputs
    shift = h * width + c
    d_c = _load(zero, d.flat, i * d.stride + shift)
    for group in _groups_of(groups, i):
        near = _gated(zero, d_c, gate, groups.pattern[group] * heads * width + shift)
        for k in _edges_in(groups, group, begin):
            product = _load(zero, value.flat, value_at[k] + shift) * near
            _add_part(product, parts, _part_at(h, room, k), c == 0)


@inlined
def _set_query(zero: Any, h: int, c: int, given: Any) -> None:
    """Of one target: the query's gradient, and what goes to the terms."""
    row, groups, inputs, (key_at, value_at), d, (w, r), gradients = given
    i, begin, heads, room = row
    query, key, value, feature, _, gate, width = inputs
    dquery, dfeature, _, dgate = gradients
    size, shift = heads * width, h * width + c
    query_c = _load(zero, query.flat, i * query.stride + shift)
    d_c, result = _load(zero, d.flat, i * d.stride + shift), zero
    for group in _groups_of(groups, i):
        slot_at, part = groups.slot[group] * size + shift, zero
        for k in _edges_in(groups, group, begin):
            r_k = _spread(zero, r[_U(h * room) + k])
            part = part + r_k * _load(zero, key.flat, key_at[k] + shift)
        _store(_load(zero, dfeature, slot_at) + part * query_c, dfeature, slot_at)
        result = result + part * _load(zero, feature, groups.pattern[group] * size + shift)
        if len(gate):
            values = zero
            for k in _edges_in(groups, group, begin):
                w_k = _spread(zero, w[_U(h * room) + k])
                values = values + w_k * _load(zero, value.flat, value_at[k] + shift)
            _store(_load(zero, dgate, slot_at) + values * d_c, dgate, slot_at)
    _store(result, dquery, i * size + shift)


@compiled
def pattern_sources(
    span: Span, groups: Groups, inputs: Pattern, d: Rows, pair_E2H: Reals, dkey: Reals, dvalue: Reals
) -> None:
    """Gradients of keys and values by source."""
    heads, longest = pair_E2H.shape[1] // 2, _longest_of_groups(groups, span)
    w, room = _heads_scratch(longest, heads, dkey)
    r, _ = _heads_scratch(longest, heads, dkey)
    total = np.empty(heads, dkey.dtype)
    query_at, d_at = _scratch(longest, groups.other), _scratch(longest, groups.other)
    for j in range(span[0], span[1]):
        begin, size = _edges_of_groups(groups, j)
        _set_places(query_at, groups.other, begin, size, inputs.query.stride)
        _set_places(d_at, groups.other, begin, size, d.stride)
        _set_pairs((w, r, room, total), groups.number, begin, size, pair_E2H)
        given = (j, begin, heads, room), groups, inputs, (query_at, d_at), d, (w, r), dkey, dvalue
        _pieces(_set_key_and_value, heads, inputs.width, dkey, given)


@inlined
def _set_key_and_value(zero: Any, h: int, c: int, given: Any) -> None:
    row, groups, inputs, (query_at, d_at), d, (w, r), dkey, dvalue = given
    j, begin, heads, room = row
    query, _, _, feature, _, gate, width = inputs
    size, shift = heads * width, h * width + c
    key_sum, value_sum = zero, zero
    for group in _groups_of(groups, j):
        term_at, part, values = groups.pattern[group] * size + shift, zero, zero
        for k in _edges_in(groups, group, begin):
            r_k = _spread(zero, r[_U(h * room) + k])
            w_k = _spread(zero, w[_U(h * room) + k])
            part = part + r_k * _load(zero, query.flat, query_at[k] + shift)
            values = values + w_k * _load(zero, d.flat, d_at[k] + shift)
        key_sum = key_sum + part * _load(zero, feature, term_at)
        value_sum = value_sum + _gated(zero, values, gate, term_at)
    _store(key_sum, dkey, j * size + shift)
    _store(value_sum, dvalue, j * size + shift)


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
def _pieces(work: Any, heads: int, width: int, array: Reals, given: Any) -> None:
    """``work`` for each piece of each head: it gets zeros as wide as that, the head, and its place there."""
    for h in range(heads):
        c = 0
        while c + 128 <= width:
            work(_of_128(array), h, c, given)
            c += 128
        while c + 64 <= width:
            work(_of_64(array), h, c, given)
            c += 64
        while c + 32 <= width:
            work(_of_32(array), h, c, given)
            c += 32
        while c + 16 <= width:
            work(_of_16(array), h, c, given)
            c += 16
        while c < width:
            work(_of_1(array), h, c, given)
            c += 1


@inlined
def _longest(indptr: Integers, span: Span) -> Any:
    """Most edges of any of the rows."""
    longest = 0
    for i in range(span[0], span[1]):
        longest = max(longest, indptr[i + 1] - indptr[i])
    return longest


@inlined
def _longest_of_groups(groups: Any, span: Span) -> Any:
    longest = 0
    for i in range(span[0], span[1]):
        longest = max(longest, groups.indptr[groups.row_indptr[i + 1]] - groups.indptr[groups.row_indptr[i]])
    return longest


@inlined
def _scratch(longest: int, like: Any) -> Any:
    """Room for a number for each edge of a row, and for a piece more."""
    return np.empty(longest + _NARROW, like.dtype)


@inlined
def _room(longest: int) -> Any:
    """Numbers between one head's and the next one's in scratch."""
    return (longest // _NARROW + 2) * _NARROW


@inlined
def _heads_scratch(longest: int, heads: int, like: Any) -> tuple[Any, int]:
    """``_scratch`` for each head, one after the other, and how much that is for one."""
    return np.empty(heads * _room(longest), like.dtype), _room(longest)


@inlined
def _parts_scratch(longest: int, heads: int, like: Any) -> Any:
    """Sixteen numbers in place of each one."""
    return np.empty(heads * _room(longest) * _NARROW, like.dtype)


@inlined
def _part_at(h: int, room: int, k: Any) -> Any:
    """Where the sixteen numbers of an edge and head begin."""
    return (_U(h * room) + k) * _U(_NARROW)


@inlined
def _set_totals(parts: Reals, total: Reals, first: int, size: Any) -> None:
    """The sums of ``size`` times sixteen numbers; what lies beyond so many is there to be overwritten."""
    for k in range(_U(0), size, _U(_NARROW)):
        _store(_totals(parts, (_U(first) + k) * _U(_NARROW)), total, _U(first) + k)


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
def _softmax(score: Reals, first: int, size: Any) -> None:
    """Of ``size`` numbers from ``first`` on; what lies beyond them is there to be overwritten."""
    zero, at = _of_16(score), _U(first)
    lowest, total = _spread(zero, -np.inf), zero
    highest = lowest
    for k in range(_U(0), size, _U(_NARROW)):
        score_k = _within(_load(zero, score, at + k), size - k, lowest)
        highest = _choose(score_k, highest, score_k, highest)
    highest = _spread(zero, _highest(highest))
    for k in range(_U(0), size, _U(_NARROW)):
        power = _exp(_within(_load(zero, score, at + k), size - k, lowest) - highest)
        total = total + power
        _store(power, score, at + k)
    share = _spread(zero, score.dtype.type(1) / _total(total))
    for k in range(_U(0), size, _U(_NARROW)):
        _store(_load(zero, score, at + k) * share, score, at + k)


@inlined
def _clipped_powers(score: Reals, first: Any, size: Any, clip: Any) -> Any:
    """exp of ``size`` clipped scores in their place, negative where they were clipped; their sum.

    NaN stays NaN. What lies beyond those numbers is there to be overwritten.
    """
    zero = _of_16(score)
    clips, total = _spread(zero, clip), zero
    for k in range(_U(0), size, _U(_NARROW)):
        score_k = _load(zero, score, first + k)
        power = _exp(_choose(score_k, clips, clips, _choose(zero - clips, score_k, zero - clips, score_k)))
        _store(_choose(_absolute(score_k), clips, zero - power, power), score, first + k)
        total = total + _within(power, size - k, zero)
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
def _set_product(x: Reals, x_at: int, y: Reals, y_at: int, out: Reals, out_at: int, width: int) -> None:
    x_0, y_0, out_0 = _U(x_at), _U(y_at), _U(out_at)
    for c in range(_U(width)):
        out[out_0 + c] = x[x_0 + c] * y[y_0 + c]


@inlined
def _add_product(x: Reals, x_at: int, y: Reals, y_at: int, into: Reals, into_at: int, width: int) -> None:
    x_0, y_0, into_0 = _U(x_at), _U(y_at), _U(into_at)
    for c in range(_U(width)):
        into[into_0 + c] += x[x_0 + c] * y[y_0 + c]
