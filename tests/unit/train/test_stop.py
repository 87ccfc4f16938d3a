"""Signals to real processes: the first is heard, the second obeyed. Who waits for the workers, how long."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from txpert_dist.train.claim import join, take, tell_to_stop, told_to_stop
from txpert_dist.train.stop import Ear, Stopped, attended, told_by_sigterm, word_awaited

WORKER = """
import sys, time
from txpert_dist.train.stop import listen_for_sigterm, told_by_sigterm
listen_for_sigterm()
listen_for_sigterm()
print("ready", flush=True)
told_by_sigterm().wait(60)
print("told", flush=True)
time.sleep(60)
"""
DRIVER = """
import signal, sys, time
# a shell's background ignores it
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "background" else signal.default_int_handler)
from txpert_dist.train.stop import listening, Stopped
try:
    with listening() as ear:
        if sys.argv[1] == "ray":
            sys.exit(0)
        print("ready", flush=True)
        ear.told.wait(60)
        print("told", flush=True)
        time.sleep(60)
except Stopped as stop:
    print(stop)
except KeyboardInterrupt:
    print("interrupted")
"""


def begun(program, *arguments):
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_worker_outlives_its_first_sigterm_and_no_second_one():
    worker = begun(WORKER)
    assert worker.stdout.readline() == "ready\n"
    worker.terminate()
    assert worker.stdout.readline() == "told\n"
    assert worker.poll() is None
    worker.terminate()
    assert worker.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_hears_the_first_signal_and_is_interrupted_by_the_second(first, second):
    driver = begun(DRIVER, "")
    assert driver.stdout.readline() == "ready\n"
    driver.send_signal(first)
    assert driver.stdout.readline() == "told\n"
    driver.send_signal(second)
    assert driver.communicate(timeout=30) == ("interrupted\n", "")


def test_a_driver_in_the_background_does_not_hear_what_it_ignores():
    driver = begun(DRIVER, "background")
    assert driver.stdout.readline() == "ready\n"
    driver.send_signal(signal.SIGINT)
    driver.terminate()
    assert driver.stdout.readline() == "told\n"
    with pytest.raises(subprocess.TimeoutExpired):
        driver.wait(2)
    driver.terminate()
    assert driver.communicate(timeout=30) == ("interrupted\n", "")


def test_other_handlers_that_end_the_process_only_stop_the_run():
    out, err = begun(DRIVER, "ray").communicate(timeout=30)
    assert "the same command goes on" in out
    assert err == ""


def test_nobody_listens_unasked():
    assert not told_by_sigterm().is_set()


@pytest.fixture
def claim(tmp_path):
    return take(tmp_path)


def until_told(claim, answer):
    """Workers that end once they find the driver's word."""

    def work():
        told = threading.Event()
        with word_awaited(join(claim.run_folder, claim.start), told):
            assert told.wait(60)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return work


def told_ear():
    ear = Ear()
    ear.told.set()
    return ear


def wait_for(work, ear, claim, deadline_s=60.0):
    news = []
    return attended(work, ear, claim, deadline_s=deadline_s, news=news.append), news


def test_the_answer_of_a_run_that_nobody_stops(claim):
    assert wait_for(lambda: {"stopped_at": None}, Ear(), claim) == ({"stopped_at": None}, [])
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 / 0, Ear(), claim)
    assert not told_to_stop(claim)


def test_workers_get_word_and_say_where_they_stopped(claim):
    with pytest.raises(Stopped, match=r"stopped at step 1,234, with a checkpoint; the same command goes on"):
        wait_for(until_told(claim, {"stopped_at": 1234}), told_ear(), claim)
    # a run that was done before it heard is done
    assert wait_for(until_told(claim, {"stopped_at": None}), told_ear(), claim)[0] == {"stopped_at": None}
    # a worker that was told by its own node
    with pytest.raises(Stopped, match="stopped at step 7,"):
        wait_for(lambda: {"stopped_at": 7}, Ear(), claim)


def test_workers_that_die_instead_or_take_too_long(claim):
    with pytest.raises(Stopped, match="the workers ended without a last checkpoint"):
        wait_for(until_told(claim, RuntimeError("gone")), told_ear(), claim)
    with pytest.raises(Stopped, match=r"train\.stop_deadline_s=0\.5 have passed"):
        wait_for(lambda: time.sleep(60) or {}, told_ear(), claim, deadline_s=0.5)


@pytest.mark.parametrize("leave_word", [tell_to_stop, lambda claim: take(claim.run_folder)])
def test_word_is_heard_and_so_is_another_driver(claim, leave_word):
    told = threading.Event()
    with word_awaited(claim, told):
        assert not told.wait(1)
        leave_word(claim)
        assert told.wait(30)


def test_a_shared_file_that_cannot_be_read_for_a_while_changes_nothing(claim, tmp_path, caplog):
    told = threading.Event()
    os.rename(tmp_path / "claim.json", tmp_path / "away")
    with word_awaited(claim, told):
        assert not told.wait(1.5)
        os.rename(tmp_path / "away", tmp_path / "claim.json")
        assert not told.wait(1)
        tell_to_stop(claim)
        assert told.wait(30)
    assert "cannot see whether to stop" in caplog.text
