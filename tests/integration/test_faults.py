"""Real faults in real workers, without Ray: killed, told to stop, out of space, checkpoints damaged.

Whatever happens, the run ends with the losses, scores and weights, bit for bit, of a run on as many workers
that nobody disturbed, or with an error that says what to do.
"""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import same_files
from tests.processes import run
from tests.unit.train.small_screen import configuration, write_inputs
from txpert_dist.errors import ConfigError
from txpert_dist.train import checkpoint
from txpert_dist.train.mirror import open_mirror, upload
from txpert_dist.train.tracking import RunRecord, write_run_record
from txpert_dist.train.worker import train as train_on_ray

pytestmark = pytest.mark.process

EPOCHS, PER_EPOCH, EVERY = 3, 11, 4
STEPS = EPOCHS * PER_EPOCH
ASKED = "asked whether a node leaves"
SETTINGS = {"epochs": EPOCHS, "checkpoint_every_steps": EVERY, "checkpoint_every_epochs": 2}


class Fault(NamedTuple):
    """What befalls a start of the run."""

    kind: str = ""
    rank: int = -1
    step: int = -1


class Befallen:
    """The hooks of one rank, through which the fault comes; rank 0 leaves all it measured in ``output``."""

    def __init__(self, rank, output, fault):
        self.rank, self.output, self.fault = rank, output, fault
        self.news, self.reached = [], 0

    def note(self, name, number, values):
        if self.rank == 0:
            shown = {key: value for key, value in values.items() if "time" not in key and "per_s" not in key}
            if shown:  # not how long a checkpoint took
                with (self.output / f"{name}.jsonl").open("a") as file:
                    file.write(json.dumps([number, shown]) + "\n")

    def metrics(self, values, step):
        self.note("metrics", step, values)

    def epoch(self, values, number):
        self.note("epochs", number, values)

    def told_to_stop(self):
        return self.fault == ("tell", self.rank, self.reached + 1)

    def time_to_ask(self):
        return self.fault.kind in ("ask", "leave") and self.fault[1:] == (self.rank, self.reached + 1)

    def node_leaves(self):
        self.news.append(ASKED)
        return self.fault.kind == "leave"

    def progress(self, what, done, total):
        if total == 0:
            self.news.append(what)
        if what == "train":
            self.reached = done
            if self.fault[1:] == (self.rank, done):
                self.strike()

    def strike(self):
        if self.fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault.kind == "kill writing":
            threading.Thread(target=self.kill_when_writing, daemon=True).start()
        if self.fault.kind == "full":  # as Python ignores SIGXFSZ, to write more fails as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, resource.RLIM_INFINITY))

    def kill_when_writing(self):
        while not list((self.output / "small" / checkpoint.FOLDER).glob(f".partial-*/{checkpoint.WEIGHTS}")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def allowed(self):
        if self.fault.kind == "kill written" and self.reached >= self.fault.step:
            os.kill(os.getpid(), signal.SIGKILL)  # all is on the disk, but for the folder's name
        yield


def train(rank, world, inputs, output, fault=("", -1, -1)):
    """One start of the run: how it ended, and what it told."""
    import torch

    from txpert_dist.train.inputs import open_inputs
    from txpert_dist.train.loop import fit
    from txpert_dist.train.run import Hooks

    config = configuration(
        inputs, output, train=SETTINGS, cluster={"num_workers": world}, model={"basal": {"hidden": 512}}
    )
    to = Befallen(rank, output, Fault(*fault))
    try:
        outcome = fit(
            config,
            open_inputs(config),
            device=torch.device("cpu"),
            hooks=Hooks(to.progress, to.metrics, to.epoch, to.told_to_stop, to.time_to_ask, to.node_leaves),
            allowed=to.allowed if rank == 0 else nullcontext,
        )
    except checkpoint.CheckpointError as error:
        return str(error), to.news
    return tuple(outcome), to.news


def measured(output, name):
    """Values by step or epoch; one that was measured again must be what it was."""
    found = {}
    for line in (output / f"{name}.jsonl").read_text().splitlines():
        number, values = json.loads(line)
        number = f"{number}: {', '.join(values)}"
        assert found.setdefault(number, values) == values
    return found


def assert_same(output, calm):
    assert measured(output, "metrics") == measured(calm, "metrics")
    assert measured(output, "epochs") == measured(calm, "epochs")
    assert_same_files(output / "small", calm / "small")


def assert_same_files(run_folder, calm):
    ends = [checkpoint.checkpoints(folder)[-1] for folder in (run_folder, calm)]
    assert ends[0].name == ends[1].name == f"epoch-{EPOCHS:04d}-step-{STEPS:06d}"
    assert same_files(*ends)
    best = [checkpoint.best_checkpoint(folder) for folder in (run_folder, calm)]
    assert best[0].name == best[1].name
    assert math.isfinite(checkpoint.read_state(best[0]).metrics[checkpoint.SCORE])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def calm(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("calm")
    run(train, 2, inputs, output)
    assert len(measured(output, "metrics")) > STEPS
    return output


def test_a_worker_killed_again_and_again(inputs, calm, tmp_path):
    """At the first step, beside checkpoints, at an epoch's end and after it, writing, having written."""
    faults = [
        ("kill", 1, 1),
        ("kill", 0, EVERY),
        ("kill", 1, EVERY + 2),
        ("kill writing", 0, EVERY + 3),
        ("kill", 0, PER_EPOCH),
        ("kill written", 0, PER_EPOCH + 1),
        ("kill", 1, 2 * PER_EPOCH),
        ("kill writing", 0, STEPS - 2),
    ]
    for fault in faults:
        with pytest.raises(AssertionError, match=f"rank {fault[1]}:\nended without a result"):
            run(train, 2, inputs, tmp_path, fault)
    (outcome, news), _ = run(train, 2, inputs, tmp_path)
    assert outcome[2] > 2 * PER_EPOCH
    assert any(f"going on from step {outcome[2]}" in line for line in news)
    assert_same(tmp_path, calm)
    left = {path.name for path in (tmp_path / "small" / checkpoint.FOLDER).iterdir()}
    assert all(checkpoint.is_name(name) for name in left)


@pytest.mark.parametrize(("kind", "why"), [("tell", "told to stop"), ("leave", "a node leaves")])
def test_ends_early_within_an_epoch_at_its_end_and_at_the_very_end(inputs, calm, tmp_path, kind, why):
    """One rank hears it, both stop at the same step; a validation that was not made then is made later."""
    for hears, step in ((1, 3), (0, PER_EPOCH), (1, 2 * PER_EPOCH - 1), (0, STEPS)):
        results = run(train, 2, inputs, tmp_path, (kind, hears, step))
        for outcome, _ in results:
            assert outcome[:2] == ((step - 1) // PER_EPOCH, step)
            assert outcome[-1] == why
        newest = checkpoint.newest_sound(tmp_path / "small").folder
        assert checkpoint.read_state(newest).step == step
        assert checkpoint.read_state(newest).metrics == {}
    (outcome, _), _ = run(train, 2, inputs, tmp_path)
    assert outcome == (EPOCHS, STEPS, STEPS, (), None)
    assert_same(tmp_path, calm)


def test_all_ranks_ask_together_and_go_on_when_no_node_leaves(inputs, calm, tmp_path):
    results = run(train, 2, inputs, tmp_path, ("ask", 1, 3))
    for outcome, news in results:
        assert outcome == (EPOCHS, STEPS, 0, (), None)
        assert news.count(ASKED) == 1
    assert_same(tmp_path, calm)


def spoil(file, how):
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])


@pytest.mark.parametrize(
    ("how", "name"),
    [("cut", "WEIGHTS"), ("flipped", "OPTIMISER"), ("empty", "STATE"), ("missing", "MANIFEST")],
)
def test_damage_falls_back_to_the_one_before(inputs, calm, tmp_path, how, name):
    shutil.copytree(calm, tmp_path / "runs")
    *_, before, last = checkpoint.checkpoints(tmp_path / "runs" / "small")
    file = last / {"MANIFEST": "manifest.json"}.get(name, getattr(checkpoint, name, ""))
    spoil(file, how)
    results = run(train, 2, inputs, tmp_path / "runs")
    for outcome, _ in results:
        assert outcome[2] == checkpoint.read_state(before).step < STEPS
        (line,) = outcome[3]
        assert str(file) in line
    assert any(str(file) in line for line in results[0][1])
    assert_same(tmp_path / "runs", calm)


def test_when_all_are_damaged_it_says_so_and_begins_anew(inputs, calm, tmp_path):
    shutil.copytree(calm, tmp_path / "runs")
    folders = checkpoint.checkpoints(tmp_path / "runs" / "small")
    for folder in folders:
        spoil(folder / checkpoint.WEIGHTS, "flipped")
    (outcome, news), _ = run(train, 2, inputs, tmp_path / "runs")
    assert outcome[2] == 0
    assert len(outcome[3]) == len(folders)
    assert "no checkpoint is sound: beginning anew" in news
    assert_same(tmp_path / "runs", calm)


def assert_out_of_space(results, run_folder, step):
    for message, _ in results:
        assert "cannot be written" in message
        assert "free space there, then repeat the command to go on" in message
        assert "\n" not in message
    assert checkpoint.read_state(checkpoint.newest_sound(run_folder).folder).step == step
    assert not list((run_folder / checkpoint.FOLDER).glob(".partial-*"))


def test_files_that_may_not_grow_are_every_ranks_error_and_no_checkpoint(inputs, calm, tmp_path):
    results = run(train, 2, inputs, tmp_path, ("full", 0, 2 * EVERY + 1))
    assert_out_of_space(results, tmp_path / "small", 2 * EVERY)
    run(train, 2, inputs, tmp_path)
    assert_same(tmp_path, calm)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a run's folder, but not for many checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_every_ranks_error_and_more_room_is_all_it_takes(inputs, calm, tmp_path, small_disk):
    (tmp_path / "small").symlink_to(small_disk)
    results = run(train, 2, inputs, tmp_path)
    step = checkpoint.read_state(checkpoint.newest_sound(tmp_path / "small").folder).step
    assert_out_of_space(results, tmp_path / "small", step)
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    run(train, 2, inputs, tmp_path)
    assert_same(tmp_path, calm)


def test_an_empty_machine_takes_the_run_from_the_mirror(inputs, calm, tmp_path):
    """Here a finished one: the same command finds nothing to do, and nothing else is taken for it."""
    shutil.copytree(calm, tmp_path / "lost")
    config = configuration(
        inputs,
        tmp_path / "lost",
        train=SETTINGS,
        cluster={"num_workers": 2},
        model={"basal": {"hidden": 512}},
    )
    record = RunRecord("id", config.tracking_uri, config.model_dump(mode="json"), "KILLED")
    write_run_record(config.run_folder, record)
    url = f"file://{tmp_path}/mirror"
    upload(open_mirror(url, config.name), config.run_folder)
    kept = checkpoint.checkpoints(config.run_folder)
    shutil.rmtree(tmp_path / "lost")

    mirrored = config.train.model_copy(update={"checkpoint_mirror": url})
    config = config.model_copy(update={"output": tmp_path / "new", "train": mirrored})
    result = train_on_ray(config)
    assert (result.run_id, result.steps, result.started_at) == ("id", STEPS, STEPS)
    assert [folder.name for folder in checkpoint.checkpoints(config.run_folder)] == [
        path.name for path in kept
    ]
    assert_same_files(config.run_folder, calm / "small")
    with pytest.raises(ConfigError, match=r"made with other values of seed \(0 -> 1\)"):
        train_on_ray(config.model_copy(update={"output": tmp_path / "other", "seed": 1}))


def train_as_nobody(_rank, _world, inputs, output):
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    with pytest.raises(ConfigError) as refusal:
        train_on_ray(configuration(inputs, output))
    return str(refusal.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_may_not_be_written_is_said_before_anything_starts():
    with tempfile.TemporaryDirectory(prefix="txpert-", dir="/tmp") as folder:
        inputs = write_inputs(Path(folder) / "inputs")
        os.chmod(folder, 0o755)
        for output in ("new", "existing"):
            (Path(folder) / output / "small").mkdir(parents=True)
        shutil.rmtree(Path(folder) / "new" / "small")
        for output in ("new", "existing"):
            (message,) = run(train_as_nobody, 1, inputs, Path(folder) / output)
            assert message.startswith(
                f"output: {folder}/{output}/small cannot be written (Permission denied)"
            )
            assert "choose another output=" in message
            assert "\n" not in message
