"""Some nodes' embeddings alone: those of the whole graph, in value and gradient, for every encoder."""

import itertools
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.unit.model.encoders.encoder_checks import chain
from tests.unit.model.encoders.random_graphs import graph_input
from tests.unit.model.encoders.test_gat_encoder import gats
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.build import build_encoder
from txpert_dist.model.encoders.reach import WORTH_CUTTING, Reach, Tables, depth_of, reach_of
from txpert_dist.model.graph_input import GraphInput

KEY = DropoutKey(3, 7, 0)
SMALL = {"layers": 2, "node_features": 4, "hidden": 4, "dropout": 0.3}
TRANSFORMER = {"layers": 2, "hidden": 4, "dropout": 0.3, "expander_cycles": 2}
norms = st.sampled_from(get_args(config.NormKind))


def dropped(options: st.SearchStrategy) -> st.SearchStrategy:
    return options.map(lambda one: one.model_copy(update={"dropout": 0.3, "attention_dropout": 0.2}))


def transformers(kind: type[config.Transformer]) -> st.SearchStrategy:
    return st.builds(
        kind,
        layers=st.integers(1, 3),
        hidden=st.just(4),
        heads=st.sampled_from([1, 2]),
        dropout=st.just(0.3),
        self_loops=st.booleans(),
        reverse_edges=st.booleans(),
        expander_cycles=st.integers(0, 2),
        virtual_nodes=st.integers(0, 2),
        local=st.booleans(),
        edge_map=st.sampled_from(["linear", "mlp"]),
        gate_values=st.booleans(),
        edge_weights=st.booleans(),
        norm=norms,
    )


ENCODERS = {
    "gat": dropped(gats),
    "gat_hybrid": dropped(
        st.builds(
            config.GatHybrid,
            **{k: st.just(v) for k, v in SMALL.items()},
            norm=norms,
            version=st.sampled_from([1, 2]),
        )
    ),
    "gat_mlg": dropped(
        st.builds(
            config.GatMlg,
            **{k: st.just(v) for k, v in SMALL.items()},
            norm=norms,
            structure=st.just(3),
            reference=st.sampled_from([None, "kg0"]),
            edge_weights=st.booleans(),
        )
    ),
    "gcn": st.builds(
        config.Gcn, **{k: st.just(v) for k, v in SMALL.items()}, norm=norms, edge_weights=st.booleans()
    ),
    "exphormer": transformers(config.Exphormer),
    "exphormer_mg": transformers(config.ExphormerMg),
    "hybrid_bmp": st.builds(
        config.HybridBmp,
        node_features=st.just(4),
        hidden=st.just(4),
        dropout=st.just(0.3),
        average=st.booleans(),
        self_loops=st.booleans(),
    ),
    "embedding": st.builds(config.Embedding, node_features=st.just(4), dropout=st.just(0.3)),
}
"""Options of every encoder, dropout on."""

graphs = st.builds(
    graph_input,
    num_nodes=st.integers(1, 40),
    num_edges=st.integers(0, 50),
    num_graphs=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
"""Sparse enough for some to reach few others."""


def build(options: config.Perturbation, graph: GraphInput, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    built = build_encoder(options, graph, latent=5).to(dtype)
    for parameter in built.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return built


def outcome(built: nn.Module, z_RD: Tensor, d_RD: Tensor) -> dict[str, Tensor]:
    """z and the gradient of every parameter, zero where there is none."""
    named = {name: p for name, p in built.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(z_RD, list(named.values()), d_RD, allow_unused=True, materialize_grads=True)
    return {"z": z_RD.detach(), **dict(zip(named, found, strict=True))}


def reaches_of(built: nn.Module, rows: Sequence[int]) -> tuple[Reach, ...]:
    """As deep as is worth it for these very rows."""
    rows = np.array(rows, np.int64)
    return built.reaches(rows, built.depths(rows))


def depths(built: nn.Module) -> st.SearchStrategy:
    """Of each stack of layers, from none to all."""
    was_training = built.training
    most = built.eval().depths(np.zeros(0, np.int64))
    built.train(was_training)
    return st.tuples(*(st.integers(0, layers) for layers in most))


def assert_near(some: dict[str, Tensor], whole: dict[str, Tensor], tolerance: float) -> None:
    scale = max(1.0, *(value.abs().max().item() for value in whole.values() if value.numel()))
    for name, value in whole.items():
        torch.testing.assert_close(
            some[name], value, rtol=0, atol=tolerance * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("kind", ENCODERS)
@settings(max_examples=40)
@given(data=st.data())
def test_equals_the_whole_graph_in_value_and_every_gradient(kind, data):
    graph, options = data.draw(graphs), data.draw(ENCODERS[kind])
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1)))), np.int64)
    built = build(options, graph, torch.float64).train(data.draw(st.booleans()))
    key = data.draw(st.sampled_from([KEY, None]))
    reaches = built.reaches(rows, data.draw(depths(built)))
    d_RD = torch.randn(len(rows), 5, dtype=torch.float64)
    some = outcome(built, built(key, reaches), d_RD)
    assert some["z"].shape == (len(rows), 5)
    assert_near(some, outcome(built, built(key)[rows], d_RD), 1e-10)


