"""GATv2 attention over destination-sorted edges, in plain torch.

Enters: each node's projection as a source and as a target, one attention vector a head, the edge table.
Leaves: each target's attention-weighted sum of its sources. Invariants: exact forward and backward; softmax
and sums in single precision or better; on the CPU the order of every sum is fixed, so results repeat bit for
bit. Targets are worked off in blocks whose edges fit the cache: no [E, H, N] array ever exists.

    e_ij = a . LeakyReLU(x_j + y_i),   w_ij = softmax of e_ij over the sources j of i,   o_i = sum w_ij x_j

(Brody et al. 2022, equation 7.) Backward, with d the gradient of o: the softmax's gradient is
g_ij = w_ij (d_i . x_j - d_i . o_i); with l' the slope of LeakyReLU at x_j + y_i, edge ij gives
g_ij l' a to y_i, the same plus w_ij d_i to x_j, and g_ij LeakyReLU(x_j + y_i) to a.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from txpert_dist.model.attention.edges import EdgeTable, row_blocks

_BLOCK_ELEMENTS = 1 << 18
"""Numbers in a block's [edges, H, N] arrays: 1 MiB in single precision, about a core's second-level cache."""


def gatv2_attention(
    source_PHN: Tensor,
    target_PHN: Tensor,
    attention_HN: Tensor,
    edges: EdgeTable,
    negative_slope: float = 0.2,
) -> Tensor:
    """Attention-weighted sums (P, H, N) of ``source_PHN`` over each target's edges; zero without edges.

    ``source_PHN`` and ``target_PHN`` are the two projections of the nodes, ``attention_HN`` the vectors a.
    Differentiable once in all three. The result has the dtype of ``source_PHN``.
    """
    wide = torch.promote_types(source_PHN.dtype, torch.float32)
    out_PHN: Tensor = _Gatv2.apply(  # type: ignore[no-untyped-call]
        source_PHN.to(wide), target_PHN.to(wide), attention_HN.to(wide), edges, negative_slope
    )
    return out_PHN.to(source_PHN.dtype)


class _Gatv2(torch.autograd.Function):
    """The formulas of the module's docstring, a block of targets at a time."""

    @staticmethod
    def forward(
        ctx: Any, x_PHN: Tensor, y_PHN: Tensor, a_HN: Tensor, edges: EdgeTable, slope: float
    ) -> Tensor:
        out_PHN = torch.zeros_like(x_PHN)
        weight_EH = x_PHN.new_empty(len(edges.source), x_PHN.shape[1])
        for rows, block in row_blocks(edges.host_indptr, _block_edges(x_PHN)):
            source, target = edges.source[block], edges.target[block]
            x_EHN = x_PHN.index_select(0, source)
            z_EHN = functional.leaky_relu_(y_PHN.index_select(0, target).add_(x_EHN), slope)
            score_EH = z_EHN.mul_(a_HN).sum(-1)
            weight_EH[block] = _softmax(
                score_EH, edges.indptr[rows.start : rows.stop + 1], target - rows.start
            )
            out_PHN.index_add_(0, target, x_EHN.mul_(weight_EH[block].unsqueeze(-1)))
        ctx.save_for_backward(x_PHN, y_PHN, a_HN, weight_EH, out_PHN)
        ctx.edges, ctx.slope = edges, slope
        return out_PHN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_PHN: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_PHN, y_PHN, a_HN, weight_EH, out_PHN = ctx.saved_tensors
        edges: EdgeTable = ctx.edges
        mean_PH = (d_PHN * out_PHN).sum(-1)
        dx_PHN, dy_PHN, da_HN = torch.zeros_like(x_PHN), torch.zeros_like(y_PHN), torch.zeros_like(a_HN)
        for _, block in row_blocks(edges.host_indptr, _block_edges(x_PHN)):
            source, target, w_EH1 = edges.source[block], edges.target[block], weight_EH[block].unsqueeze(-1)
            x_EHN, d_EHN = x_PHN.index_select(0, source), d_PHN.index_select(0, target)
            g_EH = (d_EHN * x_EHN).sum(-1).sub_(mean_PH.index_select(0, target)).mul_(weight_EH[block])
            z_EHN = x_EHN.add_(y_PHN.index_select(0, target))
            # g l': the slope's gradient of a constant g; times z it is also g LeakyReLU(z)
            s_EHN = torch.ops.aten.leaky_relu_backward(
                g_EH.unsqueeze(-1).expand_as(z_EHN), z_EHN, ctx.slope, False
            )
            da_HN += z_EHN.mul_(s_EHN).sum(0)
            s_EHN.mul_(a_HN)
            dy_PHN.index_add_(0, target, s_EHN)
            dx_PHN.index_add_(0, source, s_EHN.addcmul_(w_EH1, d_EHN))
        return dx_PHN, dy_PHN, da_HN, None, None


def _softmax(score_EH: Tensor, indptr: Tensor, row: Tensor) -> Tensor:
    offsets = indptr - indptr[:1]
    highest_RH = torch.segment_reduce(score_EH, "max", offsets=offsets, axis=0, unsafe=True)
    power_EH = score_EH.sub_(highest_RH.index_select(0, row)).exp_()
    total_RH = torch.segment_reduce(power_EH, "sum", offsets=offsets, axis=0, unsafe=True)
    return power_EH.div_(total_RH.index_select(0, row))


def _block_edges(x_PHN: Tensor) -> int:
    if x_PHN.is_cuda:
        return 1 << 62  # an accelerator wants all the work at once
    return max(_BLOCK_ELEMENTS // max(x_PHN[0].numel(), 1), 1)
