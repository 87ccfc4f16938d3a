"""Snapshots of any shape, for properties."""

import numpy as np
from hypothesis import strategies as st

from graph_store.graph import KnowledgeGraph, Snapshot

WEIGHTS = (0.25, 0.5, 1.0, -2.0)
"""Few, so that two graphs often agree on one."""


def graph(name: str, edges: dict[tuple[str, str], float], genes: tuple[str, ...]) -> KnowledgeGraph:
    """Edges by names of source and target -> weight, destination-sorted over ``genes``."""
    number = {gene: place for place, gene in enumerate(genes)}
    rows = sorted((number[target], number[source], weight) for (source, target), weight in edges.items())
    ends = np.array([(source, target) for target, source, _ in rows], np.int32).reshape(-1, 2).T
    return KnowledgeGraph(name, ends, np.array([weight for _, _, weight in rows], np.float32))


def edges_between(genes: tuple[str, ...]) -> st.SearchStrategy[dict[tuple[str, str], float]]:
    """Any edges between different genes."""
    if len(genes) < 2:
        return st.just({})
    ends = st.tuples(st.sampled_from(genes), st.sampled_from(genes)).filter(lambda pair: pair[0] != pair[1])
    return st.dictionaries(ends, st.sampled_from(WEIGHTS), max_size=25)


@st.composite
def snapshots(draw: st.DrawFn, names: tuple[str, ...] = ("a", "b", "c")) -> Snapshot:
    """Up to a graph for each name, over up to 9 genes, some of them without an edge."""
    genes = tuple(sorted(draw(st.sets(st.sampled_from("ABCDEFGHIJKL"), max_size=9))))
    present = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    aliases = draw(st.dictionaries(st.sampled_from("xyzAB"), st.sampled_from("ABCDEFGHIJKL"), max_size=4))
    return Snapshot(
        id=draw(st.sampled_from(("1" * 32, "2" * 32))),
        genes=genes,
        graphs=tuple(graph(name, draw(edges_between(genes)), genes) for name in present),
        aliases=aliases,
    )
