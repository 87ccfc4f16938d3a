import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.model.encoders import encoder_checks as checks
from tests.unit.model.encoders.random_graphs import graph_input, graph_inputs
from txpert_dist import config
from txpert_dist.model.encoders.hybrid_bmp import HybridBmpEncoder
from txpert_dist.model.graph_input import GraphInput

OPTIONS = config.HybridBmp(node_features=5, hidden=4)


def oracle(built: nn.Module, options: config.HybridBmp, graph: GraphInput) -> Tensor:
    """Matrix products over all pairs."""
    state = dict(built.named_parameters())
    incoming_PP = checks.dense(graph.graphs, graph.num_nodes, self_loops=options.self_loops).there_PP.double()
    outgoing_PP = incoming_PP.T
    if options.average:
        incoming_PP = incoming_PP / incoming_PP.sum(1, keepdim=True).clamp(min=1)
        outgoing_PP = outgoing_PP / outgoing_PP.sum(1, keepdim=True).clamp(min=1)
    x_PN = incoming_PP @ state["incoming_PN"] + outgoing_PP @ state["outgoing_PN"]
    hidden_PN = functional.leaky_relu(x_PN @ state["first.weight"].T + state["first.bias"], 0.01)
    return hidden_PN @ state["last.weight"].T + state["last.bias"]


@settings(max_examples=40)
@given(graph=graph_inputs, self_loops=st.booleans(), average=st.booleans())
def test_equals_products_over_all_pairs(graph, self_loops, average):
    options = OPTIONS.model_copy(update={"self_loops": self_loops, "average": average})
    built = checks.in_double(HybridBmpEncoder, options, graph)
    checks.assert_same(built, lambda same: oracle(same, options, graph))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_edge_of_every_graph_matters(number):
    graph = graph_input(10, 12, 3, 0)
    built = checks.in_double(HybridBmpEncoder, OPTIONS, graph)
    for source, target in (checks.own_edge(graph, number), checks.new_edge(graph)):
        changed = checks.with_graph(built, OPTIONS, checks.toggled(graph, number, source, target))
        assert checks.moved(built(), changed()) == {source, target}


def test_an_edge_that_several_graphs_have_counts_once():
    graph = graph_input(10, 12, 2, 0)
    built = checks.in_double(HybridBmpEncoder, OPTIONS, graph)
    source, target = checks.own_edge(graph, 0)
    twice = checks.with_graph(built, OPTIONS, checks.toggled(graph, 1, source, target))
    assert torch.equal(built(), twice())
    assert torch.equal(built(), checks.with_graph(built, OPTIONS, checks.reordered(graph, [1, 0]))())


def test_a_gene_reaches_its_neighbours_of_both_directions_and_no_further():
    assert checks.moved_by_gene(checks.in_double(HybridBmpEncoder, OPTIONS, checks.chain(8, 2)), 4) == {3, 5}
    looped = OPTIONS.model_copy(update={"self_loops": True})
    assert checks.moved_by_gene(checks.in_double(HybridBmpEncoder, looped, checks.chain(8, 2)), 4) == {
        3,
        4,
        5,
    }


def test_each_table_serves_one_direction():
    built = checks.in_double(HybridBmpEncoder, OPTIONS, checks.chain(8))
    before_PD = built()
    with torch.no_grad():
        built.incoming_PN[4] += 1
        after_PD = built()
    assert checks.moved(before_PD, after_PD) == {5}


def test_genes_without_neighbours_are_alike():
    graph = graph_input(6, 9, 2, 0, isolated=3)
    z_PD = checks.in_double(HybridBmpEncoder, OPTIONS, graph)()
    assert torch.equal(z_PD[3], z_PD[5])
    alone = checks.in_double(HybridBmpEncoder, OPTIONS, GraphInput(1, graph.graphs[:0]))
    assert alone().shape == (1, checks.LATENT)


def test_tables_start_standard_normal():
    torch.manual_seed(0)
    built = HybridBmpEncoder(config.HybridBmp(), graph_input(2000, 50, 1, 0), latent=6)
    for table_PN in (built.incoming_PN, built.outgoing_PN):
        assert abs(table_PN.std().item() - 1) < 0.01
        assert abs(table_PN.mean().item()) < 0.01
    assert (
        abs(np.corrcoef(built.incoming_PN.detach().ravel(), built.outgoing_PN.detach().ravel())[0, 1]) < 0.01
    )


def test_renaming_genes_renames_embeddings():
    graph = graph_input(10, 30, 2, 0)
    built = checks.in_double(HybridBmpEncoder, OPTIONS, graph)
    checks.assert_renaming_genes_renames_embeddings(built, OPTIONS, graph)


def test_dropout_follows_the_key():
    checks.assert_dropout_follows_the_key(
        checks.in_double(HybridBmpEncoder, OPTIONS, graph_input(9, 30, 2, 0))
    )


def test_the_graph_is_not_in_the_checkpointed_state():
    checks.assert_graph_is_no_state(checks.in_double(HybridBmpEncoder, OPTIONS, graph_input(9, 30, 2, 0)))
