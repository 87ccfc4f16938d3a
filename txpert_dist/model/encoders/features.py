"""What every node starts from: a learned vector and, by option, where it stands in the graphs.

Enters: a graph input. Leaves: x_PN. x_0 = h_0 + Linear(positional encoding), Laplacian eigenvectors times the
root of the number of nodes. Invariant: the sign of an eigenvector is arbitrary, so every training step draws
one for each (Dwivedi et al. 2020, section 4); without a key they are as stored.
"""

import torch
from torch import Tensor, nn

from txpert_dist.config import Positional
from txpert_dist.model.dropout import DropoutKey, hashed, mix
from txpert_dist.model.graph_input import GraphInput

_SIGNS = 2
"""Tells these draws from those of dropout, whose streams are 0 and 1."""


class NodeFeatures(nn.Module):
    """Learned input embedding of every node, with positional encodings by option."""

    encoding_PN: Tensor

    def __init__(self, graph: GraphInput, width: int, positional: Positional = "none") -> None:
        """Raises ``ValueError`` when ``graph`` lacks the encodings that ``positional`` names."""
        super().__init__()
        self.table_PN = nn.Parameter(torch.randn(graph.num_nodes, width))
        self.positional = positional
        if positional == "none":
            return
        encoding_PN = graph.random_walk_PN if positional == "random_walk" else graph.laplacian_PN
        if encoding_PN is None:
            raise ValueError(f"the graphs have no {positional} encodings")
        # eigenvectors have unit norm: their entries would fade against the features as the graph grows
        scale = graph.num_nodes**0.5 if positional == "laplacian" else 1.0
        self.register_buffer("encoding_PN", torch.from_numpy(encoding_PN) * scale, persistent=False)
        self.position = nn.Linear(encoding_PN.shape[1], width)

    def forward(self, key: DropoutKey | None = None) -> Tensor:
        """x_PN of every node."""
        if self.positional == "none":
            return self.table_PN
        encoding_PN = self.encoding_PN
        if self.positional == "laplacian" and key is not None:
            encoding_PN = encoding_PN * self._signs(key).to(encoding_PN)
        placed_PN: Tensor = self.position(encoding_PN)
        return self.table_PN + placed_PN

    def _signs(self, key: DropoutKey) -> Tensor:
        """(N,) 1 or -1 for each column: the top bit of the hash of (seed, step, column)."""
        numbers = torch.arange(self.encoding_PN.shape[1], device=self.encoding_PN.device)
        return 1.0 - 2.0 * (mix(numbers + hashed(_SIGNS, key)) < 0)
