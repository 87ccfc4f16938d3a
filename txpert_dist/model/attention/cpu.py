"""Graph attention on the CPU: compiled kernels, as differentiable functions of tensors.

Enters: tensors of one real type, single or double precision, and edge tables on the CPU. Leaves: what the
functions of the same names in ``gatv2``, ``aggregate`` and ``pattern`` define, differentiable once.
Invariants: forward and backward only gather, backward through the edges by source; results are the same bit
for bit for any number of threads; only (E, H) numbers are kept for the gradient, besides what enters and
leaves.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from txpert_dist.model.attention import cpu_kernels as kernels
from txpert_dist.model.attention.edges import EdgeTable
from txpert_dist.model.attention.pattern_edges import Groups, PatternTable
from txpert_dist.model.attention.threads import over_blocks, row_bounds

_NONE = np.empty(0, np.int64)


class Gatv2Given(NamedTuple):
    """What of GATv2's arguments no gradient goes to."""

    edges: EdgeTable
    slope: float
    feature_EK: Tensor | None
    keep_EH: Tensor | None


def gatv2(
    x_SHN: Tensor, y_THN: Tensor, a_HN: Tensor, projection_KHN: Tensor | None, given: Gatv2Given
) -> Tensor:
    """(T, H, N): see ``gatv2.gatv2_attention``."""
    if projection_KHN is None:
        projection_KHN = x_SHN.new_empty(0, *a_HN.shape)
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
    gate_RHN = query_THN.new_empty(0, *query_THN.shape[1:]) if gate_RHN is None else gate_RHN
    out_THN: Tensor = _Pattern.apply(  # type: ignore[no-untyped-call]
        query_THN, key_SHN, value_SHN, feature_RHN, bias_RH, gate_RHN, edges, limits
    )
    return out_THN


class _Gatv2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SHN: Tensor, y_THN: Tensor, a_HN: Tensor, p_KHN: Tensor, given: Gatv2Given
    ) -> Tensor:
        edges, out_THN = given.edges, y_THN.new_empty(y_THN.shape)
        keep_EH = x_SHN.new_empty(0, x_SHN.shape[1]) if given.keep_EH is None else given.keep_EH
        heads, width = a_HN.shape
        weight = x_SHN.new_empty(len(edges.source) * heads)
        kept_weight = weight if given.keep_EH is None else torch.empty_like(weight)
        marks = torch.empty(len(weight) * kernels.mark_bytes(width), dtype=torch.uint8)
        inputs = _gatv2_inputs(x_SHN, y_THN, a_HN, p_KHN, given)
        by_target, keep = _by_target(edges), _array(keep_EH)
        kept = kernels.Gatv2Kept(_flat(out_THN), *map(_array, (weight, kept_weight, marks)))
        over_blocks(
            row_bounds(edges.host_indptr),
            lambda _, span: kernels.gatv2_forward(span, by_target, inputs, heads, keep, kept),
        )
        ctx.save_for_backward(x_SHN, y_THN, a_HN, p_KHN, out_THN, weight, kept_weight, marks)
        ctx.given = given
        return out_THN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_THN: Tensor) -> tuple[Tensor | None, ...]:
        x_SHN, y_THN, a_HN, p_KHN, out_THN, *edge_arrays = ctx.saved_tensors
        given: Gatv2Given = ctx.given
        inputs, d = _gatv2_inputs(x_SHN, y_THN, a_HN, p_KHN, given), _rows(d_THN.contiguous())
        kept = kernels.Gatv2Kept(_flat(out_THN), *map(_array, edge_arrays))
        pair_E2H = np.empty((len(given.edges.source), 2 * len(a_HN)), kept.out.dtype)
        by_target, bounds = _by_target(given.edges), row_bounds(given.edges.host_indptr)
        dx_SHN, dy_THN = x_SHN.new_empty(x_SHN.shape), y_THN.new_empty(y_THN.shape)
        da_BHN = torch.zeros(len(bounds) - 1, *a_HN.shape, dtype=torch.float64)
        step_BKHN = torch.zeros(len(bounds) - 1, *p_KHN.shape, dtype=torch.float64)
        gradients = kernels.Gatv2Gradients(*map(_flat, (dy_THN, da_BHN, step_BKHN)))
        over_blocks(
            bounds,
            lambda block, span: kernels.gatv2_targets(
                span, (block, bounds), by_target, inputs, kept, d, pair_E2H, gradients
            ),
        )
        by_source = _by_source(given.edges)
        source_bounds = row_bounds(by_source.indptr)
        more_BHN = torch.zeros(len(source_bounds) - 1, *a_HN.shape, dtype=torch.float64)
        into = _flat(dx_SHN), _flat(more_BHN)
        over_blocks(
            source_bounds,
            lambda block, span: kernels.gatv2_sources(
                span, (block, source_bounds), by_source, inputs, kept.marks, d, pair_E2H, into
            ),
        )
        step_KHN = step_BKHN.sum(0)
        da_HN = da_BHN.sum(0) + more_BHN.sum(0) + (p_KHN * step_KHN).sum(0)
        return dx_SHN, dy_THN, da_HN.to(a_HN.dtype), (a_HN * step_KHN).to(a_HN.dtype), None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_EH: Tensor, x_SHN: Tensor, edges: EdgeTable) -> Tensor:
        ctx.save_for_backward(weight_EH, x_SHN)
        ctx.edges = edges
        return _weighted_rows(weight_EH, x_SHN, _by_target(edges))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_THN: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight_EH, x_SHN = ctx.saved_tensors
        edges: EdgeTable = ctx.edges
        dweight_EH = dx_SHN = None
        if ctx.needs_input_grad[0]:
            dweight_EH = torch.empty(weight_EH.shape, dtype=weight_EH.dtype)
            by_target, d, x, dweight = _by_target(edges), _rows(d_THN), _rows(x_SHN), _array(dweight_EH)
            over_blocks(
                row_bounds(edges.host_indptr),
                lambda _, span: kernels.edge_dots(span, by_target, d, x, x_SHN.shape[2], dweight),
            )
        if ctx.needs_input_grad[1]:
            dx_SHN = _weighted_rows(weight_EH, d_THN, _by_source(edges))
        return dweight_EH, dx_SHN, None


