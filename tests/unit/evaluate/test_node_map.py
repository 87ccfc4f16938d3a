"""The map of nodes: principal components by scikit-learn, degrees by networkx, sets by trying all."""

import os
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from graph_store.graph import KnowledgeGraph
from txpert_dist.errors import InputError
from txpert_dist.evaluate.gene_sets import read_gene_sets
from txpert_dist.evaluate.node_map import MOST_PATHWAYS, chosen_sets, degrees, node_map, principal_components

GENES = tuple(f"G{i}" for i in range(40))


def graph(name: str, pairs: list[tuple[int, int]]) -> KnowledgeGraph:
    ordered = sorted({(t, s) for s, t in pairs if s != t})
    edges_2E = np.array([[s for _, s in ordered], [t for t, _ in ordered]], np.int32).reshape(2, -1)
    return KnowledgeGraph(name, edges_2E, np.ones(len(ordered), np.float32))


@given(seed=st.integers(0, 1000), width=st.integers(1, 12))
@settings(max_examples=30)
def test_components_are_those_of_scikit_learn_whatever_the_sign_and_order(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    z_PD = rng.normal(size=(40, width)) * rng.uniform(0.5, 3, width) + rng.normal(size=width)
    place_P2, axes = principal_components(z_PD)
    expected = PCA(min(2, width)).fit(z_PD)
    shown = expected.transform(z_PD)
    np.testing.assert_allclose(np.abs(place_P2[:, : shown.shape[1]]), np.abs(shown), atol=1e-6)
    assert f"{expected.explained_variance_ratio_[0]:.0%}" in axes[0]
    order = rng.permutation(40)
    np.testing.assert_allclose(principal_components(z_PD[order])[0], place_P2[order], atol=1e-8)


def test_embeddings_without_variance_lie_in_one_point() -> None:
    place_P2, axes = principal_components(np.ones((5, 3), np.float32))
    assert np.abs(place_P2).max() == 0
    assert axes == ("PC 1 (0% of variance)", "PC 2 (0% of variance)")


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), max_size=3))
def test_degrees_count_the_edges_of_all_graphs(graphs: list[list[tuple[int, int]]]) -> None:
    expected = np.zeros(12, int)
    for pairs in graphs:
        drawn = networkx.DiGraph([(s, t) for s, t in pairs if s != t])
        for node, degree in drawn.degree():
            expected[node] += degree
    assert (
        degrees([graph(f"g{i}", pairs) for i, pairs in enumerate(graphs)], 12).tolist() == expected.tolist()
    )


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.frozensets(st.sampled_from(GENES), min_size=1),
        max_size=15,
    ),
    st.frozensets(st.sampled_from(GENES)),
)
def test_sets_are_chosen_one_after_another_by_genes_that_none_has_yet(
    sets: dict[str, frozenset[str]], perturbed: frozenset[str]
) -> None:
    chosen, left = chosen_sets(sets, perturbed), set(perturbed)
    for name in chosen:
        score = {
            other: len(genes & left) ** 2 / len(genes)
            for other, genes in sets.items()
            if len(genes & left) > 1
        }
        assert score[name] == max(score.values())
        left -= sets[name]
    assert len(set(chosen)) == len(chosen) <= MOST_PATHWAYS
    if len(chosen) < MOST_PATHWAYS:
        assert all(len(genes & left) < 2 for genes in sets.values())


def test_every_node_is_on_the_map_with_the_set_it_is_first_in() -> None:
    rng = np.random.default_rng(0)
    sets = {"one": frozenset(GENES[:4]), "two": frozenset(GENES[2:9]), "none": frozenset(("X", "Y"))}
    edges = graph("g", [(0, 1), (1, 2), (2, 0)])
    found = node_map(rng.normal(size=(40, 6)), GENES, [edges], frozenset(GENES[:10]), gene_sets=sets)
    points = found.points.set_index("gene")
    assert tuple(points.index) == GENES
    assert found.pathways == ("two", "one")
    assert points.loc["G3", "pathway"] == "two"
    assert points.loc["G0", "pathway"] == "one"
    assert points.loc["G20", "pathway"] == ""
    assert points["perturbed"].sum() == 10
    assert points["degree"].tolist()[:4] == [2, 2, 2, 0]
    with pytest.raises(InputError, match="none of its gene sets has two of the perturbed genes"):
        node_map(rng.normal(size=(40, 6)), GENES, [], frozenset(GENES), gene_sets={"a": frozenset("XYZ")})


@pytest.mark.skipif("TXPERT_TEST_UMAP" not in os.environ, reason="UMAP compiles a minute: TXPERT_TEST_UMAP=1")
def test_umap_keeps_groups_apart_and_is_the_same_again() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    rng = np.random.default_rng(0)
    z_PD = np.repeat(20 * np.eye(4), 10, axis=0) + rng.normal(size=(40, 4))
    first, again = (node_map(z_PD, GENES, [], frozenset(), projection="umap") for _ in range(2))
    place_P2 = first.points[["x", "y"]].to_numpy()
    assert (place_P2 == again.points[["x", "y"]].to_numpy()).all()
    group = np.repeat(np.arange(4), 10)
    distance = np.linalg.norm(place_P2[:, None] - place_P2[None], axis=2) + np.diag(np.full(40, np.inf))
    assert (group[distance.argmin(1)] == group).all()


def test_gene_sets_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "sets.gmt"
    path.write_text("one\thttp://x\tA\t B \t\n\ntwo\t\tC\none\t\tD\n", encoding="utf-8-sig")
    assert read_gene_sets(path) == {"one": frozenset("ABD"), "two": frozenset("C")}
    for text, said in (
        ("", "is empty"),
        ("one\tx\n", "line 1 is no gene set"),
        ("a\tb\tC\n\tb\tC\n", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said) as caught:
            read_gene_sets(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_gene_sets(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_gene_sets(tmp_path / "absent.gmt")
