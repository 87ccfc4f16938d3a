"""Basal encoders: the state of a cell before its perturbation.

Enters: the control's expression, or an embedding of it that was computed elsewhere. Leaves: ``BasalState``.
Kinds (TxPert, methods, "Basal state model"): a perceptron on the expression or on the embedding; nothing,
where the decoder predicts a change; a variational encoder (Kingma & Welling 2014), which draws
s ~ N(mean(x), variance(x)) in training and gives the mean otherwise. Invariant: a draw is a function of
(seed, step, row in the global minibatch, column), so any number of workers draws what one worker draws.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey, cell_normal
from txpert_dist.model.norm import Reduce, identity
from txpert_dist.model.perceptron import HiddenLayer, Perceptron

_SITE = 0
"""Tells the draws of this part from the decoder's."""


class BasalState(NamedTuple):
    """What a basal encoder says of each cell."""

    state_BD: Tensor
    divergence_B: Tensor | None = None
    """KL(N(mean, variance) || N(0, 1)), summed over the latent columns; None unless variational."""


class PerceptronBasal(nn.Module):
    """s = MLP(x), of expression or of an embedding."""

    def __init__(self, perceptron: Perceptron) -> None:
        super().__init__()
        self.perceptron = perceptron

    def forward(self, control_BN: Tensor, key: DropoutKey | None = None) -> BasalState:
        """The state of each cell; ``key`` switches dropout on."""
        return BasalState(self.perceptron(control_BN, key))


class IdentityBasal(nn.Module):
    """No encoder: every state is zero, and the control joins after the decoder (see txpert.py)."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent

    def forward(self, control_BN: Tensor, key: DropoutKey | None = None) -> BasalState:
        """Zero states."""
        return BasalState(control_BN.new_zeros(len(control_BN), self.latent))


class VariationalBasal(nn.Module):
    """A Gaussian with independent columns for each cell: one hidden layer, two heads."""

    def __init__(self, trunk: HiddenLayer, hidden: int, latent: int) -> None:
        """``trunk`` maps cells to ``hidden`` columns."""
        super().__init__()
        self.trunk = trunk
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)

    def forward(self, control_BN: Tensor, key: DropoutKey | None = None) -> BasalState:
        """A draw of each cell's state, or its mean without ``key``; single precision or better.

        The log variance is not clamped: its divergence grows with its exponential, and an overflow stops
        the run with a word on where (train/nonfinite.py) in place of a gradient that silently vanishes.
        """
        hidden_BN = self.trunk(control_BN, key)
        mean_BD, log_variance_BD = (_wide(head(hidden_BN)) for head in (self.mean, self.log_variance))
        divergence_B = normal_divergence(mean_BD, log_variance_BD)
        if key is None:
            return BasalState(mean_BD, divergence_B)
        noise_BD = cell_normal(mean_BD, _SITE, key)
        return BasalState(mean_BD + noise_BD * torch.exp(0.5 * log_variance_BD), divergence_B)


def normal_divergence(mean_BD: Tensor, log_variance_BD: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each cell: (B,) from (B, D) (Kingma & Welling 2014, appendix B)."""
    # expm1 and not exp - 1: near the prior the two terms cancel
    return 0.5 * (mean_BD.square() + torch.expm1(log_variance_BD) - log_variance_BD).sum(1)


def build_basal(model: config.Model, basal_width: int, reduce: Reduce = identity) -> nn.Module:
    """The basal encoder of ``model``: a module from (B, ``basal_width``) and a key to ``BasalState``.

    ``reduce`` sums a tensor over the workers, differentiably; batch normalisation needs it.
    """
    match model.basal:
        case config.MlpBasal(hidden=hidden) | config.EmbeddingBasal(hidden=hidden):
            perceptron = Perceptron(
                basal_width,
                hidden,
                model.latent,
                norm=model.norm,
                dropout=model.dropout,
                layer=_SITE,
                reduce=reduce,
            )
            return PerceptronBasal(perceptron)
        case config.IdentityBasal():
            return IdentityBasal(model.latent)
        case config.VaeBasal(hidden=hidden):
            trunk = HiddenLayer(
                basal_width, hidden, norm=model.norm, dropout=model.dropout, layer=_SITE, reduce=reduce
            )
            return VariationalBasal(trunk, hidden, model.latent)


def _wide(x_BN: Tensor) -> Tensor:
    return x_BN.to(torch.promote_types(x_BN.dtype, torch.float32))
