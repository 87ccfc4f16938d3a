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

from txpert_dist.model.attention.aggregate import edge_ends, edge_softmax, weighted_sum
from txpert_dist.model.attention.backend import Backend
from txpert_dist.model.attention.edges import EdgeTable


def gatv1_attention(
    x_SHN: Tensor,
    source_HN: Tensor,
    target_HN: Tensor,
    edges: EdgeTable,
    negative_slope: float = 0.2,
    *,
    features: tuple[Tensor, Tensor] | None = None,
    keep_EH: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention-weighted sums (T, H, N) of ``x_SHN`` over each target's edges; zero without edges.

    ``source_HN`` and ``target_HN`` are the vectors a_s and a_t, ``features`` the edges' features f, (E, K),
    and each head's v, (K, H), ``keep_EH`` the multipliers m. Differentiable once in all but f and m. The
    result has the dtype of ``x_SHN``.
    """
    wide = torch.promote_types(x_SHN.dtype, torch.float32)
    with torch.autocast(x_SHN.device.type, enabled=False):
        wide_SHN = x_SHN.to(wide)
        target_THN = wide_SHN if edges.rows is None else wide_SHN.index_select(0, edges.rows)
        source_SH = (wide_SHN * source_HN.to(wide)).sum(-1)
        target_TH = (target_THN * target_HN.to(wide)).sum(-1)
        score_EH = edge_ends(source_SH, target_TH, edges, backend=backend)
        if features is not None:
            feature_EK, vector_KH = features
            score_EH = score_EH + feature_EK.to(wide) @ vector_KH.to(wide)
        weight_EH = edge_softmax(functional.leaky_relu(score_EH, negative_slope), edges, backend=backend)
        if keep_EH is not None:
            weight_EH = weight_EH * keep_EH.to(wide)
        return weighted_sum(weight_EH, wide_SHN, edges, backend=backend).to(x_SHN.dtype)
