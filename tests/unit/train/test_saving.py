"""Checkpoints written beside the training: copies, one at a time, and failures that reach whoever asks."""

import os
import threading
from contextlib import contextmanager

import pytest
import torch

from tests.unit.train.small_screen import configuration
from tests.unit.train.test_checkpoint import state
from txpert_dist.errors import CheckpointError
from txpert_dist.train import checkpoint
from txpert_dist.train.saving import Saver
from txpert_dist.train.tracking import RunRecord, write_run_record


@pytest.fixture
def config(tmp_path):
    return configuration(tmp_path, tmp_path)


class Gate:
    """A claim that lets nobody write before it is opened."""

    def __init__(self, opened=False):
        self.opened = threading.Event()
        if opened:
            self.opened.set()
        self.lost = False

    @contextmanager
    def __call__(self):
        assert self.opened.wait(60)
        if self.lost:
            raise CheckpointError("others have taken this run over")
        yield


def saver(config, gate, news=None):
    return Saver(config, allowed=gate, news=lambda *line: (news if news is not None else []).append(line))


def tensors(value):
    flat = torch.full((12,), float(value))  # shared memory, as ZeRO's parameters have it
    return {"first": flat[:6].reshape(2, 3), "second": flat[6:]}


def test_what_is_written_is_the_state_when_it_began(config):
    gate = Gate()
    writer = saver(config, gate)
    weights, moments = tensors(1), tensors(2)
    writer.begin(state(1, 10), weights=weights, optimiser=moments)
    for tensor in (*weights.values(), *moments.values()):
        tensor.zero_()  # training goes on
    assert checkpoint.checkpoints(config.run_folder) == []
    gate.opened.set()
    assert writer.settle() == ""
    (folder,) = checkpoint.checkpoints(config.run_folder)
    assert {k: v.unique().item() for k, v in checkpoint.read_weights(folder).items()} == {
        "first": 1,
        "second": 1,
    }
    assert {k: v.unique().item() for k, v in checkpoint.read_optimiser(folder).items()} == {
        "first": 2,
        "second": 2,
    }
    writer.begin(state(2, 20), weights=tensors(3), optimiser=tensors(4))
    with pytest.raises(AssertionError, match="under way"):
        writer.begin(state(3, 30), weights=tensors(5), optimiser=tensors(6))
    writer.close()  # waits
    newest = checkpoint.newest_sound(config.run_folder).folder
    assert newest.name == "epoch-0002-step-000020"
    assert checkpoint.read_weights(newest)["second"].tolist() == [3.0] * 6
    assert checkpoint.read_optimiser(newest)["first"].shape == (2, 3)


def test_records_are_kept_before_the_checkpoint_that_follows_them_is_there(config):
    seen = []

    def keep():
        seen.append(checkpoint.checkpoints(config.run_folder))

    writer = Saver(config, allowed=Gate(opened=True), news=lambda *_: None, before=keep)
    writer.begin(state(1, 10), weights=tensors(1), optimiser={})
    writer.close()
    assert seen == [[]]
    assert len(checkpoint.checkpoints(config.run_folder)) == 1


def test_a_failure_is_told_once_and_the_one_before_is_kept(config, caplog):
    writer = saver(config, Gate(opened=True))
    writer.begin(state(1, 10), weights=tensors(1), optimiser={})
    assert writer.settle() == ""
    folder = config.run_folder / checkpoint.FOLDER
    away = folder.rename(folder.with_name("away"))
    folder.write_text("a file where the folder should be")
    writer.begin(state(2, 20), weights=tensors(2), optimiser={})
    failure = writer.settle()
    assert "epoch-0002-step-000020: cannot be written" in failure
    assert "\n" not in failure
    assert writer.settle() == ""
    folder.unlink()
    away.rename(folder)
    assert [path.name for path in folder.iterdir()] == ["epoch-0001-step-000010"]
    os.chmod(folder, 0o755)
    folder.rename(away)
    folder.write_text("again")
    writer.begin(state(2, 20), weights=tensors(2), optimiser={})
    writer.close()
    assert "cannot be written" in caplog.text


def test_who_lost_the_run_leaves_nothing(config):
    gate = Gate(opened=True)
    writer = saver(config, gate)
    gate.lost = True
    writer.begin(state(1, 10), weights=tensors(1), optimiser={})
    assert "others have taken this run over" in writer.settle()
    assert list((config.run_folder / checkpoint.FOLDER).iterdir()) == []
    writer.close()


def mirrored(config, url):
    write_run_record(config.run_folder, RunRecord("id", "uri", {}, "RUNNING"))
    return config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_mirror": url})})


def test_a_mirror_that_fails_is_news_and_caught_up_with(config, tmp_path):
    (tmp_path / "distant").write_text("in the way")
    news = []
    config = mirrored(config, f"file://{tmp_path}/distant")
    writer = saver(config, Gate(opened=True), news)
    for number in (1, 2):
        writer.begin(state(number, 10 * number), weights=tensors(1), optimiser={})
        assert writer.settle() == ""  # training goes on
    ((line, *_),) = news
    assert "cannot be written" in line
    assert "tried again with the next checkpoint" in line
    failure = writer.finish()
    assert "train.checkpoint_mirror" in failure
    assert "the same command tries again" in failure
    (tmp_path / "distant").unlink()
    assert writer.finish() == ""
    there = sorted(path.name for path in (tmp_path / "distant" / "small" / "checkpoints").iterdir())
    assert there == [folder.name for folder in checkpoint.checkpoints(config.run_folder)]
    writer.close()
