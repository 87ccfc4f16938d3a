"""TxPert: expression after a perturbation, from a control profile and a knowledge graph.

Enters: control expression (log1p scale), the nodes of each cell's perturbed genes. Leaves: predicted
expression on the same scale. y = g(s + sum of z_p), s = f(x) the basal state and z the perturbation encoder's
node embeddings (TxPert, methods, "TxPert architecture"); with the identity basal model y = x + g(sum of z_p).
Invariants: embeddings do not depend on the cells; initial weights depend on the seed and the shapes alone;
nothing here knows of workers but through ``reduce``, a differentiable sum over them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.model.attention.edges import edge_table
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.gat import GraphAttentionEncoder
from txpert_dist.model.norm import Reduce, identity
from txpert_dist.model.perceptron import Perceptron

_BASAL_DROPOUT, _DECODER_DROPOUT = 0, 1


class TxPert(nn.Module):
    """Basal encoder, perturbation encoder, additive fusion and decoder; build it with ``build_model``."""

    def __init__(
        self, *, basal: Perceptron | None, perturbation: GraphAttentionEncoder, decoder: Perceptron
    ) -> None:
        """``basal=None`` is the identity basal model."""
        super().__init__()
        self.basal = basal
        self.perturbation = perturbation
        self.decoder = decoder

    def perturbation_embeddings(self, key: DropoutKey | None = None) -> Tensor:
        """z_PD of every node. They do not depend on cells: compute them once, decode many."""
        z_PD: Tensor = self.perturbation(key)
        return z_PD

    def decode(
        self, control_BG: Tensor, perturbations_BM: Tensor, z_PD: Tensor, key: DropoutKey | None = None
    ) -> Tensor:
        """Predicted expression yhat_BG of cells with ``control_BG`` under the perturbations of ``z_PD``.

        ``perturbations_BM`` holds node numbers, -1 where there is none; a row of -1 is a control cell.
        Raises ``IndexError`` for a node number that is not in ``z_PD``.
        """
        shift_BD = sum_perturbations(z_PD, perturbations_BM)
        if self.basal is None:
            change_BG: Tensor = self.decoder(shift_BD, key)
            return control_BG + change_BG
        predicted_BG: Tensor = self.decoder(self.basal(control_BG, key) + shift_BD, key)
        return predicted_BG

    def forward(self, control_BG: Tensor, perturbations_BM: Tensor, key: DropoutKey | None = None) -> Tensor:
        """``decode`` with embeddings computed for this call; ``key`` switches dropout on."""
        return self.decode(control_BG, perturbations_BM, self.perturbation_embeddings(key), key)


def build_model(
    model: config.Model,
    *,
    num_genes: int,
    num_nodes: int,
    graphs: Sequence[KnowledgeGraph],
    seed: int,
    reduce: Reduce = identity,
) -> TxPert:
    """A TxPert over ``num_genes`` genes and ``num_nodes`` nodes, with initial weights drawn from ``seed``.

    ``graphs`` number their nodes below ``num_nodes``; their union is what the encoder sees. ``reduce`` sums a
    tensor over the workers, differentiably; batch normalisation needs it. The caller's random streams are
    left as they were. Raises ``ValueError`` for an edge whose end is not a node.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        basal: Perceptron | None
        match model.basal:
            case config.MlpBasal(hidden=hidden):
                basal = _perceptron(model, num_genes, hidden, model.latent, _BASAL_DROPOUT, reduce)
            case config.IdentityBasal():
                basal = None
        gat = model.perturbation
        edges = edge_table(graphs, num_nodes, self_loops=gat.self_loops, reverse_edges=gat.reverse_edges)
        decoder = _perceptron(model, model.latent, model.decoder.hidden, num_genes, _DECODER_DROPOUT, reduce)
        if model.norm == "batch":
            _fix_undetermined_biases(basal, decoder)
        return TxPert(
            basal=basal,
            perturbation=GraphAttentionEncoder(gat, edges, latent=model.latent),
            decoder=decoder,
        )


def sum_perturbations(z_PD: Tensor, perturbations_BM: Tensor) -> Tensor:
    """Sum of the embeddings of each cell's perturbations: (B, D), zero for a cell without any."""
    num_nodes, latent = z_PD.shape
    # one more row, of zeros, is where -1 points: a gather forward and a sorted, repeatable sum backward
    padded_PD = torch.cat([z_PD, z_PD.new_zeros(1, latent)])
    rows_BM = torch.where(perturbations_BM < 0, num_nodes, perturbations_BM)
    return functional.embedding(rows_BM, padded_PD, padding_idx=num_nodes).sum(1)


def parameter_counts(model: TxPert) -> dict[str, int]:
    """Learned numbers in each part; 0 for a part that is the identity."""
    return {
        name: sum(p.numel() for p in part.parameters()) if part is not None else 0
        for name, part in (
            ("basal", model.basal),
            ("perturbation", model.perturbation),
            ("decoder", model.decoder),
        )
    }


def _fix_undetermined_biases(basal: Perceptron | None, decoder: Perceptron) -> None:
    # Batch norm subtracts whatever these add, so their gradient is rounding noise alone. AdamW scales noise
    # to full steps: they would wander, and the running means after them, unlike on other numbers of workers.
    fixed = [decoder.first] if basal is None else [decoder.first, basal.first, basal.last]
    for linear in fixed:
        linear.bias.requires_grad_(False)


def _perceptron(
    model: config.Model, inputs: int, hidden: int, outputs: int, layer: int, reduce: Reduce
) -> Perceptron:
    return Perceptron(
        inputs,
        hidden,
        outputs,
        norm=model.norm,
        dropout=model.dropout,
        layer=layer,
        reduce=reduce,
    )
