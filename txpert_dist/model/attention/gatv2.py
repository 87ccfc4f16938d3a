"""GATv2 attention over destination-sorted edges.

Enters: each node's projection as a source and as a target, one attention vector a head, the edge table; by
option features of the edges with their projection, and a multiplier for each attention weight (dropout).
Leaves: each target's attention-weighted sum of its sources. Invariants: exact forward and backward; softmax
and sums in single precision or better; on the CPU the order of every sum is fixed, so results repeat bit for
bit; no [E, H, N] array ever exists. Here is the reference in plain torch, which works off targets in blocks
whose edges fit the cache; ``cpu`` and ``cuda`` have the compiled ones.

    z_ij = x_j + y_i + W_e f_ij,   e_ij = a . LeakyReLU(z_ij),
    w_ij = softmax of e_ij over the sources j of i,   o_i = sum w_ij m_ij x_j

(Brody et al. 2022, equation 7; the features' term as PyTorch Geometric has it.) Backward, with d the gradient
of o: the softmax's gradient is g_ij = w_ij (m_ij d_i . x_j - d_i . o_i); with l' the slope of LeakyReLU at
z_ij, edge ij gives g_ij l' a to y_i, the same plus w_ij m_ij d_i to x_j, the same times f_ij to W_e, and
g_ij LeakyReLU(z_ij) to a.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from txpert_dist.model.attention import cpu, cuda
from txpert_dist.model.attention.aggregate import block_edges, segment_softmax_, sum_rows
from txpert_dist.model.attention.backend import Backend, kernels_for
from txpert_dist.model.attention.edges import EdgeTable, check_shape, row_blocks


def gatv2_attention(
    source_SHN: Tensor,
    target_THN: Tensor,
    attention_HN: Tensor,
    edges: EdgeTable,
    negative_slope: float = 0.2,
    *,
    features: tuple[Tensor, Tensor] | None = None,
    keep_EH: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention-weighted sums (T, H, N) of ``source_SHN`` over each target's edges; zero without edges.

    ``source_SHN`` and ``target_THN`` are the two projections of the nodes, each of those that it is for,
    ``attention_HN`` the vectors a, ``features`` the edges' features f, (E, K), and their projection W_e,
    (K, H, N), ``keep_EH`` the multipliers m. Differentiable once in all but f and m. The result has the dtype
    of ``source_SHN``. Raises ``ValueError`` for a shape that does not fit the edges, and for a slope above 1,
    with which LeakyReLU is not the larger of z and its slope times z.
    """
    if negative_slope > 1:
        raise ValueError(f"a slope of {negative_slope} where at most 1 is possible")
    _check_shapes(source_SHN, target_THN, attention_HN, edges, features, keep_EH)
    wide = torch.promote_types(source_SHN.dtype, torch.float32)
    kernels = kernels_for(backend, source_SHN.new_empty(0, dtype=wide))
    feature_EK, projection_KHN = (None, None) if features is None else features
    if kernels == "cuda":
        given = cpu.Gatv2Given(edges, negative_slope, feature_EK, keep_EH)
        tensors = source_SHN, target_THN, attention_HN, projection_KHN
        return cuda.gatv2(*tensors, given).to(source_SHN.dtype)
    x_SHN, y_THN, a_HN = (part.to(wide) for part in (source_SHN, target_THN, attention_HN))
    feature_EK, projection_KHN, keep_EH = (
        None if part is None else part.to(wide) for part in (feature_EK, projection_KHN, keep_EH)
    )
    given = cpu.Gatv2Given(edges, negative_slope, feature_EK, keep_EH)
    if kernels == "cpu":
        return cpu.gatv2(x_SHN, y_THN, a_HN, projection_KHN, given).to(source_SHN.dtype)
    out_THN: Tensor = _Gatv2.apply(x_SHN, y_THN, a_HN, projection_KHN, given)  # type: ignore[no-untyped-call]
    return out_THN.to(source_SHN.dtype)


