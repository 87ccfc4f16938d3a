"""Graph attention on a CUDA device: Triton's kernels, as differentiable functions of tensors.

Enters: tensors of real types, each of its own, and edge tables on their device. Leaves: what the functions of
the same names in ``gatv2``, ``aggregate`` and ``pattern`` define, differentiable once, in single precision or
better. Invariants: numbers stored in half precision are read as they are and computed with in single; forward
and backward only gather, backward through the edges by source; nothing is added atomically, so results repeat
bit for bit; only (E, H) numbers, and two for each row, are kept for the gradient, besides what enters and
leaves; nothing waits for the device, and no size depends on what it computes, so that a CUDA graph can hold
all of it. In Triton's interpreter tensors may lie on the CPU.
"""

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from txpert_dist.model.attention.cpu import Gatv2Given
from txpert_dist.model.attention.edges import EdgeTable
from txpert_dist.model.attention.pattern_edges import Groups, PatternTable
from txpert_dist.model.attention.virtual_rows import Pieces, VirtualRows

_ROWS_EACH = 8
"""Virtual rows of a program that also sums over rows, so that its sums are read and written as much less."""
_TILE_EDGES = 8
"""Edges that a program takes at a time: of twice as many the numbers leave registers for few programs."""
_TILE_PARTS = 16
_TILE_NUMBERS = 4096
"""Most numbers of a tile of edges or parts, which a program has in its registers, some several times."""
_MOST_REGISTERS = 128
"""Of pattern attention's forward pass: left to itself, the assembler spills some to have few."""
_COLUMNS = 128
"""Columns of a program that sums without heads."""


def gatv2(
    x_SHN: Tensor, y_THN: Tensor, a_HN: Tensor, projection_KHN: Tensor | None, given: Gatv2Given
) -> Tensor:
    """(T, H, N): see ``gatv2.gatv2_attention``."""
    out_THN: Tensor = _Gatv2.apply(x_SHN, y_THN, a_HN, projection_KHN, given)  # type: ignore[no-untyped-call]
    return out_THN


def weighted_sum(weight_EH: Tensor, x_SHN: Tensor, edges: EdgeTable) -> Tensor:
    """(T, H, N): see ``aggregate.weighted_sum``."""
    out_THN: Tensor = _WeightedSum.apply(weight_EH, x_SHN, edges)  # type: ignore[no-untyped-call]
    return out_THN


def edge_softmax(score_EH: Tensor, edges: EdgeTable) -> Tensor:
    """(E, H): see ``aggregate.edge_softmax``."""
    weight_EH: Tensor = _EdgeSoftmax.apply(score_EH, edges)  # type: ignore[no-untyped-call]
    return weight_EH


def edge_ends(source_SH: Tensor, target_TH: Tensor, edges: EdgeTable) -> Tensor:
    """(E, H): see ``aggregate.edge_ends``."""
    sum_EH: Tensor = _EdgeEnds.apply(source_SH, target_TH, edges)  # type: ignore[no-untyped-call]
    return sum_EH


def edge_sum(value_EN: Tensor, edges: EdgeTable) -> Tensor:
    """(T, N): see ``aggregate.edge_sum``."""
    sum_TN: Tensor = _EdgeSum.apply(value_EN, edges)  # type: ignore[no-untyped-call]
    return sum_TN


def pattern(tensors: Sequence[Tensor | None], edges: PatternTable, limits: tuple[float, float]) -> Tensor:
    """(T, H, N): see ``pattern.pattern_attention``.

    ``tensors`` are query, key, value, feature, bias and gate or None, ``limits`` the clip and the epsilon.
    """
    *given, gate_RHN = tensors
    query_THN, key_SHN, value_SHN, feature_RHN, bias_RH = (x for x in given if x is not None)
    out_THN: Tensor = _Pattern.apply(  # type: ignore[no-untyped-call]
        query_THN, key_SHN, value_SHN, feature_RHN, bias_RH, gate_RHN, edges, limits
    )
    return out_THN


