from itertools import combinations

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_store.build import build
from graph_store.client import open_snapshot
from graph_store.config import GraphConfig
from graph_store.graph import Snapshot
from graph_store.statistics import NUM_HUBS, TOGETHER, Degrees, coverage, summarise
from tests.unit.graph_store.random_snapshots import graph, snapshots
from txpert_dist.model.vocabulary import build_vocabulary


def directed(snapshot: Snapshot, *names: str) -> nx.DiGraph:
    """The edges of some graphs of the snapshot, by gene names."""
    drawn = nx.DiGraph()
    for layer in snapshot.graphs:
        if layer.name in names:
            drawn.add_edges_from((snapshot.genes[a], snapshot.genes[b]) for a, b in layer.edges_2E.T)
    return drawn


def pairs(drawn: nx.DiGraph) -> set[frozenset[str]]:
    return {frozenset(edge) for edge in drawn.edges}


def degrees_are(found: Degrees, expected: list[int]) -> None:
    values = pd.Series(expected, dtype=float)
    assert dict(found.counts) == values.astype(int).value_counts().to_dict()
    assert list(found.counts) == sorted(found.counts)
    if expected:
        described = values.describe(percentiles=[0.5, 0.9])
        assert (found.mean, found.median, found.percentile_90, found.largest) == pytest.approx(
            (described["mean"], described["50%"], described["90%"], described["max"])
        )
    else:
        assert found == Degrees(0, 0, 0, 0, ())


@settings(max_examples=60)
@given(snapshots())
def test_sizes_degrees_and_components_are_networkx_ones(snapshot):
    found = summarise(snapshot)
    names = [layer.name for layer in snapshot.graphs]
    assert [part.name for part in found.graphs] == names
    for part, chosen in [*((part, [part.name]) for part in found.graphs), (found.together, names)]:
        drawn = directed(snapshot, *chosen)
        sizes = [len(component) for component in nx.weakly_connected_components(drawn)]
        assert part.nodes == len(drawn)
        assert part.isolated == len(snapshot.genes) - len(drawn)
        assert part.edges == drawn.number_of_edges()
        assert part.pairs == drawn.to_undirected().number_of_edges()
        assert (part.components, part.largest_component) == (len(sizes), max(sizes, default=0))
        degrees_are(part.neighbours, [degree for _, degree in drawn.to_undirected().degree])
        degrees_are(part.in_degree, [degree for _, degree in drawn.in_degree])
        degrees_are(part.out_degree, [degree for _, degree in drawn.out_degree])
        ranked = sorted(drawn.to_undirected().degree, key=lambda entry: (-entry[1], entry[0]))
        assert [tuple(hub) for hub in part.hubs] == ranked[:NUM_HUBS]
    assert found.together.name == TOGETHER
    assert found.isolated == tuple(gene for gene in snapshot.genes if gene not in directed(snapshot, *names))


@given(snapshots())
def test_overlap_counts_pairs_whatever_their_direction(snapshot):
    found = summarise(snapshot)
    drawn = {layer.name: directed(snapshot, layer.name) for layer in snapshot.graphs}
    assert [(part.first, part.second) for part in found.overlaps] == list(combinations(drawn, 2))
    for part in found.overlaps:
        first, second = pairs(drawn[part.first]), pairs(drawn[part.second])
        assert part.pairs == len(first & second)
        assert part.genes == len(set(drawn[part.first]) & set(drawn[part.second]))
        assert part.share_of_first == (len(first & second) / len(first) if first else 0)
        assert part.share_of_second == (len(first & second) / len(second) if second else 0)
        assert part.jaccard == (len(first & second) / len(first | second) if first | second else 0)
    times = pd.Series([pair for one in drawn.values() for pair in pairs(one)], dtype=object).value_counts()
    expected = [int((times == number).sum()) for number in range(1, len(drawn) + 1)]
    assert list(found.pairs_by_graphs) == expected
    assert sum(found.pairs_by_graphs) == found.together.pairs


@settings(max_examples=30)
@given(snapshots())
def test_weights_are_described_as_numpy_describes_them(snapshot):
    found = summarise(snapshot)
    for part, layer in zip(found.graphs, snapshot.graphs, strict=True):
        if part.edges:
            assert part.weights == tuple(np.quantile(layer.weight_E, [0, 0.5, 1]))
        else:
            assert part.weights is None
    assert found.together.weights is None


