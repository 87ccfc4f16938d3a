"""From a configuration to its perturbation encoder.

Enters: one variant of ``config.Perturbation`` and a graph input. Leaves: a module whose forward takes a
``DropoutKey`` or None and returns z_PD. Invariant: what does not go together is refused before anything is
built.
"""

from torch import nn

from txpert_dist import config
from txpert_dist.errors import ConfigError
from txpert_dist.model.encoders.embedding import EmbeddingEncoder
from txpert_dist.model.encoders.exphormer import ExphormerEncoder
from txpert_dist.model.encoders.gat import GatEncoder
from txpert_dist.model.encoders.gat_hybrid import GatHybridEncoder
from txpert_dist.model.encoders.gat_mlg import GatMlgEncoder
from txpert_dist.model.encoders.gcn import GcnEncoder
from txpert_dist.model.encoders.hybrid_bmp import HybridBmpEncoder
from txpert_dist.model.graph_input import GraphInput


def build_encoder(options: config.Perturbation, graph: GraphInput, *, latent: int) -> nn.Module:
    """The encoder that ``options`` describe. Raises ``ConfigError`` as ``check_encoder`` does."""
    check_encoder(options, graph)
    match options:
        case config.Gat():
            return GatEncoder(options, graph, latent=latent)
        case config.GatHybrid():
            return GatHybridEncoder(options, graph, latent=latent)
        case config.GatMlg():
            return GatMlgEncoder(options, graph, latent=latent)
        case config.Gcn():
            return GcnEncoder(options, graph, latent=latent)
        case config.Exphormer() | config.ExphormerMg():
            return ExphormerEncoder(options, graph, latent=latent)
        case config.HybridBmp():
            return HybridBmpEncoder(options, graph, latent=latent)
        case config.Embedding():
            return EmbeddingEncoder(options, graph, latent=latent)


def check_encoder(options: config.Perturbation, graph: GraphInput) -> None:
    """Raise ``ConfigError`` when ``graph`` lacks what ``options`` ask for, saying what and how to get it."""
    names = [one.name for one in graph.graphs]
    if isinstance(options, config.GatMlg) and options.reference not in (None, *names):
        raise ConfigError(
            f"model.perturbation.reference={options.reference!r}: not among the graphs used "
            f"({', '.join(names)}); name one of them"
        )
    if isinstance(options, (config.GatHybrid, config.GatMlg)) and not names:
        raise ConfigError(f"model.perturbation.kind={options.kind} needs at least one knowledge graph")
    if isinstance(options, config.Transformer) and options.expander_cycles > graph.expander.num_cycles:
        raise ConfigError(
            f"model.perturbation.expander_cycles={options.expander_cycles}, but the snapshot has "
            f"{graph.expander.num_cycles}; build it with `expander: {{cycles: {options.expander_cycles}}}` "
            "in graphs.yaml, or ask for fewer"
        )
    if isinstance(options, (config.GraphLayers, config.Transformer)):
        _check_positional(options.positional, graph)


def _check_positional(positional: config.Positional, graph: GraphInput) -> None:
    there = {"none": True, "random_walk": graph.random_walk_PN is not None}
    there["laplacian"] = graph.laplacian_PN is not None
    if not there[positional]:
        raise ConfigError(
            f"model.perturbation.positional={positional}, but the snapshot has no such encodings of the "
            f"graphs used; build it with `positional: {{{positional}: 16}}` in graphs.yaml"
        )