class _Gatv2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SHN: Tensor, y_THN: Tensor, a_HN: Tensor, p_KHN: Tensor | None, given: Gatv2Given
    ) -> Tensor:
        x_SHN, y_THN, rows = _rows(x_SHN), _rows(y_THN), given.edges.target_rows
        inputs, options = _gatv2_inputs(x_SHN, y_THN, a_HN, p_KHN, given)
        out_LHN = y_THN.new_empty(rows.num_places, *a_HN.shape, dtype=_real(x_SHN, y_THN, a_HN))
        score_EH = out_LHN.new_empty(len(given.edges.source), len(a_HN))
        high_LH, total_LH = (out_LHN.new_empty(out_LHN.shape[:2]) for _ in range(2))
        kept = out_LHN, score_EH, high_LH, total_LH
        tensors = *inputs, _multipliers(given), given.edges.source, *rows[:3], *kept
        grid = (len(rows.row) * len(a_HN),)
        _launch("gatv2_forward", grid, [*tensors, x_SHN.stride(0), y_THN.stride(0)], options)
        _merge_powers(high_LH, total_LH, rows)
        grid, columns = (len(rows.split) * len(a_HN),), _columns(out_LHN, _TILE_PARTS)
        _launch("merge_softmax", grid, [out_LHN, high_LH, total_LH, *rows[3:]], columns)
        ctx.save_for_backward(x_SHN, y_THN, a_HN, p_KHN, *kept)
        ctx.given = given
        return out_LHN[: len(y_THN)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_THN: Tensor) -> tuple[Tensor | None, ...]:
        x_SHN, y_THN, a_HN, p_KHN, *kept = ctx.saved_tensors
        given: Gatv2Given = ctx.given
        edges, heads, d_THN = given.edges, len(a_HN), _rows(d_THN)
        inputs, options = _gatv2_inputs(x_SHN, y_THN, a_HN, p_KHN, given)
        strides = x_SHN.stride(0), y_THN.stride(0), d_THN.stride(0)
        rows, by_source = edges.target_rows, edges.source_rows
        blocks = -(-len(rows.row) // _ROWS_EACH)
        pair_EH2 = d_THN.new_empty(len(edges.source), heads, 2)
        dy_LHN = d_THN.new_empty(rows.num_places, *a_HN.shape)
        da_BHN = d_THN.new_empty(blocks, *a_HN.shape)
        dp_BKHN = None if p_KHN is None else d_THN.new_empty(blocks, *p_KHN.shape)
        tensors = *inputs, _multipliers(given), edges.source, *rows[:3], *kept, d_THN, pair_EH2
        gradients = dy_LHN, da_BHN, dp_BKHN
        _launch(
            *("gatv2_targets", (blocks * heads,)),
            [*tensors, *gradients, *strides, len(rows.row), _ROWS_EACH],
            options | {"FEATURES_PADDED": _power_of_2(options["FEATURES"])},
        )
        dx_LHN = d_THN.new_empty(by_source.num_places, *a_HN.shape)
        tensors = *inputs, edges.source_target, edges.source_order, *by_source[:3], d_THN, pair_EH2, dx_LHN
        _launch("gatv2_sources", (len(by_source.row) * heads,), [*tensors, *strides], options)
        dx_SHN, dy_THN = _merged(dx_LHN, by_source, len(x_SHN)), _merged(dy_LHN, rows, len(y_THN))
        dp_KHN = None if p_KHN is None or dp_BKHN is None else _total(dp_BKHN, p_KHN)
        return dx_SHN.to(x_SHN.dtype), dy_THN.to(y_THN.dtype), _total(da_BHN, a_HN), dp_KHN, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_EH: Tensor, x_SHN: Tensor, edges: EdgeTable) -> Tensor:
        x_SHN, weight_EH = _rows(x_SHN), weight_EH.contiguous()
        ctx.save_for_backward(weight_EH, x_SHN)
        ctx.edges = edges
        num_targets = len(edges.host_indptr) - 1
        return _weighted_rows(weight_EH, x_SHN, edges.source, None, edges.target_rows, num_targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_THN: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight_EH, x_SHN = ctx.saved_tensors
        edges: EdgeTable = ctx.edges
        d_THN, rows, dweight_EH, dx_SHN = _rows(d_THN), edges.target_rows, None, None
        if ctx.needs_input_grad[0]:
            dweight_EH = d_THN.new_empty(weight_EH.shape)
            grid, strides = (len(rows.row) * weight_EH.shape[1],), (d_THN.stride(0), x_SHN.stride(0))
            tensors = d_THN, x_SHN, edges.source, *rows[:2], dweight_EH
            _launch("edge_dots", grid, [*tensors, *strides], _columns(d_THN))
            dweight_EH = dweight_EH.to(weight_EH.dtype)
        if ctx.needs_input_grad[1]:
            by_source = edges.source_target, edges.source_order, edges.source_rows
            dx_SHN = _weighted_rows(weight_EH, d_THN, *by_source, len(x_SHN)).to(x_SHN.dtype)
        return dweight_EH, dx_SHN, None


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score_EH: Tensor, edges: EdgeTable) -> Tensor:
        score_EH, rows = score_EH.contiguous(), edges.target_rows
        weight_EH = torch.empty_like(score_EH)
        high_LH, total_LH = (score_EH.new_empty(rows.num_places, score_EH.shape[1]) for _ in range(2))
        grid, options = (len(rows.row),), _heads(score_EH)
        _launch("softmax_parts", grid, [score_EH, rows.first, rows.place, high_LH, total_LH], options)
        _merge_powers(high_LH, total_LH, rows)
        _launch("softmax_weights", grid, [score_EH, *rows[:2], high_LH, total_LH, weight_EH], options)
        ctx.save_for_backward(weight_EH)
        ctx.edges = edges
        return weight_EH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_EH: Tensor) -> tuple[Tensor, None]:
        (weight_EH,) = ctx.saved_tensors
        edges: EdgeTable = ctx.edges
        part_EH = weight_EH * d_EH
        total_TH = _by_target(part_EH, edges)
        return part_EH.sub_(total_TH.index_select(0, edges.target).mul_(weight_EH)), None


