"""The encoder without a graph, which every other one must beat on unseen perturbations.

Enters: the number of nodes. Leaves: z_PD = dropout(LeakyReLU(Linear(h_0))), the last step of every encoder,
on learned embeddings alone. Invariant: a gene's embedding depends on no other gene.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from txpert_dist import config
from txpert_dist.model.attention.graph_dropout import graph_activation
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.reach import Cut, Reach, Workers, only
from txpert_dist.model.graph_input import GraphInput


class EmbeddingEncoder(nn.Module):
    """Learned embeddings, mapped to the latent width."""

    def __init__(self, options: config.Embedding, graph: GraphInput, *, latent: int) -> None:
        super().__init__()
        self.dropout = options.dropout
        self.features = NodeFeatures(graph, options.node_features)
        self.last = nn.Linear(options.node_features, latent)

    def forward(self, key: DropoutKey | None = None, reaches: Sequence[Reach] = ()) -> Tensor:
        """z_PD of every node, or of those that ``reaches`` are of; ``key`` switches dropout on."""
        rows = reaches[0].rows if reaches else None
        x_PN = self.features(key)
        x_PN = x_PN if rows is None else x_PN.index_select(0, rows)
        return graph_activation(self.last(x_PN), 0.01, (self.dropout, 0), key, rows)

    def depths(self, rows: NDArray[np.int64]) -> tuple[int, ...]:
        """There are no layers to cut."""
        return (0,)

    def shares(self, workers: Workers) -> tuple[Cut | None, ...]:
        """Nobody's: there are no layers to divide."""
        return (None,)

    def reaches(self, rows: NDArray[np.int64], depths: Sequence[int]) -> tuple[Reach, ...]:
        """The nodes ``rows`` themselves."""
        return (only(rows, self.last.weight.device),)
