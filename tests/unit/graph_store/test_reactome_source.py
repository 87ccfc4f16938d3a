import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from graph_store.genes import make_aliases
from graph_store.graph import GraphError
from graph_store.source_config import ReactomeSource
from graph_store.sources.reactome import OTHER_EVIDENCE, OTHER_SPECIES, read_reactome

URL = "https://reactome.org/PathwayBrowser/#/"


def row(gene: str, pathway: str, evidence: str = "TAS", species: str = "Homo sapiens") -> str:
    return f"{gene}\t{pathway}\t{URL}{pathway}\tName, of a 'pathway\"\t{evidence}\t{species}\n"


TABLE = (
    row("P04637", "R-HSA-1")
    + row("Q9Y243", "R-HSA-1")
    + row("Q9Y243", "R-HSA-1", "IEA")
    + row("P04637", "R-HSA-2", "IEA")
    + row("P31749", "R-HSA-2")
    + row("P31749", "R-HSA-1")
    + row("P12345", "R-MMU-1", "IEA", "Mus musculus")
)


def read(path: Path, *, aliases=None, **options):
    return read_reactome(ReactomeSource(path=path, **options), aliases)


def write(folder: Path, data: bytes | str, name: str = "UniProt2Reactome.txt") -> Path:
    path = folder / name
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def as_dict(graph) -> dict[tuple[str, str], float]:
    ends = graph.pairs.edges_2E.T.tolist()
    weights = graph.pairs.weight_E.tolist()
    return {(graph.genes[a], graph.genes[b]): weight for (a, b), weight in zip(ends, weights, strict=True)}


@pytest.mark.parametrize("name", ["UniProt2Reactome.txt", "Ensembl2Reactome_All_Levels.txt.gz"])
def test_a_table_as_published(tmp_path, name):
    graph = read(write(tmp_path, TABLE, name))
    assert as_dict(graph) == {("P04637", "P31749"): 1.0, ("P04637", "Q9Y243"): 0.5, ("P31749", "Q9Y243"): 0.5}
    assert graph.counts == (6, 0, 1, 0)
    assert graph.details == {OTHER_SPECIES: 1}
    symbols = make_aliases([("P04637", "TP53"), ("P31749", "AKT1"), ("", "AKT3")])
    named = read(write(tmp_path, TABLE, name), aliases=symbols)
    assert as_dict(named) == {("AKT1", "TP53"): 1.0, ("AKT1", "Q9Y243"): 0.5, ("Q9Y243", "TP53"): 0.5}
    assert named.resolution.unmatched == ("Q9Y243",)


def test_evidence_and_species(tmp_path):
    path = write(tmp_path, TABLE)
    told = read(path, without_evidence=["IEA"])
    assert as_dict(told) == {("P04637", "P31749"): 0.5, ("P04637", "Q9Y243"): 1.0, ("P31749", "Q9Y243"): 0.5}
    assert told.details == {OTHER_EVIDENCE: 2, OTHER_SPECIES: 1}
    assert read(path, species="Mus musculus").genes == ("P12345",)
    with pytest.raises(GraphError, match=r"no membership is left .*the file has Homo sapiens, Mus musculus"):
        read(path, species="human")


def test_tables_with_physical_entities(tmp_path):
    lines = [line.split("\t") for line in TABLE.splitlines()]
    wide = "".join("\t".join([gene, "R-HSA-99", "X [cytosol]", *rest]) + "\n" for gene, *rest in lines)
    plain = read(write(tmp_path, TABLE))
    physical = read(write(tmp_path, wide, "UniProt2Reactome_PE_Pathway.txt"))
    assert as_dict(physical) == as_dict(plain)
    assert physical.counts == plain.counts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "no membership is left .*the file holds none"),
        (row("A", "R-HSA-1") + "A\tR-HSA-1\n", r"line 2: has 2 tab-separated field\(s\)"),
        (row("A", "R-HSA-1") + "\n" + row("", "R-HSA-1"), "line 3"),
        (row("A", "HSA-1"), "line 1: has 6"),
        (b"A\tR-HSA-1\t\xff\tx\tTAS\tHomo sapiens\n", "is not UTF-8"),
    ],
)
def test_bad_files_are_refused_naming_file_and_line(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(GraphError, match=message) as failure:
        read(path)
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(GraphError, match="no such file"):
        read(tmp_path / "absent.txt")
    with pytest.raises(GraphError, match="cannot be read"):
        read(tmp_path)
    path = write(tmp_path, TABLE * 50, "damaged.txt.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(GraphError, match="cannot be read"):
        read(path)
    # A byte within the compressed stream.
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 255]) + whole[21:])
    with pytest.raises(GraphError, match=r"cannot be read|is not UTF-8|line \d+"):
        read(path)


def test_many_random_memberships_against_pandas(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "gene": [f"G{number:02d}" for number in rng.integers(0, 40, 600)],
            "pathway": [f"R-HSA-{number}" for number in rng.integers(0, 60, 600)],
            "evidence": rng.choice(["TAS", "IEA"], 600),
            "species": rng.choice(["Homo sapiens", "Sus scrofa"], 600, p=[0.8, 0.2]),
        }
    )
    text = "".join(row(*fields) for fields in frame.itertuples(index=False))
    graph = read(write(tmp_path, text), without_evidence=["IEA"], jaccard_above=0.15)
    kept = frame[(frame.species == "Homo sapiens") & (frame.evidence == "TAS")]
    member = pd.crosstab(kept.gene, kept.pathway).clip(upper=1)
    both = member @ member.T
    index = both / (both.to_numpy().diagonal()[:, None] + both.to_numpy().diagonal() - both)
    upper = pd.DataFrame(np.triu(np.ones_like(index, bool), 1), index.index, index.columns)
    expected = index.where(upper & (index > 0.15)).stack()
    found = as_dict(graph)
    assert set(found) == set(expected.index)
    np.testing.assert_allclose([found[pair] for pair in expected.index], expected, rtol=1e-6)
    assert graph.counts.rows == len(kept)
    assert graph.counts.duplicates == len(kept) - len(kept[["gene", "pathway"]].drop_duplicates())
    assert graph.details[OTHER_SPECIES] == (frame.species != "Homo sapiens").sum()