class _EdgeEnds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SH: Tensor, target_TH: Tensor, edges: EdgeTable) -> Tensor:
        ctx.edges = edges
        return source_SH.index_select(0, edges.source).add_(target_TH.index_select(0, edges.target))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_EH: Tensor) -> tuple[Tensor, Tensor, None]:
        edges: EdgeTable = ctx.edges
        dsource_LH = _row_sums(d_EH.contiguous(), edges.source_order, edges.source_rows, d_EH.dtype)
        return dsource_LH[: len(edges.source_indptr) - 1], _by_target(d_EH, edges), None


class _EdgeSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_EN: Tensor, edges: EdgeTable) -> Tensor:
        ctx.edges = edges
        return _by_target(value_EN, edges)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TN: Tensor) -> tuple[Tensor, None]:
        return d_TN.index_select(0, ctx.edges.target), None


class _Pattern(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, edges, limits = arguments
        tensors = _pattern_inputs(tensors)
        query_THN, (groups, pieces) = tensors[0], (edges.by_target, edges.target_pieces)
        rows, heads = pieces.rows, query_THN.shape[1]
        real = _real(*(x for x in tensors if x is not None))
        out_LHN = query_THN.new_empty(rows.num_places, *query_THN.shape[1:], dtype=real)
        weight_EH, total_LH = out_LHN.new_empty(len(edges.order), heads), out_LHN.new_empty(out_LHN.shape[:2])
        clip, epsilon = limits
        given = *tensors, groups.other, *pieces[1:3], *rows[:3], out_LHN, weight_EH, total_LH
        _launch(
            *("pattern_forward", (len(rows.row) * heads,)),
            [*given, *(x.stride(0) for x in tensors[:3])],
            _columns(out_LHN, _run(groups, pieces))
            | {"CLIP": clip, "EPSILON": epsilon, "maxnreg": _MOST_REGISTERS},
        )
        columns = _columns(out_LHN, _TILE_PARTS) | {"EPSILON": epsilon}
        _launch("merge_means", (len(rows.split) * heads,), [out_LHN, total_LH, *rows[3:]], columns)
        ctx.save_for_backward(*tensors, out_LHN, weight_EH, total_LH)
        ctx.edges, ctx.epsilon = edges, epsilon
        mean_THN: Tensor = out_LHN[: len(query_THN)]
        return mean_THN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_THN: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out_LHN, weight_EH, total_LH = ctx.saved_tensors
        query_THN, key_SHN, value_SHN, feature_RHN, _, gate_RHN = tensors
        edges: PatternTable = ctx.edges
        d_THN, heads, shape = _rows(d_THN), query_THN.shape[1], query_THN.shape[1:]
        pieces, by_source = edges.target_pieces, edges.source_pieces
        pair_EH2 = d_THN.new_empty(len(edges.order), heads, 2)
        dquery_LHN = d_THN.new_empty(pieces.rows.num_places, *shape)
        slots = [None if x is None else d_THN.new_empty(len(pieces.slot), *x.shape[1:]) for x in tensors[3:]]
        given = *tensors[:4], gate_RHN, edges.by_target.other, *pieces[1:], *pieces.rows[:3]
        kept = out_LHN, weight_EH, total_LH, d_THN, pair_EH2, dquery_LHN, *slots
        _launch(
            *("pattern_targets", (len(pieces.rows.row) * heads,)),
            [*given, *kept, *(x.stride(0) for x in (*tensors[:3], d_THN))],
            _columns(d_THN, _run(edges.by_target, pieces)) | {"EPSILON": ctx.epsilon},
        )
        rows = by_source.rows
        dkey_LHN, dvalue_LHN = (d_THN.new_empty(rows.num_places, *shape) for _ in range(2))
        given = query_THN, feature_RHN, gate_RHN, edges.by_source.other, edges.order, *by_source[1:3]
        found = rows.first, rows.place, d_THN, pair_EH2, dkey_LHN, dvalue_LHN
        _launch(
            *("pattern_sources", (len(rows.row) * heads,)),
            [*given, *found, query_THN.stride(0), d_THN.stride(0)],
            _columns(d_THN, _run(edges.by_source, by_source)),
        )
        dterms = [_slot_sums(part, edges, of) for part, of in zip(slots, tensors[3:], strict=True)]
        return (
            _merged(dquery_LHN, pieces.rows, len(query_THN)).to(query_THN.dtype),
            _merged(dkey_LHN, rows, len(key_SHN)).to(key_SHN.dtype),
            _merged(dvalue_LHN, rows, len(value_SHN)).to(value_SHN.dtype),
            *(*dterms, None, None),
        )


def _gatv2_inputs(
    x_SHN: Tensor, y_THN: Tensor, a_HN: Tensor, p_KHN: Tensor | None, given: Gatv2Given
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """The tensors that all passes read, and what they are compiled for."""
    feature_EK = None if p_KHN is None or given.feature_EK is None else given.feature_EK.contiguous()
    projection_KHN = None if p_KHN is None or feature_EK is None else p_KHN.contiguous()
    num_features = 0 if feature_EK is None else feature_EK.shape[1]
    options = {**_columns(x_SHN), "FEATURES": num_features, "SLOPE": given.slope}
    return [x_SHN, y_THN, a_HN.contiguous(), feature_EK, projection_KHN], options


def _multipliers(given: Gatv2Given) -> Tensor | None:
    return None if given.keep_EH is None else given.keep_EH.contiguous()


def _pattern_inputs(tensors: Sequence[Tensor | None]) -> list[Any]:
    *nodes, feature_RHN, bias_RH, gate_RHN = tensors
    terms = (None if x is None else x.contiguous() for x in (feature_RHN, bias_RH, gate_RHN))
    return [*(_rows(x) for x in nodes if x is not None), *terms]


def _weighted_rows(
    weight_EH: Tensor, x_SHN: Tensor, other: Tensor, number: Tensor | None, rows: VirtualRows, num_rows: int
) -> Tensor:
    """(R, H, N): of each row the sum of weight times other end, in single precision or better."""
    real = _real(weight_EH, x_SHN)
    out_LHN = x_SHN.new_empty(rows.num_places, *x_SHN.shape[1:], dtype=real)
    tensors = weight_EH, x_SHN, other, number, rows.first, rows.place, out_LHN
    grid = (len(rows.row) * x_SHN.shape[1],)
    _launch("weighted_rows", grid, [*tensors, x_SHN.stride(0)], _columns(x_SHN))
    return _merged(out_LHN, rows, num_rows)


def _by_target(value_EN: Tensor, edges: EdgeTable) -> Tensor:
    sum_LN = _row_sums(value_EN.contiguous(), None, edges.target_rows, value_EN.dtype)
    return sum_LN[: len(edges.host_indptr) - 1]


def _row_sums(value_EN: Tensor, number: Tensor | None, rows: VirtualRows, real: torch.dtype) -> Tensor:
    """(places, N): sums of each row's edges, and of the parts of rows that are cut; in the type ``real``."""
    width = value_EN.shape[1]
    sum_LN = value_EN.new_empty(rows.num_places, width, dtype=real)
    grid, options = (len(rows.row), _column_blocks(width)), _columns_of_sums(width)
    _launch("edge_sums", grid, [value_EN, number, rows.first, rows.place, sum_LN], options)
    return _merged(sum_LN, rows, rows.num_places)


def _merged(sum_LHN: Tensor, rows: VirtualRows, num_rows: int) -> Tensor:
    """The rows' sums, once those of split rows are those of their parts."""
    width = math.prod(sum_LHN.shape[1:])
    grid, options = (len(rows.split), _column_blocks(width)), _columns_of_sums(width)
    _launch("merge_sums", grid, [sum_LHN, *rows[3:]], options)
    return sum_LHN[:num_rows]


def _merge_powers(high_LH: Tensor, total_LH: Tensor, rows: VirtualRows) -> None:
    _launch("merge_powers", (len(rows.split),), [high_LH, total_LH, *rows[3:]], _heads(high_LH))


def _slot_sums(value_GM: Tensor | None, edges: PatternTable, of_RM: Tensor | None) -> Tensor | None:
    """Of each pattern the sum over its pieces, in double precision, zero for one without; as ``of_RM``."""
    if value_GM is None or of_RM is None:
        return None
    sum_LN = _row_sums(value_GM.flatten(1), None, edges.pattern_rows, torch.float64)
    num_patterns = len(edges.slot_indptr) - 1
    out_RM = torch.zeros_like(of_RM)
    out_RM[:num_patterns] = sum_LN[:num_patterns].view(num_patterns, *of_RM.shape[1:])
    return out_RM


def _total(part_BM: Tensor, like: Tensor) -> Tensor:
    return part_BM.sum(0, dtype=torch.float64).to(like.dtype)


def _rows(x_PHN: Tensor) -> Tensor:
    """The vectors where they lie, if each node's numbers lie side by side."""
    _, heads, width = x_PHN.shape
    if x_PHN.stride()[1:] != (width, 1) or x_PHN.stride(0) < heads * width:
        return x_PHN.contiguous()
    return x_PHN


def _real(*tensors: Tensor) -> torch.dtype:
    """What to compute in: single precision or better."""
    real = torch.float32
    for tensor in tensors:
        real = torch.promote_types(real, tensor.dtype)
    return real


def _columns(x_PHN: Tensor, most: int = _TILE_EDGES) -> dict[str, Any]:
    """What kernels are compiled for that take a head in each program, and at most so many edges at a time."""
    heads, width = x_PHN.shape[1:]
    padded = _power_of_2(width)
    tile, warps = max(min(most, _TILE_NUMBERS // padded), 1), min(max(padded // 64, 1), 4)
    return {"HEADS": heads, "WIDTH": width, "PADDED": padded, "TILE": tile, "num_warps": warps}


def _columns_of_sums(width: int) -> dict[str, Any]:
    padded = min(_power_of_2(width), _COLUMNS)
    return {"WIDTH": width, "PADDED": padded, "TILE": min(_TILE_NUMBERS // 2 // padded, 64), "num_warps": 1}


def _column_blocks(width: int) -> int:
    return -(-width // _COLUMNS)


def _heads(x_LH: Tensor) -> dict[str, Any]:
    heads = x_LH.shape[1]
    return {"HEADS": heads, "PADDED": _power_of_2(heads), "TILE": 32, "num_warps": 1}


def _run(groups: Groups, pieces: Pieces) -> int:
    """Edges to take at a time: about as many as a piece has."""
    return min(max(_power_of_2(-(-len(groups.other) // max(len(pieces.pattern), 1))), 4), _TILE_EDGES)


def _power_of_2(number: int) -> int:
    """The least that is no less."""
    return 1 << max(number - 1, 0).bit_length()


def _launch(name: str, grid: tuple[int, ...], arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Start the kernel, on its tensors' device, if it has something to do."""
    if 0 in grid:
        return
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        getattr(_kernels(), name)[grid](*arguments, **options)


def _kernels() -> ModuleType:
    # not before a tensor needs them: where there is no CUDA device there may be no Triton
    from txpert_dist.model.attention import cuda_kernels

    return cuda_kernels
