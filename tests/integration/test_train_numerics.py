"""Training on real processes: any number of workers, any interruption, the same result."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.processes import run
from tests.unit.train.small_screen import configuration, write_inputs, write_store
from txpert_dist.errors import CheckpointError
from txpert_dist.train import checkpoint

pytestmark = pytest.mark.process

EPOCHS, STEPS_PER_EPOCH = 5, 11


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def train(_rank, world, inputs, output, sections, max_steps=None):
    """Losses by step, validation metrics by epoch and how the run ended, as plain values."""
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    # with seed 0 one weight's gradient all but vanishes: AdamW makes full steps of its rounding noise
    sections = {"train": {}, "cluster": {}, "seed": 1, **sections}
    config = configuration(
        inputs,
        output,
        **sections
        | {
            "train": {"epochs": EPOCHS, "minibatch_size": 32, "log_every": 1} | sections["train"],
            "cluster": {"num_workers": world} | sections["cluster"],
        },
    )
    losses, epochs = {}, {}
    hooks = Hooks(
        progress=lambda *_: None,
        metrics=lambda values, step: losses.update(
            {step: values["train/loss"]} if "train/loss" in values else {}
        ),
        epoch=lambda values, number: epochs.update({number: values[checkpoint.SCORE]}),
    )
    try:
        outcome = fit(
            config, open_inputs(config), device=torch.device("cpu"), hooks=hooks, max_steps=max_steps
        )
    except Exception as error:  # noqa: BLE001 - errors are what some tests ask for
        return type(error).__name__, str(error), losses
    return losses, epochs, tuple(outcome)


def last_weights(output):
    return checkpoint.read_weights(checkpoint.checkpoints(output / "small")[-1])


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def one_worker(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    (result,) = run(train, 1, inputs, output, {"cluster": {"zero_stage": 0}})
    return result, last_weights(output)


@pytest.fixture(scope="module")
def two_workers(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("two")
    return run(train, 2, inputs, output, {}), output


def test_two_workers_take_the_steps_of_one(one_worker, two_workers):
    """Batch norm and dropout on, fp32, the same global minibatch: equal to 1e-5 over 55 steps."""
    (losses, scores, outcome), weights = one_worker
    assert outcome[:3] == (EPOCHS, EPOCHS * STEPS_PER_EPOCH, 0)
    assert sorted(losses) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    results, output = two_workers
    for theirs, their_scores, their_outcome in results:
        assert their_outcome == outcome
        assert [theirs[step] for step in losses] == pytest.approx(list(losses.values()), rel=1e-5)
        assert list(their_scores.values()) == pytest.approx(list(scores.values()), abs=1e-4)
    assert results[0][:2] == results[1][:2]
    assert largest_difference(last_weights(output), weights) < 1e-3
    assert losses[1] > 1.2 * losses[EPOCHS * STEPS_PER_EPOCH]


@pytest.mark.parametrize(
    ("stage", "norm", "perturbation"),
    [
        (0, "batch", {}),
        (2, "layer", {}),
        (1, "batch", {"kind": "exphormer_mg", "layers": 2, "hidden": 8, "heads": 2}),
    ],
)
def test_workers_that_divide_the_nodes_take_the_same_steps(inputs, tmp_path, stage, norm, perturbation):
    perturbation = {"kind": "gat", "layers": 2, "node_features": 8, "hidden": 4} | perturbation
    if perturbation["kind"] != "gat":
        del perturbation["node_features"]
    found = []
    for divided in (False, True):
        sections = {
            "model": {"perturbation": perturbation | {"norm": norm}},
            "cluster": {"zero_stage": stage, "partition_nodes": divided},
        }
        first, second = run(train, 2, inputs, tmp_path / str(divided), sections, STEPS_PER_EPOCH + 4)
        assert first[:2] == second[:2]
        found.append(first)
    (whole, scores, _), (shared, their_scores, _) = found
    assert [*shared] == [*whole] == list(range(1, STEPS_PER_EPOCH + 5))
    assert [*shared.values()] == pytest.approx([*whole.values()], rel=1e-5)
    assert their_scores == pytest.approx(scores, abs=1e-4)


def told(_rank, world, inputs, output):
    """What is said, and measured, of step 0: of a run's first start, and of the second."""
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    config = configuration(inputs, output, cluster={"num_workers": world})
    found = []
    for steps in (1, 2):
        lines, metrics = [], {}
        hooks = Hooks(
            progress=lambda line, *_, lines=lines: lines.append(line),
            metrics=lambda values, step, metrics=metrics: metrics.update(values if step == 0 else {}),
            epoch=lambda *_: None,
        )
        fit(config, open_inputs(config), device=torch.device("cpu"), hooks=hooks, max_steps=steps)
        found.append((lines, metrics))
    return found


