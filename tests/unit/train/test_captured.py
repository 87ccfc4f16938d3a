"""The encoder's step as a function of tensors: what may be recorded without a GPU, and on one what is."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.processes import run
from tests.unit.model.encoders.random_graphs import graph_input
from tests.unit.model.encoders.test_reach import ENCODERS, build, depths, graphs, outcome
from tests.unit.train.small_screen import configuration, write_inputs
from tests.unit.train.test_step_parts import MODELS, whole_batch
from tests.unit.train.test_step_parts import build as build_whole
from txpert_dist import config
from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.norm import statistics_kept
from txpert_dist.train.captured import CapturedEncoder, learned, step_function

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
SMALL = {"layers": 2, "node_features": 4, "hidden": 4, "dropout": 0.3}
TRANSFORMER = {"layers": 2, "hidden": 4, "dropout": 0.3, "expander_cycles": 2}
EVERY_KIND = {
    "gat": config.Gat(**SMALL, attention_dropout=0.2, edge_weights=True, positional="laplacian"),
    "gat_hybrid": config.GatHybrid(**SMALL, norm="layer"),
    "gat_mlg": config.GatMlg(**SMALL, structure=3),
    "gcn": config.Gcn(**SMALL, skip="sum_learned"),
    "exphormer": config.Exphormer(**TRANSFORMER, norm="layer", edge_map="mlp"),
    "exphormer_mg": config.ExphormerMg(**TRANSFORMER, norm="none", virtual_nodes=1, gate_values=True),
    "hybrid_bmp": config.HybridBmp(node_features=4, hidden=4, dropout=0.3),
    "embedding": config.Embedding(node_features=4, dropout=0.3),
}
"""Without what asks a device whether it casts, which a device without values cannot say."""
WITH_STATISTICS = {
    "gat, batch norm": config.Gat(**SMALL, norm="batch", version=1),
    "exphormer, batch norms": config.Exphormer(**TRANSFORMER, norm="batch", edge_map="mlp"),
}


def leaves_of(encoder: torch.nn.Module) -> list[Tensor]:
    return [p.detach().requires_grad_() for p in learned(encoder).values()]


@pytest.mark.parametrize("kind", ENCODERS)
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 2**70), step=st.integers(0, 2**40))
def test_a_tensors_step_is_the_encoders_own_in_value_gradient_and_statistics(kind, data, seed, step):
    graph = data.draw(graphs)
    options = data.draw(ENCODERS[kind])
    one, other = (build(options, graph, torch.float64) for _ in range(2))
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1))))
    reaches = one.reaches(rows, data.draw(depths(one)))
    d_RD = torch.randn(len(rows), 5, generator=torch.Generator().manual_seed(0))
    expected = outcome(one, one(DropoutKey(seed, step, 0), reaches).float(), d_RD)
    leaves, names = leaves_of(other), list(learned(other))
    made = step_function(other, names, reaches, seed=seed, precision=nullcontext)(torch.tensor(step), *leaves)
    found = torch.autograd.grad(made, leaves, d_RD, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(made, expected["z"])
    for name, gradient in zip(names, found, strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)


class OneDevice(TorchDispatchMode):
    """Notes operations with tensors elsewhere; on the meta device a tensor has no value to ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        self.elsewhere += [str(func)] if any(x.device.type != "meta" for x in tensors) else []
        return made


def without_values(part):
    if isinstance(part, Tensor):
        return part.to("meta")
    if isinstance(part, tuple):
        parts = map(without_values, part)
        return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
    return part


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_no_value_and_no_other_device_is_asked_for(kind):
    """What a CUDA graph cannot hold: a number of the step's, a wait for the device, a copy from the host."""
    encoder = build(EVERY_KIND[kind], graph_input(30, 60, 2, 0), torch.float32)
    rows = np.array([1, 4, 9, 20])
    reaches = without_values(encoder.reaches(rows, encoder.depths(rows)))
    encoder.to("meta")
    made = step_function(encoder, list(learned(encoder)), reaches, seed=3, precision=nullcontext)
    leaves, step = leaves_of(encoder), torch.zeros((), dtype=torch.int64, device="meta")
    with OneDevice() as noted:
        z_PD = made(step, *leaves)
        torch.autograd.grad(z_PD, leaves, torch.empty_like(z_PD))
    assert z_PD.shape == (4, 5)
    assert noted.elsewhere == []


