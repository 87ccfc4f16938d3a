"""Graph attention twice more: over all pairs of nodes from the formulas, and by PyTorch Geometric's layers.

Both take a layer of ours for its parameters and give its output, differentiable in those same parameters.
Likewise the stack around the layers.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch_geometric.nn import GATConv, GATv2Conv

from txpert_dist import config
from txpert_dist.model.attention.edges import EdgeList, EdgeTable
from txpert_dist.model.attention.layers import AttentionLayer, EdgeFeatures, Gatv1Layer, Gatv2Layer
from txpert_dist.model.encoders.stack import Stack
from txpert_dist.model.norm import GlobalBatchNorm


def random_edge_list(
    num_nodes: int, num_edges: int, seed: int, *, num_graphs: int = 2, self_loops: bool = True
) -> EdgeList:
    """Random edges with weights in several graphs; a third enter node 0, some nodes may have none."""
    random = np.random.default_rng(seed)
    key = random.integers(0, num_nodes, num_edges) * num_nodes + random.integers(0, num_nodes, num_edges)
    key[: num_edges // 3] %= num_nodes
    if self_loops:
        key = np.concatenate([key, np.arange(num_nodes) * (num_nodes + 1)])
    target, source = np.divmod(np.unique(key), num_nodes)
    weight_EK = random.normal(size=(len(source), num_graphs)).astype(np.float32)
    weight_EK[random.random(weight_EK.shape) < 0.3] = 0
    return EdgeList(np.stack([source, target]), weight_EK)


def random_layer(
    version: int,
    edges: EdgeList,
    num_nodes: int,
    *,
    width: int = 5,
    heads: int = 2,
    average: bool = False,
    weights: bool = False,
    seed: int = 0,
) -> AttentionLayer:
    """A layer in double precision, every parameter drawn anew."""
    combine = "mean" if average else "concat"
    options = config.Gat(version=version, heads=heads, hidden=4, combine_heads=combine, edge_weights=weights)
    features = EdgeFeatures(edges, num_nodes, weights=weights)
    layer_class = Gatv1Layer if version == 1 else Gatv2Layer
    layer = layer_class(options, features, width, sites=iter([])).double()
    draw_parameters(layer, seed)
    return layer


def draw_parameters(module: nn.Module, seed: int) -> None:
    """Draw every parameter anew, so that none is zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.7)


def dense(edges: EdgeTable, value_EN: Tensor) -> Tensor:
    """(P, P, N) with the values of edge j -> i at [i, j], zero elsewhere."""
    num_nodes = len(edges.host_indptr) - 1
    index = edges.target * num_nodes + edges.source
    empty_RN = value_EN.new_zeros(num_nodes * num_nodes, value_EN.shape[1])
    return empty_RN.index_put((index,), value_EN).unflatten(0, (num_nodes, num_nodes))


def present(edges: EdgeTable) -> Tensor:
    """(P, P, 1) true where there is an edge."""
    return dense(edges, torch.ones(len(edges.source), 1)) > 0


def attend(score_PPH: Tensor, x_PHN: Tensor, edges: EdgeTable, keep_EH: Tensor | None = None) -> Tensor:
    """Softmax over the sources of every target, multiplied with ``keep_EH``, times the sources' vectors."""
    absent_PP1 = ~present(edges)
    weight_PPH = torch.softmax(score_PPH.masked_fill(absent_PP1, -torch.inf), 1)
    weight_PPH = weight_PPH.masked_fill(absent_PP1, 0.0)
    if keep_EH is not None:
        weight_PPH = weight_PPH * dense(edges, keep_EH)
    return torch.einsum("ijh,jhn->ihn", weight_PPH, x_PHN)


def dense_gatv2(
    source_PHN: Tensor,
    target_PHN: Tensor,
    attention_HN: Tensor,
    edges: EdgeTable,
    *,
    features: tuple[Tensor, Tensor] | None = None,
    keep_EH: Tensor | None = None,
) -> Tensor:
    """a . LeakyReLU(x_j + y_i + W_e f_ij) over all pairs."""
    pairs_PPHN = target_PHN.unsqueeze(1) + source_PHN.unsqueeze(0)
    if features is not None:
        feature_EK, projection_KHN = features
        pairs_PPHN = pairs_PPHN + torch.einsum("ijk,khn->ijhn", dense(edges, feature_EK), projection_KHN)
    score_PPH = (functional.leaky_relu(pairs_PPHN, 0.2) * attention_HN).sum(-1)
    return attend(score_PPH, source_PHN, edges, keep_EH)


def dense_gatv1(
    x_PHN: Tensor,
    source_HN: Tensor,
    target_HN: Tensor,
    edges: EdgeTable,
    *,
    features: tuple[Tensor, Tensor] | None = None,
    keep_EH: Tensor | None = None,
) -> Tensor:
    """LeakyReLU(a_s . x_j + a_t . x_i + v . f_ij) over all pairs."""
    source_PH, target_PH = (x_PHN * source_HN).sum(-1), (x_PHN * target_HN).sum(-1)
    pairs_PPH = target_PH.unsqueeze(1) + source_PH.unsqueeze(0)
    if features is not None:
        feature_EK, vector_KH = features
        pairs_PPH = pairs_PPH + dense(edges, feature_EK) @ vector_KH
    return attend(functional.leaky_relu(pairs_PPH, 0.2), x_PHN, edges, keep_EH)


