"""Search spaces: every preset fits, every mistake is one line, values land where they belong."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from txpert_dist.config import Config
from txpert_dist.errors import ConfigError
from txpert_dist.train.tune_search import Tried, suggest
from txpert_dist.train.tune_space import (
    Dimension,
    applies,
    configured,
    default_of,
    presets,
    read_space,
    space_of,
)

BASE = Config.model_validate({"data": {"store": "s.zarr"}, "graph": {"location": "graphs"}})
EMBEDDING = {"kind": "embedding"}
LAYERED = {
    "optimiser.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "model.dropout": {"uniform": [0.0, 0.5]},
    "model.latent": {"integer": [16, 64]},
    "model.perturbation": {"choice": [{"kind": "gat"}, {"kind": "exphormer_mg", "layers": 2}, EMBEDDING]},
    "model.perturbation.heads": {"choice": [1, 2, 3]},
}
ENDINGS = ("running", "complete", "stopped", "failed")


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_a_space(name):
    space = space_of(read_space(name), BASE, where=name)
    history = []
    for number in range(1, 20):
        values = suggest(space, BASE, seed=number, number=number, history=history)
        configured(BASE, values)
        history.append(Tried(values, ENDINGS[number % 4], {1: number / 20}))


@pytest.mark.parametrize("kind", ["hybrid_bmp", "embedding", "gcn", "exphormer", "gat_mlg"])
def test_the_default_preset_fits_every_encoder(kind):
    base = configured(BASE, {"model.perturbation": {"kind": kind}})
    space = space_of(read_space("default"), base, where="default")
    assert default_of(space, base).keys() == read_space("default").keys()


def test_a_key_of_another_kind_does_not_apply():
    space = space_of(LAYERED, BASE, where="space")
    assert [dimension.key for dimension in space.dimensions][-1] == "model.perturbation.heads"
    for kind, has in (("gat", True), ("exphormer_mg", True), ("embedding", False), ("gcn", False)):
        assert applies(BASE, {"model.perturbation": {"kind": kind}}, "model.perturbation.heads") == has
    drawn = [suggest(space, BASE, seed=0, number=number, history=[]) for number in range(40)]
    kinds = {values["model.perturbation"]["kind"] for values in drawn}
    assert kinds == {"gat", "exphormer_mg", "embedding"}
    for values in drawn:
        assert ("model.perturbation.heads" in values) == (values["model.perturbation"]["kind"] != "embedding")


def test_values_land_where_they_belong():
    values = {
        "model.perturbation.heads": 4,
        "model.perturbation": {"kind": "exphormer_mg", "layers": 2},
        "optimiser.learning_rate": 0.5,
    }
    config = configured(BASE, values)
    assert config.model.perturbation.model_dump() | {"kind": "exphormer_mg", "layers": 2, "heads": 4} == (
        config.model.perturbation.model_dump()
    )
    assert config.optimiser.learning_rate == 0.5
    assert config.data == BASE.data
    # another kind begins with its own defaults, the same one keeps what the base has
    assert configured(BASE, {"model.perturbation.kind": "embedding"}).model.perturbation.kind == "embedding"
    wide = configured(BASE, {"model.perturbation.hidden": 96})
    assert configured(wide, {"model.perturbation.kind": "gat"}) == wide


@settings(max_examples=40)
@example(0, 1, [0, 1, 1, 1, 1, 1, 1, 1, 1, 2])  # what scored well does not fit what scored well
@given(st.integers(0, 2**31), st.integers(1, 10**4), st.lists(st.integers(0, 3), max_size=12))
def test_a_suggestion_is_a_function_of_the_history(seed, number, endings):
    """In bounds, valid, and the same again: a study that was killed asks a second time."""
    space = space_of(LAYERED, BASE, where="space")
    history = [Tried(default_of(space, BASE), "complete", {1: 0.1})]
    for other, ending in enumerate(endings):
        values = suggest(space, BASE, seed=0, number=other, history=[])
        history.append(Tried(values, ENDINGS[ending], {} if ending == 0 else {1: other / 10}))
    values = suggest(space, BASE, seed=seed, number=number, history=history)
    assert values == suggest(space, BASE, seed=seed, number=number, history=history)
    configured(BASE, values)
    assert 1e-4 <= values["optimiser.learning_rate"] <= 1e-2
    assert 0 <= values["model.dropout"] <= 0.5
    assert values["model.latent"] in range(16, 65)


def test_the_search_goes_where_scores_are_high():
    """Against drawing at random: the mean of later suggestions is nearer to a known optimum."""
    space = space_of({"model.dropout": {"uniform": [0.0, 0.9]}}, BASE, where="space")

    def study(informed):
        history = []
        for number in range(40):
            values = suggest(space, BASE, seed=1, number=number, history=history if informed else [])
            history.append(Tried(values, "complete", {1: -abs(values["model.dropout"] - 0.3)}))
        return [abs(tried.values["model.dropout"] - 0.3) for tried in history[20:]]

    assert sum(study(True)) < sum(study(False)) / 2


def test_values_that_never_fit_are_said():
    clash = {
        "model.perturbation": {"choice": [{"kind": "exphormer_mg"}]},
        "model.perturbation.hidden": {"choice": [65, 67]},
        "model.perturbation.heads": {"choice": [2, 4]},
    }
    space = space_of(clash, BASE, where="space")
    with pytest.raises(ConfigError, match=r"220 draws did not fit \(hidden=6.* cannot be shared equally"):
        suggest(space, BASE, seed=0, number=1, history=[])


REFUSED = [
    ({"model.perturbation.headz": {"choice": [1]}}, "model.perturbation.headz: no such key; did you mean"),
    ({"model.latant": {"choice": [1]}}, "did you mean model.latent?"),
    ({"model.perturbation.expander_cycles": {"choice": [1]}}, "the base's kind has no such key"),
    ({"model.basal.key": {"choice": ["X"]}}, "the base's kind has no such key"),
    ({"optimiser.learning_rate": {"uniform": [0, 1]}}, "optimiser.learning_rate: 0: Input should be greater"),
    ({"optimiser.learning_rate": {"log_uniform": [0, 1]}}, "a lower end above 0"),
    ({"optimiser.learning_rate": {"log_uniform": [0.1, 0.1]}}, "the smaller first"),
    ({"optimiser.learning_rate": {"uniform": ["a", 1]}}, "two numbers, the smaller first"),
    ({"model.latent": {"integer": [1.5, 4]}}, "two whole numbers"),
    ({"model.latent": {"integer": [True, 4]}}, "two whole numbers"),
    ({"model.latent": {"choice": []}}, "a list of values"),
    ({"model.latent": {"choice": [8, 16, 8]}}, "8 is listed twice"),
    ({"model.latent": {"choice": [8, "wide"]}}, "model.latent: 'wide'"),
    ({"model.latent": {"normal": [8, 16]}}, "one rule of choice, uniform, log_uniform, integer"),
    ({"model.latent": [8, 16]}, "one rule of"),
    ({"model.latent": {"choice": [8], "integer": [1, 2]}}, "one rule of"),
    ({"model.norm": {"choice": ["batch", "instance"]}}, "'instance'"),
    ({"model.perturbation": {"choice": [{"kind": "gatt"}]}}, "gatt"),
    ({"model.perturbation": {"choice": [{"kind": "gat", "header": 2}]}}, "Extra inputs"),
    ({"train.epochs": {"choice": [5, 10]}}, "train.epochs: is the same in every trial"),
    ({"data.store": {"choice": ["a", "b"]}}, "is the same in every trial"),
    ({"data.held_out_cell_lines": {"choice": [["K562"]]}}, "is the same in every trial"),
    ({"cluster.num_workers": {"choice": [1, 2]}}, "is the same in every trial"),
    ({"seed": {"choice": [1, 2]}}, "is the same in every trial"),
]


@pytest.mark.parametrize(("tree", "expected"), REFUSED, ids=[str(next(iter(tree))) for tree, _ in REFUSED])
def test_a_mistake_is_one_line_that_names_the_key(tree, expected):
    with pytest.raises(ConfigError) as caught:
        space_of(tree, BASE, where="space.yaml")
    message = str(caught.value)
    assert message.startswith(f"space.yaml: {next(iter(tree))}: ")
    assert expected in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    file = tmp_path / "space.yaml"
    for content, expected in (("a: [", "is not YAML"), ("- 1", "must map keys"), ("", "must map keys")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=expected):
            read_space(str(file))
    with pytest.raises(ConfigError, match=r"nowhere.*a preset: default, encoders"):
        read_space("nowhere")
    file.write_text("model.latent: {choice: [8]}")
    (dimension,) = space_of(read_space(str(file)), BASE, where="").dimensions
    assert dimension == Dimension("model.latent", "choice", (8,))
