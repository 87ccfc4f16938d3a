# ruff: noqa: PLR0913, PLR0915  a launch takes one by one what it reads, writes and is compiled for
"""Loops of graph attention for CUDA devices, in Triton.

Enters: tensors whose sizes fit and whose indices are in range (the callers see to both), and virtual rows;
fewer than 2^31 edges, any number of numbers.
Leaves: tensors of the caller, filled. Invariants: vectors are only gathered, never scattered, and nothing is
added atomically, so results repeat bit for bit; what a launch does depends on its tables alone; no [E, H, N]
tensor exists; sums are of the type of what they are written to, whatever the type of what is read.

A program takes one virtual row and one head, and ``TILE`` of its edges at a time: their vectors stay in
registers, so that each pass gathers them once. Vectors are padded to ``PADDED`` numbers, a power of two. The
sums of a row that is cut in several are written beyond the rows and then merged, always in the same order.
Only where a module imports this one does it import Triton, which has no part in what runs on the CPU.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import triton
import triton.language as tl

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
Pointer: TypeAlias = tl.tensor
"""To the first number of a tensor; None for a tensor that is not given."""
Vector: TypeAlias = tl.tensor
"""Numbers of a program; suffixes say which: T edges of a tile, C columns of a head, K features, H heads."""


def compiled(function: Compiled) -> Compiled:
    """``function``, compiled when first launched; the machine code is kept for later processes."""
    return cast(Compiled, triton.jit(function))


@compiled
def gatv2_forward(
    x: Pointer,
    y: Pointer,
    a: Pointer,
    feature: Pointer,
    projection: Pointer,
    keep: Pointer,
    source: Pointer,
    first: Pointer,
    row: Pointer,
    place: Pointer,
    out: Pointer,
    score: Pointer,
    high: Pointer,
    total: Pointer,
    x_stride: int,
    y_stride: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    FEATURES: tl.constexpr,
    SLOPE: tl.constexpr,
) -> None:
    """Scores, and each row's highest one, sum of powers and output; of a part the output's numerator."""
    v = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    node = tl.load(row + v)
    begin = _bound(first + v)
    end = _bound(first + v + 1)
    y_C = _numbers(y + node * y_stride + column, inside, out)
    a_C = _numbers(a + column, inside, out)
    highest = tl.full([], float("-inf"), out.dtype.element_ty)
    powers = tl.full([], 0.0, out.dtype.element_ty)
    sum_C = tl.zeros([PADDED], out.dtype.element_ty)
    for start in range(begin, end, TILE):
        edge = start + tl.arange(0, TILE)
        seen = edge < end
        node_T = tl.load(source + edge, mask=seen, other=0)
        x_TC = _gather(x, node_T, x_stride, column, seen, inside, out)
        z_TC = x_TC + y_C[None, :]
        if FEATURES > 0:
            z_TC += _featured(feature, projection, edge, column, seen, inside, HEADS * WIDTH, FEATURES, out)
        score_T = tl.sum(tl.where(z_TC > 0, z_TC, z_TC * SLOPE) * a_C[None, :], 1)
        tl.store(score + _at(edge, HEADS, h), score_T, mask=seen)
        score_T = tl.where(seen, score_T, float("-inf"))
        raised = tl.maximum(highest, tl.max(score_T, 0))
        fade = tl.exp(highest - _finite(raised))
        power_T = tl.exp(score_T - _finite(raised))
        powers = powers * fade + tl.sum(power_T, 0)
        if keep is not None:
            power_T *= _numbers(keep + _at(edge, HEADS, h), seen, out)
        sum_C = sum_C * fade + tl.sum(power_T[:, None] * x_TC, 0)
        highest = raised
    there = tl.load(place + v)
    share = tl.where((there == node) & (begin < end), 1 / powers, 1)
    tl.store(out + there * HEADS * WIDTH + column, sum_C * share, mask=inside)
    tl.store(high + there * HEADS + h, highest)
    tl.store(total + there * HEADS + h, powers)


@compiled
def gatv2_targets(
    x: Pointer,
    y: Pointer,
    a: Pointer,
    feature: Pointer,
    projection: Pointer,
    keep: Pointer,
    source: Pointer,
    first: Pointer,
    row: Pointer,
    place: Pointer,
    out: Pointer,
    score: Pointer,
    high: Pointer,
    total: Pointer,
    d: Pointer,
    pair: Pointer,
    dy: Pointer,
    da: Pointer,
    dp: Pointer,
    x_stride: int,
    y_stride: int,
    d_stride: int,
    num_rows: int,
    rows_each: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    FEATURES: tl.constexpr,
    FEATURES_PADDED: tl.constexpr,
    SLOPE: tl.constexpr,
) -> None:
    """Gradients by target: of y, and of a and the features' projection the share of ``rows_each`` rows.

    ``pair`` gets what the sources need of each edge: its weight times the multiplier, and g.
    """
    block = (tl.program_id(0) // HEADS).to(tl.int64)
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    a_C = _numbers(a + column, inside, dy)
    level_C = tl.zeros([PADDED], dy.dtype.element_ty)
    feature_K = tl.arange(0, FEATURES_PADDED)
    step_KC = tl.zeros([FEATURES_PADDED, PADDED], dy.dtype.element_ty)
    for v in range(block * rows_each, tl.minimum((block + 1) * rows_each, num_rows)):
        node = tl.load(row + v)
        begin = _bound(first + v)
        end = _bound(first + v + 1)
        y_C = _numbers(y + node * y_stride + column, inside, dy)
        d_C = _numbers(d + node * d_stride + column, inside, dy)
        mean = tl.sum(d_C * _numbers(out + node * HEADS * WIDTH + column, inside, dy), 0)
        highest = tl.load(high + node * HEADS + h)
        share = 1 / tl.load(total + node * HEADS + h)
        step_C = tl.zeros([PADDED], dy.dtype.element_ty)
        for start in range(begin, end, TILE):
            edge = start + tl.arange(0, TILE)
            seen = edge < end
            node_T = tl.load(source + edge, mask=seen, other=0)
            x_TC = _gather(x, node_T, x_stride, column, seen, inside, dy)
            z_TC = x_TC + y_C[None, :]
            if FEATURES > 0:
                z_TC += _featured(
                    feature, projection, edge, column, seen, inside, HEADS * WIDTH, FEATURES, dy
                )
            score_T = tl.load(score + _at(edge, HEADS, h), mask=seen, other=0)
            weight_T = tl.exp(score_T - highest) * share
            kept_T = weight_T
            if keep is not None:
                kept_T *= _numbers(keep + _at(edge, HEADS, h), seen, dy)
            g_T = tl.where(seen, kept_T * tl.sum(x_TC * d_C[None, :], 1) - weight_T * mean, 0)
            tl.store(pair + _at(edge, 2 * HEADS, 2 * h), kept_T, mask=seen)
            tl.store(pair + _at(edge, 2 * HEADS, 2 * h + 1), g_T, mask=seen)
            g_TC = tl.where(z_TC > 0, g_T[:, None], g_T[:, None] * SLOPE)
            step_C += tl.sum(g_TC, 0)
            level_C += tl.sum(g_TC * z_TC, 0)
            for f in tl.static_range(FEATURES):
                feature_T = _numbers(feature + _at(edge, FEATURES, f), seen, dy)
                part_C = tl.sum(feature_T[:, None] * g_TC, 0)
                step_KC += tl.where(feature_K[:, None] == f, part_C[None, :], 0)
        tl.store(dy + tl.load(place + v) * HEADS * WIDTH + column, a_C * step_C, mask=inside)
    tl.store(da + block * HEADS * WIDTH + column, level_C, mask=inside)
    if FEATURES > 0:
        at_KC = (block * FEATURES + feature_K[:, None]) * HEADS * WIDTH + column[None, :]
        mask_KC = (feature_K[:, None] < FEATURES) & inside[None, :]
        tl.store(dp + at_KC, step_KC * a_C[None, :], mask=mask_KC)


@compiled
def gatv2_sources(
    x: Pointer,
    y: Pointer,
    a: Pointer,
    feature: Pointer,
    projection: Pointer,
    target: Pointer,
    number: Pointer,
    first: Pointer,
    row: Pointer,
    place: Pointer,
    d: Pointer,
    pair: Pointer,
    dx: Pointer,
    x_stride: int,
    y_stride: int,
    d_stride: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    FEATURES: tl.constexpr,
    SLOPE: tl.constexpr,
) -> None:
    """Gradients of x by source."""
    v = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    begin = _bound(first + v)
    end = _bound(first + v + 1)
    x_C = _numbers(x + tl.load(row + v) * x_stride + column, inside, dx)
    a_C = _numbers(a + column, inside, dx)
    sum_C = tl.zeros([PADDED], dx.dtype.element_ty)
    for start in range(begin, end, TILE):
        k = start + tl.arange(0, TILE)
        seen = k < end
        edge = tl.load(number + k, mask=seen, other=0)
        kept_T = tl.load(pair + _at(edge, 2 * HEADS, 2 * h), mask=seen, other=0)
        g_T = tl.load(pair + _at(edge, 2 * HEADS, 2 * h + 1), mask=seen, other=0)
        node_T = tl.load(target + k, mask=seen, other=0)
        d_TC = _gather(d, node_T, d_stride, column, seen, inside, dx)
        z_TC = _gather(y, node_T, y_stride, column, seen, inside, dx) + x_C[None, :]
        if FEATURES > 0:
            z_TC += _featured(feature, projection, edge, column, seen, inside, HEADS * WIDTH, FEATURES, dx)
        step_TC = tl.where(z_TC > 0, g_T[:, None], g_T[:, None] * SLOPE)
        sum_C += tl.sum(kept_T[:, None] * d_TC + step_TC * a_C[None, :], 0)
    tl.store(dx + tl.load(place + v) * HEADS * WIDTH + column, sum_C, mask=inside)


@compiled
def weighted_rows(
    weight: Pointer,
    x: Pointer,
    other: Pointer,
    number: Pointer,
    first: Pointer,
    place: Pointer,
    out: Pointer,
    x_stride: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Sums of weight times other end; ``number`` says which weight is an edge's, where it is not its own."""
    v = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    begin = _bound(first + v)
    end = _bound(first + v + 1)
    sum_C = tl.zeros([PADDED], out.dtype.element_ty)
    for start in range(begin, end, TILE):
        k = start + tl.arange(0, TILE)
        seen = k < end
        edge = k
        if number is not None:
            edge = tl.load(number + k, mask=seen, other=0)
        weight_T = _numbers(weight + _at(edge, HEADS, h), seen, out)
        node_T = tl.load(other + k, mask=seen, other=0)
        x_TC = _gather(x, node_T, x_stride, column, seen, inside, out)
        sum_C += tl.sum(weight_T[:, None] * x_TC, 0)
    tl.store(out + tl.load(place + v) * HEADS * WIDTH + column, sum_C, mask=inside)


