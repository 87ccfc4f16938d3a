"""GAT attention over destination-sorted edges: source and target are scored apart.

Enters: each node's projection, one attention vector a head for either role, the edge table; by option
features of the edges with their score vectors, and a multiplier for each attention weight (dropout). Leaves:
each target's attention-weighted sum of its sources. Invariants: those of ``aggregate``; scores, softmax and
sums in single precision or better.

    e_ij = LeakyReLU(a_s . x_j + a_t . x_i + v . f_ij),   w_ij = softmax of e_ij over the sources j of i,
    o_i = sum w_ij m_ij x_j

(Velickovic et al. 2018, equations 1 to 4, a = [a_t || a_s]. With features, PyTorch Geometric's third term is
a_e . W_e f_ij: v = W_e^T a_e.)
"""

import torch
from torch import Tensor
from torch.nn import functional

from txpert_dist.model.attention.aggregate import edge_softmax, weighted_sum
from txpert_dist.model.attention.edges import EdgeTable


def gatv1_attention(
    x_PHN: Tensor,
    source_HN: Tensor,
    target_HN: Tensor,
    edges: EdgeTable,
    negative_slope: float = 0.2,
    *,
    features: tuple[Tensor, Tensor] | None = None,
    keep_EH: Tensor | None = None,
) -> Tensor:
    """Attention-weighted sums (P, H, N) of ``x_PHN`` over each target's edges; zero without edges.

    ``source_HN`` and ``target_HN`` are the vectors a_s and a_t, ``features`` the edges' features f, (E, K),
    and each head's v, (K, H), ``keep_EH`` the multipliers m. Differentiable once in all but f and m. The
    result has the dtype of ``x_PHN``.
    """
    wide = torch.promote_types(x_PHN.dtype, torch.float32)
    with torch.autocast(x_PHN.device.type, enabled=False):
        wide_PHN = x_PHN.to(wide)
        source_PH = (wide_PHN * source_HN.to(wide)).sum(-1)
        target_PH = (wide_PHN * target_HN.to(wide)).sum(-1)
        score_EH = source_PH.index_select(0, edges.source) + target_PH.index_select(0, edges.target)
        if features is not None:
            feature_EK, vector_KH = features
            score_EH = score_EH + feature_EK.to(wide) @ vector_KH.to(wide)
        weight_EH = edge_softmax(functional.leaky_relu(score_EH, negative_slope), edges)
        if keep_EH is not None:
            weight_EH = weight_EH * keep_EH.to(wide)
        return weighted_sum(weight_EH, wide_PHN, edges).to(x_PHN.dtype)