class _EdgeSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score_EH: Tensor, edges: EdgeTable) -> Tensor:
        weight_EH = torch.empty(score_EH.shape, dtype=score_EH.dtype)
        indptr, score, weight = edges.host_indptr, _array(score_EH), _array(weight_EH)
        over_blocks(row_bounds(indptr), lambda _, span: kernels.softmax_rows(span, indptr, score, weight))
        ctx.save_for_backward(weight_EH)
        ctx.edges = edges
        return weight_EH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_EH: Tensor) -> tuple[Tensor, None]:
        (weight_EH,) = ctx.saved_tensors
        dscore_EH = torch.empty_like(weight_EH)
        indptr = ctx.edges.host_indptr
        weight, d, dscore = _array(weight_EH), _array(d_EH), _array(dscore_EH)
        over_blocks(
            row_bounds(indptr),
            lambda _, span: kernels.softmax_rows_backward(span, indptr, weight, d, dscore),
        )
        return dscore_EH, None


class _EdgeEnds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SH: Tensor, target_TH: Tensor, edges: EdgeTable) -> Tensor:
        ctx.edges = edges
        return source_SH.index_select(0, edges.source).add_(target_TH.index_select(0, edges.target))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_EH: Tensor) -> tuple[Tensor, Tensor, None]:
        return _edge_sums(d_EH, _by_source(ctx.edges)), _edge_sums(d_EH, _by_target(ctx.edges)), None


class _EdgeSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_EN: Tensor, edges: EdgeTable) -> Tensor:
        ctx.edges = edges
        return _edge_sums(value_EN, _by_target(edges))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_TN: Tensor) -> tuple[Tensor, None]:
        return d_TN.index_select(0, ctx.edges.target), None


