"""Workers that divide the nodes: the embeddings and gradients of one that has them all, for every encoder."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import run
from tests.unit.model.encoders.test_reach import ENCODERS, KEY, build, depths, graphs, outcome
from txpert_dist.model.norm import GlobalBatchNorm
from txpert_dist.train.collective import any_rank, sum_in_place
from txpert_dist.train.division import shares_of

pytestmark = pytest.mark.process

DIVISIBLE = sorted(ENCODERS.keys() - {"embedding", "hybrid_bmp"})
CPU = torch.device("cpu")


def nodes_of(num_nodes):
    return st.sets(st.integers(0, num_nodes - 1), min_size=1).map(lambda nodes: np.array(sorted(nodes)))


def all_agree(problems):
    """Fail on every rank or on none: they go through the same examples."""
    if any_rank(bool(problems), device=CPU):
        raise AssertionError(problems or "another rank's outcome differs")


def differing(found, expected):
    return [
        f"{name}: {(found[name] - value).abs().max().item():.3g}"
        for name, value in expected.items()
        if not torch.allclose(found[name], value, rtol=1e-9, atol=1e-9)
    ]


def statistics(built):
    norms = [part for part in built.modules() if isinstance(part, GlobalBatchNorm)]
    return {f"{n}.{name}": b.clone() for n, norm in enumerate(norms) for name, b in norm.named_buffers()}


def check_examples(rank, world):
    """Hypothesis draws the same examples on every rank."""

    @settings(max_examples=60, derandomize=True, database=None, deadline=None)
    @given(data=st.data(), kind=st.sampled_from(DIVISIBLE))
    def check(data, kind):
        graph = data.draw(graphs)
        options = data.draw(ENCODERS[kind])
        each = data.draw(st.lists(nodes_of(graph.num_nodes), min_size=world, max_size=world))
        deep = data.draw(st.booleans())
        built, other = (build(options, graph, torch.float64) for _ in range(2))
        # each rank's own cells need other nodes, but as many layers are cut everywhere
        cut = data.draw(depths(built)) if deep else tuple(0 for _ in built.depths(each[0]))
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(len(rows), 5, dtype=torch.float64, generator=generator) for rows in each]

        alone = [
            outcome(built, built(KEY, built.reaches(r, cut)), d) for r, d in zip(each, weights, strict=True)
        ]
        expected = {name: sum(one[name] for one in alone) for name in alone[0] if name != "z"}

        pairs = zip(other.reaches(each[rank], cut), shares_of(other), strict=True)
        reaches = tuple(reach._replace(share=share) for reach, share in pairs)
        found = outcome(other, other(KEY, reaches), weights[rank])
        problems = differing({"z": found.pop("z")}, {"z": alone[rank]["z"]})
        problems += differing({name: sum_in_place(value) for name, value in found.items()}, expected)
        # the one that had all nodes saw them once for each rank
        first = build(options, graph, torch.float64)
        first(KEY, first.reaches(each[rank], cut))
        problems += differing(statistics(other), statistics(first))
        all_agree(problems)

    check()
    return True


@pytest.mark.parametrize("world", [2, 3])
def test_shares_add_up_to_the_whole(world):
    assert run(check_examples, world) == [True] * world
