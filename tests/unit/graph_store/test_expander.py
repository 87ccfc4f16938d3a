import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.expander import (
    DENSE_UP_TO,
    check_expander,
    draw_expander,
    largest_lambda_2,
    random_cycles,
    second_eigenvalue,
)
from graph_store.graph import Expander, GraphError

SEEDS = st.integers(0, 2**63 - 1)


def edges_of(expander: Expander, cycle: int) -> list[tuple[int, int]]:
    return [tuple(ends) for ends in expander.edges_2E[:, expander.cycle_E == cycle].T.tolist()]


def adjacency(expander: Expander, num_nodes: int) -> np.ndarray:
    """Shared edges add up."""
    matrix = np.zeros((num_nodes, num_nodes))
    np.add.at(matrix, (expander.edges_2E[1], expander.edges_2E[0]), 1)
    return matrix


@given(st.integers(3, 40), st.integers(1, 5), SEEDS, st.integers(0, 99))
def test_every_cycle_passes_every_node_once(num_nodes, num_cycles, seed, stream):
    expander = random_cycles(num_nodes, num_cycles, seed=seed, stream=stream)
    assert expander.edges_2E.shape == (2, 2 * num_nodes * num_cycles)
    for number in range(num_cycles):
        ends = edges_of(expander, number)
        assert ends == sorted(set(ends), key=lambda edge: (edge[1], edge[0]))
        graph = networkx.DiGraph(ends)
        assert sorted(graph) == list(range(num_nodes))
        assert all(graph.in_degree(node) == graph.out_degree(node) == 2 for node in graph)
        assert networkx.is_connected(graph.to_undirected())
        assert {edge[::-1] for edge in ends} == set(ends)
    check_expander(expander, num_nodes)


@pytest.mark.parametrize(("num_nodes", "ends"), [(0, []), (1, []), (2, [(1, 0), (0, 1)])])
def test_fewer_nodes_than_a_cycle_needs(num_nodes, ends):
    drawn = draw_expander(num_nodes, 3, seed=5)
    assert drawn.expander.num_cycles == 3
    assert [edges_of(drawn.expander, number) for number in range(3)] == [ends] * 3
    assert drawn.tries == 1
    # Two nodes joined by three edges: eigenvalues 3 and -3.
    assert (drawn.lambda_2, drawn.gap) == ((-3.0, 6.0) if num_nodes == 2 else (0.0, 0.0))
    check_expander(drawn.expander, num_nodes)


def test_no_cycle_is_no_expander():
    drawn = draw_expander(10, 0, seed=0)
    assert drawn.expander.edges_2E.shape == (2, 0)
    assert (drawn.expander.num_cycles, drawn.tries) == (0, 0)


@given(st.integers(1, 60), st.integers(1, 6), SEEDS)
def test_the_same_seed_draws_the_same_and_fewer_cycles_are_the_first_of_more(num_nodes, num_cycles, seed):
    more = random_cycles(num_nodes, num_cycles + 2, seed=seed, stream=0)
    fewer = random_cycles(num_nodes, num_cycles, seed=seed, stream=0)
    first = more.cycle_E < num_cycles
    assert np.array_equal(more.edges_2E[:, first], fewer.edges_2E)
    assert np.array_equal(more.cycle_E[first], fewer.cycle_E)
    assert np.array_equal(random_cycles(num_nodes, num_cycles, seed=seed, stream=0).edges_2E, fewer.edges_2E)


def test_seeds_streams_and_cycles_differ():
    drawn = [random_cycles(30, 3, seed=seed, stream=stream) for seed in range(3) for stream in range(3)]
    cycles = {tuple(edges_of(expander, number)) for expander in drawn for number in range(3)}
    assert len(cycles) == 27


