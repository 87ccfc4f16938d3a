import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_store.graph import Snapshot
from txpert_dist.errors import CheckpointError, InputError
from txpert_dist.model.vocabulary import Vocabulary, build_vocabulary, from_dict, node_numbers, to_dict

GENES = ("IRF1", "JAK2", "STAT1", "TP53")


def snapshot(genes: tuple[str, ...] = GENES, **aliases: str) -> Snapshot:
    return Snapshot(id="s", genes=genes, graphs=(), aliases=aliases)


def vocabulary() -> Vocabulary:
    return build_vocabulary(
        snapshot(P53="TP53", JTK10="JAK2"), ["control", "JAK2", "JTK10", "IRF1+NEW1", "P53", "AAA"]
    )


def test_every_perturbed_gene_gets_a_node_and_is_counted():
    found = vocabulary()
    assert found.genes == (*GENES, "AAA", "NEW1")
    assert found.num_graph_genes == 4
    assert found.exact == 2
    assert found.by_alias == {"JTK10": "JAK2", "P53": "TP53"}
    assert found.isolated == ("AAA", "NEW1")


def test_node_numbers_pad_with_minus_one_and_know_aliases():
    names = ["control", "JAK2", "JTK10", "IRF1+NEW1", "NEW1 + P53", "STAT1+ctrl"]
    expected = [[-1, -1], [1, -1], [1, -1], [0, 5], [5, 3], [2, -1]]
    numbers = node_numbers(vocabulary(), names)
    assert numbers.dtype == np.int32
    assert numbers.tolist() == expected


def test_node_numbers_of_controls_alone_keep_one_column():
    assert node_numbers(vocabulary(), ["control"]).tolist() == [[-1]]
    assert node_numbers(vocabulary(), []).shape == (0, 1)


def test_own_name_wins_over_alias_and_dangling_aliases_are_ignored():
    found = build_vocabulary(snapshot(JAK2="TP53", GHOST="NOT_A_NODE"), ["JAK2", "GHOST"])
    assert node_numbers(found, ["JAK2"]).tolist() == [[1]]
    assert found.isolated == ("GHOST",)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("JAK3", "did you mean JAK2"),
        ("jak2", "did you mean JAK2"),
        ("P54+IRF1", "no gene 'P54'.*did you mean P53"),
        ("QQQQQQQQ", "check the spelling"),
        ("JAK2+JTK10", "JAK2 and JTK10 are one gene"),
        ("IRF1+JAK2+JTK10", "JAK2 and JTK10 are one gene"),
        ("JAK2+JAK2", "listed twice"),
        ("JAK2+", "a gene name is missing"),
        ("", "a gene name is missing"),
    ],
)
def test_names_that_cannot_be_used_say_why(name, says):
    with pytest.raises(InputError, match=says):
        node_numbers(vocabulary(), [name])


def test_survives_json():
    assert from_dict(json.loads(json.dumps(to_dict(vocabulary())))) == vocabulary()


@pytest.mark.parametrize(
    "change",
    [{"genes": ["JAK2"]}, {"aliases": {"X": "NOWHERE"}}, {"num_graph_genes": "many"}, {"isolated": None}],
)
def test_damaged_tree_is_refused(change):
    with pytest.raises(CheckpointError, match="vocabulary"):
        from_dict(to_dict(vocabulary()) | change)


def test_incomplete_tree_is_refused():
    with pytest.raises(CheckpointError, match="aliases"):
        from_dict({key: value for key, value in to_dict(vocabulary()).items() if key != "aliases"})


symbols = st.text("ABCDEFG123", min_size=1, max_size=3)


@given(
    genes=st.sets(symbols, max_size=12),
    aliases=st.dictionaries(symbols, symbols, max_size=6),
    perturbations=st.lists(st.sets(symbols, min_size=1, max_size=3), max_size=10),
)
def test_any_screen_is_covered_and_graph_nodes_keep_their_numbers(genes, aliases, perturbations):
    shot = Snapshot(id="s", genes=tuple(sorted(genes)), graphs=(), aliases=aliases)
    singles = sorted({gene for names in perturbations for gene in names})
    found = build_vocabulary(shot, ["control", *("+".join(sorted(names)) for names in perturbations)])
    assert found.genes[: found.num_graph_genes] == shot.genes
    assert len(set(found.genes)) == len(found.genes)
    assert found.exact + len(found.by_alias) + len(found.isolated) == len(singles)
    for gene, (node,) in zip(singles, node_numbers(found, singles), strict=True):
        name = found.genes[node]
        assert name == (gene if gene in genes or aliases.get(gene) not in genes else aliases[gene])
