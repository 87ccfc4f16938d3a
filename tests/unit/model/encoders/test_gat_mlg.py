import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.model.encoders import encoder_checks as checks
from tests.unit.model.encoders.dense_layers import attention_rounds, layer_norm, linear, part
from tests.unit.model.encoders.random_graphs import graph_input, graph_inputs
from txpert_dist import config
from txpert_dist.model.encoders.gat_mlg import GatMlgEncoder
from txpert_dist.model.graph_input import GraphInput

OPTIONS = config.GatMlg(layers=2, node_features=4, hidden=4, heads=2, structure=8)


def multilayer(options: config.GatMlg, graph: GraphInput, *, coupled: bool) -> checks.Dense:
    """The supra-adjacency matrix: graphs on the diagonal, identity elsewhere."""
    size, num_graphs = graph.num_nodes, len(graph.graphs)
    there = torch.zeros(num_graphs, size, num_graphs, size, dtype=torch.bool)
    weight = torch.zeros(num_graphs, size, num_graphs, size, num_graphs, dtype=torch.float64)
    for one in range(num_graphs):
        for other in range(num_graphs):
            if one == other:
                pairs = checks.dense(
                    [graph.graphs[one]],
                    size,
                    self_loops=options.self_loops,
                    reverse_edges=options.reverse_edges,
                )
                there[one, :, one] = pairs.there_PP
                weight[one, :, one, :, one] = pairs.weight_PPK[..., 0]
            elif coupled:
                there[one, :, other] = torch.eye(size, dtype=torch.bool)
    rows = num_graphs * size
    return checks.Dense(there.reshape(rows, rows), weight.reshape(rows, rows, num_graphs))


def structure(state: dict[str, Tensor], options: config.GatMlg, graph: GraphInput, number: int) -> Tensor:
    """f_node(sum of f_edge(w)), edge by edge."""
    pairs = checks.dense(
        [graph.graphs[number]], graph.num_nodes, self_loops=False, reverse_edges=options.reverse_edges
    )

    own = part(state, "structure.")
    rows = []
    for target in range(graph.num_nodes):
        total_N = torch.zeros(options.structure, dtype=torch.float64)
        for source in range(graph.num_nodes):
            if source != target and pairs.there_PP[target, source]:
                hidden_N = functional.relu(linear(own, "edge_first.", pairs.weight_PPK[target, source]))
                total_N = total_N + linear(own, "edge_last.", hidden_N)
        rows.append(linear(own, "node_last.", functional.relu(linear(own, "node_first.", total_N))))
    # every parameter has a gradient, be it zero, where there is no edge
    return torch.stack(rows) + sum(0 * value.sum() for value in state.values())


def oracle(built: nn.Module, options: config.GatMlg, graph: GraphInput, *, coupled: bool = True) -> Tensor:
    """All pairs of copies, then the gate by its formula."""
    state = dict(built.named_parameters())
    names = [one.name for one in graph.graphs]
    number = names.index(options.reference) if options.reference else 0
    x_PN = state["features.table_PN"]
    if options.positional == "laplacian":
        x_PN = x_PN + linear(state, "features.position.", built.features.encoding_PN)
    pairs = multilayer(options, graph, coupled=coupled)
    copies_RN = attention_rounds(state, "stack.", options, torch.cat([x_PN] * len(names)), pairs)
    h_PN = copies_RN.reshape(len(names), graph.num_nodes, -1)[number]
    s_PN = structure(state, options, graph, number)
    own = part(state, "gate.")
    g_PD = 1 / (1 + (-linear(own, "gate.", torch.cat([s_PN, h_PN], 1))).exp())
    mixed_PD = g_PD * linear(own, "structure.", s_PN) + (1 - g_PD) * linear(own, "node.", h_PN)
    return layer_norm(part(own, "norm."), mixed_PD)


@settings(max_examples=60)
@given(
    graph=graph_inputs,
    last=st.booleans(),
    version=st.sampled_from([1, 2]),
    combine_heads=st.sampled_from(["concat", "mean"]),
    self_loops=st.booleans(),
    reverse_edges=st.booleans(),
    edge_weights=st.booleans(),
    skip=st.sampled_from(["concat", "concat_learned", "sum_learned", "none"]),
    norm=st.sampled_from(["layer", "none"]),
    positional=st.sampled_from(["none", "laplacian"]),
)
def test_equals_the_formulas_over_all_pairs(graph, last, **update):
    update["reference"] = graph.graphs[-1].name if last else None
    options = OPTIONS.model_copy(update=update)
    built = checks.in_double(GatMlgEncoder, options, graph)
    checks.assert_same(built, lambda same: oracle(same, options, graph))


