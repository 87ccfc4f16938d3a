"""Graphs made from a screen, from the recipe to a run that has to refuse some of them."""

import re
from pathlib import Path

import anndata
import numpy as np
import pytest
import scanpy
import yaml
from sklearn.metrics.pairwise import cosine_similarity

from graph_store.build import build
from graph_store.client import describe, open_snapshot
from graph_store.config import load
from graph_store.source_config import PerturbSeqSource
from graph_store.sources.screen import screen_graph
from tests.real_screens import PAPALEXI
from tests.unit.evaluate.conftest import simulate
from tests.unit.train.small_screen import write_store
from txpert_dist.cli.perturb_seq import read_screen
from txpert_dist.config import Config
from txpert_dist.errors import ConfigError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import open_store
from txpert_dist.train.inputs import open_inputs

STORES = {
    "screen": {"split_seed": 179},
    "other_genes": {"split_seed": 179, "select_genes": 20},
    "other_split": {"split_seed": 5},
    "fewer_cells": {"split_seed": 179, "where": ("cell_line=RPE1",)},
}
"""Stores of one h5ad file; the last lacks some cells and with them a perturbation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("screens")
    simulate().write_h5ad(folder / "screen.h5ad")
    simulate(seed=1).write_h5ad(folder / "another.h5ad")
    for name, settings in STORES.items():
        options = {"select_genes": 30, **settings}
        write(folder, name, "screen.h5ad", **options)
    write(folder, "another_screen", "another.h5ad", select_genes=30, split_seed=5)
    (folder / "edges.csv").write_text("source,target\nA,B\nC,D\nI,K\n")
    return folder


def write(folder: Path, name: str, source: str, **settings: object) -> None:
    store = folder / f"{name}.zarr"
    ingest(IngestConfig(sources=(folder / source,), store=store, preset="scperturb", **settings))


def snapshot(folder: Path, store: str, **source: object) -> tuple[str, str]:
    """Location and id of a snapshot: a screen's graph, an edge list, both of them, and both of those."""
    screen = {"kind": "perturb_seq", "store": f"{store}.zarr", "minimum_cells": 2, **source}
    curated = {"kind": "edges", "path": "edges.csv"}
    graphs = [
        {"name": "screen", "source": screen, "keep": {"kind": "top_percent", "percent": 30}},
        {"name": "curated", "source": curated},
        {"name": "both", "source": {"kind": "combined", "of": ["curated", "screen"], "how": "union"}},
        {"name": "deep", "source": {"kind": "combined", "of": ["both", "curated"], "how": "union"}},
    ]
    recipe = folder / "graphs.yaml"
    recipe.write_text(yaml.safe_dump({"graphs": graphs, "expander": {"cycles": 0}}))
    built = build(load(recipe), out=folder / "graphs", read_screen=read_screen)
    return str(folder / "graphs"), built.id


def opened(folder: Path, store: str, graphs: tuple[str, str], held_out=(), use=None):
    tree = {
        "output": str(folder / "runs"),
        "data": {"store": str(folder / f"{store}.zarr"), "held_out_cell_lines": held_out},
        "graph": {"location": graphs[0], "snapshot": graphs[1], "use": use},
        "model": {"perturbation": {"kind": "embedding"}},
        "train": {"minibatch_size": 8},
    }
    return open_inputs(Config.model_validate(tree))


def test_the_record_says_which_screen_was_read(folder):
    location, identity = snapshot(folder, "screen", held_out_cell_lines=["RPE1"])
    record = describe(location, identity)
    store = open_store(folder / "screen.zarr")
    assert record.screens.keys() == {"screen"}
    origin = record.screens["screen"]
    assert (origin["store"], origin["split"]) == (store.manifest_hash, store.split_hash)
    assert origin["cell_lines"] == '["K562"]'
    split = dict(zip(store.perturbations, store.split.tolist(), strict=True))
    graph = {graph.name: graph for graph in open_snapshot(location, identity).graphs}["screen"]
    genes = open_snapshot(location, identity).genes
    assert {split[genes[node]] for node in graph.edges_2E.ravel()} == {0}
    report = {report.name: report for report in record.graphs}["screen"]
    assert report.details["perturbations of other splits, not read"] == sum(store.split != 0)


def test_building_again_does_not_read_the_store(folder):
    location, identity = snapshot(folder, "screen")

    def unreadable(_spec):
        raise AssertionError("was read")

    again = build(load(folder / "graphs.yaml"), out=Path(location), read_screen=unreadable)
    assert (again.id, again.was_there) == (identity, True)
    assert snapshot(folder, "other_split")[1] != identity


