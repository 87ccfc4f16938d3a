"""Sums over the edges that enter each target.

Enters: numbers for every edge, vectors for every node, an edge table. Leaves: sums, softmax weights.
Invariants: exact forward and backward; sums in single precision or better, also under autocast; on the CPU
the order of every sum is fixed, so results repeat bit for bit; no [E, H, N] array ever exists outside blocks
that fit the cache. Here is the reference in plain torch; ``cpu`` and ``cuda`` have the compiled ones.

Backward, with d the gradient of the result: o_i = sum w_ij x_j gives d_i . x_j to w_ij and, summed over the
edges that leave j, w_ij d_i to x_j; a softmax w gives w_ij (d_ij - sum_k w_ik d_ik) to its scores.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from txpert_dist.model.attention import cpu, cuda
from txpert_dist.model.attention.backend import Backend, kernels_for
from txpert_dist.model.attention.edges import EdgeTable, check_shape, row_blocks

_BLOCK_ELEMENTS = 1 << 18
"""Numbers in a block's [edges, H, N] arrays: 1 MiB in single precision, about a core's second-level cache."""


def weighted_sum(weight_EH: Tensor, x_SHN: Tensor, edges: EdgeTable, *, backend: Backend = "auto") -> Tensor:
    """(T, H, N): for every target the sum over its edges of weight times the source's vector.

    Differentiable once in both. Targets without edges get zero. The result has the dtype of ``x_SHN``. Raises
    ``ValueError`` for a shape that does not fit the edges, as all of these do.
    """
    check_shape("weights", weight_EH, len(edges.source), x_SHN.shape[1])
    check_shape("sources", x_SHN, len(edges.source_indptr) - 1, *x_SHN.shape[1:])
    wide = torch.promote_types(torch.promote_types(weight_EH.dtype, x_SHN.dtype), torch.float32)
    kernels = kernels_for(backend, x_SHN.new_empty(0, dtype=wide))
    if kernels == "cuda":
        return cuda.weighted_sum(weight_EH, x_SHN, edges).to(x_SHN.dtype)
    weight_EH, wide_SHN = weight_EH.to(wide), x_SHN.to(wide)
    if kernels == "cpu":
        return cpu.weighted_sum(weight_EH, wide_SHN, edges).to(x_SHN.dtype)
    out_THN: Tensor = _WeightedSum.apply(weight_EH, wide_SHN, edges)  # type: ignore[no-untyped-call]
    return out_THN.to(x_SHN.dtype)


def edge_softmax(score_EH: Tensor, edges: EdgeTable, *, backend: Backend = "auto") -> Tensor:
    """(E, H): the softmax of the scores of the edges that enter each target, in single precision or better.

    Differentiable once.
    """
    check_shape("scores", score_EH, len(edges.source), score_EH.shape[1])
    score_EH = score_EH.to(torch.promote_types(score_EH.dtype, torch.float32))
    kernels = kernels_for(backend, score_EH)
    if kernels == "cuda":
        return cuda.edge_softmax(score_EH, edges)
    if kernels == "cpu":
        return cpu.edge_softmax(score_EH, edges)
    weight_EH: Tensor = _EdgeSoftmax.apply(score_EH, edges)  # type: ignore[no-untyped-call]
    return weight_EH


def edge_ends(source_SH: Tensor, target_TH: Tensor, edges: EdgeTable, *, backend: Backend = "auto") -> Tensor:
    """(E, H): for every edge its source's numbers plus its target's. Differentiable once."""
    heads = source_SH.shape[1]
    check_shape("sources", source_SH, len(edges.source_indptr) - 1, heads)
    check_shape("targets", target_TH, len(edges.host_indptr) - 1, heads)
    kernels = kernels_for(backend, source_SH)
    if kernels == "cuda":
        return cuda.edge_ends(source_SH, target_TH, edges)
    if kernels == "cpu":
        return cpu.edge_ends(source_SH, target_TH, edges)
    return source_SH.index_select(0, edges.source) + target_TH.index_select(0, edges.target)


def edge_sum(value_EN: Tensor, edges: EdgeTable, *, backend: Backend = "auto") -> Tensor:
    """(T, N): for every target the sum of its edges' numbers, in single precision or better.

    Differentiable once. Targets without edges get zero.
    """
    check_shape("values", value_EN, len(edges.source), value_EN.shape[1])
    value_EN = value_EN.to(torch.promote_types(value_EN.dtype, torch.float32))
    kernels = kernels_for(backend, value_EN)
    if kernels == "cuda":
        return cuda.edge_sum(value_EN, edges)
    if kernels == "cpu":
        return cpu.edge_sum(value_EN, edges)
    zero_TN = value_EN.new_zeros(len(edges.host_indptr) - 1, value_EN.shape[1])
    return zero_TN.index_add(0, edges.target, value_EN)


def block_edges(x_PHN: Tensor) -> int:
    """Edges of a block whose [edges, H, N] arrays fit the cache."""
    if x_PHN.is_cuda:
        return 1 << 62  # an accelerator wants all the work at once
    return max(_BLOCK_ELEMENTS // max(x_PHN.shape[1] * x_PHN.shape[2], 1), 1)


def sum_rows(weight_EH: Tensor, x_PHN: Tensor, row: Tensor, indptr: Tensor) -> Tensor:
    """(R, H, N): sums of ``weight_EH[e] * x_PHN[row[e]]`` over the entries e of each interval of ``indptr``.

    Not differentiable; ``indptr`` (R + 1,) ascends from 0 to E.
    """
    # an embedding bag reads every row where it lies: several times faster than gather, multiply, scatter
    parts = [
        functional.embedding_bag(
            row,
            x_PHN[:, head].contiguous(),
            indptr,
            mode="sum",
            per_sample_weights=weight_EH[:, head].contiguous(),
            include_last_offset=True,
        )
        for head in range(x_PHN.shape[1])
    ]
    return torch.stack(parts, 1)


def segment_softmax_(score_EH: Tensor, indptr: Tensor, segment: Tensor) -> Tensor:
    """Softmax of ``score_EH``, in its place, within the intervals of ``indptr`` (from 0); not differentiable.

    ``segment`` (E,) is the number of the interval that each row lies in.
    """
    highest_RH = torch.segment_reduce(score_EH, "max", offsets=indptr, axis=0, unsafe=True)
    power_EH = score_EH.sub_(highest_RH.index_select(0, segment)).exp_()
    total_RH = torch.segment_reduce(power_EH, "sum", offsets=indptr, axis=0, unsafe=True)
    return power_EH.div_(total_RH.index_select(0, segment))


class _WeightedSum(torch.autograd.Function):
    """The gradient of the vectors goes through the edges sorted by source."""

    @staticmethod
    def forward(ctx: Any, weight_EH: Tensor, x_PHN: Tensor, edges: EdgeTable) -> Tensor:
        ctx.save_for_backward(weight_EH, x_PHN)
        ctx.edges = edges
        return sum_rows(weight_EH, x_PHN, edges.source, edges.indptr)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_PHN: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight_EH, x_PHN = ctx.saved_tensors
        edges: EdgeTable = ctx.edges
        dweight_EH = _dot_ends(d_PHN, x_PHN, edges) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dweight_EH, None, None
        weight_EH = weight_EH.index_select(0, edges.source_order)
        return dweight_EH, sum_rows(weight_EH, d_PHN, edges.source_target, edges.source_indptr), None


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score_EH: Tensor, edges: EdgeTable) -> Tensor:
        weight_EH = segment_softmax_(score_EH.clone(), edges.indptr, edges.target)
        ctx.save_for_backward(weight_EH)
        ctx.edges = edges
        return weight_EH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_EH: Tensor) -> tuple[Tensor, None]:
        (weight_EH,) = ctx.saved_tensors
        edges: EdgeTable = ctx.edges
        part_EH = weight_EH * d_EH
        total_PH = torch.segment_reduce(part_EH, "sum", offsets=edges.indptr, axis=0, unsafe=True)
        return part_EH.sub_(total_PH.index_select(0, edges.target).mul_(weight_EH)), None


def _dot_ends(target_PHN: Tensor, source_PHN: Tensor, edges: EdgeTable) -> Tensor:
    """(E, H): the inner product of the vectors of each edge's ends."""
    dot_EH = source_PHN.new_empty(len(edges.source), source_PHN.shape[1])
    for _, block in row_blocks(edges.host_indptr, block_edges(source_PHN)):
        ends_EHN = target_PHN.index_select(0, edges.target[block])
        dot_EH[block] = ends_EHN.mul_(source_PHN.index_select(0, edges.source[block])).sum(-1)
    return dot_EH
