"""The verbs of `txpert graph embeddings`, on a folder and on a service."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics.pairwise import cosine_similarity
from typer.testing import CliRunner

from graph_store.embeddings.embedding import Embedding
from graph_store.embeddings.store import embedding_versions, get_embedding, put_embedding
from graph_store.graph import GraphError
from graph_store.service.server import GraphService
from graph_store.service.settings import Settings
from tests.unit.train.small_screen import configuration, write_inputs, write_run
from txpert_dist.cli.app import app
from txpert_dist.errors import InputError
from txpert_dist.serve.embeddings import model_embedding
from txpert_dist.serve.registered import open_checkpoint

TOKEN = "long-enough-to-be-a-token"


def invoke(*arguments):
    words = ["graph", "embeddings", *map(str, arguments)]
    return CliRunner(env={"COLUMNS": "200", "TXPERT_GRAPH_TOKEN": TOKEN}).invoke(app, words)


def shown(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.exception
    return " ".join(result.stdout.replace("│", " ").replace("┃", " ").split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return write_run(configuration(write_inputs(folder / "inputs"), folder / "runs"))


@pytest.fixture(params=["folder", "service"])
def place(request, tmp_path):
    """The folder, and how it is reached."""
    folder = tmp_path / "graphs"
    if request.param == "folder":
        yield folder, folder
        return
    service = GraphService(Settings(blobs=str(folder), port=0, token=TOKEN))
    yield folder, service.location
    service.close(5)


def test_a_models_embedding_is_put_listed_searched_and_exported(run, place, tmp_path):
    folder, location = place
    said = shown("put", run, "--location", location)
    (version,) = embedding_versions(folder)
    assert re.fullmatch(r"small-[0-9a-f]{12}", version)
    kept = get_embedding(folder, version)
    assert f"embedding {version}: {len(kept.genes)} genes, 8 numbers each" in said
    again = shown("put", run, "--location", location)
    assert f"embedding {version} was kept before: content " in again
    listed = shown("list", "--location", location)
    assert f"{version} {kept.origin['model_hash'][:12]} " in listed
    assert f" {len(kept.genes)} 8" in listed

    near = shown("nearest", "P03", "Q1", "--version", version, "--location", location, "--count", 3)
    cosine_PP = cosine_similarity(kept.z_PD.astype(np.float64))
    np.fill_diagonal(cosine_PP, -2)
    for gene in ("P03", "Q1"):
        row = cosine_PP[kept.genes.index(gene)]
        for rank, number in enumerate(np.argsort(-row)[:3], start=1):
            assert f"{gene} {kept.genes[number]} {rank} {row[number]:.4f}" in near

    shown("export", version, "--out", tmp_path / "z.parquet", "--location", location)
    table = pd.read_parquet(tmp_path / "z.parquet").set_index("gene")
    assert np.array_equal(table.loc[list(kept.genes)].to_numpy(), kept.z_PD)


def test_versions_are_compared_and_searched_across(place):
    folder, location = place
    rng = np.random.default_rng(0)
    genes = tuple(f"G{row}" for row in range(40))
    z_PD = rng.normal(size=(40, 6)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    put_embedding(folder, Embedding("v1", genes, z_PD, {}))
    put_embedding(folder, Embedding("v2", genes[5:], (z_PD[5:] @ turn).astype(np.float32), {}))
    said = shown("compare", "v1", "v2", "--location", location, "--count", 4)
    assert "v1 turned to v2: 35 common genes (5 and 0 are in one only), mean cosine 1.0000" in said
    assert "of each gene's 4 nearest, 100.0% are the same, over 35 genes" in said
    near = shown("nearest", "G7", "--version", "v1", "--among", "v2", "--location", location, "--count", 2)
    assert "G7 G7 1 1.0000" in near


def test_genes_that_changed_most_are_listed(tmp_path):
    rng = np.random.default_rng(0)
    genes = tuple(f"G{row:02d}" for row in range(40))
    z_PD = rng.normal(size=(40, 3)).astype(np.float32)
    other = z_PD.copy()
    other[7] = -other[7]
    other[9] = 0
    put_embedding(tmp_path, Embedding("v1", genes, z_PD, {}))
    put_embedding(tmp_path, Embedding("v2", genes, other, {}))
    said = shown("compare", "v1", "v2", "--location", tmp_path, "--count", 5)
    assert "common genes whose vector is zero, left out of the mean: 1" in said
    changed = said.partition("genes that changed most")[2]
    assert re.search(r"cosine after rotation\W+G07 0% -(0\.9|1\.0)", changed)
    assert "G09" not in changed


def test_what_is_wrong_is_one_line(run, tmp_path):
    put_embedding(tmp_path, Embedding("v1", ("A", "B"), np.ones((2, 2), np.float32), {}))
    for arguments, kind, message in (
        (("nearest", "A", "--version", "v3"), GraphError, "has no embedding v3; there are: v1"),
        (("nearest", "X", "--version", "v1"), GraphError, "has no gene 'X'"),
        (("compare", "v1", "../v1"), GraphError, "is no version"),
        (("put", run, "--version", "v1"), GraphError, "v1 is there with another content"),
        (("export", "v1", "--out", tmp_path), GraphError, "cannot be written"),
    ):
        result = invoke(*arguments, "--location", tmp_path)
        assert isinstance(result.exception, kind)
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)
    result = invoke("list", "--location", "grpc+tls://localhost:1", "--tls-roots", tmp_path / "no.pem")
    assert isinstance(result.exception, InputError)
    assert "no.pem cannot be read" in str(result.exception)


def test_the_same_model_on_a_machine_that_rounds_otherwise_is_the_same_version(run, tmp_path):
    made = model_embedding(open_checkpoint(run))
    rounded = Embedding(made.version, made.genes, np.nextafter(made.z_PD, np.float32(1)), made.origin)
    put_embedding(tmp_path, rounded)
    assert "was kept before" in shown("put", run, "--location", tmp_path)
    assert np.array_equal(get_embedding(tmp_path, made.version).z_PD, rounded.z_PD)


@pytest.mark.parametrize("verb", ["list", "put", "nearest", "compare", "export"])
def test_every_verb_explains_itself(verb):
    said = shown(verb, "--help")
    assert "Usage:" in said
    assert f"txpert graph embeddings {verb}" in said
    assert "--location" in said
