"""Enrichment: goatools' numbers against the hypergeometric distribution and SciPy's Benjamini-Hochberg."""

import gzip
import os
from pathlib import Path

import networkx
import numpy as np
import obonet
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, hypergeom

from tests.unit.evaluate.understand.go_files import GENES, PARENTS, GoFiles, write_go
from txpert_dist.errors import InputError
from txpert_dist.evaluate.understand.enrichment import (
    COLUMNS,
    Changed,
    changed_genes,
    enrichment,
    meta_baseline,
    read_annotations,
    read_ontology,
)

SHARED = Path(os.environ.get("TXPERT_SHARED_DATA", "../shared/data"))


@pytest.fixture
def go(tmp_path: Path) -> GoFiles:
    return write_go(tmp_path)


def two_sided(study: int, study_n: int, pop: int, pop_n: int) -> float:
    """Fisher's exact test: the probability of all tables that are no likelier than this one."""
    law = hypergeom(pop_n, pop, study_n)
    probability = law.pmf(np.arange(study_n + 1))
    return float(probability[probability <= law.pmf(study) * (1 + 1e-9)].sum())


def check_against_scipy(
    table: pd.DataFrame, changed: Changed, genes: tuple[str, ...], terms_of: dict[str, set[str]]
) -> None:
    """Counts from propagated annotations made without goatools, p-values from them."""
    members: dict[str, set[str]] = {}
    for gene, terms in terms_of.items():
        for term in terms:
            members.setdefault(term, set()).add(gene)
    for direction, study in zip(("up", "down"), changed, strict=True):
        own = table[table["direction"] == direction]
        for row in own.itertuples():
            found = members[row.go]
            assert row.measured_count == len(found)
            assert row.study_count == len(found & set(study))
            assert (row.study_genes, row.measured_genes) == (len(study), len(genes))
            assert row.genes.split() == sorted(found & set(study))
            p = two_sided(row.study_count, len(study), len(found), len(genes))
            assert row.p == pytest.approx(p, rel=1e-9)
            assert row.enriched == (row.study_count * len(genes) > len(found) * len(study))
        for _, part in own.groupby("namespace"):
            corrected = false_discovery_control(part["p"].to_numpy())
            np.testing.assert_allclose(part["p_fdr_bh"], corrected, rtol=1e-9)


def propagated(direct: dict[str, set[str]]) -> dict[str, set[str]]:
    result = {}
    for gene, terms in direct.items():
        result[gene] = set(terms)
        for term in terms:
            while term in PARENTS:
                term = PARENTS[term]
                result[gene].add(term)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_counts_and_p_values_are_scipys(tmp_path: Path, seed: int) -> None:
    go = write_go(tmp_path, seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(GENES))
    changed = Changed(tuple(GENES[i] for i in order[:9]), tuple(GENES[i] for i in order[9:14]))
    dag = read_ontology(go.obo)
    annotations = read_annotations(go.gaf, dag, GENES)
    table = enrichment(changed, GENES, annotations, dag)
    assert tuple(table.columns) == COLUMNS
    check_against_scipy(table, changed, GENES, propagated(go.direct))
    assert set(table["go"]) == {term for terms in propagated(go.direct).values() for term in terms}
    assert (table[table["go"] == "GO:0000011"]["namespace"] == "CC").all()
    # the annotations are not changed by being used
    again = enrichment(changed, GENES, annotations, dag)
    pd.testing.assert_frame_equal(table, again)


def test_what_does_not_count_is_counted(go: GoFiles) -> None:
    found = read_annotations(go.gaf, read_ontology(go.obo), GENES)
    assert found.counts == {
        "used": 68,
        "negated": 1,
        "without data": 1,
        "with terms that the ontology lacks": 1,
        "of genes that are not measured": 1,
        "measured genes without any": 6,
    }
    used = {gene: set[str]() for gene in go.direct}
    for terms in found.terms.values():
        for gene, own in terms.items():
            used[gene] |= own
    assert used == go.direct  # alternative ids are the main ones


def test_packed_files_say_the_same(go: GoFiles, tmp_path: Path) -> None:
    packed = []
    for path in (go.obo, go.gaf):
        packed.append(tmp_path / f"{path.name}.gz")
        packed[-1].write_bytes(gzip.compress(path.read_bytes()))
    dag = read_ontology(packed[0])
    assert set(dag) == set(read_ontology(go.obo))
    assert read_annotations(packed[1], dag, GENES) == read_annotations(go.gaf, dag, GENES)