def test_what_was_recorded_at_one_step_gives_another_steps_draws_and_parameters():
    """torch.fx records operations and numbers as a CUDA graph does; the encoder without compiled kernels."""
    encoder = build(EVERY_KIND["embedding"], graph_input(30, 60, 1, 0), torch.float32)
    made = step_function(encoder, list(learned(encoder)), (), seed=3, precision=nullcontext)
    d_PD = torch.randn(30, 5)

    def forward_and_backward(step: Tensor, *leaves: Tensor) -> list[Tensor]:
        z_PD = made(step, *leaves)
        return [z_PD, *torch.autograd.grad(z_PD, leaves, d_PD)]

    recorded = make_fx(forward_and_backward)(torch.tensor(0), *leaves_of(encoder))
    with torch.no_grad():
        encoder.last.weight.mul_(2)
    seen = []
    for step in (0, 1, 2**40):
        expected = outcome(encoder, encoder(DropoutKey(3, step, 0)), d_PD)
        replayed = recorded(torch.tensor(step), *leaves_of(encoder))
        for ours, value in zip(replayed, expected.values(), strict=True):
            torch.testing.assert_close(ours, value, rtol=1e-6, atol=1e-6)
        seen.append(replayed[0].eq(0))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_what_norms_remember_is_given_back_where_it_lies(name):
    encoder = build(WITH_STATISTICS[name], graph_input(30, 60, 2, 0), torch.float32)
    encoder(DropoutKey(3, 0, 0))
    before = {key: (value.data_ptr(), value.clone()) for key, value in encoder.state_dict().items()}
    with statistics_kept(encoder):
        encoder(DropoutKey(3, 1, 0))
        moved = [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key][1])]
    assert {key.rpartition(".")[2] for key in moved} == {"running_mean", "running_variance"}
    for key, value in encoder.state_dict().items():
        assert value.data_ptr() == before[key][0]
        assert torch.equal(value, before[key][1])


def through_deepspeed(_rank, _world, name):
    """Predictions and gradients of a step whose embeddings are given, and of one that asks for them."""
    from txpert_dist.train import engine

    options = {"data": {"store": "s"}, "graph": {"location": "g"}, "cluster": {"num_workers": 1}}
    key, batch, found = DropoutKey(3, 7, 0), whole_batch(12, torch.float32), []
    for asks in (False, True):
        model = build_whole(MODELS[name], torch.float32)
        built = engine.build_engine(
            model, config.Config.model_validate(options), device=torch.device("cpu"), num_steps=1
        )
        z_PD = model.perturbation_embeddings(key)
        said = built.deepspeed(
            batch.control_BN, batch.perturbations_BM, key, partial(nn_identity, z_PD) if asks else z_PD
        )
        engine.backward(built, (said.expression_BG - batch.observed_BG).square().mean())
        gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
        found.append({"expression": said.expression_BG.detach().numpy(), **gradients})
    return found


def nn_identity(x: Tensor) -> Tensor:
    return x


@pytest.mark.process
@pytest.mark.parametrize("name", ["gat", "variational, sequential"])
def test_deepspeed_hands_on_what_is_asked_later(name):
    ((given_, asked),) = run(through_deepspeed, 1, name)
    assert given_.keys() == asked.keys()
    for part, value in given_.items():
        np.testing.assert_array_equal(asked[part], value, err_msg=part)


STEPS = 6
CASES = [(stage, accumulation) for stage in (0, 1, 2) for accumulation in (1, 3)]


def steps_of_runs(_rank, world, inputs, output, *, captured):
    """Losses, and all of the state after some steps, by stage and accumulation."""
    from tests.unit.train.repeating_cuda import Device
    from txpert_dist.train import engine
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.needed import needed_in_training
    from txpert_dist.train.run import Hooks, find_start, prepare
    from txpert_dist.train.step import one_step

    Device().install()
    device, found = torch.device("cpu"), {}
    for stage, accumulation in CASES:
        options = configuration(
            inputs,
            output,
            name=f"{stage}-{accumulation}-{captured}",
            model={"perturbation": {"kind": "exphormer", "layers": 2, "hidden": 8, "edge_map": "mlp"}},
            train={"accumulation": accumulation},
            cluster={"num_workers": world, "zero_stage": stage},
        )
        opened, losses = open_inputs(options), []
        hooks = Hooks(
            progress=lambda *_: None,
            metrics=lambda values, step, losses=losses: losses.append(values.get("train/loss")),
            epoch=lambda *_: None,
        )
        ready = prepare(options, opened, find_start(options, opened, device), device=device, hooks=hooks)
        needed = needed_in_training(ready.model, opened)
        encoder = None
        if captured:
            precision = partial(engine.precision, ready.engine, casts_kept=False)
            encoder = CapturedEncoder(
                ready.model.perturbation, needed.reaches, seed=options.seed, precision=precision
            )
        ready = replace(ready, needed=needed, captured=encoder)
        minibatches = ready.loader.epoch(0, 0)
        for step in range(STEPS):
            one_step(ready, minibatches, step)
        minibatches.close()
        state = {name: value.numpy() for name, value in engine.weights(ready.engine).items()}
        found[stage, accumulation] = losses[-STEPS:], state
    return found