@pytest.mark.parametrize("reference", ["kg0", "kg2"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_edge_of_every_graph_matters(number, reference):
    options = OPTIONS.model_copy(update={"reference": reference})
    graph = graph_input(10, 12, 3, 0)
    built = checks.in_double(GatMlgEncoder, options, graph)
    for source, target in (checks.own_edge(graph, number), checks.new_edge(graph)):
        changed = checks.with_graph(built, options, checks.toggled(graph, number, source, target))
        assert target in checks.moved(built(), changed())


def test_without_couplings_only_the_reference_would_matter():
    graph = graph_input(10, 12, 2, 0)
    changed = checks.toggled(graph, 1, *checks.own_edge(graph, 1))
    built = checks.in_double(GatMlgEncoder, OPTIONS, graph)
    loose_PD = oracle(built, OPTIONS, graph, coupled=False)
    assert checks.moved(built(), loose_PD)
    assert not checks.moved(loose_PD, oracle(built, OPTIONS, changed, coupled=False))
    assert checks.moved(built(), checks.with_graph(built, OPTIONS, changed)())
    # a single graph has no couplings to lose
    single = graph._replace(graphs=graph.graphs[:1])
    alone = checks.with_graph(built, OPTIONS, single)
    torch.testing.assert_close(alone(), loose_PD, rtol=1e-9, atol=1e-9)


def test_a_gene_reaches_as_far_as_the_layers_allow_a_coupling_being_one_step():
    # 0 -> 1 in kg0, 1 -> 2 in kg1, 2 -> 3 in kg0, ...: from 3 on through copies in kg1 and back
    for layers, reached in ((1, {3}), (2, {3, 4}), (3, {3, 4, 5}), (4, {3, 4, 5})):
        options = OPTIONS.model_copy(update={"layers": layers})
        assert (
            checks.moved_by_gene(checks.in_double(GatMlgEncoder, options, checks.chain(8, 2)), 3) == reached
        )


def test_weights_of_the_reference_matter_those_of_the_others_only_as_features():
    graph = graph_input(10, 12, 2, 0)
    for edge_weights, matters in ((False, (True, False)), (True, (True, True))):
        options = OPTIONS.model_copy(update={"edge_weights": edge_weights})
        built = checks.in_double(GatMlgEncoder, options, graph)
        for number in (0, 1):
            one = graph.graphs[number]
            weight_E = one.weight_E.copy()
            weight_E[np.abs(weight_E).argmin()] *= 0.5
            graphs = list(graph.graphs)
            graphs[number] = one._replace(weight_E=weight_E)
            changed = checks.with_graph(built, options, graph._replace(graphs=tuple(graphs)))
            assert bool(checks.moved(built(), changed())) == matters[number]


def test_graphs_in_another_order_change_nothing_when_the_reference_has_a_name():
    options = OPTIONS.model_copy(update={"reference": "kg1", "edge_weights": True})
    graph, order = graph_input(10, 20, 3, 0), [2, 0, 1]
    built = checks.in_double(GatMlgEncoder, options, graph)
    other = checks.with_graph(built, options, checks.reordered(graph, order))
    with torch.no_grad():
        for mine, theirs in zip(built.stack.layers, other.stack.layers, strict=True):
            theirs.project_edges.weight.copy_(mine.project_edges.weight[:, order])
    torch.testing.assert_close(other(), built(), rtol=1e-9, atol=1e-9)


def test_the_reference_is_the_first_graph_unless_named():
    graph = graph_input(10, 20, 2, 0)
    built = checks.in_double(GatMlgEncoder, OPTIONS, graph)
    for name, same in (("kg0", True), ("kg1", False)):
        named = checks.with_graph(built, OPTIONS.model_copy(update={"reference": name}), graph)
        assert torch.equal(named(), built()) == same
    with pytest.raises(ValueError, match="kg9"):
        GatMlgEncoder(OPTIONS.model_copy(update={"reference": "kg9"}), graph, latent=6)


def test_renaming_genes_renames_embeddings():
    options = OPTIONS.model_copy(update={"positional": "laplacian"})
    graph = graph_input(10, 30, 2, 0)
    built = checks.in_double(GatMlgEncoder, options, graph)
    checks.assert_renaming_genes_renames_embeddings(built, options, graph)


def test_dropout_follows_the_key_in_the_layers_and_in_the_structural_module():
    options = OPTIONS.model_copy(update={"attention_dropout": 0.1})
    built = checks.in_double(GatMlgEncoder, options, graph_input(9, 30, 2, 0))
    checks.assert_dropout_follows_the_key(built)
    checks.assert_dropouts_differ(built, 2 * OPTIONS.layers + 1)
    key = checks.DropoutKey(0, 1, 0)
    assert not torch.equal(built.structure(key), built.structure(None))


def test_the_graph_is_not_in_the_checkpointed_state():
    checks.assert_graph_is_no_state(checks.in_double(GatMlgEncoder, OPTIONS, graph_input(9, 30, 2, 0)))


def test_a_snapshot_of_one_gene():
    alone = checks.in_double(GatMlgEncoder, OPTIONS, graph_input(1, 0, 2, 0))
    assert alone().shape == (1, checks.LATENT)
    assert torch.isfinite(alone()).all()
