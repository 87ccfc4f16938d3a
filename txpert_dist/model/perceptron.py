"""The two-layer perceptron that is both the basal encoder and the decoder.

Enters: rows (cells). Leaves: rows. Linear, normalisation, LeakyReLU(0.01), dropout, Linear; nothing after the
last linear map, so predictions may be negative (TxPert, methods, "Basal state model").
"""

from torch import Tensor, nn
from torch.nn import functional

from txpert_dist.model.dropout import DropoutKey, cell_dropout
from txpert_dist.model.norm import NormKind, Reduce, identity, norm_layer


class HiddenLayer(nn.Module):
    """Linear map, normalisation, LeakyReLU and dropout: all of a perceptron but its last linear map."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        norm: NormKind,
        dropout: float,
        layer: int,
        reduce: Reduce = identity,
    ) -> None:
        """``layer`` tells this module's dropout from the others' of the model."""
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.norm = norm_layer(norm, hidden, reduce=reduce)
        self.dropout = dropout
        self.layer = layer

    def forward(self, x_BN: Tensor, key: DropoutKey | None = None) -> Tensor:
        """(B, hidden) from (B, inputs); ``key`` switches dropout on."""
        hidden_BN = functional.leaky_relu(self.norm(self.first(x_BN)), 0.01)
        return cell_dropout(hidden_BN, self.dropout, self.layer, key)


class Perceptron(HiddenLayer):
    """Two linear maps with normalisation, LeakyReLU and dropout between them."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        norm: NormKind,
        dropout: float,
        layer: int,
        reduce: Reduce = identity,
    ) -> None:
        """``layer`` tells this module's dropout from the others' of the model."""
        super().__init__(inputs, hidden, norm=norm, dropout=dropout, layer=layer, reduce=reduce)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x_BN: Tensor, key: DropoutKey | None = None) -> Tensor:
        """(B, outputs) from (B, inputs); ``key`` switches dropout on."""
        out_BN: Tensor = self.last(super().forward(x_BN, key))
        return out_BN