def test_a_run_of_several_workers_says_what_dividing_the_nodes_would_take(inputs, tmp_path):
    (first, second), _ = run(told, 2, inputs, tmp_path / "two")
    lines, metrics = first
    times = [metrics["time/graph_whole_s"], metrics["time/graph_divided_s"]]
    assert all(seconds > 0 for seconds in times)
    (line,) = [line for line in lines if line.startswith("graph: ")]
    assert all(f"{seconds:.3g} s" in line for seconds in times)
    assert ("does not pay" in line) == (times[1] >= times[0])
    assert not any(line.startswith("graph: ") for line in second[0])  # it goes on
    ((alone, _),) = run(told, 1, inputs, tmp_path / "one")
    assert not any(line.startswith("graph: ") for line in alone[0])


def test_resume_within_an_epoch_is_bitwise_the_uninterrupted_run(inputs, two_workers, tmp_path):
    (losses, scores, _), *_ = two_workers[0]
    middle = 2 * STEPS_PER_EPOCH + 4
    (first, *_), _ = run(train, 2, inputs, tmp_path, {}, middle)
    assert checkpoint.checkpoints(tmp_path / "small")[-1].name == f"epoch-0002-step-{middle:06d}"
    (second, later_scores, outcome), _ = run(train, 2, inputs, tmp_path, {})
    assert outcome[:3] == (EPOCHS, EPOCHS * STEPS_PER_EPOCH, middle)
    assert first | second == losses
    assert not first.keys() & second.keys()
    assert later_scores == {number: score for number, score in scores.items() if number > 2}
    assert largest_difference(last_weights(tmp_path), last_weights(two_workers[1])) == 0


def every_stage(rank, world, inputs, output, accumulation):
    """Losses and weights of a few steps at each ZeRO stage, in one process group."""
    found = []
    for stage in (0, 1, 2):
        sections = {
            "model": {"norm": "layer"},
            "train": {"accumulation": accumulation},
            "cluster": {"zero_stage": stage},
            "seed": 5,  # none of its gradients vanishes: see train
        }
        losses, *_ = train(rank, world, inputs, output / str(stage), sections, 12)
        weights = last_weights(output / str(stage)) if rank == 0 else {}
        found.append((losses, {name: value.numpy() for name, value in weights.items()}))
    return found


@pytest.mark.parametrize("accumulation", [4, 16])
def test_parts_of_a_minibatch_take_the_steps_of_the_whole(inputs, tmp_path, accumulation):
    """Two ranks of 16 cells, dropout on, no batch norm, at every ZeRO stage: the step does not change."""
    ((losses, weights), *_) = run(every_stage, 1, inputs, tmp_path / "whole", 1)[0]
    first, second = run(every_stage, 2, inputs, tmp_path / "parts", accumulation)
    for (theirs, their_weights), (others, _) in zip(first, second, strict=True):
        assert theirs == others
        assert theirs == pytest.approx(losses, rel=1e-5)
        for name, value in weights.items():
            np.testing.assert_allclose(their_weights[name], value, rtol=0, atol=1e-4)


