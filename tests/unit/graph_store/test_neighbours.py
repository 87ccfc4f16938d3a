"""Nearest genes are those of scikit-learn, in one order whatever rows, blocks and threads."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.neighbours import nearest, neighbourhoods
from graph_store.graph import GraphError


def made(z_PD, genes=None, version="v1"):
    z_PD = np.asarray(z_PD, np.float32)
    return Embedding(version, tuple(genes or (f"G{row:03d}" for row in range(len(z_PD)))), z_PD, {})


def brute(embedding, gene, count, other=None):
    """By the definition: every cosine, then sorted by it and by name."""
    other = other or embedding
    query = embedding.z_PD[embedding.genes.index(gene)].astype(np.float64)
    found = []
    for name, z_D in zip(other.genes, other.z_PD.astype(np.float64), strict=True):
        if z_D.any() and not (other is embedding and name == gene):
            found.append((-(query @ z_D) / (np.linalg.norm(query) * np.linalg.norm(z_D)), name))
    # rounding must not decide what the definition calls equal
    return sorted((round(value, 12), name) for value, name in found)[:count]


small = st.integers(-2, 2)


@st.composite
def tables(draw):
    """Small whole numbers: many equal and opposite vectors, zeros, multiples of each other."""
    width = draw(st.integers(1, 3))
    rows = draw(st.lists(st.lists(small, min_size=width, max_size=width), min_size=1, max_size=12))
    return made(rows)


@given(embedding=tables(), count=st.integers(1, 15), block=st.sampled_from([1, 7, 10**6]))
def test_as_defined_with_ties_by_name(embedding, count, block):
    used = [gene for gene, z_D in zip(embedding.genes, embedding.z_PD, strict=True) if z_D.any()]
    found = nearest(embedding, used, count)
    for gene, neighbours in zip(used, found, strict=True):
        expected = brute(embedding, gene, count)
        assert [item.cosine for item in neighbours] == pytest.approx([-value for value, _ in expected])
        # vectors of another length but one direction may differ in the last digit: names within a cosine
        by_value = {}
        for item in neighbours:
            by_value.setdefault(round(item.cosine, 12), set()).add(item.gene)
        complete = brute(embedding, gene, len(used))
        for value, names in by_value.items():
            equal = [name for known, name in complete if round(-known, 12) == value]
            assert names <= set(equal)
    rows = np.array([embedding.genes.index(gene) for gene in used], np.int64)
    blocks = neighbourhoods(
        embedding.z_PD[rows], embedding.z_PD, embedding.genes, count, own_Q=rows, block_entries=block
    )
    again = [
        [(embedding.genes[row], value) for row, value in zip(part.row[a:b], part.cosine[a:b], strict=True)]
        for part in blocks
        for a, b in zip(part.indptr[:-1], part.indptr[1:], strict=True)
    ]
    assert again == [[tuple(item) for item in neighbours] for neighbours in found]


@given(embedding=tables(), seed=st.integers(0, 100), count=st.integers(1, 5))
def test_the_order_of_the_rows_does_not_matter(embedding, seed, count):
    order = np.random.default_rng(seed).permutation(len(embedding.genes))
    mixed = made(embedding.z_PD[order], [embedding.genes[row] for row in order])
    used = [gene for gene, z_D in zip(embedding.genes, embedding.z_PD, strict=True) if z_D.any()]
    assert nearest(mixed, used, count) == nearest(embedding, used, count)


def test_equal_vectors_tie_by_name_wherever_they_stand():
    rng = np.random.default_rng(0)
    z_D = rng.normal(size=37)
    rows = np.concatenate([rng.normal(size=(200, 37)), np.tile(z_D, (50, 1)), 4 * np.tile(z_D, (50, 1))])
    order = rng.permutation(len(rows))
    names = np.array([f"G{row:03d}" for row in range(len(rows))])[order]
    embedding = made(rows[order], names.tolist())
    (found,) = nearest(embedding, ["G299"], 99)
    assert [item.gene for item in found] == [f"G{row}" for row in range(200, 299)]
    assert {item.cosine for item in found} == {1.0}


@pytest.mark.parametrize(("genes", "width", "count"), [(300, 16, 10), (500, 3, 25), (40, 64, 39)])
def test_as_scikit_learn_has_it(genes, width, count):
    embedding = made(np.random.default_rng(genes).normal(size=(genes, width)))
    z_PD = embedding.z_PD.astype(np.float64)
    found = nearest(embedding, embedding.genes, count)
    distance, row = (
        NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(z_PD).kneighbors()
    )
    for neighbours, far, rows in zip(found, distance, row, strict=True):
        assert [item.gene for item in neighbours] == [embedding.genes[number] for number in rows]
        np.testing.assert_allclose([item.cosine for item in neighbours], 1 - far, atol=1e-13)


def test_a_real_map_of_genetic_interactions(shared_file):
    table = pd.read_csv(shared_file("norman-gi-emap/CRISPRa_K562_emap_gene.txt"), sep="\t", index_col=0)
    embedding = made(table.fillna(0).to_numpy(), table.index.tolist())
    cosine_PP = cosine_similarity(embedding.z_PD.astype(np.float64))
    np.fill_diagonal(cosine_PP, -2)
    for number, neighbours in enumerate(nearest(embedding, embedding.genes, 5)):
        expected = np.argsort(-cosine_PP[number])[:5]
        assert [item.gene for item in neighbours] == [embedding.genes[row] for row in expected]
        np.testing.assert_allclose(
            [item.cosine for item in neighbours], cosine_PP[number, expected], atol=1e-13
        )


def test_among_another_version_the_counterpart_is_an_answer():
    one = made([[1, 0], [0, 1], [1, 1]], ["A", "B", "C"])
    other = made([[2, 0], [0, 3], [0, 0], [-1, 0]], ["A", "B", "D", "E"], "v2")
    assert nearest(one, ["A"], 9) == (((("C", pytest.approx(0.5**0.5))), ("B", 0.0)),)
    assert nearest(one, ["B", "A"], 2, among=other) == (
        (("B", 1.0), ("A", 0.0)),
        (("A", 1.0), ("B", 0.0)),
    )
    assert nearest(one, ["C"], 9, among=other)[0][-1].gene == "E"
    assert nearest(one, [], 3) == ()


def test_what_has_no_answer_is_said():
    one = made([[1, 0], [0, 0]], ["A", "B"])
    for attempt, message in (
        (lambda: nearest(one, ["A", "B"], 1), "the vector of B is zero, so nothing is near it"),
        (lambda: nearest(one, ["X"], 1), "has no gene 'X'"),
        (lambda: nearest(one, ["A"], 0), "ask for at least 1"),
        (lambda: nearest(one, ["A"], 1, among=made([[1]], version="v2")), "of 2 numbers and v2 of 1; align"),
    ):
        with pytest.raises(GraphError, match=message):
            attempt()
    assert nearest(one, ["A"], 1) == ((),)


def test_numbers_at_the_ends_of_their_range():
    tiny, huge = np.float32(1e-44), np.float32(3e38)
    one = made([[tiny, 0], [tiny, tiny], [huge, huge], [huge, -huge]], "ABCD")
    (found,) = nearest(one, ["B"], 3)
    assert [item.gene for item in found] == ["C", "A", "D"]
    assert [item.cosine for item in found] == pytest.approx([1, 0.5**0.5, 0])


PRINT = """
import numpy as np
from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.neighbours import nearest
z_PD = np.random.default_rng(0).normal(size=(3000, 48)).astype(np.float32)
z_PD[1500:] = z_PD[:1500] * np.float32(0.7)
embedding = Embedding("v1", tuple(f"G{row}" for row in range(3000)), z_PD, {})
for found in nearest(embedding, embedding.genes[::7], 12):
    print([(item.gene, item.cosine.hex()) for item in found])
"""


def test_threads_do_not_matter_to_the_bit():
    said = {
        subprocess.run(
            [sys.executable, "-c", PRINT],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "3")
    }
    assert len(said) == 1