@compiled
def edge_dots(
    d: Pointer,
    x: Pointer,
    source: Pointer,
    first: Pointer,
    row: Pointer,
    dot: Pointer,
    d_stride: int,
    x_stride: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """The inner product of both ends of each edge."""
    v = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    begin = _bound(first + v)
    end = _bound(first + v + 1)
    d_C = _numbers(d + tl.load(row + v) * d_stride + column, inside, dot)
    for start in range(begin, end, TILE):
        edge = start + tl.arange(0, TILE)
        seen = edge < end
        node_T = tl.load(source + edge, mask=seen, other=0)
        x_TC = _gather(x, node_T, x_stride, column, seen, inside, dot)
        tl.store(dot + _at(edge, HEADS, h), tl.sum(x_TC * d_C[None, :], 1), mask=seen)


@compiled
def edge_sums(
    value: Pointer,
    number: Pointer,
    first: Pointer,
    place: Pointer,
    out: Pointer,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Sums of the edges' numbers, ``PADDED`` columns in each program."""
    v = tl.program_id(0)
    column = tl.program_id(1) * PADDED + tl.arange(0, PADDED)
    inside = column < WIDTH
    begin = _bound(first + v)
    end = _bound(first + v + 1)
    sum_C = tl.zeros([PADDED], out.dtype.element_ty)
    for start in range(begin, end, TILE):
        edge = start + tl.arange(0, TILE)
        seen = edge < end
        if number is not None:
            edge = tl.load(number + edge, mask=seen, other=0)
        at_TC = _at(edge[:, None], WIDTH, column[None, :])
        sum_C += tl.sum(_numbers(value + at_TC, seen[:, None] & inside[None, :], out), 0)
    tl.store(out + tl.load(place + v) * WIDTH + column, sum_C, mask=inside)


@compiled
def softmax_parts(
    score: Pointer,
    first: Pointer,
    place: Pointer,
    high: Pointer,
    total: Pointer,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Highest score and sum of powers, of all heads together."""
    v = tl.program_id(0)
    h = tl.arange(0, PADDED)
    begin = _bound(first + v)
    end = _bound(first + v + 1)
    highest_H = tl.full([PADDED], float("-inf"), high.dtype.element_ty)
    powers_H = tl.zeros([PADDED], high.dtype.element_ty)
    for start in range(begin, end, TILE):
        edge = start + tl.arange(0, TILE)
        seen_TH = (edge < end)[:, None] & (h < HEADS)[None, :]
        score_TH = tl.load(score + _at(edge[:, None], HEADS, h[None, :]), mask=seen_TH, other=float("-inf"))
        raised_H = tl.maximum(highest_H, tl.max(score_TH, 0))
        powers_H *= tl.exp(highest_H - _finite(raised_H))
        powers_H += tl.sum(tl.exp(score_TH - _finite(raised_H)[None, :]), 0)
        highest_H = raised_H
    at_H = tl.load(place + v) * HEADS + h
    tl.store(high + at_H, highest_H, mask=h < HEADS)
    tl.store(total + at_H, powers_H, mask=h < HEADS)


@compiled
def softmax_weights(
    score: Pointer,
    first: Pointer,
    row: Pointer,
    high: Pointer,
    total: Pointer,
    weight: Pointer,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Softmax from the scores and each row's highest one and sum of powers."""
    v = tl.program_id(0)
    h = tl.arange(0, PADDED)
    begin = _bound(first + v)
    end = _bound(first + v + 1)
    at_H = tl.load(row + v) * HEADS + h
    highest_H = tl.load(high + at_H, mask=h < HEADS, other=0)
    share_H = 1 / tl.load(total + at_H, mask=h < HEADS, other=1)
    for start in range(begin, end, TILE):
        edge = start + tl.arange(0, TILE)
        seen_TH = (edge < end)[:, None] & (h < HEADS)[None, :]
        at_TH = _at(edge[:, None], HEADS, h[None, :])
        power_TH = tl.exp(tl.load(score + at_TH, mask=seen_TH, other=0) - highest_H[None, :])
        tl.store(weight + at_TH, power_TH * share_H[None, :], mask=seen_TH)


@compiled
def merge_sums(
    sums: Pointer,
    split: Pointer,
    part_first: Pointer,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Each split row's sum of its parts."""
    m = tl.program_id(0)
    column = tl.program_id(1) * PADDED + tl.arange(0, PADDED)
    inside = column < WIDTH
    begin = _bound(part_first + m)
    end = _bound(part_first + m + 1)
    sum_C = tl.zeros([PADDED], sums.dtype.element_ty)
    for start in range(begin, end, TILE):
        part = start + tl.arange(0, TILE)
        seen_TC = (part < end)[:, None] & inside[None, :]
        sum_C += tl.sum(tl.load(sums + _at(part[:, None], WIDTH, column[None, :]), mask=seen_TC, other=0), 0)
    tl.store(sums + tl.load(split + m) * WIDTH + column, sum_C, mask=inside)


@compiled
def merge_powers(
    high: Pointer,
    total: Pointer,
    split: Pointer,
    part_first: Pointer,
    HEADS: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Each split row's highest score, and its sum of powers."""
    m = tl.program_id(0)
    h = tl.arange(0, PADDED)
    begin = _bound(part_first + m)
    end = _bound(part_first + m + 1)
    highest_H = tl.full([PADDED], float("-inf"), high.dtype.element_ty)
    powers_H = tl.zeros([PADDED], high.dtype.element_ty)
    for start in range(begin, end, TILE):
        part = start + tl.arange(0, TILE)
        seen_TH = (part < end)[:, None] & (h < HEADS)[None, :]
        at_TH = _at(part[:, None], HEADS, h[None, :])
        high_TH = tl.load(high + at_TH, mask=seen_TH, other=float("-inf"))
        total_TH = tl.load(total + at_TH, mask=seen_TH, other=0)
        raised_H = tl.maximum(highest_H, tl.max(high_TH, 0))
        powers_H *= tl.exp(highest_H - _finite(raised_H))
        powers_H += tl.sum(total_TH * tl.exp(high_TH - _finite(raised_H)[None, :]), 0)
        highest_H = raised_H
    at_H = tl.load(split + m) * HEADS + h
    tl.store(high + at_H, highest_H, mask=h < HEADS)
    tl.store(total + at_H, powers_H, mask=h < HEADS)


@compiled
def merge_softmax(
    out: Pointer,
    high: Pointer,
    total: Pointer,
    split: Pointer,
    part_first: Pointer,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Each split row's output from its parts' numerators; after ``merge_powers``."""
    m = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    begin = _bound(part_first + m)
    end = _bound(part_first + m + 1)
    node = tl.load(split + m)
    highest = _finite(tl.load(high + node * HEADS + h))
    sum_C = tl.zeros([PADDED], out.dtype.element_ty)
    for start in range(begin, end, TILE):
        part = start + tl.arange(0, TILE)
        seen = part < end
        fade_T = tl.exp(tl.load(high + _at(part, HEADS, h), mask=seen, other=float("-inf")) - highest)
        at_TC = _at(part[:, None], HEADS * WIDTH, column[None, :])
        part_TC = tl.load(out + at_TC, mask=seen[:, None] & inside[None, :], other=0)
        sum_C += tl.sum(fade_T[:, None] * part_TC, 0)
    share = 1 / tl.load(total + node * HEADS + h)
    tl.store(out + node * HEADS * WIDTH + column, sum_C * share, mask=inside)


@compiled
def merge_means(
    out: Pointer,
    total: Pointer,
    split: Pointer,
    part_first: Pointer,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    EPSILON: tl.constexpr,
) -> None:
    """Each split row's sum of weights, and its mean from its parts' numerators."""
    m = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    begin = _bound(part_first + m)
    end = _bound(part_first + m + 1)
    node = tl.load(split + m)
    weights = tl.full([], 0.0, out.dtype.element_ty)
    sum_C = tl.zeros([PADDED], out.dtype.element_ty)
    for start in range(begin, end, TILE):
        part = start + tl.arange(0, TILE)
        seen = part < end
        weights += tl.sum(tl.load(total + _at(part, HEADS, h), mask=seen, other=0), 0)
        at_TC = _at(part[:, None], HEADS * WIDTH, column[None, :])
        sum_C += tl.sum(tl.load(out + at_TC, mask=seen[:, None] & inside[None, :], other=0), 0)
    tl.store(out + node * HEADS * WIDTH + column, sum_C / (weights + EPSILON), mask=inside)
    tl.store(total + node * HEADS + h, weights)


@compiled
def pattern_forward(
    query: Pointer,
    key: Pointer,
    value: Pointer,
    feature: Pointer,
    bias: Pointer,
    gate: Pointer,
    source: Pointer,
    piece_edge: Pointer,
    piece_pattern: Pointer,
    first: Pointer,
    row: Pointer,
    place: Pointer,
    out: Pointer,
    weight: Pointer,
    total: Pointer,
    query_stride: int,
    key_stride: int,
    value_stride: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    CLIP: tl.constexpr,
    EPSILON: tl.constexpr,
) -> None:
    """Powers of the scores, negative where they were clipped, their sum, and each row's mean.

    Of a part the mean's numerator.
    """
    v = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    query_C = _numbers(query + tl.load(row + v) * query_stride + column, inside, out)
    powers = tl.full([], 0.0, out.dtype.element_ty)
    sum_C = tl.zeros([PADDED], out.dtype.element_ty)
    for piece in range(_bound(first + v), _bound(first + v + 1)):
        pattern = _bound(piece_pattern + piece)
        near_C = query_C * _numbers(feature + pattern * HEADS * WIDTH + column, inside, out)
        shift = tl.load(bias + pattern * HEADS + h).to(out.dtype.element_ty)
        part_C = tl.zeros([PADDED], out.dtype.element_ty)
        end = _bound(piece_edge + piece + 1)
        for start in range(_bound(piece_edge + piece), end, TILE):
            edge = start + tl.arange(0, TILE)
            seen = edge < end
            node_T = tl.load(source + edge, mask=seen, other=0)
            key_TC = _gather(key, node_T, key_stride, column, seen, inside, out)
            value_TC = _gather(value, node_T, value_stride, column, seen, inside, out)
            score_T = tl.sum(key_TC * near_C[None, :], 1) + shift
            clipped_T = tl.where(score_T < -CLIP, -CLIP, tl.where(score_T > CLIP, CLIP, score_T))
            power_T = tl.where(seen, tl.exp(clipped_T), 0)
            shut_T = (score_T < -CLIP) | (score_T > CLIP)
            tl.store(weight + _at(edge, HEADS, h), tl.where(shut_T, -power_T, power_T), mask=seen)
            powers += tl.sum(power_T, 0)
            part_C += tl.sum(power_T[:, None] * value_TC, 0)
        if gate is not None:
            part_C *= _numbers(gate + pattern * HEADS * WIDTH + column, inside, out)
        sum_C += part_C
    there = tl.load(place + v)
    share = tl.where(there == tl.load(row + v), 1 / (powers + EPSILON), 1)
    tl.store(out + there * HEADS * WIDTH + column, sum_C * share, mask=inside)
    tl.store(total + there * HEADS + h, powers)


@compiled
def pattern_targets(
    query: Pointer,
    key: Pointer,
    value: Pointer,
    feature: Pointer,
    gate: Pointer,
    source: Pointer,
    piece_edge: Pointer,
    piece_pattern: Pointer,
    piece_slot: Pointer,
    first: Pointer,
    row: Pointer,
    place: Pointer,
    out: Pointer,
    weight: Pointer,
    total: Pointer,
    d: Pointer,
    pair: Pointer,
    dquery: Pointer,
    dfeature: Pointer,
    dbias: Pointer,
    dgate: Pointer,
    query_stride: int,
    key_stride: int,
    value_stride: int,
    d_stride: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    EPSILON: tl.constexpr,
) -> None:
    """Gradients by target: of the queries, and each piece's share of those of its pattern's terms.

    ``pair`` gets what the sources need of each edge: its weight, and r.
    """
    v = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    node = tl.load(row + v)
    query_C = _numbers(query + node * query_stride + column, inside, dquery)
    d_C = _numbers(d + node * d_stride + column, inside, dquery)
    mean = tl.sum(d_C * _numbers(out + node * HEADS * WIDTH + column, inside, dquery), 0)
    share = 1 / (tl.load(total + node * HEADS + h) + EPSILON)
    sum_C = tl.zeros([PADDED], dquery.dtype.element_ty)
    for piece in range(_bound(first + v), _bound(first + v + 1)):
        term = _bound(piece_pattern + piece) * HEADS * WIDTH
        slot = tl.load(piece_slot + piece)
        near_C = d_C
        if gate is not None:
            near_C *= _numbers(gate + term + column, inside, dquery)
        part_C = tl.zeros([PADDED], dquery.dtype.element_ty)
        values_C = tl.zeros([PADDED], dquery.dtype.element_ty)
        shift = tl.full([], 0.0, dquery.dtype.element_ty)
        end = _bound(piece_edge + piece + 1)
        for start in range(_bound(piece_edge + piece), end, TILE):
            edge = start + tl.arange(0, TILE)
            seen = edge < end
            node_T = tl.load(source + edge, mask=seen, other=0)
            value_TC = _gather(value, node_T, value_stride, column, seen, inside, dquery)
            key_TC = _gather(key, node_T, key_stride, column, seen, inside, dquery)
            signed_T = tl.load(weight + _at(edge, HEADS, h), mask=seen, other=0) * share
            r_T = signed_T * (tl.sum(value_TC * near_C[None, :], 1) - mean)
            r_T = tl.where(seen & ~(signed_T < 0), r_T, 0)
            tl.store(pair + _at(edge, 2 * HEADS, 2 * h), tl.abs(signed_T), mask=seen)
            tl.store(pair + _at(edge, 2 * HEADS, 2 * h + 1), r_T, mask=seen)
            shift += tl.sum(r_T, 0)
            part_C += tl.sum(r_T[:, None] * key_TC, 0)
            if gate is not None:
                values_C += tl.sum(tl.abs(signed_T)[:, None] * value_TC, 0)
        sum_C += part_C * _numbers(feature + term + column, inside, dquery)
        tl.store(dfeature + slot * HEADS * WIDTH + column, part_C * query_C, mask=inside)
        tl.store(dbias + slot * HEADS + h, shift)
        if gate is not None:
            tl.store(dgate + slot * HEADS * WIDTH + column, values_C * d_C, mask=inside)
    tl.store(dquery + tl.load(place + v) * HEADS * WIDTH + column, sum_C, mask=inside)


@compiled
def pattern_sources(
    query: Pointer,
    feature: Pointer,
    gate: Pointer,
    target: Pointer,
    number: Pointer,
    piece_edge: Pointer,
    piece_pattern: Pointer,
    first: Pointer,
    place: Pointer,
    d: Pointer,
    pair: Pointer,
    dkey: Pointer,
    dvalue: Pointer,
    query_stride: int,
    d_stride: int,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Gradients of keys and values by source."""
    v = tl.program_id(0) // HEADS
    h = tl.program_id(0) % HEADS
    inside = tl.arange(0, PADDED) < WIDTH
    column = h * WIDTH + tl.arange(0, PADDED)
    key_C = tl.zeros([PADDED], dkey.dtype.element_ty)
    value_C = tl.zeros([PADDED], dkey.dtype.element_ty)
    for piece in range(_bound(first + v), _bound(first + v + 1)):
        term = _bound(piece_pattern + piece) * HEADS * WIDTH
        keys_C = tl.zeros([PADDED], dkey.dtype.element_ty)
        values_C = tl.zeros([PADDED], dkey.dtype.element_ty)
        end = _bound(piece_edge + piece + 1)
        for start in range(_bound(piece_edge + piece), end, TILE):
            k = start + tl.arange(0, TILE)
            seen = k < end
            edge = tl.load(number + k, mask=seen, other=0)
            weight_T = tl.load(pair + _at(edge, 2 * HEADS, 2 * h), mask=seen, other=0)
            r_T = tl.load(pair + _at(edge, 2 * HEADS, 2 * h + 1), mask=seen, other=0)
            node_T = tl.load(target + k, mask=seen, other=0)
            query_TC = _gather(query, node_T, query_stride, column, seen, inside, dkey)
            d_TC = _gather(d, node_T, d_stride, column, seen, inside, dkey)
            keys_C += tl.sum(r_T[:, None] * query_TC, 0)
            values_C += tl.sum(weight_T[:, None] * d_TC, 0)
        key_C += keys_C * _numbers(feature + term + column, inside, dkey)
        if gate is not None:
            values_C *= _numbers(gate + term + column, inside, dkey)
        value_C += values_C
    at_C = tl.load(place + v) * HEADS * WIDTH + column
    tl.store(dkey + at_C, key_C, mask=inside)
    tl.store(dvalue + at_C, value_C, mask=inside)


@compiled
def _bound(place: Pointer) -> Vector:
    """Where a loop begins or ends: it counts entries of a table in 32 bits, which take half the registers."""
    return tl.load(place).to(tl.int32)


@compiled
def _at(number: Vector, EACH: tl.constexpr, offset: Vector) -> Vector:
    """Offset in a tensor that has ``EACH`` numbers for one, in 64 bits."""
    return number.to(tl.int64) * EACH + offset


@compiled
def _numbers(place: Vector, there: Vector, like: Pointer) -> Vector:
    """The numbers at ``place``, zero where there is none, as numbers of the type that ``like`` points to."""
    return tl.load(place, mask=there, other=0).to(like.dtype.element_ty)


@compiled
def _gather(
    base: Pointer,
    node_T: Vector,
    stride: int,
    column: Vector,
    seen: Vector,
    inside: Vector,
    like: Pointer,
) -> Vector:
    """The nodes' numbers; zero for edges and columns that are not there."""
    at_TC = (node_T * stride)[:, None] + column[None, :]
    return _numbers(base + at_TC, seen[:, None] & inside[None, :], like)


@compiled
def _featured(
    feature: Pointer,
    projection: Pointer,
    edge: Vector,
    column: Vector,
    seen: Vector,
    inside: Vector,
    STRIDE: tl.constexpr,
    FEATURES: tl.constexpr,
    like: Pointer,
) -> Vector:
    """What the edges' features add to z."""
    sum_TC = tl.zeros([edge.shape[0], column.shape[0]], like.dtype.element_ty)
    for f in tl.static_range(FEATURES):
        feature_T = _numbers(feature + _at(edge, FEATURES, f), seen, like)
        projection_C = _numbers(projection + f * STRIDE + column, inside, like)
        sum_TC += feature_T[:, None] * projection_C[None, :]
    return sum_TC


@compiled
def _finite(highest: Vector) -> Vector:
    """The highest score, or 0 where no edge has a score above minus infinity."""
    return tl.where(highest > float("-inf"), highest, 0)
