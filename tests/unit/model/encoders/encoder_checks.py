"""What the encoders' tests share: building, comparing, changing a graph, matrices over all pairs."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from graph_store.graph import KnowledgeGraph
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.graph_input import GraphInput

LATENT = 6


def in_double(encoder: type[nn.Module], options: object, graph: GraphInput, seed: int = 0) -> nn.Module:
    """An encoder in double precision; biases and scales are drawn too, so that each has its effect."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        built = encoder(options, graph, latent=LATENT).double()
    finally:
        torch.set_default_dtype(before)
    for parameter in built.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    return built


def with_graph(built: nn.Module, options: object, graph: GraphInput) -> nn.Module:
    """The same weights on another graph; nothing of the first graph comes along."""
    other = in_double(type(built), options, graph, seed=1)
    other.load_state_dict(built.state_dict())
    return other


def assert_same(built: nn.Module, oracle: Callable[[nn.Module], Tensor]) -> None:
    """Equal embeddings, and equal gradients of every parameter; single precision is near."""
    ours_PD, dense_PD = built(), oracle(built)
    torch.testing.assert_close(ours_PD, dense_PD, rtol=1e-9, atol=1e-9)
    d_PD = torch.randn(ours_PD.shape, dtype=ours_PD.dtype, generator=torch.Generator().manual_seed(9))
    named = dict(built.named_parameters())
    ours = torch.autograd.grad(ours_PD, list(named.values()), d_PD)
    dense = torch.autograd.grad(dense_PD, list(named.values()), d_PD)
    for name, one, other in zip(named, ours, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
    single_PD = copy.deepcopy(built).float()()
    assert single_PD.dtype == torch.float32
    assert (single_PD.double() - dense_PD).abs().max() <= 1e-5 * dense_PD.abs().max()


def assert_dropout_follows_the_key(built: nn.Module) -> None:
    """The key alone decides: no worker's rows, no random stream; and none is used up."""
    key = DropoutKey(0, 1, 0)
    torch.manual_seed(0)
    stream, first_PD = torch.get_rng_state(), built(key)
    assert torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(1)
    assert torch.equal(built(key._replace(first_row=32)), first_PD)
    assert torch.equal(built(), built())
    for other in (key._replace(step=2), key._replace(seed=1), None):
        assert not torch.allclose(built(other), first_PD)


def assert_dropouts_differ(built: nn.Module, number: int) -> None:
    """Each of the encoder's ``number`` places of dropout has draws of its own."""
    sites = [module.site for module in built.modules() if hasattr(module, "site")]
    sites += [site for module in built.modules() for site in getattr(module, "sites", [])]
    assert len(set(sites)) == len(sites) == number


def share_dropped(x: Tensor) -> float:
    """Share of zeros."""
    return (x == 0).double().mean().item()


def assert_graph_is_no_state(built: nn.Module) -> None:
    """A checkpoint carries the learned numbers alone; no tensor misses a move to another device."""
    assert built.state_dict().keys() == dict(built.named_parameters()).keys()
    for module in built.modules():
        assert not [name for name, value in vars(module).items() if isinstance(value, Tensor)]


def assert_renaming_genes_renames_embeddings(built: nn.Module, options: object, graph: GraphInput) -> None:
    """Nodes in another order, with their learned vectors: the same embeddings, in that order."""
    new_of_old = np.random.default_rng(1).permutation(graph.num_nodes)
    other = with_graph(built, options, renamed(graph, new_of_old))
    tables = {name: p for name, p in other.named_parameters() if name.endswith("_PN")}
    assert tables
    with torch.no_grad():
        for name, table_PN in tables.items():
            table_PN[new_of_old] = built.get_parameter(name)
    torch.testing.assert_close(other()[new_of_old], built(), rtol=1e-9, atol=1e-9)


def moved_by_gene(built: nn.Module, gene: int) -> set[int]:
    """Nodes whose embedding changes with what is learned of ``gene``."""
    tables = [p for name, p in built.named_parameters() if name.endswith("_PN")]
    changed = copy.deepcopy(built)
    with torch.no_grad():
        for name, table_PN in changed.named_parameters():
            if name.endswith("_PN"):
                table_PN[gene] += 1
    assert tables
    return moved(built(), changed())


def moved(one_PD: Tensor, other_PD: Tensor) -> set[int]:
    """Nodes whose embeddings differ."""
    return set((one_PD - other_PD).abs().amax(1).gt(1e-9).nonzero().flatten().tolist())


def chain(num_nodes: int, num_graphs: int = 1) -> GraphInput:
    """0 -> 1 -> 2 ..., the edges in turns in each of the graphs."""
    edges_2E = np.stack([np.arange(num_nodes - 1), np.arange(1, num_nodes)]).astype(np.int32)
    graphs = []
    for number in range(num_graphs):
        share_2E = edges_2E[:, number::num_graphs]
        graphs.append(KnowledgeGraph(f"kg{number}", share_2E, np.ones(share_2E.shape[1], np.float32)))
    return GraphInput(num_nodes, tuple(graphs))


def toggled(graph: GraphInput, number: int, source: int, target: int) -> GraphInput:
    """``graph`` with one edge of its graph ``number`` taken away, or added where it was not."""
    one = graph.graphs[number]
    there = (one.edges_2E[0] == source) & (one.edges_2E[1] == target)
    edges_2E, weight_E = one.edges_2E[:, ~there], one.weight_E[~there]
    if not there.any():
        edges_2E = np.append(edges_2E, np.array([[source], [target]], np.int32), axis=1)
        weight_E = np.append(weight_E, np.float32(0.7))
    order = np.lexsort(edges_2E)
    changed = KnowledgeGraph(one.name, edges_2E[:, order], weight_E[order])
    graphs = tuple(changed if k == number else other for k, other in enumerate(graph.graphs))
    return graph._replace(graphs=graphs)


def own_edge(graph: GraphInput, number: int) -> tuple[int, int]:
    """An edge, no self loop, that only graph ``number`` has."""
    others: set[tuple[int, int]] = set()
    for k, one in enumerate(graph.graphs):
        if k != number:
            others.update(zip(*one.edges_2E.tolist(), strict=True))
    pairs = zip(*graph.graphs[number].edges_2E.tolist(), strict=True)
    return next((j, i) for j, i in pairs if i != j and (j, i) not in others and (i, j) not in others)


def new_edge(graph: GraphInput) -> tuple[int, int]:
    """Two different connected nodes without an edge in any graph, either way."""
    there = {pair for one in graph.graphs for pair in zip(*one.edges_2E.tolist(), strict=True)}
    last = max(int(one.edges_2E.max()) for one in graph.graphs)
    nodes = range(last + 1)
    return next((j, i) for j in nodes for i in nodes if i != j and not {(j, i), (i, j)} & there)


def renamed(graph: GraphInput, new_of_old: np.ndarray) -> GraphInput:
    """Node ``old`` becomes ``new_of_old[old]``."""
    graphs = []
    for one in graph.graphs:
        edges_2E = new_of_old[one.edges_2E].astype(np.int32)
        order = np.lexsort(edges_2E)
        graphs.append(KnowledgeGraph(one.name, edges_2E[:, order], one.weight_E[order]))
    old_of_new = np.argsort(new_of_old)
    random_walk_PN = None if graph.random_walk_PN is None else graph.random_walk_PN[old_of_new]
    laplacian_PN = None if graph.laplacian_PN is None else graph.laplacian_PN[old_of_new]
    return GraphInput(graph.num_nodes, tuple(graphs), graph.expander, random_walk_PN, laplacian_PN)


def reordered(graph: GraphInput, order: Sequence[int]) -> GraphInput:
    """The graphs in another order."""
    return graph._replace(graphs=tuple(graph.graphs[number] for number in order))


class Dense(NamedTuple):
    """Graphs as matrices over all pairs: row the target, column the source."""

    there_PP: Tensor
    """bool: whether any graph has the edge."""
    weight_PPK: Tensor
    """Weight in each graph, its largest being 1 in size."""


def dense(
    graphs: Sequence[KnowledgeGraph], num_nodes: int, *, self_loops: bool, reverse_edges: bool = False
) -> Dense:
    """The definition of the union of graphs, entry by entry."""
    there_PP = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    weight_PPK = torch.zeros(num_nodes, num_nodes, len(graphs), dtype=torch.float64)
    for number, one in enumerate(graphs):
        largest = np.abs(one.weight_E).max(initial=0)
        for source, target, weight in zip(*one.edges_2E.tolist(), one.weight_E, strict=True):
            ends = [(target, source)] + ([(source, target)] if reverse_edges else [])
            for i, j in ends:
                if i == j and self_loops:
                    continue
                scaled = float(weight / largest)
                there_PP[i, j] = True
                if abs(scaled) > weight_PPK[i, j, number].abs():
                    weight_PPK[i, j, number] = scaled
    if self_loops:
        for i in range(num_nodes):
            weight_PPK[i, i] = weight_PPK[i].sum(0) / max(int(there_PP[i].sum()), 1)
            there_PP[i, i] = True
    # the product holds single-precision weights
    return Dense(there_PP, weight_PPK.float().double())
