from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.sources.combined import Part, combine
from graph_store.sparsify import Edges

GENES = "ABCDEF"
WEIGHTS = st.sampled_from([-4.0, -2.0, -1.0, 0.5, 1.0, 2.0, 4.0])
"""Powers of two, so that the ratios of the oracle are exact."""


@st.composite
def named_graphs(draw) -> list[dict[tuple[str, str], float]]:
    """Two or three graphs: (source, target) -> weight."""
    edges = st.tuples(st.sampled_from(GENES), st.sampled_from(GENES)).filter(lambda edge: edge[0] != edge[1])
    return draw(st.lists(st.dictionaries(edges, WEIGHTS, max_size=10), min_size=2, max_size=3))


def part_of(weights: dict[tuple[str, str], float], further: str = "") -> Part:
    genes = tuple(sorted({gene for edge in weights for gene in edge} | set(further)))
    edges = [[genes.index(source), genes.index(target)] for source, target in weights]
    return Part(
        genes,
        Edges(np.array(edges, np.int32).reshape(-1, 2).T, np.array(list(weights.values()), np.float32)),
    )


def named(source) -> dict[tuple[str, str], Fraction]:
    ends = source.pairs.edges_2E.T.tolist()
    assert len({tuple(pair) for pair in ends}) == len(ends)
    assert ends == sorted(ends)
    return {
        (source.genes[one], source.genes[other]): Fraction(float(weight))
        for (one, other), weight in zip(ends, source.pairs.weight_E, strict=True)
    }


def plainly(
    graphs: list[dict[tuple[str, str], float]], how: str, *, mirrored: bool
) -> dict[tuple[str, str], Fraction]:
    """Pair by pair, from the definition."""
    found: defaultdict[frozenset[str], dict[int, list[Fraction]]] = defaultdict(lambda: defaultdict(list))
    for number, weights in enumerate(graphs):
        largest = max((abs(weight) for weight in weights.values()), default=1)
        for edge, weight in weights.items():
            found[frozenset(edge)][number].append(Fraction(weight) / Fraction(largest))
    combined = {}
    for pair, by_graph in found.items():
        if how == "intersection" and len(by_graph) < len(graphs):
            continue
        strongest = [max(weights, key=lambda one: (abs(one), one)) for weights in by_graph.values()]
        if how == "union":
            weight = max(strongest, key=lambda one: (abs(one), one))
        else:
            weight = min(strongest, key=lambda one: (abs(one), -one))
        first = graphs[min(by_graph)]
        edges = {tuple(sorted(pair))} if mirrored else {edge for edge in first if frozenset(edge) == pair}
        combined |= dict.fromkeys(edges, weight)
    return combined


@given(named_graphs(), st.sampled_from(["union", "intersection"]), st.booleans())
def test_it_is_the_plain_definition(graphs, how, mirrored):
    found = combine([part_of(weights) for weights in graphs], how, mirrored=mirrored)
    assert named(found) == plainly(graphs, how, mirrored=mirrored)
    gene_sets = [{gene for edge in weights for gene in edge} for weights in graphs]
    joined = set.union(*gene_sets) if how == "union" else set.intersection(*gene_sets)
    assert found.genes == tuple(sorted(joined))
    counts = found.counts
    assert counts.rows == sum(map(len, graphs))
    assert counts.rows == counts.below_minimum + counts.duplicates + found.pairs.num_edges
    assert not found.resolution.unmatched


@given(named_graphs(), st.randoms(), st.sampled_from(["union", "intersection"]), st.booleans())
def test_the_order_of_edges_does_not_matter(graphs, random, how, mirrored):
    shuffled = [dict(random.sample(list(weights.items()), len(weights))) for weights in graphs]
    one, other = (
        combine([part_of(weights) for weights in some], how, mirrored=mirrored) for some in (graphs, shuffled)
    )
    assert named(one) == named(other)


@given(named_graphs())
def test_pairs_do_not_depend_on_the_order_of_graphs_directions_may(graphs):
    one, other = (
        combine([part_of(weights) for weights in some], "union", mirrored=True)
        for some in (graphs, graphs[::-1])
    )
    assert named(one) == named(other)


def test_a_pair_points_as_in_the_first_graph_that_has_it():
    first = {("A", "B"): 4.0}
    second = {("B", "A"): 1.0, ("C", "A"): 2.0, ("A", "C"): -2.0}
    union = combine([part_of(first), part_of(second)], "union", mirrored=False)
    assert named(union) == {("A", "B"): 1, ("A", "C"): 1, ("C", "A"): 1}
    both = combine([part_of(first), part_of(second)], "intersection", mirrored=False)
    assert named(both) == {("A", "B"): Fraction(1, 2)}
    turned = combine([part_of(second), part_of(first)], "intersection", mirrored=False)
    assert named(turned) == {("B", "A"): Fraction(1, 2)}


def test_genes_without_an_edge_are_genes_of_the_union_alone():
    parts = [part_of({("A", "B"): 1.0}, "X"), part_of({("A", "B"): 1.0}, "Y")]
    assert combine(parts, "union", mirrored=False).genes == ("A", "B", "X", "Y")
    assert combine(parts, "intersection", mirrored=False).genes == ("A", "B")


@pytest.mark.parametrize("how", ["union", "intersection"])
def test_nothing_in_common(how):
    found = combine([part_of({("A", "B"): 1.0}), part_of({("C", "D"): 1.0})], how, mirrored=False)
    assert found.pairs.num_edges == (2 if how == "union" else 0)
    assert found.pairs.edges_2E.shape == (2, found.pairs.num_edges)