def splitmix64(state: int) -> int:
    """The published generator's next value, in plain integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(st.integers(3, 20), SEEDS, st.integers(0, 99), st.integers(0, 3))
def test_cycles_are_the_order_of_published_random_numbers(num_nodes, seed, stream, cycle):
    # Snapshot ids rest on these: a change here is a new layout.
    start = splitmix64(splitmix64(seed) ^ (64 * stream + cycle))
    order = sorted(range(num_nodes), key=lambda node: splitmix64(node ^ start))
    pairs = list(zip(order, [*order[1:], order[0]], strict=True))
    expected = sorted([*pairs, *(pair[::-1] for pair in pairs)], key=lambda edge: (edge[1], edge[0]))
    assert edges_of(random_cycles(num_nodes, 4, seed=seed, stream=stream), cycle) == expected


def test_all_cycles_of_a_small_graph_are_equally_likely():
    seen = [tuple(edges_of(random_cycles(5, 1, seed=seed, stream=0), 0)) for seed in range(1200)]
    counts = [seen.count(cycle) for cycle in set(seen)]
    # Five nodes have 4! / 2 = 12 cycles; 100 each but for chance.
    assert len(counts) == 12
    assert min(counts) > 65
    assert max(counts) < 140


@given(st.integers(2, 60), st.integers(1, 6), SEEDS)
def test_the_second_eigenvalue_of_small_graphs(num_nodes, num_cycles, seed):
    expander = random_cycles(num_nodes, num_cycles, seed=seed, stream=0)
    expected = np.linalg.eigvalsh(adjacency(expander, num_nodes))[-2]
    assert second_eigenvalue(expander, num_nodes) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("num_cycles", [1, 2, 3, 5])
@pytest.mark.parametrize("num_nodes", [DENSE_UP_TO + 1, 900])
def test_the_second_eigenvalue_of_larger_graphs(num_nodes, num_cycles):
    expander = random_cycles(num_nodes, num_cycles, seed=3, stream=0)
    expected = np.linalg.eigvalsh(adjacency(expander, num_nodes))[-2]
    assert second_eigenvalue(expander, num_nodes) == pytest.approx(expected, abs=1e-6)


def test_the_iteration_agrees_on_graphs_without_a_gap():
    # Three times the same cycle: no expander at all, and eigenvalues that lie close together.
    one = random_cycles(DENSE_UP_TO + 1, 1, seed=0, stream=0)
    same = Expander(np.tile(one.edges_2E, 3), np.repeat(np.arange(3, dtype=np.int32), len(one.cycle_E)), 3)
    expected = 6 * np.cos(2 * np.pi / (DENSE_UP_TO + 1))
    assert second_eigenvalue(same, DENSE_UP_TO + 1) == pytest.approx(expected, abs=1e-6)
    assert expected > largest_lambda_2(3)


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 8), SEEDS)
def test_what_is_drawn_keeps_the_bound(num_nodes, num_cycles, seed):
    drawn = draw_expander(num_nodes, num_cycles, seed=seed)
    eigenvalues = np.linalg.eigvalsh(adjacency(drawn.expander, num_nodes))
    if num_nodes > 1:
        assert drawn.lambda_2 == pytest.approx(eigenvalues[-2], abs=1e-9)
        assert eigenvalues[-2] <= 2 * np.sqrt(2 * num_cycles - 1) + 0.1 + 1e-9
        assert drawn.gap == pytest.approx(eigenvalues[-1] - eigenvalues[-2], abs=1e-9)
    check_expander(drawn.expander, num_nodes)


@pytest.mark.parametrize("wanted", range(1, 5))
def test_draws_above_the_bound_are_drawn_again(wanted):
    """The bound is put between the best draws, so that the first one under it is a later one."""
    lambdas = [
        second_eigenvalue(random_cycles(50, 2, seed=wanted, stream=number), 50) for number in range(30)
    ]
    bound = sorted(lambdas)[wanted - 1] + 1e-9
    drawn = draw_expander(50, 2, seed=wanted, bound=bound)
    first = next(number for number, value in enumerate(lambdas) if value <= bound)
    assert first > 0
    assert drawn.tries == first + 1
    assert drawn.lambda_2 == lambdas[first]
    expected = random_cycles(50, 2, seed=wanted, stream=first)
    assert np.array_equal(drawn.expander.edges_2E, expected.edges_2E)
    with pytest.raises(GraphError, match=rf"of {first} draws of 2 cycles over 50 nodes .* another seed"):
        draw_expander(50, 2, seed=wanted, bound=bound, max_tries=first)


def test_a_bound_that_no_graph_meets_ends_in_an_error():
    with pytest.raises(GraphError, match="of 100 draws of 3 cycles over 50 nodes") as failure:
        draw_expander(50, 3, seed=0, bound=1.0)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(("num_nodes", "num_cycles", "seed"), [(2000, 3, 0), (3000, 2, 1)])
def test_large_draws_are_good_at_once_and_near_the_best_there_can_be(num_nodes, num_cycles, seed):
    drawn = draw_expander(num_nodes, num_cycles, seed=seed)
    assert drawn.tries == 1
    assert drawn.lambda_2 == pytest.approx(2 * np.sqrt(2 * num_cycles - 1), rel=0.02)
    assert drawn.gap == pytest.approx(2 * num_cycles - drawn.lambda_2)