@pytest.mark.process
def test_steps_through_overwritten_memory_are_those_of_the_encoder_itself(tmp_path):
    """Two ranks, DeepSpeed's stages, parts of a minibatch: what is handed on is joined, and used in time."""
    inputs = write_inputs(tmp_path)
    expected, repeated = (
        run(partial(steps_of_runs, captured=captured), 2, inputs, tmp_path / "out")
        for captured in (False, True)
    )
    for case in CASES:
        (losses, state), (expected_losses, expected_state) = repeated[0][case], expected[0][case]
        assert len(losses) == STEPS
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-6, err_msg=str(case))
        assert state.keys() == expected_state.keys()
        for name, value in expected_state.items():
            np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{case} {name}")


def on_a_cpu(_rank, _world, inputs, output):
    from txpert_dist.errors import ConfigError
    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    options = configuration(inputs, output, cluster={"use_gpu": True, "cuda_graph": True})
    hooks = Hooks(progress=lambda *_: None, metrics=lambda *_: None, epoch=lambda *_: None)
    try:
        fit(options, open_inputs(options), device=torch.device("cpu"), hooks=hooks)
    except ConfigError as error:
        return str(error)
    return "no error"


@pytest.mark.process
def test_a_worker_without_a_gpu_says_so(tmp_path):
    (message,) = run(on_a_cpu, 1, write_inputs(tmp_path), tmp_path / "out")
    assert "cluster.cuda_graph=true" in message
    assert "no CUDA device" in message
    assert "\n" not in message


@on_a_gpu
@pytest.mark.parametrize("name", EVERY_KIND | WITH_STATISTICS)
def test_replays_are_the_encoders_own_steps(name):
    """Over steps that change the parameters; gradients' nodes on the main stream are held, as hooks do."""
    options = (EVERY_KIND | WITH_STATISTICS)[name]
    one, other = (build(options, graph_input(3000, 60_000, 2, 0), torch.float32).cuda() for _ in range(2))
    rows = np.arange(0, 3000, 7)
    reaches = other.reaches(rows, other.depths(rows))
    held = [torch.autograd.graph.get_gradient_edge(p) for p in learned(other).values()]
    state = {key: value.clone() for key, value in other.state_dict().items()}
    random = torch.cuda.get_rng_state()
    captured = CapturedEncoder(other, reaches, seed=3, precision=nullcontext)
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in state.items())
    assert all(p.grad is None for p in other.parameters())
    optimisers = [torch.optim.SGD(learned(encoder).values(), lr=1e-3) for encoder in (one, other)]
    for step in (0, 1, 5, 2**40):
        z_PD = captured.joined(captured.begin(step))
        expected_PD = one(DropoutKey(3, step, 0), one.reaches(rows, one.depths(rows)))
        torch.testing.assert_close(z_PD, expected_PD, rtol=1e-4, atol=1e-5)
        assert torch.equal(z_PD == 0, expected_PD == 0)
        for made_PD in (z_PD, expected_PD):
            made_PD.square().sum().backward()
        for ours, value in zip(other.parameters(), one.parameters(), strict=True):
            assert (ours.grad is None) == (value.grad is None)
            if value.grad is not None:
                scale = value.grad.abs().max().item() + 1e-6
                torch.testing.assert_close(ours.grad, value.grad, rtol=0, atol=1e-3 * scale)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert len(held) == len(optimisers[0].param_groups[0]["params"])


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_run_learns_the_same_with_and_without(stage, accumulation, precision, tmp_path):
    inputs = write_inputs(tmp_path)
    losses = []
    for cuda_graph in (False, True):
        sections = {
            "train": {"epochs": 2, "accumulation": accumulation, "precision": precision},
            "cluster": {"use_gpu": True, "zero_stage": stage, "cuda_graph": cuda_graph},
        }
        losses.append(losses_of(inputs, tmp_path / str(cuda_graph), sections, "cuda"))
    assert len(losses[0]) > 10
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3 if precision == "fp32" else 3e-2)


@pytest.mark.process
def test_the_runs_that_a_gpu_compares_can_be_taken(tmp_path):
    sections = {"train": {"epochs": 1}, "cluster": {"zero_stage": 0}}
    losses = losses_of(write_inputs(tmp_path), tmp_path / "out", sections, "cpu")
    assert len(losses) > 5
    assert losses[-1] < losses[0]


def losses_of(inputs: Path, output: Path, sections: dict[str, dict[str, object]], device: str) -> list[float]:
    """Of every step of a run in a process of its own, for DeepSpeed has one kind of device in each."""
    command = [sys.executable, "-m", "tests.unit.train.one_run", str(inputs), str(output), device]
    environment = {**os.environ, "DS_ACCELERATOR": device}
    done = subprocess.run(
        [*command, json.dumps(sections)],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses: list[float] = json.loads(done.stdout.splitlines()[-1])
    return losses
