import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GATv2Conv

from graph_store.graph import KnowledgeGraph
from txpert_dist import config
from txpert_dist.model.attention.edges import edge_table
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.gat import GraphAttentionEncoder

SMALL = config.Gat(layers=3, node_features=5, hidden=4, heads=2)


def encoder(
    edges_2E: np.ndarray, num_nodes: int, gat: config.Gat = SMALL, seed: int = 0
) -> GraphAttentionEncoder:
    torch.manual_seed(seed)
    graph = KnowledgeGraph("g", edges_2E.astype(np.int32), np.ones(edges_2E.shape[1], np.float32))
    table = edge_table([graph], num_nodes, self_loops=gat.self_loops, reverse_edges=gat.reverse_edges)
    return GraphAttentionEncoder(gat, table, latent=6).double()


def random_edges(num_nodes: int, num_edges: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, num_nodes, (2, num_edges))


@pytest.mark.parametrize("skip", ["concat", "none"])
def test_equals_a_stack_of_pyg_layers(skip):
    gat = SMALL.model_copy(update={"skip": skip})
    ours = encoder(random_edges(9, 25), 9, gat)
    x_PN = ours.features_PN
    for layer in ours.layers:
        oracle = GATv2Conv(x_PN.shape[1], 4, heads=2, add_self_loops=False).double()
        with torch.no_grad():
            for linear, weight, bias in zip(
                (oracle.lin_l, oracle.lin_r),
                layer.project.weight.chunk(2),
                layer.project.bias.chunk(2),
                strict=True,
            ):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
            oracle.att.copy_(layer.attention_HN[None])
            oracle.bias.copy_(layer.bias)
        out_PN = oracle(x_PN, torch.stack([ours.source, ours.target]))
        x_PN = functional.leaky_relu(torch.cat([out_PN, x_PN], 1) if skip == "concat" else out_PN, 0.01)
    torch.testing.assert_close(ours(), functional.leaky_relu(ours.last(x_PN), 0.01), rtol=1e-9, atol=1e-9)


def moved_by_node(ours: GraphAttentionEncoder, node: int) -> set[int]:
    with torch.no_grad():
        before_PD = ours()
        ours.features_PN[node] += 1
        after_PD = ours()
        ours.features_PN[node] -= 1
    return set((before_PD - after_PD).abs().amax(1).gt(1e-9).nonzero().flatten().tolist())


def test_a_node_reaches_as_far_as_there_are_layers_and_only_downstream():
    chain_2E = np.stack([np.arange(7), np.arange(1, 8)])
    assert moved_by_node(encoder(chain_2E, 8), 1) == {1, 2, 3, 4}
    both_ways = SMALL.model_copy(update={"reverse_edges": True})
    assert moved_by_node(encoder(chain_2E, 8, both_ways), 4) == {1, 2, 3, 4, 5, 6, 7}


def test_an_isolated_node_sees_only_itself():
    edges_2E = random_edges(6, 15)
    ours = encoder(edges_2E, 8)
    assert moved_by_node(ours, 7) == {7}
    alone = encoder(np.zeros((2, 0)), 1)
    alone.load_state_dict(ours.state_dict() | {"features_PN": ours.features_PN[7:]})
    torch.testing.assert_close(alone()[0], ours()[7])


def test_renaming_the_nodes_renames_the_embeddings():
    edges_2E, order = random_edges(10, 40), np.random.default_rng(1).permutation(10)
    one, other = encoder(edges_2E, 10), encoder(order[edges_2E], 10)
    with torch.no_grad():
        other.features_PN[order] = one.features_PN
    torch.testing.assert_close(other()[order], one(), rtol=1e-10, atol=1e-10)


def test_initial_weights_are_pygs_and_features_are_standard_normal():
    torch.manual_seed(0)
    table = edge_table([], 2000, self_loops=True, reverse_edges=False)
    ours = GraphAttentionEncoder(config.Gat(), table, latent=64)
    assert abs(ours.features_PN.std().item() - 1) < 0.01
    assert abs(ours.features_PN.mean().item()) < 0.01
    first = ours.layers[0]
    oracle = GATv2Conv(128, 128, heads=2)
    for weight, reference in (
        *((half, oracle.lin_l.weight) for half in first.project.weight.chunk(2)),
        (first.attention_HN, oracle.att),
    ):
        torch.testing.assert_close(weight.std(), reference.std(), rtol=0.15, atol=0)
        torch.testing.assert_close(weight.abs().max(), reference.abs().max(), rtol=0.05, atol=0)
    assert not first.project.bias.any()
    assert not first.bias.any()
    assert isinstance(ours.last, nn.Linear)


def test_dropout_follows_the_key_and_ignores_the_workers_rows():
    ours = encoder(random_edges(9, 25), 9)
    key = DropoutKey(0, 1, 0)
    assert torch.equal(ours(key), ours(key._replace(first_row=32)))
    assert not torch.allclose(ours(key), ours(key._replace(step=2)))
    assert not torch.allclose(ours(key), ours())


def test_the_graph_is_not_in_the_checkpointed_state():
    assert not {"indptr", "source", "target"} & set(encoder(random_edges(9, 25), 9).state_dict())
