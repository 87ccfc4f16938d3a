import numpy as np
import pytest
import torch

from graph_store import client
from graph_store.graph import Snapshot
from tests.unit.train.small_screen import write_snapshot
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.gat_mlg import GatMlgEncoder
from txpert_dist.model.graph_input import GraphInput, graph_input, multilayer


@pytest.fixture
def opened(tmp_path) -> Snapshot:
    folder = write_snapshot(tmp_path / "graphs", names=("curated", "screen", "third"))
    return client.open_snapshot(str(folder))


def encoded(graph: GraphInput, options: config.GatMlg) -> torch.Tensor:
    torch.manual_seed(0)
    encoder = GatMlgEncoder(options, graph, latent=6)
    return encoder(DropoutKey(0, 1, 0)).detach()


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("reverse_edges", [False, True])
def test_the_layers_of_the_snapshot_and_those_made_for_a_run_are_the_same_to_the_bit(
    opened, self_loops, reverse_edges
):
    options = config.GatMlg(
        node_features=4, hidden=4, heads=2, structure=8, edge_weights=True, dropout=0.1
    ).model_copy(update={"self_loops": self_loops, "reverse_edges": reverse_edges})
    from_files = graph_input(opened, None, len(opened.genes))
    assert multilayer(from_files) is opened.supra
    made_here = from_files._replace(supra=None)
    for read, made in zip(multilayer(from_files), multilayer(made_here), strict=True):
        np.testing.assert_array_equal(read, made)
    assert torch.equal(encoded(from_files, options), encoded(made_here, options))


@pytest.mark.parametrize(
    ("use", "further"),
    [
        (("curated", "screen"), 0),
        (("screen", "curated", "third"), 0),
        (None, 1),
        (("curated", "screen", "third"), 2),
    ],
)
def test_other_graphs_another_order_and_further_nodes_have_layers_of_their_own(opened, use, further):
    num_nodes = len(opened.genes) + further
    graph = graph_input(opened, use, num_nodes)
    assert graph.supra is None
    made = multilayer(graph)
    assert (made.num_layers, made.num_genes) == (len(graph.graphs), num_nodes)
    for layer, one in enumerate(graph.graphs):
        np.testing.assert_array_equal(
            made.edges_2M[:, made.layer_M == layer] - layer * num_nodes, one.edges_2E
        )


def test_naming_all_graphs_in_their_order_is_the_same_as_naming_none(opened):
    named = graph_input(opened, ("curated", "screen", "third"), len(opened.genes))
    assert named.supra is opened.supra


def test_a_snapshot_that_was_put_together_by_hand_has_no_layers_yet(opened):
    by_hand = Snapshot(opened.id, opened.genes, opened.graphs, opened.aliases)
    made = multilayer(graph_input(by_hand, None, len(opened.genes)))
    for read, expected in zip(made, opened.supra, strict=True):
        np.testing.assert_array_equal(read, expected)


def test_what_a_run_reads_cannot_be_written_to(opened):
    graph = graph_input(opened, None, len(opened.genes))
    with pytest.raises(ValueError, match="read-only"):
        graph.graphs[0].weight_E[0] = 2
