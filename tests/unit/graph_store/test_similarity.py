import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from graph_store.similarity import jaccard_pairs

MEMBERSHIPS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 5)), min_size=1, max_size=50)


@given(MEMBERSHIPS, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), st.sampled_from([1, 7, 10**6]))
def test_against_plain_sets_whatever_the_block_size(memberships, above, max_entries):
    gene_R, set_R = np.array(memberships, dtype=np.int32).T
    result = jaccard_pairs(gene_R, set_R, above=above, max_entries=max_entries)
    sets = {gene: {s for g, s in memberships if g == gene} for gene, _ in memberships}
    expected, below = {}, 0
    for first in sets:
        for second in sets:
            both = len(sets[first] & sets[second])
            if first < second and both:
                index = both / len(sets[first] | sets[second])
                if index > above:
                    expected[first, second] = np.float32(index)
                else:
                    below += 1
    assert list(map(tuple, result.edges_2E.T.tolist())) == sorted(expected)
    assert result.weight_E.tolist() == [expected[pair] for pair in sorted(expected)]
    assert result.num_below == below


def test_against_scikit_learn():
    member = np.random.default_rng(0).random((40, 30)) < 0.3
    gene_R, set_R = np.nonzero(member)
    result = jaccard_pairs(gene_R.astype(np.int32), set_R.astype(np.int32), above=0.2)
    expected = {
        (first, second): score
        for first in range(40)
        for second in range(first + 1, 40)
        if (score := jaccard_score(member[first], member[second])) > 0.2
    }
    assert len(expected) > 50
    assert list(map(tuple, result.edges_2E.T.tolist())) == list(expected)
    np.testing.assert_allclose(result.weight_E, list(expected.values()), rtol=1e-6)


def test_the_threshold_itself_is_left_out():
    # Ten sets for gene 0, one of them shared with gene 1: the index is exactly 1/10.
    gene_R = np.array([0] * 10 + [1], dtype=np.int32)
    set_R = np.array([*range(10), 3], dtype=np.int32)
    assert jaccard_pairs(gene_R, set_R, above=0.1).weight_E.size == 0
    assert jaccard_pairs(gene_R, set_R, above=0.09999).weight_E.tolist() == [np.float32(0.1)]
