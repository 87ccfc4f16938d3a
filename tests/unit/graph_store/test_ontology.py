import gzip
from pathlib import Path

import networkx
import obonet
import pytest

from graph_store.graph import GraphError
from graph_store.ontology import ancestors, read_ontology

OBO = """\
format-version: 1.2
ontology: go

[Term]
id: GO:1
name: root
namespace: biological_process

[Term]
id: GO:2
namespace: biological_process
alt_id: GO:20
alt_id: GO:21
is_a: GO:1 ! root

[Term]
id: GO:3
namespace: molecular_function
alt_id: GO:21
relationship: part_of GO:2 {source="x"} ! two
relationship: regulates GO:4

[Term]
id: GO:4
namespace: cellular_component
is_a: GO:3
is_a: GO:2
is_a: GO:99 ! not in this file

[Term]
id: GO:5
name: obsolete
namespace: biological_process
is_obsolete: true
replaced_by: GO:2

[Typedef]
id: part_of
name: part of
"""


def write(folder: Path, text: str, name: str = "go.obo") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["go.obo", "go.obo.gz"])
def test_a_small_ontology(tmp_path, name):
    ontology = read_ontology(write(tmp_path, OBO, name), ("is_a", "part_of"))
    assert ontology.aspect == {
        "GO:1": "biological_process",
        "GO:2": "biological_process",
        "GO:3": "molecular_function",
        "GO:4": "cellular_component",
    }
    # Two terms claim GO:21.
    assert ontology.main == {"GO:20": "GO:2"}
    assert ontology.obsolete == {"GO:5"}
    assert ancestors(ontology, "GO:1") == set()
    assert ancestors(ontology, "GO:3") == {"GO:1", "GO:2"}
    assert ancestors(ontology, "GO:4") == {"GO:1", "GO:2", "GO:3", "GO:99"}
    assert ancestors(ontology, "GO:unknown") == set()


def test_only_the_relations_that_are_asked_for(tmp_path):
    path = write(tmp_path, OBO)
    assert ancestors(read_ontology(path, ("is_a",)), "GO:3") == set()
    assert ancestors(read_ontology(path, ("part_of",)), "GO:4") == set()


def test_a_cycle_ends(tmp_path):
    text = "ontology: x\n\n[Term]\nid: A:1\nis_a: A:2\n\n[Term]\nid: A:2\nis_a: A:1\n"
    ontology = read_ontology(write(tmp_path, text), ("is_a",))
    assert ancestors(ontology, "A:1") == {"A:2"}


def test_the_default_namespace(tmp_path):
    text = "ontology: x\ndefault-namespace: zoo\n\n[Term]\nid: A:1\nname: a\n"
    assert read_ontology(write(tmp_path, text), ("is_a",)).aspect == {"A:1": "zoo"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no .Term."),
        (b"{}\n", "holds no .Term.|is not an OBO file"),
        (b"ontology: go\n\n[Term]\nname: x\n", "is not an OBO file"),
        (b"ontology: go\n\n[Term]\nid: A\nrelationship: part_of B C\n", "is not an OBO file"),
        (b"ontology: \xff\xfe\n", "cannot be read"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "go.obo"
    path.write_bytes(data)
    with pytest.raises(GraphError, match=message) as failure:
        read_ontology(path, ("is_a",))
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(GraphError, match=r"go.obo: no such file"):
        read_ontology(tmp_path / "go.obo", ("is_a",))
    path = write(tmp_path, OBO, "go.obo.gz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(GraphError, match="cannot be read"):
        read_ontology(path, ("is_a",))


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "terms", "alternative"), [("goslim_generic", 148, 53), ("mgi-exttest-go-subset", 5342, 442)]
)
def test_published_ontologies_against_networkx(shared_file, name, terms, alternative):
    path = shared_file(f"go-obo/{name}.obo")
    graph = obonet.read_obo(path)
    for relations in (("is_a",), ("is_a", "part_of")):
        ontology = read_ontology(path, relations)
        assert len(ontology.aspect) == terms
        assert len(ontology.main) == alternative
        above = networkx.DiGraph()
        above.add_nodes_from(graph)
        above.add_edges_from((a, b) for a, b, relation in graph.edges(keys=True) if relation in relations)
        for term in sorted(graph)[::7]:
            assert ancestors(ontology, term) == networkx.descendants(above, term)