@pytest.mark.parametrize("kind", ENCODERS)
def test_single_precision_is_as_near_as_rounding(kind):
    graph, rows = graph_input(400, 900, 2, 0), np.arange(3, 400, 37)
    fixed = {
        "gat": config.Gat(**SMALL, attention_dropout=0.2),
        "gat_hybrid": config.GatHybrid(**SMALL),
        "gat_mlg": config.GatMlg(**SMALL),
        "gcn": config.Gcn(**SMALL),
        "exphormer": config.Exphormer(**TRANSFORMER, norm="layer"),
        "exphormer_mg": config.ExphormerMg(**TRANSFORMER, norm="none"),
        "hybrid_bmp": config.HybridBmp(node_features=4, hidden=4),
        "embedding": config.Embedding(node_features=4),
    }
    built = build(fixed[kind], graph, torch.float32)
    reaches = reaches_of(built, rows)
    assert all(reach.cuts for reach in reaches) or kind == "embedding"
    d_RD = torch.randn(len(rows), 5)
    assert_near(outcome(built, built(KEY, reaches), d_RD), outcome(built, built(KEY)[rows], d_RD), 1e-6)


def reached(reach: Reach) -> list[list[int]]:
    """The nodes that the first cut layer reads, and each cut layer's targets."""
    return [reach.first.tolist(), *(cut.nodes.tolist() for cut in reach.cuts)]


def test_a_layer_reads_its_targets_and_their_sources_and_no_more():
    built = build(config.Gat(**SMALL | {"layers": 3}), chain(20), torch.float64)
    (one,) = reaches_of(built, [7])
    assert reached(one) == [[4, 5, 6, 7], [5, 6, 7], [6, 7], [7]]
    (ends,) = reaches_of(built, [0, 19])
    assert reached(ends) == [[0, 16, 17, 18, 19], [0, 17, 18, 19], [0, 18, 19], [0, 19]]
    edges = one.cuts[-1].tables.edges
    assert edges.source.tolist() == [0, 1]
    assert one.cuts[-1].place.tolist() == edges.rows.tolist() == [1]


def test_what_is_not_read_has_no_say_and_no_gradient():
    built = build(config.Gat(**SMALL), chain(20), torch.float64)
    reaches = reaches_of(built, [7])
    before_RD = built(KEY, reaches)
    with torch.no_grad():
        built.features.table_PN[:5] = torch.nan
        built.features.table_PN[8:] = torch.nan
    assert torch.equal(built(KEY, reaches), before_RD)
    (gradient_PN,) = torch.autograd.grad(before_RD.sum(), built.features.table_PN)
    assert gradient_PN.abs().sum(1).nonzero().flatten().tolist() == [5, 6, 7]


def test_layers_that_need_nearly_every_edge_are_not_cut():
    random = np.random.default_rng(0)
    for rows in (np.arange(60), random.choice(60, 58, replace=False), random.choice(60, 6, replace=False)):
        built = build(
            config.Gat(**SMALL | {"layers": 3}), graph_input(60, 500, 2, 0, isolated=0), torch.float64
        )
        (reach,) = reaches_of(built, np.sort(rows))
        table = built.stack.layers[0].table
        shares = [len(cut.tables.edges.source) / len(table.source) for cut in reach.cuts]
        assert shares == sorted(shares, reverse=True)
        assert all(share <= WORTH_CUTTING for share in shares)
        if len(reach.cuts) < 3:
            entering = np.diff(table.host_indptr)[reach.first.numpy()].sum()
            assert entering > WORTH_CUTTING * len(table.source)


@pytest.mark.parametrize("kind", ["gat", "exphormer"])
def test_batch_norm_over_the_nodes_sees_all_of_them_in_training(kind):
    graph, rows = chain(30), np.array([3, 17])
    options = (
        config.Gat(**SMALL, norm="batch")
        if kind == "gat"
        else config.Exphormer(**TRANSFORMER | {"expander_cycles": 0})
    )
    built = build(options, graph, torch.float64)
    norms = [module for name, module in built.named_modules() if hasattr(module, "running_mean")]
    pruned, whole = [], []
    for found, reaches in (
        (whole, ()),
        (pruned, reaches_of(built.eval(), rows)),
        (pruned, reaches_of(built.train(), rows)),
    ):
        built.train()
        for norm in norms:
            norm.running_mean.zero_()
        z_PD = built(KEY, reaches)
        found.append((z_PD if reaches else z_PD[rows], *(norm.running_mean.clone() for norm in norms)))
    for one, other in itertools.product(pruned, whole):
        for ours, expected in zip(one, other, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert not reaches_of(built.train(), rows)[0].cuts
    assert reaches_of(built.eval(), rows)[0].cuts


def test_where_cutting_ends_changes_the_work_and_not_the_result():
    graph, rows = graph_input(40, 200, 2, 1), np.arange(0, 40, 9)
    built = build(config.Gat(**SMALL | {"layers": 3}), graph, torch.float64)
    found = []
    for worth in (0.0, 0.3, 0.6, 1.0):
        tables = Tables(built.stack.layers[0].table)
        depth = depth_of(tables, rows, layers=3, worth_cutting=worth)
        found.append((depth, built(KEY, [reach_of(tables, rows, depth=depth)])))
    assert [cuts for cuts, _ in found] == sorted(cuts for cuts, _ in found)
    assert found[0][0] == 0
    assert found[-1][0] == 3
    for _, z_RD in found[1:]:
        torch.testing.assert_close(z_RD, found[0][1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ENCODERS)
@settings(max_examples=15)
@given(data=st.data())
def test_the_order_of_gradients_depends_on_the_depths_alone(kind, data):
    """ZeRO 2 sums them over ranks in the order in which they come, whatever they are of."""
    graph, options = data.draw(graphs), data.draw(ENCODERS[kind])
    built = build(options, graph, torch.float32)
    chosen = data.draw(depths(built))
    came = []
    for name, parameter in built.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: came.append(name))
    for _ in range(2):
        rows = np.array(sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1)))), np.int64)
        built(KEY, built.reaches(rows, chosen)).sum().backward()
    half = len(came) // 2
    assert came[:half] == came[half:]
    assert len(set(came)) == half > 0
