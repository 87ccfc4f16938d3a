"""Features of the edges of a sparse graph transformer: one row a pattern, not one an edge.

Enters: the distinct patterns of the edges. Leaves: their features, and for each layer what attention needs of
them. Edges of one pattern have the same features in every layer, so that a table of patterns holds all that
there is to know of the edges, exactly; a mean over edges weighs each pattern by its edges. Invariant: nothing
here is as long as the edges, unless weights make every edge different.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from txpert_dist import config
from txpert_dist.model.attention.pattern import EdgeTerms
from txpert_dist.model.encoders.edge_patterns import EdgePatterns


class PatternFeatures(nn.Module):
    """e = W_0 types, and + ReLU(W_1 weights + b_1) for edges of a knowledge graph where weights are used."""

    type_RN: Tensor
    weight_RK: Tensor
    known_R1: Tensor

    def __init__(self, patterns: EdgePatterns, width: int) -> None:
        super().__init__()
        num_weights = patterns.weight_RK.shape[1]
        self.types = nn.Linear(patterns.type_RN.shape[1], width, bias=False)
        self.weights = nn.Linear(num_weights, width) if num_weights else None
        self.register_buffer("type_RN", torch.from_numpy(patterns.type_RN), persistent=False)
        self.register_buffer("weight_RK", torch.from_numpy(patterns.weight_RK), persistent=False)
        known_R1 = torch.from_numpy(patterns.known_R.astype("f4")).unsqueeze(1)
        self.register_buffer("known_R1", known_R1, persistent=False)

    def forward(self) -> Tensor:
        """(R, width), a row for each pattern."""
        e_RN: Tensor = self.types(self.type_RN)
        if self.weights is None:
            return e_RN
        return e_RN + functional.relu(self.weights(self.weight_RK)) * self.known_R1


class EdgeMap(nn.Module):
    """What one layer reads from the features, E = W e or E = MLP(e), and the features that it hands on.

    The latter are e itself, or with the perceptron the batch norm over all edges of E.
    """

    def __init__(self, options: config.Transformer, patterns: EdgePatterns, *, last: bool) -> None:
        """The ``last`` layer hands nothing on."""
        super().__init__()
        width = options.hidden
        self.shape_HN = (options.heads, width // options.heads)
        self.bias = nn.Linear(width, options.heads)
        # The softmax over a node's edges cancels what this adds to all of them, but for the clip and the
        # epsilon; its gradient is all but rounding noise, of which AdamW would make full steps.
        self.bias.bias.requires_grad_(False)
        self.gate = nn.Linear(width, width, bias=False) if options.gate_values else None
        self.map: nn.Module
        self.norm: EdgeNorm | None = None
        if options.edge_map == "mlp":
            self.map = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            self.norm = None if last else EdgeNorm(patterns, width)
        else:
            self.map = nn.Linear(width, width, bias=False)

    def forward(self, e_RN: Tensor) -> tuple[EdgeTerms, Tensor]:
        """The attention's terms and the next layer's features."""
        mapped_RN: Tensor = self.map(e_RN)
        # with this scale the score's product is q . (k * e) / sqrt(N)
        feature_RHN = mapped_RN.reshape(-1, *self.shape_HN) * self.shape_HN[1] ** -0.5
        gate_RHN = None if self.gate is None else self.gate(e_RN).reshape(-1, *self.shape_HN)
        terms = EdgeTerms(feature_RHN, self.bias(e_RN), gate_RHN)
        return terms, e_RN if self.norm is None else self.norm(mapped_RN)


class EdgeNorm(nn.Module):
    """Batch normalisation over edges, from the table of their patterns: ``torch.nn.BatchNorm1d`` exactly."""

    count_R1: Tensor
    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self, patterns: EdgePatterns, width: int, *, epsilon: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.num_edges = int(patterns.count_R.sum())
        count_R1 = torch.from_numpy(patterns.count_R.astype("f4")).unsqueeze(1)
        self.register_buffer("count_R1", count_R1, persistent=False)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))

    def forward(self, x_RN: Tensor) -> Tensor:
        """``x_RN`` normalised: with the edges' statistics in training, the running ones otherwise."""
        wide_RN = x_RN.to(torch.promote_types(x_RN.dtype, torch.float32))
        if not self.training:
            return self._scale(wide_RN - self.running_mean, self.running_variance)
        share_R1 = self.count_R1 / max(self.num_edges, 1)
        mean_N = (wide_RN * share_R1).sum(0)
        centred_RN = wide_RN - mean_N
        variance_N = (centred_RN.square() * share_R1).sum(0)
        with torch.no_grad():
            unbiased_N = variance_N * (self.num_edges / max(self.num_edges - 1, 1))
            self.running_mean.lerp_(mean_N.to(self.running_mean.dtype), self.momentum)
            self.running_variance.lerp_(unbiased_N.to(self.running_variance.dtype), self.momentum)
        return self._scale(centred_RN, variance_N)

    def _scale(self, centred_RN: Tensor, variance_N: Tensor) -> Tensor:
        return centred_RN * (torch.rsqrt(variance_N + self.epsilon) * self.weight) + self.bias