def _check_shapes(
    source_SHN: Tensor,
    target_THN: Tensor,
    attention_HN: Tensor,
    edges: EdgeTable,
    features: tuple[Tensor, Tensor] | None,
    keep_EH: Tensor | None,
) -> None:
    num_edges, shape = len(edges.source), attention_HN.shape
    check_shape("sources", source_SHN, len(edges.source_indptr) - 1, *shape)
    check_shape("targets", target_THN, len(edges.host_indptr) - 1, *shape)
    if features is not None:
        feature_EK, projection_KHN = features
        check_shape("projection", projection_KHN, len(projection_KHN), *shape)
        check_shape("features", feature_EK, num_edges, len(projection_KHN))
    if keep_EH is not None:
        check_shape("multipliers", keep_EH, num_edges, shape[0])


class _Gatv2(torch.autograd.Function):
    """The formulas of the module's docstring, a block of targets at a time."""

    @staticmethod
    def forward(
        ctx: Any, x_PHN: Tensor, y_PHN: Tensor, a_HN: Tensor, p_KHN: Tensor | None, given: cpu.Gatv2Given
    ) -> Tensor:
        edges = given.edges
        weight_EH = x_PHN.new_empty(len(edges.source), x_PHN.shape[1])
        for rows, block in row_blocks(edges.host_indptr, block_edges(x_PHN)):
            x_EHN = x_PHN.index_select(0, edges.source[block])
            z_EHN = functional.leaky_relu_(_complete_(x_EHN, y_PHN, p_KHN, given, block), given.slope)
            indptr = edges.indptr[rows.start : rows.stop + 1] - block.start
            score_EH = z_EHN.mul_(a_HN).sum(-1)
            weight_EH[block] = segment_softmax_(score_EH, indptr, edges.target[block] - rows.start)
        kept_EH = weight_EH if given.keep_EH is None else weight_EH * given.keep_EH
        out_PHN = sum_rows(kept_EH, x_PHN, edges.source, edges.indptr)
        ctx.save_for_backward(x_PHN, y_PHN, a_HN, p_KHN, weight_EH, kept_EH, out_PHN)
        ctx.given = given
        return out_PHN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_PHN: Tensor) -> tuple[Tensor | None, ...]:
        x_PHN, y_PHN, a_HN, p_KHN, weight_EH, kept_EH, out_PHN = ctx.saved_tensors
        given: cpu.Gatv2Given = ctx.given
        edges = given.edges
        mean_PH = (d_PHN * out_PHN).sum(-1)
        dx_PHN, dy_PHN, da_HN = torch.zeros_like(x_PHN), torch.zeros_like(y_PHN), torch.zeros_like(a_HN)
        dp_KM = None if p_KHN is None else torch.zeros_like(p_KHN.flatten(1))
        for _, block in row_blocks(edges.host_indptr, block_edges(x_PHN)):
            source, target = edges.source[block], edges.target[block]
            x_EHN, d_EHN = x_PHN.index_select(0, source), d_PHN.index_select(0, target)
            dot_EH = (d_EHN * x_EHN).sum(-1).mul_(kept_EH[block])
            g_EH = dot_EH.sub_(mean_PH.index_select(0, target).mul_(weight_EH[block]))
            z_EHN = _complete_(x_EHN, y_PHN, p_KHN, given, block)
            # g l': the slope's gradient of a constant g; times z it is also g LeakyReLU(z)
            s_EHN = torch.ops.aten.leaky_relu_backward(
                g_EH.unsqueeze(-1).expand_as(z_EHN), z_EHN, given.slope, False
            )
            da_HN += z_EHN.mul_(s_EHN).sum(0)
            s_EHN.mul_(a_HN)
            if dp_KM is not None and given.feature_EK is not None:
                # in place: autocast lowers products, but not these
                dp_KM.addmm_(given.feature_EK[block].T, s_EHN.flatten(1))
            dy_PHN.index_add_(0, target, s_EHN)
            dx_PHN.index_add_(0, source, s_EHN.addcmul_(kept_EH[block].unsqueeze(-1), d_EHN))
        return dx_PHN, dy_PHN, da_HN, None if dp_KM is None else dp_KM.view_as(p_KHN), None


def _complete_(
    x_EHN: Tensor, y_PHN: Tensor, p_KHN: Tensor | None, given: cpu.Gatv2Given, block: slice
) -> Tensor:
    """z of a block's edges, in the place of their sources' x."""
    z_EHN = x_EHN.add_(y_PHN.index_select(0, given.edges.target[block]))
    if p_KHN is not None and given.feature_EK is not None:
        z_EHN.flatten(1).addmm_(given.feature_EK[block], p_KHN.flatten(1))
    return z_EHN
