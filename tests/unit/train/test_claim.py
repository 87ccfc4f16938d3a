"""Who writes a run's checkpoints: the last to come, and nobody else."""

import json
import os
import signal
import time
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txpert_dist.errors import CheckpointError, ConfigError, TrainingError
from txpert_dist.train.claim import held, join, take, tell_to_stop, told_to_stop


def writes(claim):
    try:
        with held(claim):
            return True
    except CheckpointError:
        return False


@given(actions=st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=12))
@settings(max_examples=25)
def test_only_the_last_group_of_the_last_start_writes(tmp_path_factory, actions):
    """None: a driver starts. A number: that driver's next group of workers starts, if it still may."""
    folder = tmp_path_factory.mktemp("run")
    starts, groups = [take(folder)], []
    for action in actions:
        if action is None:
            starts.append(take(folder))
        elif action % len(starts) == len(starts) - 1:
            groups.append(join(folder, starts[-1].start))
        else:
            with pytest.raises(TrainingError, match="another command has taken this run over"):
                join(folder, starts[action % len(starts)].start)
        current = groups[-1:] if groups and groups[-1].start == starts[-1].start else []
        assert [group for group in groups if writes(group)] == current
        assert [told_to_stop(start) for start in starts] == [True] * (len(starts) - 1) + [False]


def test_word_to_stop_outlives_groups_but_not_the_start(tmp_path):
    start = take(tmp_path)
    first = join(tmp_path, start.start)
    tell_to_stop(start)
    assert told_to_stop(first)
    second = join(tmp_path, start.start)
    assert told_to_stop(second)
    assert writes(second)  # the last checkpoint
    later = take(tmp_path)
    assert not told_to_stop(later)
    tell_to_stop(start)  # whoever was told late
    assert not told_to_stop(later)


def hold_and_hang(folder, start, sender):
    with held(join(folder, start)):
        sender.send("held")
        time.sleep(600)


def take_over(folder, sender):
    sender.send("begun")
    take(folder)
    sender.send("taken")


def test_a_taker_waits_for_a_writer_and_a_killed_one_holds_nothing(tmp_path):
    context = get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    orphan = context.Process(target=hold_and_hang, args=(tmp_path, take(tmp_path).start, sender))
    orphan.start()
    assert receiver.recv() == "held"
    taker = context.Process(target=take_over, args=(tmp_path, sender))
    taker.start()
    assert receiver.recv() == "begun"
    assert not receiver.poll(1)
    os.kill(orphan.pid, signal.SIGKILL)
    assert receiver.recv() == "taken"
    for process in (orphan, taker):
        process.join()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    folder = tmp_path / "gone"
    with pytest.raises(ConfigError, match=r"output: .*gone cannot be written \(No such file") as refusal:
        take(folder)
    assert "\n" not in str(refusal.value)
    start = take(tmp_path)
    assert json.loads((tmp_path / "claim.json").read_text()) == {
        "start": start.start,
        "group": "",
        "stop": False,
    }
