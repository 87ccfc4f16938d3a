"""Graph attention over the union of the knowledge graphs.

Enters: a graph input. Leaves: z_PD, one latent vector a node. x_0 are the node features, x_L what a stack of
attention layers makes of them, z = dropout(LeakyReLU_0.01(Linear(x_L))) (TxPert, methods, "Perturbation
model"; widths as published). Invariants: a node without edges sees only itself; dropout is equal on every
worker; the graph is no part of the state a checkpoint carries.
"""

from itertools import count

from txpert_dist import config
from txpert_dist.model.attention.edges import union_edges
from txpert_dist.model.encoders.features import NodeFeatures
from txpert_dist.model.encoders.stack import StackEncoder, attention_stack
from txpert_dist.model.graph_input import GraphInput


class GatEncoder(StackEncoder):
    """Learned node features refined by ``options.layers`` layers of GAT or GATv2."""

    def __init__(self, options: config.Gat, graph: GraphInput, *, latent: int) -> None:
        """Raises ``ValueError`` for an edge whose end is not a node."""
        sites, width = count(), options.node_features
        edges = union_edges(
            graph.graphs, graph.num_nodes, self_loops=options.self_loops, reverse_edges=options.reverse_edges
        )
        features = NodeFeatures(graph, width, options.positional)
        stack = attention_stack(options, edges, graph.num_nodes, width=width, sites=sites)
        super().__init__(features, stack, latent=latent, site=next(sites))
