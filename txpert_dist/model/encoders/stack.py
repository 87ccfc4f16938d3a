"""Rounds of message passing with skip connections, normalisation and dropout.

Enters: what every node knows, x_PN. Leaves: what it knows after the rounds,

    x_{l+1} = dropout(LeakyReLU_0.01(norm(join(layer_l(x_l), x_l))))

(TxPert, methods, "Perturbation model"; the ways to join are those of the public options). Invariants: the
graph is no part of the state that a checkpoint carries; dropout is equal on every worker; a bias that batch
norm cancels does not learn.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.edges import EdgeList
from txpert_dist.model.attention.layers import EdgeFeatures, Gatv1Layer, Gatv2Layer
from txpert_dist.model.dropout import DropoutKey, graph_dropout
from txpert_dist.model.norm import norm_layer


class Stack(nn.Module):
    """Layers of message passing, each joined with its input, normalised, activated and thinned."""

    def __init__(
        self,
        options: config.GraphLayers,
        make_layer: Callable[[int], nn.Module],
        *,
        width: int,
        sites: Iterator[int],
    ) -> None:
        """``make_layer`` gets a layer's input width; ``width`` is the first one's.

        A layer has its output's ``width`` as an attribute and takes (x_PN, key); what it adds to every node's
        output, if anything, is its parameter ``bias``. Raises ``ValueError`` when skip=sum cannot fill a
        layer with its input.
        """
        super().__init__()
        self.options = options
        self.layers, self.norms, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.sites: list[int] = []
        for _ in range(options.layers):
            layer = make_layer(width)
            skip, width = _skip(options, width, int(layer.width))  # type: ignore[arg-type]
            if options.norm == "batch":
                _fix_bias(layer)
                _fix_bias(skip)
            self.layers.append(layer)
            self.skips.append(skip)
            self.norms.append(norm_layer(options.norm, width))
            self.sites.append(next(sites))
        self.width = width
        """Of the output."""

    def forward(self, x_PN: Tensor, key: DropoutKey | None = None) -> Tensor:
        """(P, width of the output) from (P, width); ``key`` switches dropout on."""
        for layer, skip, norm, site in zip(self.layers, self.skips, self.norms, self.sites, strict=True):
            x_PN = functional.leaky_relu(norm(self._join(layer(x_PN, key), skip(x_PN))), 0.01)
            x_PN = graph_dropout(x_PN, self.options.dropout, site, key)
        return x_PN

    def _join(self, out_PN: Tensor, skipped_PN: Tensor) -> Tensor:
        match self.options.skip:
            case "concat" | "concat_learned":
                return torch.cat([out_PN, skipped_PN], 1)
            case "sum" | "sum_learned":
                return out_PN + skipped_PN.repeat(1, out_PN.shape[1] // skipped_PN.shape[1])
            case "none":
                return out_PN


def attention_stack(
    options: config.Attention, edges: EdgeList, num_nodes: int, *, width: int, sites: Iterator[int]
) -> Stack:
    """A stack of GAT or GATv2 layers over ``edges``; ``width`` is the first layer's input."""
    features = EdgeFeatures(edges, num_nodes, weights=options.edge_weights)
    layer = Gatv1Layer if options.version == 1 else Gatv2Layer
    return Stack(
        options, lambda width: layer(options, features, width, sites=sites), width=width, sites=sites
    )


def _skip(options: config.GraphLayers, width: int, out: int) -> tuple[nn.Module, int]:
    """What the input passes through before it joins an output of width ``out``, and the joint width."""
    match options.skip:
        case "concat":
            return nn.Identity(), out + width
        case "concat_learned":
            return nn.Linear(width, options.hidden), out + options.hidden
        case "sum_learned":
            return nn.Linear(width, out), out
        case "sum" if out % width:
            raise ValueError(f"skip=sum cannot fill a layer of width {out} with an input of width {width}")
        case _:
            return nn.Identity(), out


def _fix_bias(module: nn.Module) -> None:
    # Batch norm subtracts it again, so its gradient is rounding noise, which AdamW would scale to full steps.
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        bias.requires_grad_(False)
