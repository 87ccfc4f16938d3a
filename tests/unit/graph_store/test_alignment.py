"""The map between two versions is SciPy's, and what is said of its quality is so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.metrics.pairwise import cosine_similarity

from graph_store.embeddings.alignment import align, neighbour_overlap, rotated
from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.neighbours import nearest
from graph_store.graph import GraphError


def made(z_PD, genes=None, version="v1"):
    z_PD = np.asarray(z_PD, np.float32)
    return Embedding(version, tuple(genes or (f"G{row:03d}" for row in range(len(z_PD)))), z_PD, {})


def pair(seed, rows=60, width=8, other_width=8, noise=1.0):
    rng = np.random.default_rng(seed)
    a_PD = rng.normal(size=(rows, width))
    mixed = a_PD @ rng.normal(size=(width, other_width))
    return made(a_PD), made(mixed + noise * rng.normal(size=mixed.shape), version="v2")


@pytest.mark.parametrize(("width", "other_width"), [(8, 8), (5, 9), (9, 5), (1, 4), (4, 1)])
def test_the_map_is_that_of_scipy_with_the_narrower_one_padded(width, other_width):
    source, target = pair(width, width=width, other_width=other_width)
    found = align(source, target)
    wide = max(width, other_width)
    a_SD = np.pad(source.z_PD.astype(np.float64), [(0, 0), (0, wide - width)])
    b_SE = np.pad(target.z_PD.astype(np.float64), [(0, 0), (0, wide - other_width)])
    expected, total = orthogonal_procrustes(a_SD, b_SE)
    np.testing.assert_allclose(found.rotation_DE, expected[:width, :other_width], atol=1e-10)
    turned = source.z_PD @ found.rotation_DE
    np.testing.assert_allclose((turned * target.z_PD).sum(), total, rtol=1e-6)
    assert found.rank == min(width, other_width)
    cosine_SS = cosine_similarity(turned, target.z_PD.astype(np.float64))
    np.testing.assert_allclose(found.cosine_S, np.diag(cosine_SS), atol=1e-10)
    assert found.mean_cosine == pytest.approx(np.diag(cosine_SS).mean())
    # no other factor leaves less
    left = [
        np.linalg.norm(factor * found.scale * turned - target.z_PD) / np.linalg.norm(target.z_PD)
        for factor in (1, 1.01, 0.99)
    ]
    assert found.residual == pytest.approx(left[0])
    assert left[0] < min(left[1:])


@given(seed=st.integers(0, 1000), width=st.integers(2, 6), factor=st.sampled_from([1.0, 0.25, 3.0]))
def test_a_rotation_is_undone(seed, width, factor):
    rng = np.random.default_rng(seed)
    z_PD = rng.normal(size=(20, width)).astype(np.float32)
    turn = ortho_group.rvs(width, random_state=seed)
    source, target = made(z_PD), made(factor * z_PD @ turn, version="v2")
    found = align(source, target)
    np.testing.assert_allclose(found.rotation_DE, turn, atol=1e-5)
    assert found.scale == pytest.approx(factor, rel=1e-5)
    assert found.residual < 1e-5
    assert found.mean_cosine == pytest.approx(1)
    np.testing.assert_allclose(factor * rotated(source, found).z_PD, target.z_PD, atol=1e-4)
    # in the target's space each gene's nearest is its own counterpart
    brought = rotated(source, found)
    for gene, (first, *_) in zip(source.genes, nearest(brought, source.genes, 1, among=target), strict=True):
        assert (first.gene, first.cosine) == (gene, pytest.approx(1))


@given(seed=st.integers(0, 1000), data=st.data())
def test_no_rotation_nearby_fits_better(seed, data):
    source, target = pair(seed, rows=15, width=4, other_width=4)
    found = align(source, target)
    angle = data.draw(st.floats(0.01, 3))
    one, two = data.draw(st.permutations(range(4)))[:2]
    turn = np.eye(4)
    turn[[one, one, two, two], [one, two, one, two]] = (
        np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle),
    )  # fmt: skip
    best = np.linalg.norm(source.z_PD @ found.rotation_DE - target.z_PD)
    assert best <= np.linalg.norm(source.z_PD @ (found.rotation_DE @ turn) - target.z_PD) + 1e-9


@given(seed=st.integers(0, 1000))
def test_genes_are_matched_by_name_in_any_order(seed):
    source, target = pair(seed, rows=30)
    rng = np.random.default_rng(seed)
    order, some = rng.permutation(30), rng.permutation(30)[:20]
    mixed = made(source.z_PD[order], [source.genes[row] for row in order])
    fewer = made(target.z_PD[some], [target.genes[row] for row in some], "v2")
    found = align(mixed, fewer)
    kept = np.sort(some)
    expected, _ = orthogonal_procrustes(
        source.z_PD[kept].astype(np.float64), target.z_PD[kept].astype(np.float64)
    )
    np.testing.assert_allclose(found.rotation_DE, expected, atol=1e-9)
    assert found.genes == tuple(source.genes[row] for row in kept)
    assert (found.only_source, found.only_target) == (10, 0)
    one, other = neighbour_overlap(source, fewer, 4), neighbour_overlap(mixed, fewer, 4)
    assert one.genes == other.genes
    assert np.array_equal(one.share_S, other.share_S)


@pytest.mark.parametrize("count", [1, 5, 100])
def test_overlap_counts_common_neighbours(count):
    source, target = pair(3, rows=40, width=6, other_width=3, noise=2)
    found = neighbour_overlap(source, target, count)
    number = min(count, 39)
    assert found.num_neighbours == number
    expected = []
    for gene in source.genes:
        sets = [{item.gene for item in nearest(table, [gene], number)[0]} for table in (source, target)]
        expected.append(len(sets[0] & sets[1]) / number)
    assert found.share_S.tolist() == expected
    assert neighbour_overlap(source, source, count).share_S.tolist() == [1.0] * 40


def test_zero_vectors_are_counted_and_take_no_part():
    rng = np.random.default_rng(0)
    z_PD = rng.normal(size=(10, 3)).astype(np.float32)
    source, target = made(z_PD), made(z_PD, version="v2")
    z_PD = z_PD.copy()
    z_PD[4] = 0
    target = target._replace(z_PD=z_PD)
    found = align(source, target)
    assert found.num_zero == 1
    assert np.flatnonzero(np.isnan(found.cosine_S)).tolist() == [4]
    assert found.mean_cosine == pytest.approx(1)
    overlap = neighbour_overlap(source, target, 3)
    assert "G004" not in overlap.genes
    assert overlap.share_S.tolist() == [1.0] * 9


def test_fewer_genes_than_directions_are_said_by_the_rank():
    source, target = pair(0, rows=3)
    found = align(source, target)
    assert found.rank == 3
    np.testing.assert_allclose(found.rotation_DE @ found.rotation_DE.T, np.eye(8), atol=1e-10)
    flat = made(np.outer(np.arange(1, 9), np.arange(1, 5)))
    assert align(flat, flat).rank == 1


def test_what_cannot_be_compared_is_said():
    one, two = made([[1, 0], [0, 1]], "AB"), made([[1, 0]], "C", "v2")
    for attempt, message in (
        (lambda: align(one, two), "embeddings v1 and v2 have no gene in common"),
        (lambda: align(one, made([[0, 0]], "A", "v2")), "nothing can be aligned"),
        (lambda: neighbour_overlap(one, made([[1]], "A", "v2"), 3), "neighbours need at least 2"),
        (lambda: neighbour_overlap(one, one, 0), "ask for at least 1"),
        (lambda: rotated(two, align(one, one)), "embedding v2: the alignment is one of v1"),
    ):
        with pytest.raises(GraphError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
