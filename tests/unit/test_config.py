"""The configuration tree: what it resolves to, and how it refuses."""

from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.config import Config, Perturbation
from txpert_dist.config_file import describe, dump, flatten, load
from txpert_dist.errors import ConfigError

MINIMAL = {"data": {"store": "screen.zarr"}, "graph": {"location": "graphs"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_file_then_override_wins(file: Path) -> None:
    file.write_text(yaml.safe_dump({**MINIMAL, "train": {"epochs": 7, "minibatch_size": 32}}))
    config = load(file, ["train.epochs=3", "model.perturbation.heads=4", "optimiser.learning_rate=1e-4"])
    assert config.train.epochs == 3
    assert config.train.minibatch_size == 32
    assert config.model.perturbation.heads == 4
    assert config.optimiser.learning_rate == 1e-4


@given(
    epochs=st.integers(1, 10_000),
    dropout=st.floats(0, 0.99),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    basal=st.sampled_from(["mlp", "identity", "vae"]),
    perturbation=st.sampled_from(
        [variant.model_fields["kind"].default for variant in get_args(Perturbation)]
    ),
    fusion=st.sampled_from(["additive", "sequential"]),
)
def test_resolved_configuration_loads_to_itself(
    tmp_path_factory: pytest.TempPathFactory,
    epochs: int,
    dropout: float,
    name: str,
    basal: str,
    perturbation: str,
    fusion: str,
) -> None:
    tree = {
        **MINIMAL,
        "name": name,
        "train": {"epochs": epochs},
        "model": {
            "dropout": dropout,
            "basal": {"kind": basal},
            "perturbation": {"kind": perturbation},
            "fusion": {"kind": fusion},
        },
    }
    config = Config.model_validate(tree)
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(dump(config))
    assert load(path) == config


def test_a_variant_without_a_kind_is_the_default_one(file: Path) -> None:
    model = load(file, ["model.perturbation.layers=2", "model.basal.hidden=7", "model.fusion={}"]).model
    assert (model.perturbation.kind, model.basal.kind, model.fusion.kind) == ("gat", "mlp", "additive")
    assert (model.perturbation.layers, model.basal.hidden) == (2, 7)


@pytest.mark.parametrize(
    ("text", "workers"), [("2", range(2, 3)), ("[1,2]", range(1, 3)), ("[4, 4]", range(4, 5))]
)
def test_workers_are_a_number_or_a_range(file: Path, tmp_path: Path, text: str, workers: range) -> None:
    config = load(file, [f"cluster.num_workers={text}"])
    assert config.cluster.possible_workers == workers
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml") == config
    assert load(file, [f"cluster.num_workers={flatten(config)['cluster.num_workers']}"]) == config


def test_flatten_has_every_leaf_once(file: Path) -> None:
    leaves = flatten(load(file))
    assert leaves["model.perturbation.heads"] == "2"
    assert leaves["data.store"] == "screen.zarr"
    assert not any(value.startswith("{") for value in leaves.values())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.minbatch_size=64"], ["train.minbatch_size", "did you mean train.minibatch_size?"]),
        (["train.epochs=-1"], ["train.epochs", "-1"]),
        (["model.perturbation.kind=gin"], ["model.perturbation.kind", "'gin'", "'gat_mlg'"]),
        (["model.basal.kind=vea"], ["model.basal.kind", "'vea'", "'vae'"]),
        (
            ["model.perturbation={kind: hybrid_bmp, layers: 2}"],
            ["model.perturbation.layers: not with kind=hybrid_bmp; take it out"],
        ),
        (["cluster.num_workers=3"], ["minibatch_size=64", "num_workers=3"]),
        (["cluster.num_workers=[1,3]"], ["minibatch_size=64", "num_workers=[1, 3]", "a multiple of 6"]),
        (["cluster.num_workers=[2,1]"], ["cluster.num_workers", "[fewest, most]", "[2, 1]"]),
        (["cluster.num_workers=0"], ["cluster.num_workers", "a number of workers", "0"]),
        (["cluster.num_workers=many"], ["cluster.num_workers", "a number of workers", "'many'"]),
        (["train.epochs"], ["'train.epochs'", "section.key=value"]),
        (["train.epochs=[1"], ["train.epochs", "not YAML"]),
        (["name=../x"], ["name", "../x"]),
        (["model.basal={kind: mlp, hiden: 3}"], ["model.basal.hiden", "did you mean model.basal.hidden?"]),
        (["model.basal.kind=embedding"], ["model.basal.key: is needed", "model.basal.key="]),
        (["model.perturbation={kind: exphormer, heads: 3}"], ["model.perturbation: hidden=128", "heads=3"]),
        (["model.perturbation={kind: gcn, skip: sum, hidden: 100}"], ["node_features=128", "sum_learned"]),
        (["model.perturbation={skip: sum, hidden: 96, heads: 1}"], ["node_features=128", "layer of 96"]),
        (["model.basal.kind=identity", "model.decoder.activation=softplus"], ["identity", "softplus"]),
        (
            ["cluster.partition_nodes=true", "cluster.zero_stage=3"],
            ["partition_nodes", "zero_stage 0, 1 or 2"],
        ),
        (
            ["cluster.partition_nodes=true", "model.perturbation.kind=hybrid_bmp"],
            ["cluster.partition_nodes", "kind=hybrid_bmp has no layers"],
        ),
        (["cluster.cuda_graph=true"], ["cluster: cuda_graph", "set use_gpu=true, or leave it out"]),
        (
            ["cluster={cuda_graph: true, use_gpu: true, zero_stage: 3}"],
            ["cuda_graph", "choose zero_stage 0, 1 or 2"],
        ),
        (
            ["cluster={cuda_graph: true, use_gpu: true, partition_nodes: true}"],
            ["cuda_graph", "leave out partition_nodes"],
        ),
    ],
)
def test_bad_override_is_one_line_that_names_the_key(
    file: Path, overrides: list[str], expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(file, overrides)
    message = str(refusal.value)
    assert "\n" not in message
    for fragment in expected:
        assert fragment in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: {store: s}\n", "graph: is needed"),
        ("- 1\n", "must hold sections"),
        ("data: {store: [\n", "line"),
        ("", "data: is needed"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as refusal:
        load(path)
    assert expected in str(refusal.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load(tmp_path / "nowhere.yaml")


def test_every_key_is_explained_with_its_default() -> None:
    keys = {key.key: key for key in describe()}
    assert keys["train.epochs"].default == "20"
    assert keys["data.store"].default == ""
    assert {"model.basal(identity).kind", "model.perturbation(hybrid_bmp).average"} <= keys.keys()
    assert keys["model.perturbation(exphormer).expander_cycles"].default == "3"
    assert not [key.key for key in keys.values() if not key.meaning and not key.key.endswith(".kind")]
