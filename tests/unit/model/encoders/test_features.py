import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.model.encoders.random_graphs import graph_input
from txpert_dist.model.dropout import DropoutKey, hash_integers
from txpert_dist.model.encoders.features import NodeFeatures

GRAPH = graph_input(400, 500, 2, 0)


def features(positional: str) -> NodeFeatures:
    torch.manual_seed(0)
    return NodeFeatures(GRAPH, 50, positional)


def test_without_encodings_they_are_the_learned_table():
    ours = features("none")
    assert ours() is ours.table_PN
    assert ours(DropoutKey(0, 1, 0)) is ours.table_PN
    assert [name for name, _ in ours.named_parameters()] == ["table_PN"]


def test_initial_table_is_standard_normal():
    table_PN = features("none").table_PN
    assert table_PN.shape == (400, 50)
    assert abs(table_PN.mean().item()) < 0.03
    assert abs(table_PN.std().item() - 1) < 0.03


@pytest.mark.parametrize(
    ("positional", "encoding_PN"),
    [("random_walk", GRAPH.random_walk_PN), ("laplacian", 20 * GRAPH.laplacian_PN)],  # 20: root of 400 nodes
)
def test_encodings_are_mapped_linearly_and_added(positional, encoding_PN):
    ours = features(positional)
    expected_PN = ours.table_PN + torch.from_numpy(encoding_PN) @ ours.position.weight.T + ours.position.bias
    torch.testing.assert_close(ours(), expected_PN)
    assert not torch.allclose(ours(), ours.table_PN)


def test_only_laplacian_signs_are_drawn():
    ours = features("random_walk")
    assert torch.equal(ours(DropoutKey(0, 1, 0)), ours())


@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**33), first_row=st.integers(0, 2**33))
def test_every_laplacian_eigenvector_is_as_stored_or_negative(seed, step, first_row):
    ours = features("laplacian").double()
    key = DropoutKey(seed, step, first_row)
    with torch.no_grad():
        ours.position.bias.zero_()
        placed_PN = ours(key) - ours.table_PN
        parts_NPN = ours.encoding_PN.T.unsqueeze(-1) * ours.position.weight.T.unsqueeze(1)
        found = [
            signs
            for signs in torch.cartesian_prod(*[torch.tensor([1.0, -1.0]).double()] * 3)
            if torch.allclose((signs[:, None, None] * parts_NPN).sum(0), placed_PN, atol=1e-9)
        ]
        assert len(found) == 1
        assert torch.equal(ours(key), ours(key._replace(first_row=0)))


@given(seed=st.integers(0, 2**70), step=st.integers(0, 2**63 - 1))
def test_signs_are_the_top_bits_of_the_hash_whether_the_step_is_a_number_or_a_tensor(seed, step):
    ours, key = features("laplacian"), DropoutKey(seed, step, 0)
    ours.table_PN.data.zero_()
    ours.position.bias.data.zero_()
    ours.position.weight.data.copy_(torch.eye(50, 3))
    expected = [-1.0 if hash_integers(2, seed, step, number) >> 63 else 1.0 for number in range(3)]
    for one in (key, key._replace(step=torch.tensor(step))):
        assert torch.sign(ours(one)[0, :3] / ours()[0, :3]).tolist() == expected


def test_signs_are_fair_and_independent_over_steps():
    ours = features("laplacian")
    ours.table_PN.data.zero_()
    ours.position.bias.data.zero_()
    ours.position.weight.data.copy_(torch.eye(50, 3))
    stored_N = ours()[0, :3]
    signs = torch.stack([ours(DropoutKey(0, step, 0))[0, :3] / stored_N for step in range(1000)])
    assert set(signs.flatten().tolist()) == {1.0, -1.0}
    # a thousand fair coins: 5 standard errors are 0.16
    assert signs.mean(0).abs().max() < 0.16
    assert (signs.T @ signs / 1000 - torch.eye(3)).abs().max() < 0.16


@pytest.mark.parametrize("positional", ["random_walk", "laplacian"])
def test_encodings_are_not_in_the_checkpointed_state(positional):
    assert set(features(positional).state_dict()) == {"table_PN", "position.weight", "position.bias"}


@pytest.mark.parametrize("positional", ["random_walk", "laplacian"])
def test_encodings_that_are_not_there_are_refused(positional):
    bare = GRAPH._replace(random_walk_PN=None, laplacian_PN=None)
    with pytest.raises(ValueError, match=f"no {positional} encodings"):
        NodeFeatures(bare, 8, positional)