@pytest.mark.parametrize("store", ["screen", "other_genes", "another_screen"])
def test_the_same_split_and_other_screens_are_welcome(folder, store):
    inputs = opened(folder, store, snapshot(folder, "screen"))
    assert [graph.name for graph in inputs.graph.graphs] == ["screen", "curated", "both", "deep"]


@pytest.mark.parametrize("store", ["other_split", "fewer_cells"])
@pytest.mark.parametrize(
    ("use", "named"),
    [
        (["screen"], "graph screen"),
        (["curated", "both"], "graph both, which combines screen,"),
        (["deep"], "graph deep, which combines screen,"),
        (None, "graph screen"),
    ],
)
def test_the_same_screen_under_another_split_is_refused(folder, store, use, named):
    graphs = snapshot(folder, "screen")
    message = (
        f"graph.use: {named} was made from this screen under another split and has seen responses that "
        f"{folder / store}.zarr holds out; build it again from this store"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        opened(folder, store, graphs, use=use)
    opened(folder, store, graphs, use=["curated"])
    opened(folder, store, snapshot(folder, store), use=use)


@pytest.mark.parametrize("store", ["screen", "another_screen"])
def test_a_graph_that_read_a_held_out_line_is_refused(folder, store):
    every, one = snapshot(folder, "screen"), snapshot(folder, "screen", held_out_cell_lines=["RPE1"])
    message = re.escape(
        "data.held_out_cell_lines: graph screen was made from perturbed cells of RPE1; build it again with "
        "held_out_cell_lines: [RPE1] in its source"
    )
    with pytest.raises(ConfigError, match=message):
        opened(folder, store, every, held_out=["RPE1"])
    with pytest.raises(ConfigError, match="was made from perturbed cells of K562"):
        opened(folder, store, one, held_out=["K562"])
    opened(folder, store, one, held_out=["RPE1"])
    opened(folder, store, every, held_out=["RPE1"], use=["curated"])


def test_a_store_that_does_not_say_its_sources_is_known_by_its_manifest(tmp_path):
    write_store(tmp_path / "screen.zarr")
    (tmp_path / "edges.csv").write_text("source,target\nP00,P01\n")
    location, identity = snapshot(tmp_path, "screen")
    assert describe(location, identity).screens["screen"]["sources"] == "[]"
    opened(tmp_path, "screen", (location, identity))
    with pytest.raises(ConfigError, match="graph screen was made from perturbed cells of RPE1"):
        opened(tmp_path, "screen", (location, identity), held_out=["RPE1"])


@pytest.mark.real
@pytest.mark.skipif(not PAPALEXI.file.exists(), reason=f"{PAPALEXI.file} is absent: set TXPERT_SHARED_DATA")
def test_the_graph_of_a_real_screen_is_what_scanpy_and_scikit_learn_give(tmp_path):
    """And it finds the pathway: receptor, kinase and transcription factor of interferon gamma."""
    settings = {"perturbation_key": "target", "control_label": "non-targeting", "batch_key": "bio_rep"}
    source = PAPALEXI.file.absolute()
    ingest(IngestConfig(sources=(source,), store=tmp_path / "screen.zarr", split_seed=2, **settings))
    store = open_store(tmp_path / "screen.zarr")
    spec = PerturbSeqSource(store=store.path, genes="all", signed=True)
    found = screen_graph(read_screen(spec), spec, None, percent=10)

    cells = anndata.read_h5ad(source)
    scanpy.pp.normalize_total(cells, target_sum=4000)
    scanpy.pp.log1p(cells)
    y_BG = cells.to_df().astype(np.float64)
    control = cells.obs["target"] == "non-targeting"
    batch = cells.obs["bio_rep"].to_numpy(str)
    y_BG -= y_BG[control].groupby(batch[control]).mean().loc[batch].to_numpy()
    delta_PG = y_BG.groupby(cells.obs["target"].to_numpy(str)).mean()
    split = dict(zip(store.perturbations, store.split.tolist(), strict=True))
    delta_PG = delta_PG.loc[[name for name in delta_PG.index if split.get(name) == 0]]
    first, second = np.triu_indices(len(delta_PG), 1)
    cosine = cosine_similarity(delta_PG)[first, second]
    best = np.sort(np.argsort(-np.abs(cosine))[: len(cosine) // 10])
    assert found.genes == tuple(delta_PG.index)
    assert found.pairs.edges_2E.tolist() == [first[best].tolist(), second[best].tolist()]
    np.testing.assert_allclose(found.pairs.weight_E, cosine[best], atol=2e-5)
    named = [tuple(found.genes[node] for node in pair) for pair in found.pairs.edges_2E.T.tolist()]
    strongest = {named[place] for place in np.argsort(-found.pairs.weight_E)[:3]}
    assert strongest == {("IFNGR1", "JAK2"), ("IFNGR1", "STAT1"), ("JAK2", "STAT1")}
