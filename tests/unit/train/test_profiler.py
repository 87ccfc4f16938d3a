"""Where time goes: the laps of a step, a trace of a few, gauges for Prometheus."""

import gzip
import json
import socket
import time
import urllib.request

import pytest
import torch

from tests.processes import run
from txpert_dist.train.profiler import FOLDER, StepProfiler
from txpert_dist.train.stopwatch import Stopwatch

CPU = torch.device("cpu")
LONGEST_S = 120


def profile_steps(folder, steps, numbers):
    done = []
    profiler = StepProfiler(steps, folder, device=CPU, done=done.append)
    weight = torch.ones(8, 8)
    for number in numbers:
        with profiler.step(number):
            weight = weight @ weight / 8
    profiler.close(numbers[-1])
    return done


@pytest.mark.parametrize(
    ("steps", "numbers", "seen", "name"),
    [
        ((3, 5), range(1, 9), [3, 4, 5], "steps-000003-000005"),
        ((3, 3), range(1, 9), [3], "steps-000003-000003"),
        ((3, 9), range(5, 8), [5, 6, 7], "steps-000005-000007"),  # resumed late, ended early
    ],
)
def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path, steps, numbers, seen, name):
    assert profile_steps(tmp_path, steps, numbers) == [tmp_path / FOLDER]
    with gzip.open(tmp_path / FOLDER / f"{name}.json.gz") as file:
        events = json.load(file)["traceEvents"]
    found = sorted({event["name"] for event in events if str(event.get("name")).startswith("step ")})
    assert found == [f"step {number}" for number in seen]
    assert sum(event.get("name") == "aten::mm" for event in events) == len(seen)
    assert "aten::mm" in (tmp_path / FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("steps", "numbers"), [(None, range(1, 5)), ((7, 9), range(1, 5)), ((1, 2), range(3, 5))]
)
def test_without_steps_to_look_at_nothing_is_written(tmp_path, steps, numbers):
    assert profile_steps(tmp_path, steps, numbers) == []
    assert list(tmp_path.iterdir()) == []


def test_backward_is_told_apart_at_the_embeddings():
    """What is slow before their gradient is known counts for the cells, what is slow after for the GNN."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, seconds):
            ctx.seconds = seconds
            return x.clone()

        @staticmethod
        def backward(ctx, dx):
            time.sleep(ctx.seconds)
            return dx, None

    watch = Stopwatch(CPU)
    table_PD = torch.ones(3, requires_grad=True)
    z_PD = Slow.apply(table_PD, 0.2)
    loss = Slow.apply(z_PD, 0.4).sum()
    with watch.backward(z_PD, measured=True):
        loss.backward()
    report = watch.report()
    assert report["time/backward_cells_s"] >= 0.4
    assert report["time/backward_gnn_s"] >= 0.2
    assert torch.equal(table_PD.grad, torch.ones(3))


def test_without_gradient_of_the_embeddings_all_of_backward_is_the_cells():
    watch = Stopwatch(CPU)
    weight = torch.ones(3, requires_grad=True)
    with watch.backward(torch.ones(3), measured=True):
        weight.sum().backward()
    assert watch.report().keys() >= {"time/backward_cells_s"}
    assert torch.equal(weight.grad, torch.ones(3))


def throughput(_rank, _world):
    watch = Stopwatch(CPU)
    watch.count(64)
    with watch.lap("forward", measured=False):
        pass
    return watch.report()


@pytest.mark.process
def test_throughput_is_of_all_workers_and_of_each():
    for report in run(throughput, 2):
        assert report["train/cells_per_s"] == pytest.approx(2 * report["train/cells_per_s_worker"])
        assert report.keys() == {"train/cells_per_s", "train/cells_per_s_worker", "time/forward_s"}


def export(_rank, _world, port):
    """The lines about a run that Ray's exporter shows, when it does."""
    import ray

    from txpert_dist.train.gauges import Gauges

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 200},
    )
    try:
        gauges = Gauges("k562")
        gauges.set({"train/loss": 1.0, "validation/pearson_delta": float("nan")}, 1)
        gauges.set({"train/loss": 0.25}, 7)
        until = time.monotonic() + LONGEST_S
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                    lines = [line for line in page.read().decode().splitlines() if "txpert" in line]
            except OSError:
                lines = []
            if any("train_step" in line and line.endswith(" 7.0") for line in lines):
                return lines
            time.sleep(0.2)
        return lines
    finally:
        ray.shutdown()


@pytest.mark.process
def test_prometheus_finds_the_last_values_of_a_run():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    (lines,) = run(export, 1, port)
    values = [line for line in lines if not line.startswith("#")]
    (loss,) = [line for line in values if line.startswith("ray_txpert_train_loss{")]
    assert 'run="k562"' in loss
    assert loss.endswith(" 0.25")
    assert not [line for line in values if "pearson" in line]