class _Pattern(torch.autograd.Function):
    """A gate without elements is none."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, edges, limits = arguments
        inputs = _pattern_inputs(tensors)
        out_THN: Tensor = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
        weight = out_THN.new_empty(len(edges.order) * out_THN.shape[1])
        kept = kernels.PatternKept(_flat(out_THN), _array(weight))
        groups, (clip, epsilon) = _by_pattern(edges.by_target, slot=edges.slot_G), limits
        ends = kept.out.dtype.type(clip), kept.out.dtype.type(epsilon)
        over_blocks(edges.bounds, lambda _, span: kernels.pattern_forward(span, groups, ends, inputs, kept))
        ctx.save_for_backward(*tensors, out_THN, weight)
        ctx.edges = edges
        return out_THN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_THN: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out_THN, weight = ctx.saved_tensors
        edges: PatternTable = ctx.edges
        inputs, d = _pattern_inputs(tensors), _rows(d_THN.contiguous())
        kept = kernels.PatternKept(_flat(out_THN), _array(weight))
        pair_E2H = np.empty((len(edges.order), 2 * out_THN.shape[1]), kept.out.dtype)
        dquery_THN, dkey_SHN, dvalue_SHN = (torch.empty(x.shape, dtype=x.dtype) for x in tensors[:3])
        dfeature_SHN, dbias_SH, dgate_SHN = sums = [
            x.new_zeros(len(edges.slot_order) if len(x) else 0, *x.shape[1:]) for x in tensors[3:]
        ]
        gradients = kernels.PatternGradients(
            _flat(dquery_THN), _flat(dfeature_SHN), _array(dbias_SH), _flat(dgate_SHN)
        )
        by_target = _by_pattern(edges.by_target, slot=edges.slot_G)
        over_blocks(
            edges.bounds,
            lambda _, span: kernels.pattern_targets(span, by_target, inputs, kept, d, pair_E2H, gradients),
        )
        by_source = _by_pattern(edges.by_source, number=_array(edges.order))
        dkey, dvalue = _flat(dkey_SHN), _flat(dvalue_SHN)
        over_blocks(
            row_bounds(_array(edges.by_source.node_indptr)),
            lambda _, span: kernels.pattern_sources(span, by_source, inputs, d, pair_E2H, dkey, dvalue),
        )
        dterms = [_slot_sums(part, edges, of) for part, of in zip(sums, tensors[3:], strict=True)]
        return dquery_THN, dkey_SHN, dvalue_SHN, *dterms, None, None


def _gatv2_inputs(
    x_SHN: Tensor, y_THN: Tensor, a_HN: Tensor, p_KHN: Tensor, given: Gatv2Given
) -> kernels.Gatv2:
    a = _flat(a_HN)
    features = None if given.feature_EK is None else kernels.Features(_array(given.feature_EK), _flat(p_KHN))
    return kernels.Gatv2(_rows(x_SHN), _rows(y_THN), a, a.dtype.type(given.slope), features)


def _pattern_inputs(tensors: Sequence[Tensor]) -> kernels.Pattern:
    query_THN, key_SHN, value_SHN, feature_RHN, bias_RH, gate_RHN = tensors
    return kernels.Pattern(
        *(_rows(query_THN), _rows(key_SHN), _rows(value_SHN)),
        *(_flat(feature_RHN), _array(bias_RH), _flat(gate_RHN)),
        query_THN.shape[2],
    )


def _weighted_rows(weight_EH: Tensor, x_SHN: Tensor, edges: kernels.Edges) -> Tensor:
    out_THN = x_SHN.new_empty(len(edges.indptr) - 1, *x_SHN.shape[1:])
    weight, x, out = _array(weight_EH), _rows(x_SHN), _flat(out_THN)
    over_blocks(
        row_bounds(edges.indptr),
        lambda _, span: kernels.weighted_rows(span, edges, weight, x, out, x_SHN.shape[2]),
    )
    return out_THN


def _edge_sums(value_EN: Tensor, edges: kernels.Edges) -> Tensor:
    out_TN = value_EN.new_empty(len(edges.indptr) - 1, value_EN.shape[1])
    value, out = _array(value_EN), _flat(out_TN)
    over_blocks(row_bounds(edges.indptr), lambda _, span: kernels.edge_sums(span, edges, value, out))
    return out_TN


def _slot_sums(value_SM: Tensor, edges: PatternTable, of_RM: Tensor) -> Tensor:
    """Of each pattern the sum over the blocks, zero for one without edges; shaped as ``of_RM``."""
    out_RM, width = torch.zeros_like(of_RM), of_RM.flatten(1).shape[1]
    if not len(of_RM):
        return out_RM
    indptr, order, value, out = edges.slot_indptr, edges.slot_order, _flat(value_SM), _flat(out_RM)
    over_blocks(row_bounds(indptr), lambda _, span: kernels.sum_slots(span, indptr, order, value, out, width))
    return out_RM


def _by_target(edges: EdgeTable) -> kernels.Edges:
    return kernels.Edges(edges.host_indptr, _array(edges.source), _NONE)


def _by_source(edges: EdgeTable) -> kernels.Edges:
    return kernels.Edges(*map(_array, (edges.source_indptr, edges.source_target, edges.source_order)))


def _by_pattern(
    groups: Groups, *, number: NDArray[np.int64] = _NONE, slot: NDArray[np.int64] = _NONE
) -> kernels.Groups:
    return kernels.Groups(
        *(_array(groups.group_indptr), _array(groups.indptr), _array(groups.pattern), _array(groups.other)),
        *(number, slot),
    )


def _rows(x_PHN: Tensor) -> kernels.Rows:
    """The vectors where they lie, if each node's numbers lie side by side."""
    _, heads, width = x_PHN.shape
    if x_PHN.stride()[1:] != (width, 1) or x_PHN.stride(0) < heads * width:
        x_PHN = x_PHN.contiguous()
    stride = x_PHN.stride(0)
    length = (len(x_PHN) - 1) * stride + heads * width if len(x_PHN) else 0
    return kernels.Rows(_array(x_PHN.as_strided((length,), (1,))), stride)


def _flat(x: Tensor) -> NDArray[Any]:
    return _array(x.flatten())


def _array(x: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = x.detach().contiguous().numpy()
    return array
