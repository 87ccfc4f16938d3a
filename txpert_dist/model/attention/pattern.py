"""Clipped attention over edges that share few distinct features.

Enters: queries, keys and values of the nodes, one row of features for every *pattern* of edges (not for every
edge), the edges. Leaves: each target's weighted mean of its sources' values. Invariants: exact forward and
backward; single precision or better inside; on the CPU the order of every sum is fixed, so results repeat bit
for bit; no [E, H, N] array ever exists outside blocks that fit the cache, and only (E, H) numbers are kept
for the gradient.

    s_ij = clip(q_i . (k_j * e_t) + b_t, -5, 5),   a_ij = exp(s_ij),
    o_i = sum a_ij v_j * g_t / (sum a_ij + 1e-6)

for an edge j -> i of pattern t (Exphormer, Shirzad et al. 2023; the bias b and the gate g are TxPert's). The
clip bounds the exponential, so that no maximum need be subtracted. Backward, with d the gradient of o and
u_i = d_i / (sum a_ij + 1e-6): the score's gradient is r_ij = a_ij (u_i . (v_j * g_t) - u_i . o_i) where the
clip is open, 0 elsewhere; q_i gets the sum of r_ij k_j * e_t, k_j that of r_ij q_i * e_t, e_t that of
r_ij q_i * k_j; v_j and g_t likewise, with u for q, a for r and g for e.

Sums run over groups, the edges of one pattern at one end: what a pattern multiplies is taken out of a group's
sum, and no step scatters edge by edge.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from txpert_dist.model.attention import cpu, cuda
from txpert_dist.model.attention.aggregate import block_edges, sum_rows
from txpert_dist.model.attention.backend import Backend, kernels_for
from txpert_dist.model.attention.edges import check_shape, row_blocks
from txpert_dist.model.attention.pattern_edges import Groups, PatternTable

CLIP = 5.0
"""Largest score in size."""
EPSILON = 1e-6
"""Added to the sum of weights, as Exphormer does."""


class EdgeTerms(NamedTuple):
    """What the edges of each pattern bring to attention."""

    feature_RHN: Tensor
    """e, which multiplies query and key; any scale of the scores is in it."""
    bias_RH: Tensor
    """b, added to the score."""
    gate_RHN: Tensor | None = None
    """g, which multiplies the values; 1 when None."""


def pattern_attention(
    query_THN: Tensor,
    key_SHN: Tensor,
    value_SHN: Tensor,
    terms: EdgeTerms,
    edges: PatternTable,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Weighted means (T, H, N) of ``value_SHN`` over each target's edges; zero without edges.

    Differentiable once in all the tensors. The result has the dtype of ``value_SHN``. Raises ``ValueError``
    for a shape that does not fit the edges.
    """
    _check_shapes(query_THN, key_SHN, value_SHN, terms, edges)
    wide = torch.promote_types(value_SHN.dtype, torch.float32)
    kernels = kernels_for(backend, value_SHN.new_empty(0, dtype=wide))
    if kernels == "cuda":
        tensors = query_THN, key_SHN, value_SHN, *terms
        return cuda.pattern(tensors, edges, (CLIP, EPSILON)).to(value_SHN.dtype)
    parts = [None if x is None else x.to(wide) for x in (query_THN, key_SHN, value_SHN, *terms)]
    if kernels == "cpu":
        return cpu.pattern(parts, edges, (CLIP, EPSILON)).to(value_SHN.dtype)
    # a head at a time: its rows lie side by side, as an embedding bag reads them
    out_HTN = [
        _Head.apply(*(None if x is None else x[:, head].contiguous() for x in parts), edges)  # type: ignore[no-untyped-call]
        for head in range(value_SHN.shape[1])
    ]
    return torch.stack(out_HTN, 1).to(value_SHN.dtype)


def _check_shapes(
    query_THN: Tensor, key_SHN: Tensor, value_SHN: Tensor, terms: EdgeTerms, edges: PatternTable
) -> None:
    shape, num_sources = query_THN.shape[1:], len(edges.by_source.node_indptr) - 1
    num_patterns = max(len(terms.feature_RHN), len(edges.slot_indptr) - 1)
    check_shape("targets", query_THN, len(edges.by_target.node_indptr) - 1, *shape)
    check_shape("keys", key_SHN, num_sources, *shape)
    check_shape("values", value_SHN, num_sources, *shape)
    check_shape("features", terms.feature_RHN, num_patterns, *shape)
    check_shape("biases", terms.bias_RH, num_patterns, shape[0])
    if terms.gate_RHN is not None:
        check_shape("gates", terms.gate_RHN, num_patterns, *shape)