def test_parts_do_not_depend_on_the_workers_with_batch_norm(inputs, tmp_path):
    settings = {"train": {"accumulation": 3}}
    ((one, *_),) = run(train, 1, inputs, tmp_path / "one", settings, 10)
    (two, *_), _ = run(train, 2, inputs, tmp_path / "two", settings, 10)
    ((whole, *_),) = run(train, 1, inputs, tmp_path / "whole", {}, 10)
    assert two == pytest.approx(one, rel=1e-5)
    assert one != pytest.approx(whole, rel=1e-4)  # each part's statistics are its own
    assert one == pytest.approx(whole, rel=0.2)


def test_resume_on_other_workers_and_stages(inputs, one_worker, tmp_path):
    (losses, *_), weights = one_worker
    first, _ = run(train, 2, inputs, tmp_path, {"cluster": {"zero_stage": 2}}, 20)
    (second,) = run(train, 1, inputs, tmp_path, {"cluster": {"zero_stage": 1}}, 30)
    third = run(train, 2, inputs, tmp_path, {"cluster": {"zero_stage": 0}})
    together = first[0] | second[0] | third[0][0]
    assert sorted(together) == sorted(losses)
    assert [together[step] for step in losses] == pytest.approx(list(losses.values()), rel=1e-5)
    assert largest_difference(last_weights(tmp_path), weights) < 1e-3


WIDE = {
    "basal": {"kind": "mlp", "hidden": 4000},
    "perturbation": {"kind": "gat", "layers": 2, "node_features": 128, "hidden": 256, "heads": 2},
    "decoder": {"hidden": 4000},
}
"""Layers large enough for ZeRO's stage 3 to shard them, in every part."""


def test_sharded_parameters_take_the_steps_of_whole_ones(inputs, tmp_path):
    """Stage 3 on two workers: validation, a checkpoint, a resume; other workers and stages: test_engine."""

    def results(folder, stage, *stops):
        # so many weights that AdamW's first steps must be small, for rounding not to be told apart from them
        sections = {"model": WIDE, "optimiser": {"learning_rate": 1e-4}, "cluster": {"zero_stage": stage}}
        found = [run(train, 2, inputs, tmp_path / folder, sections, stop)[0] for stop in stops]
        losses = {step: loss for result in found for step, loss in result[0].items()}
        return losses, found[-1][1], last_weights(tmp_path / folder)

    losses, epochs, weights = results("whole", 0, STEPS_PER_EPOCH + 2)
    sharded, their_epochs, their_weights = results("sharded", 3, 4, STEPS_PER_EPOCH + 2)
    assert [*sharded] == [*losses] == list(range(1, STEPS_PER_EPOCH + 3))
    assert [*sharded.values()] == pytest.approx([*losses.values()], rel=1e-4)
    assert [*epochs] == [1]
    assert their_epochs == pytest.approx(epochs, abs=1e-3)
    assert largest_difference(their_weights, weights) < 1e-3


def test_a_damaged_checkpoint_is_passed_over_and_said(inputs, two_workers, tmp_path):
    results, output = two_workers
    shutil.copytree(output / "small", tmp_path / "small")
    good, last = checkpoint.checkpoints(tmp_path / "small")[-2:]
    content = bytearray((last / checkpoint.OPTIMISER).read_bytes())
    content[-1] ^= 1
    (last / checkpoint.OPTIMISER).write_bytes(content)
    (again, _, outcome), _ = run(train, 2, inputs, tmp_path, {})
    assert outcome[2] == checkpoint.read_state(good).step < EPOCHS * STEPS_PER_EPOCH
    assert len(outcome[3]) == 1
    assert str(last / checkpoint.OPTIMISER) in outcome[3][0]
    losses = results[0][0]
    assert again == {step: loss for step, loss in losses.items() if step > outcome[2]}
    assert largest_difference(last_weights(tmp_path), last_weights(output)) == 0
    assert checkpoint.newest_sound(tmp_path / "small") == (last, ())


