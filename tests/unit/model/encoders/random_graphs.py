"""Random graph inputs for the encoders' tests: isolated nodes, parallel edges, loops, one-node graphs."""

import numpy as np
from hypothesis import strategies as st

from graph_store.graph import Expander, KnowledgeGraph
from txpert_dist.model.graph_input import GraphInput


def knowledge_graph(name: str, num_nodes: int, num_edges: int, random: np.random.Generator) -> KnowledgeGraph:
    """Random edges, each once, sorted; a third of them enter node 0; some are self loops."""
    edges_2E = random.integers(0, num_nodes, (2, num_edges))
    edges_2E[1, : num_edges // 3] = 0
    target, source = np.divmod(np.unique(edges_2E[1] * num_nodes + edges_2E[0]), num_nodes)
    weight_E = (random.gamma(2.0, 1.0, len(source)) * random.choice([1, -1], len(source))).astype(np.float32)
    return KnowledgeGraph(name, np.stack([source, target]).astype(np.int32), weight_E)


def cycles(num_nodes: int, num_cycles: int, random: np.random.Generator) -> Expander:
    """Both directions of random Hamiltonian cycles; none over a single node."""
    edges, cycle = [], []
    for number in range(num_cycles):
        order = random.permutation(num_nodes)
        one_2E = np.stack([order, np.roll(order, 1)])
        both_2E = np.unique(np.concatenate([one_2E, one_2E[::-1]], axis=1), axis=1)
        both_2E = both_2E[:, both_2E[0] != both_2E[1]]
        edges.append(both_2E[:, np.lexsort(both_2E)])
        cycle.append(np.full(both_2E.shape[1], number))
    none = np.zeros((2, 0), np.int64)
    return Expander(
        np.concatenate([none, *edges], axis=1).astype(np.int32),
        np.concatenate([np.zeros(0, np.int64), *cycle]).astype(np.int32),
        num_cycles,
    )


def graph_input(
    num_nodes: int, num_edges: int, num_graphs: int, seed: int, *, num_cycles: int = 2, isolated: int = 2
) -> GraphInput:
    """``num_graphs`` random graphs that share some edges; the last ``isolated`` nodes have none."""
    random = np.random.default_rng(seed)
    connected = max(num_nodes - isolated, 1)
    graphs = [knowledge_graph(f"kg{number}", connected, num_edges, random) for number in range(num_graphs)]
    if num_graphs > 1 and graphs[0].edges_2E.shape[1]:
        merged_2E = np.unique(np.concatenate([graphs[1].edges_2E, graphs[0].edges_2E[:, ::2]], 1), axis=1)
        merged_2E = merged_2E[:, np.lexsort(merged_2E)]
        graphs[1] = KnowledgeGraph("kg1", merged_2E, random.gamma(2.0, 1.0, merged_2E.shape[1]).astype("f4"))
    return GraphInput(
        num_nodes,
        tuple(graphs),
        cycles(connected, num_cycles, random),
        random.random((num_nodes, 3)).astype(np.float32),
        random.standard_normal((num_nodes, 3)).astype(np.float32),
    )


graph_inputs = st.builds(
    graph_input,
    num_nodes=st.integers(1, 10),
    num_edges=st.integers(0, 25),
    num_graphs=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
"""Any of them."""
