"""Rounds of message passing with skip connections, normalisation and dropout.

Enters: what every node knows, x_PN. Leaves: what it knows after the rounds,

    x_{l+1} = dropout(LeakyReLU_0.01(norm(join(layer_l(x_l), x_l))))

(TxPert, methods, "Perturbation model"; the ways to join are those of the public options). Invariants: the
graph is no part of the state that a checkpoint carries; dropout is equal on every worker; a bias that batch
norm cancels does not learn.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist import config
from txpert_dist.model.attention.edges import EdgeList, EdgeTable
from txpert_dist.model.attention.graph_dropout import Beside, graph_activation
from txpert_dist.model.attention.layers import EdgeFeatures, Gatv1Layer, Gatv2Layer
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.reach import (
    Cut,
    Reach,
    Tables,
    Workers,
    depth_of,
    normalised,
    own_rows,
    reach_of,
    rows_of_all,
    share_of,
    targets_of,
)
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

        A layer has its output's ``width`` and its edges' ``table`` as attributes and takes (x_SN, key,
        edges, gather): edges some of its own or None for all, gather as a ``Cut`` has it. What it adds
        to every node's output, if anything, is its parameter ``bias``. Raises ``ValueError`` when skip=sum
        cannot fill a layer with its input.
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

    def forward(self, x_PN: Tensor, key: DropoutKey | None = None, reach: Reach | None = None) -> Tensor:
        """(P, width of the output) from (P, width), or with ``reach`` of the nodes it wants, (R, width).

        ``key`` switches dropout on.
        """
        if reach is None:
            return self._layers(x_PN, key, 0, [None] * len(self.layers))
        reach = reach if self._local else reach.uncut()
        whole = len(self.layers) - len(reach.cuts)
        if whole:
            x_TN = self._layers(own_rows(x_PN, reach.share), key, 0, [reach.share] * whole)
            x_PN = rows_of_all(x_TN, reach.share)
        return self._layers(x_PN.index_select(0, reach.first), key, whole, reach.cuts)

    def depth(self, rows: NDArray[np.int64]) -> int:
        """How many of the last layers are worth cutting for such nodes as ``rows``, training or not."""
        return depth_of(self._tables, rows, layers=len(self.layers)) if self._local else 0

    def reach(self, rows: NDArray[np.int64], depth: int) -> Reach:
        """What the layers work on for the nodes ``rows``, which ascend, the last ``depth`` cut."""
        return reach_of(self._tables, rows, depth=depth)

    def share(self, workers: Workers) -> Cut:
        """One worker's part of what the layers do for all the nodes."""
        return share_of(self._tables, workers)

    @property
    def _tables(self) -> Tables:
        table: EdgeTable = self.layers[0].table  # type: ignore[assignment]
        return Tables(table)

    @property
    def _local(self) -> bool:
        """Whether a node's output depends on no others than those whose messages reach it."""
        return not (self.training and self.options.norm == "batch")

    def _layers(self, x_SN: Tensor, key: DropoutKey | None, start: int, cuts: Sequence[Cut | None]) -> Tensor:
        """As many layers as there are ``cuts``, from number ``start`` on."""
        for number, cut in enumerate(cuts, start):
            edges, gather = (None, None) if cut is None else (cut.tables.edges, cut.gather)
            out_TN = self.layers[number](x_SN, key, edges, gather)
            x_SN = self._activated(out_TN, x_SN, number, cut, key)
        return x_SN

    def _activated(
        self, out_TN: Tensor, x_SN: Tensor, number: int, cut: Cut | None, key: DropoutKey | None
    ) -> Tensor:
        """What the next layer reads, from a layer's output and input."""
        dropout, nodes = (self.options.dropout, self.sites[number]), None if cut is None else cut.nodes
        if self.options.skip == "concat" and self.options.norm == "none":
            beside = Beside(x_SN, None if cut is None else cut.place)
            return graph_activation(out_TN, 0.01, dropout, key, nodes, beside=beside)
        joined_TN = self._join(out_TN, self.skips[number](targets_of(x_SN, cut)))
        normalised_TN = normalised(self.norms[number], joined_TN, cut)
        return graph_activation(normalised_TN, 0.01, dropout, key, nodes)

    def _join(self, out_TN: Tensor, skipped_TN: Tensor) -> Tensor:
        match self.options.skip:
            case "concat" | "concat_learned":
                return torch.cat([out_TN, skipped_TN], 1)
            case "sum" | "sum_learned":
                return out_TN + skipped_TN.repeat(1, out_TN.shape[1] // skipped_TN.shape[1])
            case "none":
                return out_TN


class StackEncoder(nn.Module):
    """Node features, a stack of layers, and a map to the latent width."""

    def __init__(self, features: nn.Module, stack: Stack, *, latent: int, site: int) -> None:
        """``features`` takes a key and gives x_0; ``site`` tells this dropout from the layers'."""
        super().__init__()
        self.features = features
        self.stack = stack
        self.last = nn.Linear(stack.width, latent)
        self.dropout = stack.options.dropout
        self.site = site

    def forward(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every node, or of those that ``reaches`` are of; ``key`` switches dropout on."""
        (reach,) = reaches or (None,)
        x_PN = self.stack(self.features(key), key, reach)
        rows = None if reach is None else reach.rows
        return graph_activation(self.last(x_PN), 0.01, (self.dropout, self.site), key, rows)

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """How many of the last layers are worth cutting for such nodes as ``rows``."""
        return (self.stack.depth(rows),)

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """What ``forward`` works on for the nodes ``rows``, which ascend."""
        return (self.stack.reach(rows, *depths),)

    def shares(self, workers: Workers) -> tuple[Cut | None, ...]:
        """One worker's part of the layers that work on all the nodes."""
        return (self.stack.share(workers),)


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