def by_formula(layer: AttentionLayer, x_PN: Tensor, keep_EH: Tensor | None = None) -> Tensor:
    """The layer's output, from the formulas over all pairs."""
    heads, hidden = layer.shape_HN
    edges, weight_EK = layer.features.edges.table, layer.features.weight_EK
    if isinstance(layer, Gatv2Layer):
        source_RN, target_RN = layer.project.weight.chunk(2)
        source_bias, target_bias = layer.project.bias.chunk(2)
        features = None
        if layer.project_edges is not None:
            features = weight_EK, layer.project_edges.weight.T.unflatten(1, (heads, hidden))
        out_PHN = dense_gatv2(
            (x_PN @ source_RN.T + source_bias).unflatten(1, (heads, hidden)),
            (x_PN @ target_RN.T + target_bias).unflatten(1, (heads, hidden)),
            layer.attention_HN,
            edges,
            features=features,
            keep_EH=keep_EH,
        )
    else:
        assert isinstance(layer, Gatv1Layer)
        features = None
        if layer.project_edges is not None:
            weight_HNK = layer.project_edges.weight.unflatten(0, (heads, hidden))
            features = weight_EK, torch.einsum("hnk,hn->kh", weight_HNK, layer.edge_HN)
        x_PHN = (x_PN @ layer.project.weight.T).unflatten(1, (heads, hidden))
        out_PHN = dense_gatv1(
            x_PHN, layer.source_HN, layer.target_HN, edges, features=features, keep_EH=keep_EH
        )
    joined_PN = sum(out_PHN.unbind(1)) / heads if layer.average else torch.cat(out_PHN.unbind(1), 1)
    return joined_PN + layer.bias


def by_pyg(layer: AttentionLayer, x_PN: Tensor) -> Tensor:
    """The layer's output, from PyTorch Geometric's layer with the same parameters on the same edges."""
    heads, hidden = layer.shape_HN
    edges, weight_EK = layer.features.edges, layer.features.weight_EK
    parameters = {"bias": layer.bias}
    if isinstance(layer, Gatv2Layer):
        conv_class = GATv2Conv
        parameters["att"] = layer.attention_HN[None]
        parameters["lin_l.weight"], parameters["lin_r.weight"] = layer.project.weight.chunk(2)
        parameters["lin_l.bias"], parameters["lin_r.bias"] = layer.project.bias.chunk(2)
    else:
        assert isinstance(layer, Gatv1Layer)
        conv_class = GATConv
        parameters["att_src"], parameters["att_dst"] = layer.source_HN[None], layer.target_HN[None]
        parameters["lin.weight"] = layer.project.weight
        if layer.project_edges is not None:
            parameters["att_edge"] = layer.edge_HN[None]
    if layer.project_edges is not None:
        parameters["lin_edge.weight"] = layer.project_edges.weight
    conv = conv_class(
        x_PN.shape[1],
        hidden,
        heads=heads,
        concat=not layer.average,
        add_self_loops=False,
        edge_dim=layer.features.width or None,
    )
    assert set(parameters) == {name for name, _ in conv.named_parameters()}
    arguments = (x_PN, torch.stack([edges.source, edges.target]), weight_EK if layer.features.width else None)
    out_PN: Tensor = functional_call(conv, parameters, arguments)
    return out_PN


def plain_stack(
    stack: Stack, x_PN: Tensor, run_layer: Callable[[int, nn.Module, Tensor], Tensor], masks: list[Tensor]
) -> Tensor:
    """The stack's output; ``masks`` multiply each layer's, ``run_layer`` takes number, layer and input."""
    for number, (layer, skip, norm) in enumerate(zip(stack.layers, stack.skips, stack.norms, strict=True)):
        out_PN = run_layer(number, layer, x_PN)
        match stack.options.skip:
            case "none":
                joint_PN = out_PN
            case "concat":
                joint_PN = torch.cat([out_PN, x_PN], 1)
            case "sum":
                joint_PN = out_PN + torch.cat([x_PN] * (out_PN.shape[1] // x_PN.shape[1]), 1)
            case "concat_learned":
                joint_PN = torch.cat([out_PN, x_PN @ skip.weight.T + skip.bias], 1)
            case "sum_learned":
                joint_PN = out_PN + x_PN @ skip.weight.T + skip.bias
        x_PN = functional.leaky_relu(plain_norm(norm, joint_PN), 0.01)
        x_PN = x_PN * masks[number] if masks else x_PN
    return x_PN


def plain_norm(norm: nn.Module, x_PN: Tensor) -> Tensor:
    """Normalisation of columns (batch) or rows (layer) from its formula."""
    match norm:
        case GlobalBatchNorm():
            mean_N, variance_N = norm.running_mean, norm.running_variance
            if norm.training:
                mean_N, variance_N = x_PN.mean(0), x_PN.var(0, unbiased=False)
            return (x_PN - mean_N) / (variance_N + 1e-5).sqrt() * norm.weight + norm.bias
        case nn.LayerNorm():
            mean_P1, variance_P1 = x_PN.mean(1, keepdim=True), x_PN.var(1, unbiased=False, keepdim=True)
            return (x_PN - mean_P1) / (variance_P1 + 1e-5).sqrt() * norm.weight + norm.bias
    assert isinstance(norm, nn.Identity)
    return x_PN


def assert_same(one: Tensor, other: Tensor, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Equal values, and equal gradients of one random projection to all of ``inputs``."""
    d = torch.randn(one.shape, dtype=one.dtype, generator=torch.Generator().manual_seed(9))
    gradients = zip(
        torch.autograd.grad(one, inputs, d, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(other, inputs, d, allow_unused=True, materialize_grads=True),
        strict=True,
    )
    for mine, theirs in ((one, other), *gradients):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
