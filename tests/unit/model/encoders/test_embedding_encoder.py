import torch
from torch import nn
from torch.nn import functional

from tests.unit.model.encoders import encoder_checks as checks
from tests.unit.model.encoders.random_graphs import graph_input
from txpert_dist import config
from txpert_dist.model.encoders.embedding import EmbeddingEncoder

OPTIONS = config.Embedding(node_features=5)


def oracle(built: nn.Module) -> torch.Tensor:
    state = dict(built.named_parameters())
    x_PD = state["features.table_PN"] @ state["last.weight"].T + state["last.bias"]
    return functional.leaky_relu(x_PD, 0.01)


def test_equals_a_linear_map_of_each_genes_vector():
    for num_nodes in (1, 9):
        checks.assert_same(
            checks.in_double(EmbeddingEncoder, OPTIONS, graph_input(num_nodes, 20, 2, 0)), oracle
        )


def test_no_graph_and_no_other_gene_matters():
    graph = graph_input(9, 30, 2, 0)
    built = checks.in_double(EmbeddingEncoder, OPTIONS, graph)
    empty = checks.with_graph(built, OPTIONS, graph._replace(graphs=()))
    assert torch.equal(built(), empty())
    assert checks.moved_by_gene(built, 3) == {3}


def test_vectors_start_standard_normal():
    torch.manual_seed(0)
    table_PN = EmbeddingEncoder(config.Embedding(), graph_input(2000, 0, 1, 0), latent=6).features.table_PN
    assert table_PN.shape == (2000, 128)
    assert abs(table_PN.std().item() - 1) < 0.01
    assert abs(table_PN.mean().item()) < 0.01


def test_renaming_genes_renames_embeddings():
    graph = graph_input(9, 30, 2, 0)
    built = checks.in_double(EmbeddingEncoder, OPTIONS, graph)
    checks.assert_renaming_genes_renames_embeddings(built, OPTIONS, graph)


def test_dropout_follows_the_key_and_ends_the_encoder():
    options = OPTIONS.model_copy(update={"dropout": 0.3})
    built = checks.in_double(EmbeddingEncoder, options, graph_input(200, 30, 2, 0))
    checks.assert_dropout_follows_the_key(built)
    assert abs(checks.share_dropped(built(checks.DropoutKey(0, 1, 0))) - 0.3) < 0.06


def test_the_graph_is_not_in_the_checkpointed_state():
    checks.assert_graph_is_no_state(checks.in_double(EmbeddingEncoder, OPTIONS, graph_input(9, 30, 2, 0)))
