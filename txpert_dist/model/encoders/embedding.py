"""The encoder without a graph, which every other one must beat on unseen perturbations.

Enters: the number of nodes. Leaves: z_PD = dropout(LeakyReLU(Linear(h_0))), the last step of every encoder,
on learned embeddings alone. Invariant: a gene's embedding depends on no other gene.
"""

from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey, graph_dropout
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.graph_input import GraphInput


class EmbeddingEncoder(nn.Module):
    """Learned embeddings, mapped to the latent width."""

    def __init__(self, options: config.Embedding, graph: GraphInput, *, latent: int) -> None:
        super().__init__()
        self.dropout = options.dropout
        self.features = NodeFeatures(graph, options.node_features)
        self.last = nn.Linear(options.node_features, latent)

    def forward(self, key: DropoutKey | None = None) -> Tensor:
        """z_PD of every node; ``key`` switches dropout on."""
        z_PD = functional.leaky_relu(self.last(self.features(key)), 0.01)
        return graph_dropout(z_PD, self.dropout, 0, key)
