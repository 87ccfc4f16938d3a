"""Records that wait: nothing lost, nothing out of order, whatever is killed or full."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txpert_dist.train.spool import FOLDER, Spool, left_behind, new_spool, waiting

ACTIONS = st.lists(st.tuples(st.sampled_from(["append", "deliver"]), st.integers(0, 5)), max_size=40)


@given(ACTIONS)
def test_what_goes_in_comes_out_once_and_in_order(actions):
    """Against a plain list."""
    file = io.BytesIO()
    spool, expected, got, number = Spool(file), [], [], 0
    for action, amount in actions:
        if action == "append":
            entries = [{"n": number + i} for i in range(amount)]
            number += amount
            expected += entries
            assert spool.append(entries) == 0
        else:
            shown = spool.next(amount)
            assert shown == expected[len(got) : len(got) + amount]
            taken = shown[: amount // 2 + 1]
            spool.delivered(len(taken))
            got += taken
        assert spool.pending == (len(got) < len(expected))
        assert len(spool) == len(expected) - len(got)
        if not spool.pending:
            assert file.getvalue() == b""


@given(st.lists(st.integers(0, 10**6), max_size=20), st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines(numbers, data):
    whole = io.BytesIO()
    Spool(whole).append([{"n": n} for n in numbers])
    content = whole.getvalue()
    cut = data.draw(st.integers(0, len(content)))
    spool = Spool(io.BytesIO(content[:cut]))
    expected = [json.loads(line) for line in content[:cut].split(b"\n")[:-1]]
    assert spool.next(100) == expected
    spool.delivered(len(expected))
    assert not spool.pending


def test_a_damaged_line_costs_only_itself():
    spool = Spool(io.BytesIO(b'{"n": 1}\n{"n": \x00\xff}\n[3]\n{"n": 4}\n'))
    assert spool.next(10) == [{"n": 1}, {}, {}, {"n": 4}]


def test_a_full_spool_says_how_much_it_refuses():
    spool = Spool(io.BytesIO(), limit=30)
    entries = [{"n": number} for number in range(5)]  # 9 bytes each
    assert spool.append(entries) == 2
    assert spool.append(entries[:1]) == 1
    assert spool.next(10) == entries[:3]
    spool.delivered(3)
    assert spool.append(entries[:1]) == 0  # there is room again


def test_files_are_gone_when_all_is_delivered(tmp_path):
    first, second = new_spool(tmp_path, "metrics"), new_spool(tmp_path, "records")
    first.append([{"n": 1}])
    second.append([{"n": 2}, {"n": 3}])
    assert waiting(tmp_path) == 3
    assert list(left_behind(tmp_path)) == []  # their writers live
    first.close()
    second.next(2)
    second.delivered(2)
    second.close()
    (left,) = left_behind(tmp_path, "metrics")
    assert list(left_behind(tmp_path)) == []  # it is taken
    assert left.next(5) == [{"n": 1}]
    left.delivered(1)
    left.close()
    assert not (tmp_path / FOLDER).exists()
    assert waiting(tmp_path) == 0


def test_without_a_folder_records_wait_in_memory(tmp_path):
    for folder in (None, tmp_path / "nowhere"):
        spool = new_spool(folder, "metrics")
        spool.append([{"n": 1}])
        assert spool.next(1) == [{"n": 1}]
        spool.close()
    (tmp_path / FOLDER).write_text("a file in the way")
    new_spool(tmp_path, "metrics").append([{"n": 1}])
    assert list(tmp_path.iterdir()) == [tmp_path / FOLDER]


WRITER = """
import sys
from pathlib import Path
from txpert_dist.train.spool import new_spool
spool, number = new_spool(Path(sys.argv[1]), "metrics"), 0
while True:
    spool.append([{"n": number}, {"n": number + 1}])
    number += 2
    print(number, flush=True)
"""


@pytest.mark.process
def test_a_killed_writer_leaves_every_entry(tmp_path):
    """Three writers, killed one after the other: what each had told of is there, in order."""
    told = []
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            lines = [int(next(writer.stdout)) for _ in range(50)]
            assert list(left_behind(tmp_path))[len(told) :] == []
            os.kill(writer.pid, signal.SIGKILL)
        told.append(lines[-1])
    spools = list(left_behind(tmp_path))
    assert len(spools) == 3
    for spool, number in zip(spools, told, strict=True):
        entries = [entry["n"] for entry in spool.next(10**6)]
        assert entries == list(range(len(entries)))
        assert len(entries) >= number