def test_no_changed_gene_no_terms(go: GoFiles) -> None:
    dag = read_ontology(go.obo)
    table = enrichment(Changed((), ()), GENES, read_annotations(go.gaf, dag, GENES), dag)
    assert tuple(table.columns) == COLUMNS
    assert not len(table)


def test_changed_genes_are_beyond_the_threshold_only() -> None:
    meta_G = np.array([0.05, 0.051, -0.05, -0.0501, 0.0, 1.0])
    assert changed_genes(meta_G, "ABCDEF") == Changed(("B", "F"), ("D",))


def test_the_meta_baseline_is_the_mean_over_lines_that_have_one() -> None:
    mean_LG = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 6.0]])
    np.testing.assert_allclose(meta_baseline(mean_LG), [2.0, 4.0])


def test_files_that_cannot_be_used_are_named(go: GoFiles, tmp_path: Path) -> None:
    dag = read_ontology(go.obo)
    with pytest.raises(InputError, match=r"none\.obo: no such file; `txpert fetch go` brings one"):
        read_ontology(tmp_path / "none.obo")
    with pytest.raises(InputError, match="no such file"):
        read_annotations(tmp_path / "none.gaf", dag, GENES)
    with pytest.raises(InputError, match=r"go\.gaf: (is not an OBO file|holds no \[Term\])"):
        read_ontology(go.gaf)
    with pytest.raises(InputError, match=r"go\.obo: line 1 is not a GAF's"):
        read_annotations(go.obo, dag, GENES)
    with pytest.raises(InputError, match="annotates none of the 1 measured genes"):
        read_annotations(go.gaf, dag, ["ENSG01"])
    broken = tmp_path / "broken.gaf.gz"
    broken.write_bytes(gzip.compress(go.gaf.read_bytes())[:60])
    with pytest.raises(InputError, match="check that the file is whole"):
        read_annotations(broken, dag, GENES)
    with pytest.raises(InputError, match="check that the file is whole"):
        read_ontology(broken)


@pytest.mark.real
def test_a_published_subset_of_the_ontology(tmp_path: Path) -> None:
    """Mouse annotations of the Gene Ontology and the terms they need; ancestors by obonet and networkx.

    The subset refers to terms of other ontologies that it lacks: goatools takes it without those lines.
    """
    obo, gaf = (SHARED / "go-obo" / name for name in ("mgi-exttest-go-subset.obo", "mgi-exttest.gaf"))
    if not obo.exists():
        pytest.skip(f"{obo.name} is not in TXPERT_SHARED_DATA")
    with pytest.raises(InputError, match=r"refers to the term '\w+:\d+', which it lacks"):
        read_ontology(obo)
    lines = obo.read_text(encoding="utf-8").splitlines()
    there = {line.removeprefix("id: ") for line in lines if line.startswith("id: ")}
    obo = tmp_path / obo.name
    whole = [line for line in lines if not line.startswith("is_a: ") or line.split()[1] in there]
    obo.write_text("\n".join(whole), encoding="utf-8")
    rows = [line.split("\t") for line in gaf.read_text().splitlines() if not line.startswith("!")]
    genes = (*sorted({row[2] for row in rows}), *(f"unknown{i}" for i in range(50)))
    graph = obonet.read_obo(obo)
    above = networkx.MultiDiGraph(
        (child, parent) for child, parent, kind in graph.edges(keys=True) if kind == "is_a"
    )
    main = {
        alternative: term for term, data in graph.nodes(data=True) for alternative in data.get("alt_id", ())
    }
    terms_of: dict[str, set[str]] = {}
    for row in rows:
        term = main.get(row[4], row[4])
        if "NOT" not in row[3].split("|") and row[6] != "ND" and graph.nodes.get(term):
            own = terms_of.setdefault(row[2], set())
            own |= {term} | (networkx.descendants(above, term) if term in above else set())
    rng = np.random.default_rng(0)
    changed = Changed(*(tuple(rng.choice(genes, number, replace=False)) for number in (60, 25)))
    dag = read_ontology(obo)
    table = enrichment(changed, genes, read_annotations(gaf, dag, genes), dag)
    assert len(table) > 1000
    # terms that only other ontologies of the file have are not of the three namespaces
    check_against_scipy(table, changed, genes, terms_of)
