"""TxPert: expression after a perturbation, from a control profile and a knowledge graph.

Enters: control expression (log1p scale) or an embedding of it, the nodes of each cell's perturbed genes.
Leaves: predicted expression on the same scale. y = a(g(fuse(s, z_1 ... z_m))), s = f(x) the basal state, z
the perturbation encoder's node embeddings (TxPert, methods, "TxPert architecture"), a the identity or
softplus; with the identity basal model y = x + g(fuse(0, z_1 ... z_m)). Invariants: embeddings do not depend
on the cells; initial weights depend on the seed and the shapes alone; nothing here knows of workers but
through ``reduce``, a differentiable sum over them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist import config
from txpert_dist.model.basal import BasalState, IdentityBasal, PerceptronBasal, VariationalBasal, build_basal
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.build import build_encoder
from txpert_dist.model.encoders.reach import Cut, Reach, Workers
from txpert_dist.model.fusion import build_fusion
from txpert_dist.model.graph_input import GraphInput
from txpert_dist.model.norm import Reduce, identity
from txpert_dist.model.perceptron import Perceptron

_DECODER_SITE = 1
"""Tells the decoder's dropout from the basal encoder's, which is 0."""


Embeddings = Tensor | Callable[[], Tensor]
"""z_PD, or what gives it: asked once the basal states are there, for whoever makes z_PD beside them."""


class Prediction(NamedTuple):
    """What the model says of each cell."""

    expression_BG: Tensor
    divergence_B: Tensor | None
    """Of the basal state's distribution from N(0, 1); None unless the basal encoder is variational."""


class TxPert(nn.Module):
    """Basal encoder, perturbation encoder, fusion and decoder; build it with ``build_model``."""

    def __init__(
        self,
        *,
        basal: nn.Module,
        perturbation: nn.Module,
        fusion: nn.Module,
        decoder: nn.Module,
        activation: nn.Module,
    ) -> None:
        """``activation`` has no parameters; with an ``IdentityBasal`` the control is added after it."""
        super().__init__()
        self.basal = basal
        self.perturbation = perturbation
        self.fusion = fusion
        self.decoder = decoder
        self.activation = activation

    def perturbation_embeddings(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every node, or of those that ``reaches`` are of, in their order.

        They do not depend on cells: compute them once, decode many.
        """
        z_PD: Tensor = self.perturbation(key, reaches)
        return z_PD

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """How many of the encoder's last layers are worth cutting for such nodes as ``rows``.

        As the model is, training or not; one number for each of the encoder's stacks of layers.
        """
        found: tuple[int, ...] = self.perturbation.depths(rows)  # type: ignore[operator]
        return found

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """What the embeddings of the nodes ``rows``, which ascend, are made of, so many layers cut."""
        found: tuple[Reach, ...] = self.perturbation.reaches(rows, depths)  # type: ignore[operator]
        return found

    def shares(self, workers: Workers) -> tuple[Cut | None, ...]:
        """One worker's part of the encoder's layers that work on all the nodes, as ``reaches`` are many.

        None where they cannot be divided.
        """
        found: tuple[Cut | None, ...] = self.perturbation.shares(workers)  # type: ignore[operator]
        return found

    def decode(
        self, control_BN: Tensor, perturbations_BM: Tensor, z_PD: Tensor, key: DropoutKey | None = None
    ) -> Tensor:
        """Predicted expression yhat_BG of cells with ``control_BN`` under the perturbations of ``z_PD``.

        ``control_BN`` is the control's expression over the genes, or the embedding that the basal encoder
        was built for. ``perturbations_BM`` holds node numbers, -1 where there is none; a row of -1 is a
        control cell. Raises ``IndexError`` for a node number that is not in ``z_PD``.
        """
        return self._predict(control_BN, perturbations_BM, z_PD, key).expression_BG

    def forward(
        self,
        control_BN: Tensor,
        perturbations_BM: Tensor,
        key: DropoutKey | None = None,
        z_PD: Embeddings | None = None,
        reaches: Sequence[Reach] = (),
    ) -> Prediction:
        """``decode``, with embeddings computed for this call unless given; ``key`` switches draws on."""
        z_PD = self.perturbation_embeddings(key, reaches) if z_PD is None else z_PD
        return self._predict(control_BN, perturbations_BM, z_PD, key)

    def _predict(
        self, control_BN: Tensor, perturbations_BM: Tensor, z_PD: Embeddings, key: DropoutKey | None
    ) -> Prediction:
        basal: BasalState = self.basal(control_BN, key)
        z_PD = z_PD if isinstance(z_PD, Tensor) else z_PD()
        fused_BD = self.fusion(basal.state_BD, perturbations_BM, z_PD)
        expression_BG: Tensor = self.activation(self.decoder(fused_BD, key))
        if isinstance(self.basal, IdentityBasal):
            expression_BG = control_BN + expression_BG
        return Prediction(expression_BG, basal.divergence_B)


def build_model(
    model: config.Model,
    *,
    num_genes: int,
    basal_width: int,
    graph: GraphInput,
    seed: int,
    reduce: Reduce = identity,
) -> TxPert:
    """A TxPert over ``num_genes`` genes and the nodes of ``graph``, with initial weights drawn from ``seed``.

    ``basal_width`` is the width of the control: ``num_genes``, or that of its embedding. ``reduce`` sums a
    tensor over the workers, differentiably; batch normalisation needs it. The caller's random streams are
    left as they were. Raises ``ConfigError`` when ``graph`` lacks what the encoder asks for, ``ValueError``
    for an edge whose end is not a node.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        basal = build_basal(model, basal_width, reduce)
        decoder = Perceptron(
            model.latent,
            model.decoder.hidden,
            num_genes,
            norm=model.norm,
            dropout=model.dropout,
            layer=_DECODER_SITE,
            reduce=reduce,
        )
        perturbation = build_encoder(model.perturbation, graph, latent=model.latent)
        fusion = build_fusion(model)
    if model.norm == "batch":
        _fix_undetermined_biases(model, basal, decoder)
    return TxPert(
        basal=basal,
        perturbation=perturbation,
        fusion=fusion,
        decoder=decoder,
        activation=nn.Softplus() if model.decoder.activation == "softplus" else nn.Identity(),
    )


def parameter_counts(model: TxPert) -> dict[str, int]:
    """Learned numbers in each part; 0 for a part without any."""
    return {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (
            ("basal", model.basal),
            ("perturbation", model.perturbation),
            ("fusion", model.fusion),
            ("decoder", model.decoder),
        )
    }


def _fix_undetermined_biases(model: config.Model, basal: nn.Module, decoder: Perceptron) -> None:
    # Batch norm subtracts whatever these add, so their gradient is rounding noise alone. AdamW scales noise
    # to full steps: they would wander, and the running means after them, unlike on other numbers of workers.
    fixed = [decoder.first]
    # a shift of every state reaches the decoder's norm as it is where states only add up
    shifts = isinstance(model.fusion, config.AdditiveFusion)
    if isinstance(basal, PerceptronBasal):
        fixed += [basal.perceptron.first] + [basal.perceptron.last] * shifts
    if isinstance(basal, VariationalBasal):
        fixed.append(basal.trunk.first)
        # the divergence tells a mean of 0 from others; the log variance scales the draws
        if shifts and isinstance(model.basal, config.VaeBasal) and model.basal.divergence_weight == 0:
            fixed.append(basal.mean)
    for linear in fixed:
        linear.bias.requires_grad_(False)
