from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from txpert_dist.model.attention import edges as edge_tables
from txpert_dist.model.attention import pattern_edges
from txpert_dist.model.attention.edges import Edges
from txpert_dist.model.attention.pattern_edges import PatternEdges, PatternTable
from txpert_dist.model.attention.virtual_rows import (
    MOST_EDGES,
    Pieces,
    VirtualRows,
    pieces_of,
    virtual_rows,
    with_slots,
)

degree_lists = st.lists(st.integers(0, 20), max_size=12)
group_lists = st.lists(st.dictionaries(st.integers(0, 4), st.integers(1, 12)), max_size=8)
"""Of each row the number of edges of each pattern that it has."""


def indptr_of(degrees: list[int]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(degrees, dtype=np.int64)).astype(np.int64)


def sums_by(rows: VirtualRows, value_E: NDArray[np.int64], num_rows: int) -> list[int]:
    """Each row's sum as the kernels find it: into places, then the parts of split rows together."""
    place = np.full(rows.num_places, -1)
    first = rows.first.numpy()
    for number, where in enumerate(rows.place.tolist()):
        assert place[where] == -1
        place[where] = value_E[first[number] : first[number + 1]].sum()
    for number, row in enumerate(rows.split.tolist()):
        place[row] = place[rows.part_first[number] : rows.part_first[number + 1]].sum()
    assert (place >= 0).all()
    return place[:num_rows].tolist()


@given(degrees=degree_lists, most=st.integers(1, 9))
def test_virtual_rows_cover_every_edge_once_and_add_up_to_their_rows(degrees, most):
    indptr = indptr_of(degrees)
    rows = virtual_rows(indptr, most)
    value_E = np.random.default_rng(0).integers(1, 100, indptr[-1])
    expected = [int(value_E[low:high].sum()) for low, high in pairwise(indptr)]
    assert sums_by(rows, value_E, len(degrees)) == expected
    length = np.diff(rows.first.numpy())
    assert (length <= most).all()
    assert (rows.first[0], rows.first[-1]) == (0, indptr[-1])
    edge_row = np.repeat(rows.row.numpy(), length)
    np.testing.assert_array_equal(edge_row, np.repeat(np.arange(len(degrees)), degrees))
    assert len(rows.split) == sum(degree > most for degree in degrees)


@given(groups=group_lists, most=st.integers(1, 7))
def test_pieces_are_of_one_pattern_and_one_virtual_row(groups, most):
    degrees = [sum(group.values()) for group in groups]
    pattern_G = np.array([pattern for group in groups for pattern in sorted(group)], np.int64)
    size_G = [group[pattern] for group in groups for pattern in sorted(group)]
    pieces = pieces_of(indptr_of(degrees), indptr_of(size_G), pattern_G, most)
    pieces, totals = with_slots(pieces, 5, most)
    length = np.diff(pieces.edge.numpy())
    assert (length > 0).all()
    assert sum(length) == sum(degrees)
    edge_pattern = np.repeat(pattern_G, size_G)
    np.testing.assert_array_equal(np.repeat(pieces.pattern.numpy(), length), edge_pattern)
    rows = virtual_rows(indptr_of(degrees), most)
    for name in ("row", "place", "split", "part_first"):
        assert torch.equal(getattr(pieces.rows, name), getattr(rows, name))
    # a virtual row's pieces begin and end where its edges do
    np.testing.assert_array_equal(pieces.edge.numpy()[pieces.rows.first.numpy()], rows.first)
    by_slot = np.empty(len(pieces.slot), np.int64)
    by_slot[pieces.slot.numpy()] = pieces.pattern
    assert (np.diff(by_slot) >= 0).all()
    length_by_slot = np.empty(len(pieces.slot), np.int64)
    length_by_slot[pieces.slot.numpy()] = length
    assert sums_by(totals, length_by_slot, 5) == np.bincount(edge_pattern, minlength=5).tolist()


def tables_of(table: VirtualRows | Pieces) -> list[list[int]]:
    parts = [*table.rows, *table[1:]] if isinstance(table, Pieces) else table
    return [part.tolist() for part in parts]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=90), st.sets(st.integers(0, 5)))
def test_tables_of_edges_carry_the_rows_of_both_ends_and_so_do_those_of_some_targets(edges, rows):
    edges_2E = np.array(edges, np.int64).reshape(-1, 2).T
    edges_2E = edges_2E[:, np.lexsort(edges_2E)]
    edges_2E[1, : edges_2E.shape[1] // 2] = 0
    edges_2E = edges_2E[:, np.lexsort(edges_2E)]
    kept = np.array(sorted(rows), np.int64)
    whole = Edges(edges_2E, 6).table
    for table in (whole, edge_tables.restricted(whole, kept)):
        assert tables_of(table.target_rows) == tables_of(virtual_rows(table.host_indptr))
        assert tables_of(table.source_rows) == tables_of(virtual_rows(table.source_indptr.numpy()))
    patterns = PatternEdges(edges_2E, np.arange(len(edges)) % 3, 6).table
    for table in (patterns, pattern_edges.restricted(patterns, kept)):
        assert_pieces_are_the_groups(table)


def assert_pieces_are_the_groups(table: PatternTable) -> None:
    both = (table.by_target, table.target_pieces), (table.by_source, table.source_pieces)
    for groups, pieces in both:
        group_E = groups.group.numpy()
        pattern_E = np.repeat(pieces.pattern.numpy(), np.diff(pieces.edge.numpy()))
        np.testing.assert_array_equal(pattern_E, groups.pattern.numpy()[group_E])
        edges_V = np.diff(pieces.edge.numpy()[pieces.rows.first.numpy()])
        node_E = np.repeat(pieces.rows.row.numpy(), edges_V)
        np.testing.assert_array_equal(node_E, groups.node.numpy()[group_E])
        assert edges_V.max(initial=0) <= MOST_EDGES
    count = np.bincount(table.target_pieces.pattern, minlength=len(table.slot_indptr) - 1)
    assert tables_of(table.pattern_rows) == tables_of(virtual_rows(indptr_of(count.tolist()), 512))


def test_the_rows_follow_the_model_and_stay_out_of_its_state():
    edges_2E = np.array([[0, 1, 2], [1, 2, 2]])
    for module in (Edges(edges_2E, 3), PatternEdges(edges_2E, np.array([0, 1, 0]), 3)):
        assert not module.state_dict()
        table = module.double().to("meta").table
        rows = table.pattern_rows if isinstance(table, PatternTable) else table.source_rows
        assert {part.device.type for part in rows} == {"meta"}
        assert {part.dtype for part in rows} == {torch.int64}