@given(snapshots(), st.lists(st.sampled_from([*"ABCDEFGHIJKLMxyz"]), max_size=8))
def test_coverage_finds_genes_as_the_trainer_does_and_counts_as_networkx_does(snapshot, perturbed):
    found = coverage(snapshot, perturbed)
    vocabulary = build_vocabulary(snapshot, perturbed)
    assert found.by_name == vocabulary.exact
    assert found.by_alias == vocabulary.by_alias
    assert found.absent == vocabulary.isolated
    assert found.genes == len(set(perturbed)) == found.by_name + len(found.by_alias) + len(found.absent)
    node_of = {name: found.by_alias.get(name, name) for name in set(perturbed) - set(found.absent)}
    names = [layer.name for layer in snapshot.graphs]
    for part, chosen in [*((part, [part.graph]) for part in found.graphs), (found.together, names)]:
        drawn = directed(snapshot, *chosen).to_undirected()
        degrees = [drawn.degree[node] for node in node_of.values() if node in drawn]
        assert part.genes == len(degrees)
        assert part.median_neighbours == (np.median(degrees) if degrees else 0)
        assert part.pairs == drawn.subgraph(node_of.values()).number_of_edges()
    assert found.without_edges == tuple(
        name for name, node in sorted(node_of.items()) if node not in directed(snapshot, *names)
    )


def test_two_names_of_one_node_are_two_genes_but_no_pair():
    genes = ("JAK2", "STAT1")
    layer = graph("g", {("JAK2", "STAT1"): 1.0, ("STAT1", "JAK2"): 1.0}, genes)
    found = coverage(Snapshot("", genes, (layer,), {"JTK10": "JAK2"}), ["JAK2", "JTK10", "JAK2"])
    assert (found.genes, found.together.genes, found.together.pairs) == (2, 2, 0)


def test_real_graphs_against_pandas(tmp_path, shared_file):
    files = {name: shared_file(f"efaar-annotations/{name}.txt") for name in ("HuMAP", "StringDB", "Reactome")}
    graphs = [
        {"name": name, "keep": "none", "source": {"kind": "edges", "path": path}}
        for name, path in files.items()
    ]
    recipe = GraphConfig.model_validate({"expander": {"cycles": 0}, "graphs": graphs})
    found = summarise(open_snapshot(str(tmp_path), build(recipe, out=tmp_path).id))
    tables = {name: undirected(pd.read_csv(path)) for name, path in files.items()}
    for part in found.graphs:
        ends = tables[part.name].melt(value_name="gene")["gene"]
        counts = ends.value_counts()
        assert (part.pairs, part.nodes) == (len(tables[part.name]), len(counts))
        assert part.neighbours.largest == counts.max()
        assert part.neighbours.median == counts.median()
        assert part.neighbours.mean == pytest.approx(counts.mean())
        assert part.hubs[0] == (counts[counts == counts.max()].index.min(), counts.max())
        hanging = nx.from_pandas_edgelist(tables[part.name], "first", "second")
        assert part.components == nx.number_connected_components(hanging)
    for part in found.overlaps:
        assert part.pairs == len(tables[part.first].merge(tables[part.second]))
    assert found.together.pairs == len(pd.concat(tables.values()).drop_duplicates())
    assert found.isolated == ()


def undirected(table: pd.DataFrame) -> pd.DataFrame:
    """Distinct pairs of a table of entity1, entity2."""
    ends = np.sort(table[["entity1", "entity2"]].to_numpy().astype(str), axis=1)
    return pd.DataFrame(ends, columns=["first", "second"]).drop_duplicates()


@pytest.mark.parametrize(
    ("screen", "column", "genes", "known", "joined"),
    [
        ("real_papalexi2021.h5ad", "target", 25, 24, 20),
        ("real_datlinger2021_scifi.h5ad", "perturbation", 20, 20, 26),
    ],
)
def test_coverage_of_real_screens(tmp_path, shared_file, screen, column, genes, known, joined):
    """The numbers are those of the shared data's own notes, counted there with other code."""
    path = shared_file("string-v12-dmfind/string_v12_ntm_edges.parquet")
    source = {"kind": "edges", "path": path}
    recipe = GraphConfig.model_validate(
        {"expander": {"cycles": 0}, "graphs": [{"name": "string", "keep": "none", "source": source}]}
    )
    labels = anndata.read_h5ad(shared_file(screen), backed="r").obs[column].astype(str).unique()
    controls = {"control", "non-targeting", "nan"}
    perturbed = {name.rsplit("_", 1)[0] for name in labels} - controls
    found = coverage(open_snapshot(str(tmp_path), build(recipe, out=tmp_path).id), perturbed)
    assert (found.genes, found.together.genes, found.together.pairs) == (genes, known, joined)
    assert found.graphs[0] == found.together._replace(graph="string")