def test_retention_keeps_the_newest_and_the_best(two_workers):
    results, output = two_workers
    scores = results[0][1]
    best = max(scores, key=scores.get)
    epochs = {checkpoint.read_state(folder).epoch for folder in checkpoint.checkpoints(output / "small")}
    assert epochs == {EPOCHS - 1, EPOCHS, best}
    assert checkpoint.read_state(checkpoint.best_checkpoint(output / "small")).epoch == best


def test_a_checkpoint_of_another_store_is_refused(inputs, two_workers, tmp_path):
    other = write_inputs(tmp_path / "inputs")
    shutil.rmtree(other / "screen.zarr")
    write_store(other / "screen.zarr", seed=5)
    shutil.copytree(two_workers[1] / "small", tmp_path / "small")
    ((kind, message, _),) = run(train, 1, other, tmp_path, {})
    assert kind == CheckpointError.__name__
    assert "another cell store" in message


def test_a_loaded_model_is_the_trained_one(inputs, two_workers):
    folder = checkpoint.best_checkpoint(two_workers[1] / "small")
    loaded = checkpoint.load_model(folder)
    assert not loaded.model.training
    assert largest_difference(loaded.model.state_dict(), checkpoint.read_weights(folder)) == 0
    assert loaded.genes == tuple(f"g{i:02d}" for i in range(0, 24, 2))
    assert loaded.state.snapshot_id == loaded.snapshot.id
    assert not any(name.split(".")[-1] in ("source", "target") for name in loaded.model.state_dict())
    assert math.isfinite(loaded.state.metrics[checkpoint.SCORE])
    json.loads((folder / checkpoint.STATE).read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_bf16_trains(inputs, tmp_path, one_worker):
    ((losses, *_),) = run(train, 1, inputs, tmp_path, {"train": {"precision": "bf16"}}, 10)
    exact = {step: one_worker[0][0][step] for step in range(1, 11)}
    assert losses == {step: pytest.approx(loss, rel=3e-2) for step, loss in exact.items()}
    assert losses != exact


def test_tf32_is_fp32_on_a_cpu(inputs, tmp_path, one_worker):
    ((losses, *_),) = run(
        train, 1, inputs, tmp_path, {"train": {"precision": "tf32"}, "cluster": {"zero_stage": 0}}, 10
    )
    assert losses == {step: one_worker[0][0][step] for step in range(1, 11)}


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_an_exploding_run_stops_on_every_rank_with_the_step_and_the_place(inputs, tmp_path, stage):
    settings = {
        "model": WIDE if stage == 3 else {},
        "optimiser": {"learning_rate": 1e30, "gradient_clipping": 0, "warmup_fraction": 0},
        "cluster": {"zero_stage": stage},
    }
    for kind, message, losses in run(train, 2, inputs, tmp_path, settings):
        assert kind == "TrainingError"
        assert list(losses) == [1]
        assert message.startswith("step 2: the loss is ")
        assert "not finite: the gradient of " in message
        assert "decoder" in message
        assert "\n" not in message
    assert checkpoint.checkpoints(tmp_path / "small") == []


def test_bad_cells_are_named_as_input_data(tmp_path):
    """A library size of zero makes a cell's expression infinite, on one rank only."""
    inputs = write_inputs(tmp_path)
    shutil.rmtree(inputs / "screen.zarr")

    def empty_one(library_size):
        library_size[np.arange(len(library_size)) == 7] = 0

    write_store(inputs / "screen.zarr", spoil=empty_one)
    for kind, message, _ in run(train, 2, inputs, tmp_path / "runs", {"model": {"norm": "none"}}):
        assert kind == "TrainingError"
        assert "not finite: the input data" in message


def test_a_full_disk_is_every_ranks_error(inputs, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / checkpoint.FOLDER).write_text("a file where the folder should be")
    for kind, message, _ in run(train, 2, inputs, tmp_path, {}, 3):
        assert kind == CheckpointError.__name__
        assert "cannot be written" in message
        assert str(Path("small") / checkpoint.FOLDER) in message
