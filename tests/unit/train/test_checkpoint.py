"""Which checkpoint is best, which stay, and what a state is after a round trip."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.train.small_screen import EMBEDDING, WIDTH, configuration, write_inputs
from txpert_dist.errors import CheckpointError
from txpert_dist.model.txpert import build_model
from txpert_dist.model.vocabulary import Vocabulary
from txpert_dist.train import checkpoint
from txpert_dist.train.checkpoint import SCORE, RunState
from txpert_dist.train.inputs import open_inputs

VOCABULARY = Vocabulary(("A", "B", "Z"), 2, 1, {"Bb": "B"}, ("Z",), {"Bb": "B"})


def state(epoch=1, step=10, score=0.5):
    return RunState(
        epoch, step, {SCORE: score}, "store", "split", "graph", "git", ("G1", "G2"), VOCABULARY, 2
    )


def write(run_folder, run_state):
    config = configuration(run_folder, run_folder)
    flat = torch.arange(12.0)  # shared memory, as ZeRO's parameters have it
    weights = {"first": flat[:6].reshape(2, 3), "second": flat[6:]}
    return checkpoint.write_checkpoint(run_folder, run_state, config, weights=weights, optimiser={})


def test_round_trip(tmp_path):
    folder = write(tmp_path, state(score=math.nan))
    assert folder == tmp_path / "checkpoints" / "epoch-0001-step-000010"
    read = checkpoint.read_state(folder)
    assert math.isnan(read.metrics[SCORE])
    assert read._replace(metrics={}, model_hash="") == state()._replace(metrics={})
    assert len(read.model_hash) == 64
    weights = checkpoint.read_weights(folder)
    assert weights["first"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert checkpoint.read_optimiser(folder) == {}
    assert checkpoint.newest_sound(tmp_path) == (folder, ())


@pytest.fixture(scope="module")
def inputs_folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(
    ("basal", "width"),
    [
        ({"kind": "mlp", "hidden": 16}, 12),
        ({"kind": "identity"}, 12),
        ({"kind": "vae", "hidden": 16}, 12),
        ({"kind": "embedding", "key": EMBEDDING, "hidden": 16}, WIDTH),
    ],
)
@pytest.mark.parametrize("fusion", [{"kind": "additive"}, {"kind": "sequential", "hidden": 8}])
def test_a_loaded_model_predicts_what_the_saved_one_did(inputs_folder, tmp_path, basal, width, fusion):
    config = configuration(
        inputs_folder,
        tmp_path,
        model={"latent": 8, "basal": basal, "fusion": fusion, "perturbation": {"kind": "embedding"}},
    )
    inputs = open_inputs(config)
    assert inputs.basal_width == width
    model = build_model(
        config.model, num_genes=len(inputs.genes), basal_width=width, graph=inputs.graph, seed=config.seed
    )
    control_BN, nodes_BM = torch.rand(17, width), torch.from_numpy(inputs.nodes_RM)
    model(control_BN, nodes_BM)  # so that running statistics are no longer the initial ones
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    made_from = RunState(
        *(1, 10, {}, inputs.store.manifest_hash, inputs.store.split_hash, inputs.snapshot.id, "git"),
        *(inputs.gene_names, inputs.vocabulary, width),
    )
    folder = checkpoint.write_checkpoint(
        tmp_path, made_from, config, weights=model.state_dict(), optimiser={}
    )
    loaded = checkpoint.load_model(folder)
    assert loaded.state.basal_width == width
    model.eval()
    with torch.no_grad():
        before, after = (one(control_BN, nodes_BM).expression_BG for one in (model, loaded.model))
    assert torch.equal(before, after)


def test_another_format_is_said(tmp_path):
    folder = write(tmp_path, state())
    (folder / checkpoint.STATE).write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match=r"format 1, this version reads 2; use the version that wrote"):
        checkpoint.read_state(folder)


@given(
    scores=st.lists(st.one_of(st.just(math.nan), st.floats(-1, 1)), min_size=1, max_size=6),
    keep=st.integers(1, 4),
)
@settings(max_examples=15)
def test_retention(tmp_path_factory, scores, keep):
    run_folder = tmp_path_factory.mktemp("run")
    for epoch, score in enumerate(scores, 1):
        write(run_folder, state(epoch, 10 * epoch, score))
        checkpoint.prune(run_folder, keep=keep)
    defined = [(score, epoch) for epoch, score in enumerate(scores, 1) if not math.isnan(score)]
    best = max(defined)[1] if defined else len(scores)
    assert checkpoint.read_state(checkpoint.best_checkpoint(run_folder)).epoch == best
    kept = {checkpoint.read_state(folder).epoch for folder in checkpoint.checkpoints(run_folder)}
    assert kept == {best, *range(max(1, len(scores) - keep + 1), len(scores) + 1)}


def test_order_is_by_step_beyond_six_digits(tmp_path):
    steps = [5, 999_999, 1_000_000, 20_000_000]
    for step in reversed(steps):
        write(tmp_path, state(1, step))
    assert [checkpoint.read_state(folder).step for folder in checkpoint.checkpoints(tmp_path)] == steps


def test_damaged_ones_are_passed_over_newest_first(tmp_path, caplog):
    folders = [write(tmp_path, state(epoch, epoch)) for epoch in (1, 2, 3)]
    (folders[2] / checkpoint.WEIGHTS).unlink()
    (folders[1] / checkpoint.STATE).write_text("{}")
    found = checkpoint.newest_sound(tmp_path)
    assert found.folder == folders[0]
    assert [checkpoint.WEIGHTS in found.damaged[0], checkpoint.STATE in found.damaged[1]] == [True, True]
    assert len(caplog.records) == 2
    assert checkpoint.best_checkpoint(tmp_path) in (folders[0], folders[2])


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        checkpoint.best_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpoint.load_model(tmp_path)
    folder = write(tmp_path, state())
    (folder / checkpoint.WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has another size"):
        checkpoint.load_model(folder)


def test_weights_that_were_not_validated_are_the_best_only_when_all_are_so(tmp_path):
    write(tmp_path, state(0, 5)._replace(metrics={}))
    newer = write(tmp_path, state(0, 7)._replace(metrics={}))
    assert checkpoint.best_checkpoint(tmp_path) == newer
    validated = write(tmp_path, state(1, 10, score=-0.5))
    write(tmp_path, state(1, 15)._replace(metrics={}))
    assert checkpoint.best_checkpoint(tmp_path) == validated
    # at the end of an epoch: told to stop before its validation, and then validated
    before = write(tmp_path, state(1, 20)._replace(metrics={}))
    after = write(tmp_path, state(2, 20, score=-0.7))
    assert checkpoint.checkpoints(tmp_path)[-2:] == [before, after]
    checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.checkpoints(tmp_path) == [validated, after]


def test_what_is_no_checkpoints_name_is_left_alone(tmp_path):
    folder = write(tmp_path, state())
    for name in ("epoch-1-step-1", "epoch-0001-step-000010-copy", "notes"):
        (folder.parent / name).mkdir()
    assert checkpoint.checkpoints(tmp_path) == [folder]
    assert checkpoint.step_of(folder.name) == (10, 1)
    with pytest.raises(ValueError, match="no checkpoint's name"):
        checkpoint.step_of("notes")
