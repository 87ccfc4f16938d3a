"""Rounds of message passing over all pairs of nodes, from their formulas (without dropout)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from tests.unit.model.encoders.encoder_checks import Dense
from txpert_dist import config

State = Mapping[str, Tensor]


def rounds(
    state: State,
    prefix: str,
    options: config.GraphLayers,
    x_PN: Tensor,
    layer: Callable[[State, Tensor], Tensor],
) -> Tensor:
    """``options.layers`` rounds of a layer, its skip connection, norm and LeakyReLU_0.01."""
    for number in range(options.layers):
        out_PN = layer(part(state, f"{prefix}layers.{number}."), x_PN)
        skip = part(state, f"{prefix}skips.{number}.")
        skipped_PN = linear(skip, "", x_PN) if skip else x_PN
        if options.skip in ("concat", "concat_learned"):
            out_PN = torch.cat([out_PN, skipped_PN], 1)
        elif options.skip in ("sum", "sum_learned"):
            out_PN = out_PN + torch.cat([skipped_PN] * (out_PN.shape[1] // skipped_PN.shape[1]), 1)
        if options.norm == "layer":
            out_PN = layer_norm(part(state, f"{prefix}norms.{number}."), out_PN)
        x_PN = functional.leaky_relu(out_PN, 0.01)
    return x_PN


def attention_rounds(
    state: State, prefix: str, options: config.Attention, x_PN: Tensor, graph: Dense
) -> Tensor:
    """The rounds of GAT or GATv2 layers."""

    def layer(own: State, x_PN: Tensor) -> Tensor:
        out_PHN = (gatv1 if options.version == 1 else gatv2)(own, options, x_PN, graph)
        return (out_PHN.flatten(1) if options.combine_heads == "concat" else out_PHN.mean(1)) + own["bias"]

    return rounds(state, prefix, options, x_PN, layer)


def gatv2(own: State, options: config.Attention, x_PN: Tensor, graph: Dense) -> Tensor:
    """(P, H, N): e_ij = a . LeakyReLU_0.2(U x_j + W x_i + W_e w_ij), o_i = sum_j softmax(e)_ij U x_j."""
    source_PHN, target_PHN = (
        half_PN.unflatten(1, (options.heads, -1)) for half_PN in linear(own, "project.", x_PN).chunk(2, 1)
    )
    pair_PPHN = target_PHN.unsqueeze(1) + source_PHN.unsqueeze(0)
    if options.edge_weights:
        edge_PPN = graph.weight_PPK @ own["project_edges.weight"].T
        pair_PPHN = pair_PPHN + edge_PPN.unflatten(2, (options.heads, -1))
    score_PPH = (functional.leaky_relu(pair_PPHN, 0.2) * own["attention_HN"]).sum(-1)
    return torch.einsum("ijh,jhn->ihn", softmax_over_sources(score_PPH, graph.there_PP), source_PHN)


def gatv1(own: State, options: config.Attention, x_PN: Tensor, graph: Dense) -> Tensor:
    """(P, H, N): e_ij = LeakyReLU_0.2(a_s . W x_j + a_t . W x_i + a_e . W_e w_ij)."""
    x_PHN = (x_PN @ own["project.weight"].T).unflatten(1, (options.heads, -1))
    source_PH, target_PH = ((x_PHN * own[name]).sum(-1) for name in ("source_HN", "target_HN"))
    score_PPH = target_PH.unsqueeze(1) + source_PH.unsqueeze(0)
    if options.edge_weights:
        edge_PPN = graph.weight_PPK @ own["project_edges.weight"].T
        score_PPH = score_PPH + (edge_PPN.unflatten(2, (options.heads, -1)) * own["edge_HN"]).sum(-1)
    score_PPH = functional.leaky_relu(score_PPH, 0.2)
    return torch.einsum("ijh,jhn->ihn", softmax_over_sources(score_PPH, graph.there_PP), x_PHN)


def softmax_over_sources(score_PPH: Tensor, there_PP: Tensor) -> Tensor:
    """(P, P, H): over the sources that are there; zero for a target without any."""
    power_PPH = score_PPH.exp() * there_PP.unsqueeze(-1)
    return power_PPH / power_PPH.sum(1, keepdim=True).clamp(min=1e-300)


def layer_norm(own: State, x_PN: Tensor) -> Tensor:
    """Ba et al. 2016, over each node's numbers."""
    centred_PN = x_PN - x_PN.mean(1, keepdim=True)
    normal_PN = centred_PN / (centred_PN.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return normal_PN * own["weight"] + own["bias"]


def linear(state: State, name: str, x_PN: Tensor) -> Tensor:
    return x_PN @ state[f"{name}weight"].T + state[f"{name}bias"]


def part(state: State, prefix: str) -> State:
    """The parameters below ``prefix``."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