class _Head(torch.autograd.Function):
    """The formulas of the module's docstring, for one head."""

    @staticmethod
    def forward(
        ctx: Any,
        query_PN: Tensor,
        key_PN: Tensor,
        value_PN: Tensor,
        feature_RN: Tensor,
        bias_R: Tensor,
        gate_RN: Tensor | None,
        edges: PatternTable,
    ) -> Tensor:
        groups = edges.by_target
        score_E = _products(query_PN, key_PN, feature_RN, groups)
        score_E += bias_R.index_select(0, groups.pattern).index_select(0, groups.group)
        weight_E = score_E.clamp(-CLIP, CLIP).exp_()
        total_P1 = _segment_sums(weight_E, groups.node_indptr).add_(EPSILON).unsqueeze(1)
        out_PN = _sums(weight_E, value_PN, gate_RN, groups).div_(total_P1)
        ctx.save_for_backward(
            *(query_PN, key_PN, value_PN, feature_RN, gate_RN), *(score_E, total_P1, out_PN)
        )
        ctx.edges = edges
        return out_PN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_PN: Tensor) -> tuple[Tensor | None, ...]:
        query_PN, key_PN, value_PN, feature_RN, gate_RN, score_E, total_P1, out_PN = ctx.saved_tensors
        groups, by_source, order = ctx.edges[:3]
        weight_E = score_E.clamp(-CLIP, CLIP).exp_()
        u_PN = d_PN / total_P1
        mean_P = (u_PN * out_PN).sum(1)
        r_E = _products(u_PN, value_PN, gate_RN, groups)
        r_E -= mean_P.index_select(0, groups.node).index_select(0, groups.group)
        r_E.mul_(weight_E).mul_(score_E.abs() <= CLIP)
        dfeature_RN = torch.zeros_like(feature_RN)
        dquery_PN = _sums(r_E, key_PN, feature_RN, groups, query_PN, dfeature_RN)
        dgate_RN = None
        if gate_RN is not None:
            dgate_RN = torch.zeros_like(gate_RN)
            _sums(weight_E, value_PN, gate_RN, groups, u_PN, dgate_RN)
        dbias_R = r_E.new_zeros(len(feature_RN))
        dbias_R.index_add_(0, groups.pattern, _segment_sums(r_E, groups.indptr))
        dkey_PN = _sums(r_E.index_select(0, order), query_PN, feature_RN, by_source)
        dvalue_PN = _sums(weight_E.index_select(0, order), u_PN, gate_RN, by_source)
        return dquery_PN, dkey_PN, dvalue_PN, dfeature_RN, dbias_R, dgate_RN, None


def _products(near_PN: Tensor, far_PN: Tensor, factor_RN: Tensor | None, groups: Groups) -> Tensor:
    """(E,): the inner product of each edge's node with its other end times its pattern's factor."""
    product_E = near_PN.new_empty(len(groups.other))
    for span, block in row_blocks(groups.host_indptr, _block_rows(near_PN)):
        near_GN = near_PN.index_select(0, groups.node[span])
        if factor_RN is not None:
            near_GN.mul_(factor_RN.index_select(0, groups.pattern[span]))
        ends_EN = near_GN.index_select(0, groups.group[block] - span.start)
        torch.sum(ends_EN.mul_(far_PN.index_select(0, groups.other[block])), 1, out=product_E[block])
    return product_E


def _sums(
    weight_E: Tensor,
    far_PN: Tensor,
    factor_RN: Tensor | None,
    groups: Groups,
    near_PN: Tensor | None = None,
    dfactor_RN: Tensor | None = None,
) -> Tensor:
    """(P, N): of each node's edges the sum of weight times other end times pattern's factor.

    With ``near_PN`` adds to ``dfactor_RN`` the sum of weight times both ends over each pattern's edges.
    """
    if factor_RN is None:
        return _bags(weight_E, far_PN, groups.other, groups.node_indptr)
    sum_PN = far_PN.new_zeros(len(groups.node_indptr) - 1, far_PN.shape[1])
    size, num_groups = _block_rows(far_PN), len(groups.node)
    for start in range(0, num_groups, size):
        span = slice(start, min(start + size, num_groups))
        block = slice(*groups.host_indptr[[span.start, span.stop]].tolist())
        indptr = groups.indptr[span.start : span.stop + 1] - block.start
        part_GN = _bags(weight_E[block], far_PN, groups.other[block], indptr)
        node, pattern = groups.node[span], groups.pattern[span]
        if near_PN is not None and dfactor_RN is not None:
            dfactor_RN.index_add_(0, pattern, near_PN.index_select(0, node).mul_(part_GN))
        sum_PN.index_add_(0, node, part_GN.mul_(factor_RN.index_select(0, pattern)))
    return sum_PN


def _bags(weight_E: Tensor, far_PN: Tensor, other: Tensor, indptr: Tensor) -> Tensor:
    """(R, N): of each interval of edges the sum of weight times other end."""
    return sum_rows(weight_E.unsqueeze(1), far_PN.unsqueeze(1), other, indptr).squeeze(1)


def _segment_sums(x_E: Tensor, indptr: Tensor) -> Tensor:
    return torch.segment_reduce(x_E, "sum", offsets=indptr, axis=0, unsafe=True)


def _block_rows(x_PN: Tensor) -> int:
    return block_edges(x_PN.unsqueeze(1))
